"""The two legs of one request behind the PD proxy, and their connections.

A request is prefilled on one instance (one token, discarded) and decoded on another: afterwards, or
at the same time if the connector makes decode wait. The connector defines additional fields of the
first leg, and what its response passes to the second.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from time import monotonic
from types import SimpleNamespace
from typing import Any, Literal
from uuid import uuid4

import aiohttp
import orjson
from aiohttp import web

from workbench.errors import DeploymentError
from workbench.records import LegRecord
from workbench.serve.connectors import Connector, LegsAtOnce

Leg = Literal["prefill", "decode"]

_KEEPALIVE_S = 4.0
"""Below the 5 s after which vLLM's HTTP server (uvicorn) closes idle connections."""
_CONNECT_S = 10.0
"""For a host that drops packets; a closed port is refused at once."""
LOOKUP_PERIOD_S = 0.25
"""No engine is restarted within it, so what was looked up is never that of an earlier one."""
_MESSAGE_CHARS = 2000
_BROKEN = (aiohttp.ClientError, OSError, TimeoutError)


class LegFailed(DeploymentError):
    """An instance refused its leg, ended it early, or sent an unusable response.

    `status` is the HTTP status of the instance, None if there was none.
    """

    def __init__(self, leg: Leg, instance: str, what: str, status: int | None = None) -> None:
        super().__init__(f"{leg} instance {instance} {what}")
        self.leg = leg
        self.instance = instance
        self.status = status

    @property
    def http_status(self) -> int:
        """The status for the client: the instance's own 4xx, else 502 Bad Gateway."""
        return self.status if self.status is not None and 400 <= self.status < 500 else 502

    @property
    def payload(self) -> dict[str, Any]:
        """The JSON body, or the error event in a stream that had already begun."""
        return {
            "error": {
                "message": str(self),
                "type": "leg_failed",
                "leg": self.leg,
                "instance": self.instance,
                "status": self.status,
            }
        }


class Upstream:
    """Connections to the instances, kept alive between requests. Needs a running event loop."""

    def __init__(self) -> None:
        self._kept = _session(aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEPALIVE_S))
        self._fresh = _session(aiohttp.TCPConnector(limit=0, force_close=True))

    async def close(self) -> None:
        await self._kept.close()
        await self._fresh.close()

    @asynccontextmanager
    async def answer(
        self, leg: Leg, instance: str, path: str, headers: Mapping[str, str], data: bytes | None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The instance's response after its headers with status 200: POST, or GET without `data`.

        Raises LegFailed for any other status, a failed connection, and one that breaks while the
        caller reads. Leaving early closes the connection, so that vLLM aborts the request.
        """
        response: aiohttp.ClientResponse | None = None
        try:
            response = await self._request(instance + path, headers, data)
            async with response:
                if response.status != 200:
                    said = _sentence(await response.read())
                    raise LegFailed(
                        leg, instance, f"responded {response.status}: {said}", response.status
                    )
                yield response
        except _BROKEN as error:
            what = "ended its response early" if response else "did not respond"
            raise LegFailed(
                leg, instance, f"{what}: {_reason(error)}", response.status if response else None
            ) from error

    async def _request(
        self, url: str, headers: Mapping[str, str], data: bytes | None
    ) -> aiohttp.ClientResponse:
        """Send once, and again only if a reused connection was already closed.

        The server may close an idle connection just as we write to it. It has then not seen the
        request, so the second try, on a new connection, repeats nothing.
        """
        reused: list[bool] = []
        method = "GET" if data is None else "POST"
        try:
            return await self._kept.request(
                method, url, data=data, headers=headers, trace_request_ctx=reused
            )
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
            if not reused:
                raise
        return await self._fresh.request(method, url, data=data, headers=headers)


class Engines:
    """Which engine runs behind each side port, looked up so often that no request waits for it."""

    def __init__(self, upstream: Upstream, legs: LegsAtOnce) -> None:
        self._upstream, self._legs = upstream, legs
        self._known: dict[str, dict[str, Any]] = {}

    async def at(self, side_url: str) -> dict[str, Any]:
        """What the last lookup returned, or a new one. Raises LegFailed, or ValueError."""
        return self._known.get(side_url) or await self._look_up(side_url)

    async def watch(self, side_url: str) -> None:
        """Look up again and again, and forget the engine when it is gone."""
        while True:
            try:
                self._known[side_url] = await self._look_up(side_url)
            except (LegFailed, ValueError):
                self._known.pop(side_url, None)
            await asyncio.sleep(LOOKUP_PERIOD_S)

    async def _look_up(self, side_url: str) -> dict[str, Any]:
        path = self._legs.lookup_path
        async with self._upstream.answer("prefill", side_url, path, {}, None) as response:
            return json_object(await response.read())


def _session(connector: aiohttp.TCPConnector) -> aiohttp.ClientSession:
    trace = aiohttp.TraceConfig()
    trace.on_connection_reuseconn.append(_note_reuse)
    return aiohttp.ClientSession(
        connector=connector,
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S),
        cookie_jar=aiohttp.DummyCookieJar(),
        # Bytes pass unchanged: nothing is compressed or decompressed.
        skip_auto_headers=("Accept-Encoding", "User-Agent"),
        auto_decompress=False,
        trace_configs=[trace],
    )


async def _note_reuse(
    _session: aiohttp.ClientSession,
    context: SimpleNamespace,
    _params: aiohttp.TraceConnectionReuseconnParams,
) -> None:
    if context.trace_request_ctx is not None:
        context.trace_request_ctx.append(True)


def _reason(error: Exception) -> str:
    """The network error, without the library's wording."""
    if isinstance(error, aiohttp.ClientPayloadError):
        return "the connection closed before the response ended"
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return str(error) or type(error).__name__


def _sentence(body: bytes) -> str:
    """The message of an OpenAI-style error body, else the start of the body."""
    try:
        text = str(orjson.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        text = body.decode(errors="replace").strip()
    return text[:_MESSAGE_CHARS] or "(empty body)"


class Trip:
    """One request through both legs; `record` collects its timestamps.

    `routed` has the request and its instances; without a prefill instance (aggregated) only
    `decode` is called. Both legs raise LegFailed until the client has the response headers.
    """

    def __init__(self, request: web.Request, upstream: Upstream, routed: LegRecord) -> None:
        self.record = routed
        self._request = request
        self._upstream = upstream
        self._headers = {"Content-Type": "application/json", "X-Request-Id": routed.request_id}
        if key := request.headers.get("Authorization"):
            self._headers["Authorization"] = key

    def failed(self, failure: LegFailed) -> None:
        """Record which leg failed, and how."""
        self.record = replace(self.record, error=str(failure))

    def cancelled(self) -> None:
        """Record that the client disconnected, and during which leg."""
        leg = "decode" if self.record.decode_sent_s > 0 else "prefill"
        why = "the client disconnected, or the proxy was stopped"
        self.record = replace(self.record, error=f"{leg} cancelled: {why}")

    async def at_once(
        self,
        body: Mapping[str, Any],
        connector: Connector,
        engines: Engines,
        side_url: str,
        *,
        lost: bool = False,
    ) -> web.StreamResponse:
        """Run both legs together; the client gets the decode leg.

        The leg that fails first ends the other. A prefill leg that fails after the first byte of
        decode is only recorded. With `lost` decode is not told where the KV is.
        """
        legs = connector.at_once
        assert legs is not None
        if lost:
            legs = replace(legs, decode=lambda *_: {})
        transfer_id = uuid4().hex
        self.record = replace(self.record, at_once=True)
        added = legs.prefill(transfer_id)
        prefill = asyncio.create_task(self.prefill(body, connector, **added))
        decode = asyncio.create_task(
            self._decode_at_once(body, legs, transfer_id, engines, side_url)
        )
        both = {prefill, decode}
        try:
            done, _ = await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            answering = self.record.decode_first_byte_s > 0
            if prefill in done and not answering and (failure := prefill.exception()):
                raise failure
            out = await decode
            await asyncio.wait({prefill})
            if isinstance(failure := prefill.exception(), LegFailed):
                self.failed(failure)
            return out
        finally:
            for leg in both:
                leg.cancel()
            await asyncio.wait(both)

    async def _decode_at_once(
        self,
        body: Mapping[str, Any],
        legs: LegsAtOnce,
        transfer_id: str,
        engines: Engines,
        url: str,
    ) -> web.StreamResponse:
        try:
            added = legs.decode(transfer_id, url, await engines.at(url))
        except (LegFailed, ValueError) as error:
            instance = self.record.prefill_instance
            what = str(error).removeprefix(f"prefill instance {url} ")
            raise LegFailed("prefill", instance, f"(bootstrap server {url}) {what}") from error
        return await self.decode(orjson.dumps({**body, **added}), held=True)

    async def prefill(
        self, body: Mapping[str, Any], connector: Connector, **added: Any
    ) -> dict[str, Any]:
        """Run the prefill leg; returns the fields that its response adds to the decode leg."""
        instance = self.record.prefill_instance
        data = orjson.dumps(prefill_body(body, connector) | added)
        self.record = replace(self.record, prefill_sent_s=monotonic())
        async with self._upstream.answer(
            "prefill", instance, self._request.path, self._headers, data
        ) as response:
            said = await response.read()
        self.record = replace(self.record, prefill_done_s=monotonic())
        try:
            answer = json_object(said)
        except ValueError as error:
            raise LegFailed("prefill", instance, f"responded 200, but {error}", 200) from error
        if answer.get("metrics"):
            metrics = orjson.dumps(answer["metrics"]).decode()
            self.record = replace(self.record, prefill_engine_metrics=metrics)
        try:
            return connector.hand_over(answer)
        except ValueError as error:
            raise LegFailed("prefill", instance, str(error), 200) from error

    async def decode(self, body: bytes, *, held: bool = False) -> web.StreamResponse:
        """Run the decode leg and pass its response on, chunk by chunk.

        With `held` the client gets the head with the first chunk: until then another leg may fail.
        """
        out = web.StreamResponse(headers={"X-Request-Id": self.record.request_id})
        last = b""
        self.record = replace(self.record, decode_sent_s=monotonic())
        try:
            async with self._upstream.answer(
                "decode", self.record.decode_instance, self._request.path, self._headers, body
            ) as response:
                self.record = replace(self.record, decode_head_s=monotonic())
                out.headers["Content-Type"] = response.headers.get("Content-Type", "text/plain")
                if not held:
                    await _to_client(out.prepare(self._request))
                while chunk := await response.content.readany():
                    if not last:
                        self.record = replace(self.record, decode_first_byte_s=monotonic())
                        await _to_client(out.prepare(self._request))  # nothing the second time
                    await _to_client(out.write(chunk))
                    last = chunk
                await _to_client(out.prepare(self._request))
                self.record = replace(self.record, decode_done_s=monotonic())
        except LegFailed as failure:
            if not out.prepared:
                raise
            self.failed(failure)
            await self._break_off(out, failure, last)
        # aiohttp ends the response after this returns, so the leg is recorded before the client
        # can ask for it.
        return out

    async def _break_off(self, out: web.StreamResponse, failure: LegFailed, last: bytes) -> None:
        """End the response of a failed instance so that no client takes it as complete."""
        if out.content_type == "text/event-stream":
            event = b"data: " + orjson.dumps(failure.payload) + b"\n\n"
            whole = not last or last.endswith((b"\n\n", b"\r\n\r\n"))
            await _to_client(out.write(event if whole else b"\n\n" + event))
        elif self._request.transport is not None:
            # Closed without the last chunk, so that the client sees an incomplete body.
            self._request.transport.close()


def prefill_body(body: Mapping[str, Any], connector: Connector) -> dict[str, Any]:
    """The client's request as sent to the prefill instance: one token, not streamed.

    `stream_options` and `min_tokens` contradict that and are removed; sampling fields stay.
    """
    leg = {key: body[key] for key in body if key not in ("stream_options", "min_tokens")}
    leg |= {"stream": False, "max_tokens": 1}
    if "max_completion_tokens" in leg:
        leg["max_completion_tokens"] = 1
    return {**leg, **connector.prefill_asks}


def json_object(text: bytes) -> dict[str, Any]:
    """Parse a JSON object. Raises ValueError with a sentence."""
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise ValueError(f"the body must be a JSON object, got invalid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"the body must be a JSON object, got a {type(value).__name__}")
    return value


async def _to_client(writing: Awaitable[object]) -> None:
    """Await a write; a disconnected client cancels the request."""
    try:
        await writing
    except ConnectionResetError as error:
        raise asyncio.CancelledError from error
