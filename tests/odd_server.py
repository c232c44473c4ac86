"""One server of the tests that answers in ways of its own: byte by byte, or JSON by path.

    async with odd_server(http("429 Slow", b"busy")) as server:     # the same bytes for all
    async with odd_server({"/v1/models": {"data": []}}) as server:  # by path, 404 for others
    async with odd_server(answer) as server:                        # async def answer(asked)

`answer` may be changed at any time. A connection is closed after an answer, unless a function
returns KEEP. What streams and counts as vLLM does is `workbench.serve.simulated`.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import KW_ONLY, dataclass, field
from time import monotonic
from typing import Any

KEEP = "keep"


@dataclass(frozen=True)
class Asked:
    """One request as it came, and the connection for answers of any kind."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    _: KW_ONLY
    method: str = ""
    path: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    """By name in small letters."""
    body: bytes = b""
    read_s: float = field(default_factory=monotonic)

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def client_port(self) -> int:
        return int(self.writer.get_extra_info("peername")[1])

    async def write(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


Answer = bytes | Mapping[str, Any] | Callable[[Asked], Awaitable[Any]]
"""By path: JSON, bytes as they are, or a tuple of those, one for each request and then the last."""


@dataclass
class OddServer:
    """What was asked of the server, and what it answers."""

    answer: Answer = field(default_factory=dict)
    reads: bool = True
    """False: it answers before it has read anything."""
    url: str = ""
    accepts: int = 0
    asked: list[Asked] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepts += 1
        try:
            said = KEEP
            while said == KEEP:
                read = await _read(reader, writer) if self.reads else Asked(reader, writer)
                self.asked.append(read)
                said = await self._answer(read)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client had enough, or the test has ended
        finally:
            writer.close()

    async def _answer(self, asked: Asked) -> Any:
        if callable(self.answer):
            return await self.answer(asked)
        if isinstance(self.answer, bytes):
            return await asked.write(self.answer)
        said = self.answer.get(asked.path, http("404 Not Found", {}, "Connection: close"))
        if isinstance(said, tuple):
            times = sum(earlier.path == asked.path for earlier in self.asked)
            said = said[min(times, len(said)) - 1]
        whole = said if isinstance(said, bytes) else http("200 OK", said, "Connection: close")
        return await asked.write(whole)


@asynccontextmanager
async def odd_server(
    answer: Answer, *, reads: bool = True, tls: ssl.SSLContext | None = None
) -> AsyncIterator[OddServer]:
    """A server on 127.0.0.1 that gives this answer to every request."""
    odd = OddServer(answer, reads)
    connections: set[asyncio.Task[None]] = set()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.add(asyncio.create_task(odd.serve(reader, writer)))

    server = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=tls)
    odd.url = f"http{'s' * bool(tls)}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    yield odd
    server.close()
    for connection in connections:
        connection.cancel()
    await asyncio.gather(*connections)


def http(status: str, body: Any = b"", *headers: str) -> bytes:
    """A whole response with its length: `http("200 OK", {"id": 1}, "Retry-After: 3")`."""
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(text)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + text


def event(content: Any) -> bytes:
    """A server-sent event of some JSON, or of text as it is: `event("[DONE]")`."""
    text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
    return f"data: {text}\n\n".encode()


def chunked(data: bytes) -> bytes:
    """One chunk of a chunked body; that of b"" ends it."""
    return b"%x\r\n%b\r\n" % (len(data), data)


async def _read(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Asked:
    start = await reader.readexactly(1)
    if not start.isalpha():
        writer.write(http("400 Bad Request"))  # to who speaks TLS, say
        raise ConnectionError
    head = (start + await reader.readuntil(b"\r\n\r\n")).decode()
    first, *lines = head.rstrip().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    method, path, _ = first.split()
    return Asked(reader=reader, writer=writer, method=method, path=path, headers=headers, body=body)
