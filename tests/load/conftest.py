"""A server on 127.0.0.1 that streams like vLLM 0.32, in pieces and with faults as told."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from tests.odd_server import KEEP, Asked, OddServer, chunked, event, http, odd_server


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


class FakeVllm:
    """What the server is to play, and what it saw."""

    def __init__(self) -> None:
        self.play, self.server = Play(), OddServer()
        self.first_token_s: list[float] = []
        self.hanging = asyncio.Semaphore(0)
        """Released by each answer that has begun to hang."""
        self.left = asyncio.Event()
        """A client has left a hanging answer."""

    url = property(attrgetter("server.url"))
    asked = property(attrgetter("server.asked"))
    accepts = property(attrgetter("server.accepts"))

    def plays(self, **options: Any) -> None:
        self.play = Play(**options)

    async def hangs(self, answers: int = 1) -> None:
        """Return when so many answers hang and the client has read what they said."""
        for _ in range(answers):
            await self.hanging.acquire()
        await asyncio.sleep(0.05)

    async def answer(self, asked: Asked) -> str:
        play, writer = self.play, asked.writer
        reused = [each.client_port for each in self.asked].count(asked.client_port) > 1
        if play.hangs_up == "on_reuse" and reused:
            return ""
        if play.status != 200:
            error = {"error": {"message": "no room", "code": play.status}}
            await asked.write(http(f"{play.status} No", error))
            return KEEP
        events = self.events(asked)
        if play.one_write or play.framing == "length":
            events = [(b"".join(data for data, _ in events), 0.0)]
        framing = {
            "chunked": "Transfer-Encoding: chunked",
            "close": "Connection: close",
            "length": f"Content-Length: {len(events[0][0])}",
        }
        await asked.write(f"HTTP/1.1 200 OK\r\n{framing[play.framing]}\r\n\r\n".encode())
        await self.stream(asked, events)
        if play.ending == "reset":
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        if play.ending in ("reset", "cut"):
            return ""
        if play.ending == "hang":
            self.hanging.release()
            await asked.reader.read()
            self.left.set()
            return ""
        if play.framing == "chunked":
            await self.write(asked, b"0\r\nX-Note: end\r\n\r\n" if play.trailer else chunked(b""))
        return "" if play.framing == "close" or play.hangs_up == "after" else KEEP

    async def stream(self, asked: Asked, events: list[tuple[bytes, float]]) -> None:
        begin_s = monotonic()
        for number, (data, at_s) in enumerate(events):
            if at_s:
                await asyncio.sleep(max(0.0, begin_s + at_s - monotonic()))
            if number == (1 if "chat" in asked.path else 0):
                self.first_token_s.append(monotonic())
            await self.write(asked, chunked(data) if self.play.framing == "chunked" else data)

    async def write(self, asked: Asked, data: bytes) -> None:
        size = self.play.piece_bytes or len(data)
        for start in range(0, len(data), size):
            await asked.write(data[start : start + size])
            if size < len(data):
                await asyncio.sleep(0)

    def events(self, asked: Asked) -> list[tuple[bytes, float]]:
        """(event, seconds after the head) as vLLM sends them, up to the fault if there is one."""
        play, body, chat = self.play, asked.json, "chat" in asked.path
        total = body["max_tokens"]
        events = [(chunk(chat, {"role": "assistant", "content": ""}, 0), 0.0)] if chat else []
        made, at_s = 0, play.first_s
        while made < total:
            if play.ending and made >= play.after:
                if play.ending == "error":
                    error = {"message": "EngineCore encountered an issue.", "code": 500}
                    events += [(event({"error": error}), at_s), (event("[DONE]"), at_s)]
                return events
            step = min(play.tokens_per_chunk, total - made)
            text = "".join(f" t{n}\u00e9" for n in range(made, made + step))
            made += step
            last = made == total and play.finish_s < 0
            delta: dict[str, Any] = {"content": text} if chat else {"text": text}
            if body.get("return_token_ids"):
                delta["token_ids"] = [100 * len(self.asked) + n for n in range(made - step, made)]
            events.append((chunk(chat, delta, made, finish="length" if last else None), at_s))
            at_s += play.gap_s
        if play.finish_s >= 0:
            delta = {} if chat else {"text": ""}
            events.append((chunk(chat, delta, made, finish="length"), at_s + play.finish_s))
        prompt = len(body.get("prompt", ())) + play.added_prompt_tokens
        usage = {
            "prompt_tokens": prompt,
            "completion_tokens": total,
            "total_tokens": prompt + total,
            "prompt_tokens_details": {"cached_tokens": 7},
        }
        metrics = {"time_to_first_token_ms": 1.5, "queue_time_ms": 0.5}
        end = event(FIELDS | {"choices": [], "usage": usage, "metrics": metrics})
        return [*events, (end, 0.0), (event("[DONE]"), 0.0)]


FIELDS = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": "tiny"}


def chunk(chat: bool, delta: dict[str, Any], made: int, *, finish: str | None = None) -> bytes:
    choice = {"index": 0, "finish_reason": finish, **({"delta": delta} if chat else delta)}
    usage = {"prompt_tokens": 3, "completion_tokens": made, "total_tokens": made + 3}
    return event(FIELDS | {"choices": [choice], "usage": usage})


@pytest.fixture
async def vllm() -> AsyncIterator[FakeVllm]:
    fake = FakeVllm()
    async with odd_server(fake.answer) as fake.server:
        yield fake


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
