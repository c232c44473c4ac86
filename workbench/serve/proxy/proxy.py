"""The PD proxy: one URL in front of all instances; it routes by index and timestamps both legs.

    python -m workbench.serve.proxy.proxy --port 8000 --mode lmcache \\
        --prefill http://127.0.0.1:8100 --decode http://127.0.0.1:8200

With mode mooncake each `--prefill` has a `--bootstrap`, the URL of its bootstrap server, in the
same order. Aggregated instances are given as `--decode` alone: one leg through the same proxy, so
that the baseline has the same overhead. The stream passes unchanged and is not parsed. Besides
`/v1/completions` and `/v1/chat/completions` there are

    GET /health      the proxy itself is ready
    GET /v1/models   the response of the first decode instance
    GET /servers     records.ProxyFacts, and `clock_s`: CLOCK_MONOTONIC of this process
    GET /legs        records.LegRecord of each finished request since the last call, as JSON (NaN
                     is null)
    GET /stats       {"cpu_s", "uptime_s", "requests", "failed"} of this process
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from asyncio import create_task
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from time import monotonic, process_time
from typing import Any
from uuid import uuid4

import orjson
import uvloop
from aiohttp import web

from workbench.errors import ParameterError, must_be, needs
from workbench.records import PROXY_HEADER, LegRecord
from workbench.serve.connectors import CONNECTORS, Connector, connector
from workbench.serve.proxy.legs import Engines, LegFailed, Trip, Upstream, json_object

INDEX_HEADER = "X-Workbench-Index"
"""The request's position in the workload; without it the proxy routes round robin."""
DECODE_SHIFT_HEADER = "X-Workbench-Decode-Shift"
"""Shifts the decode leg by this many instances, for the cross-instance pass; default 0."""

_BODY_BYTES = 64 * 2**20
_SHUTDOWN_S = 1.0
_BACKLOG = 4096
"""Connections waiting to be accepted: a larger burst is delayed by a SYN retry of one second, which
looks like a slow prefill."""
_KEPT_LEGS = 100_000
"""More than a pass has; servers that nobody measures must not fill the memory."""


def create_app(
    *,
    mode: str,
    decode: Sequence[str],
    prefill: Sequence[str] = (),
    bootstrap: Sequence[str] = (),
    about: Mapping[str, Any] | None = None,
    fault: str = "",
) -> web.Application:
    """The proxy as an aiohttp application. `prefill` and `decode` are base URLs of instances,
    `mode` is the name of their connector, `bootstrap` are the bootstrap servers of `prefill`.
    `about` are fields of ProxyFacts that only who started the instances knows.

    `fault` injects one fault: `transfer_params_lost` drops what the decode instance needs to fetch
    the KV. Serve it with `handler_cancellation=True`, so that a disconnecting client ends its legs.
    Raises ParameterError for an invalid URL, no decode instance, or prefill instances without a
    connector.
    """
    routes = Routes(
        prefill=tuple(url.rstrip("/") for url in prefill),
        decode=tuple(url.rstrip("/") for url in decode),
        bootstrap=tuple(url.rstrip("/") for url in bootstrap),
    )
    moves = connector(mode)
    due = len(prefill) if moves.at_once else 0
    if len(bootstrap) != due:
        allowed = f"{due} URLs with mode {mode}, one for each --prefill"
        raise ParameterError(must_be("--bootstrap", allowed, [*bootstrap], "http://127.0.0.1:8998"))
    if routes.prefill and not moves.transfers:
        needed = "--mode lmcache or nixl (without KV transfer, both roles would prefill)"
        raise ParameterError(needs("--prefill", needed, mode, "lmcache"))
    proxy = _Proxy(moves, routes, fault, about or {})
    app = web.Application(client_max_size=_BODY_BYTES)
    app.cleanup_ctx.append(proxy.connections)
    app.router.add_post("/v1/completions", proxy.generate)
    app.router.add_post("/v1/chat/completions", proxy.generate)
    app.router.add_get("/v1/models", proxy.models)
    app.router.add_get("/servers", proxy.servers)
    app.router.add_get("/health", proxy.health)
    app.router.add_get("/legs", proxy.drain_legs)
    app.router.add_get("/stats", proxy.stats)
    return app


def main(argv: Sequence[str] | None = None) -> None:
    """Serve until SIGTERM or SIGINT; requests in flight then have one more second."""
    parser = argparse.ArgumentParser(prog="python -m workbench.serve.proxy.proxy")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--mode", choices=CONNECTORS, required=True)
    parser.add_argument("--prefill", action="append", default=[], metavar="URL")
    parser.add_argument("--decode", action="append", default=[], metavar="URL")
    parser.add_argument("--bootstrap", action="append", default=[], metavar="URL")
    parser.add_argument("--about", type=orjson.loads, default={}, metavar="JSON")
    parser.add_argument(
        "--fault", choices=["transfer_params_lost"], default="", help=argparse.SUPPRESS
    )
    asked = parser.parse_args(argv)
    try:
        app = create_app(
            mode=asked.mode,
            prefill=asked.prefill,
            decode=asked.decode,
            bootstrap=asked.bootstrap,
            about=asked.about,
            fault=asked.fault,
        )
    except ParameterError as error:
        parser.error(str(error))
    try:
        web.run_app(
            app,
            host=asked.host,
            port=asked.port,
            loop=uvloop.new_event_loop(),
            print=None,
            access_log=None,
            backlog=_BACKLOG,
            shutdown_timeout=_SHUTDOWN_S,
            handler_cancellation=True,
        )
    except OSError as error:
        sys.exit(f"the proxy cannot listen on {asked.host}:{asked.port}: {error}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Routes:
    """Base URLs of the instances. Without prefill instances they are aggregated: one leg."""

    prefill: tuple[str, ...] = ()
    decode: tuple[str, ...]
    bootstrap: tuple[str, ...] = ()
    """Of each prefill instance, where the connector needs it."""

    def __post_init__(self) -> None:
        if not self.decode:
            raise ParameterError(
                must_be("--decode", "one URL or more", [], "http://127.0.0.1:8200")
            )
        for url in self.prefill + self.decode + self.bootstrap:
            if not url.startswith(("http://", "https://")):
                allowed = "an http:// or https:// URL"
                example = "--decode http://127.0.0.1:8200"
                raise ParameterError(
                    must_be("each entry of --prefill and --decode", allowed, url, example)
                )

    def at(self, index: int, *, shift: int = 0) -> tuple[str, str]:
        """Prefill (empty if aggregated) and decode instance of the request at `index`.

        The same index always gets the same pair, so a repeated workload hits its own cache entries;
        `shift` moves the decode leg (the only one if aggregated) to another instance.
        """
        prefill = self.prefill[index % len(self.prefill)] if self.prefill else ""
        return prefill, self.decode[(index + shift) % len(self.decode)]


class _Proxy:
    """State of one proxy process: its routes, connections and recorded legs."""

    upstream: Upstream
    engines: Engines
    """Both are created by `connections`, inside the event loop."""

    def __init__(
        self, moves: Connector, routes: Routes, fault: str, about: Mapping[str, Any]
    ) -> None:
        self.moves, self.routes, self.fault, self.about = moves, routes, fault, about
        self.turn = count()
        self.legs: deque[LegRecord] = deque(maxlen=_KEPT_LEGS)
        self.requests = 0
        self.failed = 0
        self.started_s = monotonic()

    async def connections(self, _app: web.Application) -> AsyncIterator[None]:
        self.upstream = Upstream()
        watching = []
        if legs := self.moves.at_once:
            self.engines = Engines(self.upstream, legs)
            watching = [create_task(self.engines.watch(url)) for url in self.routes.bootstrap]
        yield
        for task in watching:
            task.cancel()
        await self.upstream.close()

    async def generate(self, request: web.Request) -> web.StreamResponse:
        """Both legs of one request; every routed request leaves one LegRecord."""
        received_s = monotonic()
        body = await request.read()
        try:
            index = _whole_number(request, INDEX_HEADER)
            shift = _whole_number(request, DECODE_SHIFT_HEADER) or 0
            asked = json_object(body) if self.routes.prefill else {}
        except ValueError as error:
            return _json({"error": {"message": str(error), "type": "bad_request"}}, status=400)
        self.requests += 1
        turn = next(self.turn) if index is None else index
        prefill, decode = self.routes.at(turn, shift=shift)
        routed = LegRecord(
            request_id=request.headers.get("X-Request-Id") or uuid4().hex,
            index=-1 if index is None else index,
            prefill_instance=prefill,
            decode_instance=decode,
            received_s=received_s,
        )
        trip = Trip(request, self.upstream, routed)
        lost = self.fault == "transfer_params_lost"
        try:
            if prefill and self.moves.at_once:
                side_url = self.routes.bootstrap[turn % len(self.routes.prefill)]
                return await trip.at_once(asked, self.moves, self.engines, side_url, lost=lost)
            added = await trip.prefill(asked, self.moves) if prefill else {}
            if added and not lost:
                body = orjson.dumps(asked | added)
            return await trip.decode(body)
        except LegFailed as failure:
            trip.failed(failure)
            return _json(failure.payload, status=failure.http_status)
        except asyncio.CancelledError:
            trip.cancelled()
            raise
        finally:
            self.failed += bool(trip.record.error)
            self.legs.append(trip.record)

    async def models(self, request: web.Request) -> web.Response:
        instance = self.routes.decode[0]
        try:
            async with self.upstream.answer("decode", instance, request.path, {}, None) as response:
                return web.Response(
                    body=await response.read(),
                    content_type=response.content_type,
                    headers={PROXY_HEADER: self.moves.name},
                )
        except LegFailed as failure:
            return _json(failure.payload, status=failure.http_status)

    async def servers(self, _request: web.Request) -> web.Response:
        routes = {"prefill": self.routes.prefill, "decode": self.routes.decode}
        known = {"connector": self.moves.name} if self.routes.prefill else {}
        return _json({**known, **self.about, **routes, "clock_s": monotonic()})

    async def health(self, _request: web.Request) -> web.Response:
        return _json({"status": "ok", "mode": self.moves.name})

    async def drain_legs(self, _request: web.Request) -> web.Response:
        drained = [*self.legs]
        self.legs.clear()
        return _json(drained)

    async def stats(self, _request: web.Request) -> web.Response:
        return _json(
            {
                "cpu_s": process_time(),
                "uptime_s": monotonic() - self.started_s,
                "requests": self.requests,
                "failed": self.failed,
            }
        )


def _json(value: object, *, status: int = 200) -> web.Response:
    # orjson writes dataclasses as objects and NaN as null.
    return web.Response(body=orjson.dumps(value), status=status, content_type="application/json")


def _whole_number(request: web.Request, header: str) -> int | None:
    """The header's value, None without the header. Raises ValueError with a sentence."""
    text = request.headers.get(header)
    if text is None:
        return None
    if not text.isdecimal():
        raise ValueError(f"{header} must be an integer from 0, got {text!r} (example: {header}: 3)")
    return int(text)


if __name__ == "__main__":
    main()
