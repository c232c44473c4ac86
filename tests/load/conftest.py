"""A server on 127.0.0.1 that streams like vLLM 0.32, in pieces and with faults as told."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

import pytest


@dataclass
class Play:
    """How the next answers go."""

    first_s: float = 0.0
    gap_s: float = 0.0
    tokens_per_chunk: int = 1
    framing: str = "chunked"  # or "length", "close"
    piece_bytes: int = 0  # 0: one write per event
    one_write: bool = False  # all events at once
    status: int = 200
    ending: str = ""  # after `after` tokens: "error", "truncated", "cut", "reset", "hang"
    after: int = 1
    added_prompt_tokens: int = 0  # to those that the last usage counts
    finish_s: float = -1.0  # from 0 up: finish_reason comes so late, in a chunk of its own
    trailer: bool = False
    hangs_up: str = ""  # "after" an answer, or "on_reuse" when the next request has come
    raw: bytes | Callable[[asyncio.StreamWriter], Awaitable[None]] | None = None
    """These bytes, or what this writes, instead of an answer; then it hangs up."""
    reads: bool = True  # the request, before the raw answer


@dataclass
class FakeVllm:
    url: str = ""
    play: Play = field(default_factory=Play)
    accepts: int = 0
    seen: list[tuple[str, dict[str, str], dict[str, Any]]] = field(default_factory=list)
    ports: list[int] = field(default_factory=list)
    """The client's port of each request."""
    read_s: list[float] = field(default_factory=list)
    first_token_s: list[float] = field(default_factory=list)
    hanging: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))
    """Released by each answer that has begun to hang."""
    left: asyncio.Event = field(default_factory=asyncio.Event)
    """A client has left a hanging answer."""
    tasks: set[asyncio.Task[Any]] = field(default_factory=set)

    def plays(self, **options: Any) -> None:
        self.play = Play(**options)

    async def hangs(self, answers: int = 1) -> None:
        """Return when so many answers hang and the client has read what they said."""
        for _ in range(answers):
            await self.hanging.acquire()
        await asyncio.sleep(0.05)

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepts += 1
        self.tasks.add(asyncio.current_task())  # type: ignore[arg-type]
        try:
            if self.play.raw is not None and not self.play.reads:
                await self.answer_raw(writer)
                return
            while await self.exchanged(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def exchanged(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request and its answer; whether the connection may carry more."""
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
        body = json.loads(await reader.readexactly(int(headers["content-length"])))
        self.read_s.append(monotonic())
        port, path = writer.get_extra_info("peername")[1], lines[0].split()[1]
        if self.play.hangs_up == "on_reuse" and port in self.ports:
            return False
        self.ports.append(port)
        self.seen.append((path, headers, body))
        if self.play.raw is not None:
            await self.answer_raw(writer)
            return False
        await self.answer(writer, path, body)
        if self.play.ending == "hang":
            self.hanging.release()
            await reader.read()
            self.left.set()
        return "hang" != self.play.ending and not (
            self.play.framing == "close" or self.play.hangs_up == "after"
        )

    async def answer_raw(self, writer: asyncio.StreamWriter) -> None:
        if isinstance(self.play.raw, bytes):
            writer.write(self.play.raw)
        elif self.play.raw is not None:
            await self.play.raw(writer)

    async def answer(self, writer: asyncio.StreamWriter, path: str, body: dict[str, Any]) -> None:
        play = self.play
        if play.status != 200:
            text = json.dumps({"error": {"message": "no room", "code": play.status}}).encode()
            head = f"HTTP/1.1 {play.status} No\r\nContent-Length: {len(text)}\r\n\r\n"
            writer.write(head.encode() + text)
            return
        events = self.events(path, body)
        if play.one_write or play.framing == "length":
            events = [(b"".join(event for event, _ in events), 0.0)]
        framing = {
            "chunked": "Transfer-Encoding: chunked",
            "close": "Connection: close",
            "length": f"Content-Length: {len(events[0][0])}",
        }
        writer.write(f"HTTP/1.1 200 OK\r\n{framing[play.framing]}\r\n\r\n".encode())
        begin_s = monotonic()
        for number, (event, at_s) in enumerate(events):
            if at_s:
                await asyncio.sleep(max(0.0, begin_s + at_s - monotonic()))
            if number == (1 if "chat" in path else 0):
                self.first_token_s.append(monotonic())
            if play.framing == "chunked":
                event = b"%x\r\n%b\r\n" % (len(event), event)
            await self.write(writer, event)
        if play.ending == "reset":
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        if play.ending in ("reset", "cut"):
            raise ConnectionAbortedError
        if play.framing == "chunked" and play.ending != "hang":
            await self.write(writer, b"0\r\nX-Note: end\r\n\r\n" if play.trailer else b"0\r\n\r\n")

    async def write(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        size = self.play.piece_bytes or len(data)
        for start in range(0, len(data), size):
            writer.write(data[start : start + size])
            await writer.drain()
            if size < len(data):
                await asyncio.sleep(0)

    def events(self, path: str, body: dict[str, Any]) -> list[tuple[bytes, float]]:
        """(event, seconds after the head) as vLLM sends them, up to the fault if there is one."""
        play, chat = self.play, "chat" in path
        total = body["max_tokens"]
        events = [(self.chunk(chat, {"role": "assistant", "content": ""}, 0), 0.0)] if chat else []
        made, at_s = 0, play.first_s
        while made < total:
            if play.ending and made >= play.after:
                if play.ending == "error":
                    error = {"message": "EngineCore encountered an issue.", "code": 500}
                    events += [(sse({"error": error}), at_s), (b"data: [DONE]\n\n", at_s)]
                return events
            step = min(play.tokens_per_chunk, total - made)
            text = "".join(f" t{n}\u00e9" for n in range(made, made + step))
            made += step
            last = made == total and play.finish_s < 0
            delta: dict[str, Any] = {"content": text} if chat else {"text": text}
            if body.get("return_token_ids"):
                delta["token_ids"] = [100 * len(self.seen) + n for n in range(made - step, made)]
            events.append((self.chunk(chat, delta, made, finish="length" if last else None), at_s))
            at_s += play.gap_s
        if play.finish_s >= 0:
            delta = {} if chat else {"text": ""}
            events.append((self.chunk(chat, delta, made, finish="length"), at_s + play.finish_s))
        prompt = len(body.get("prompt", ())) + play.added_prompt_tokens
        usage = {
            "prompt_tokens": prompt,
            "completion_tokens": total,
            "total_tokens": prompt + total,
            "prompt_tokens_details": {"cached_tokens": 7},
        }
        metrics = {"time_to_first_token_ms": 1.5, "queue_time_ms": 0.5}
        events.append((sse({"choices": [], "usage": usage, "metrics": metrics}), 0.0))
        return [*events, (b"data: [DONE]\n\n", 0.0)]

    def chunk(
        self, chat: bool, delta: dict[str, Any], made: int, *, finish: str | None = None
    ) -> bytes:
        choice = {"index": 0, "finish_reason": finish, **({"delta": delta} if chat else delta)}
        usage = {"prompt_tokens": 3, "completion_tokens": made, "total_tokens": made + 3}
        return sse({"choices": [choice], "usage": usage})


def sse(content: dict[str, Any]) -> bytes:
    chunk = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": "tiny", **content}
    if "error" in content:
        chunk = content
    return b"data: " + json.dumps(chunk, ensure_ascii=False).encode() + b"\n\n"


@pytest.fixture
async def vllm() -> AsyncIterator[FakeVllm]:
    fake = FakeVllm()
    server = await asyncio.start_server(fake.connected, "127.0.0.1", 0)
    fake.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    yield fake
    server.close()
    for task in fake.tasks:
        task.cancel()
    await asyncio.gather(*fake.tasks)


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port on which nobody listens, and which nobody else can take meanwhile."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield int(sock.getsockname()[1])


@pytest.fixture
def file(tmp_path: Path) -> Callable[..., Path]:
    """Writes a prompts file of these rows, JSON or bytes as they are; returns its path."""

    def write(*rows: Any) -> Path:
        path = tmp_path / "own.jsonl"
        lines = (row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows)
        path.write_bytes(b"\n".join(lines))
        return path

    return write
