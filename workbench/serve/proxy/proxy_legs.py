"""The two legs of one request behind the PD proxy: what each carries, and when it was where.

A request is prefilled on one instance (one token, thrown away) and then decoded on another; its
connector says what the first is asked beside that, and what its answer hands over to the second.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping
from dataclasses import replace
from time import monotonic
from typing import Any

import orjson
from aiohttp import web

from workbench.records import LegRecord
from workbench.serve.connectors import Connector
from workbench.serve.proxy.proxy_upstream import LegFailed, Upstream


class Trip:
    """One request on its way through both legs; `record` collects its stamps.

    `routed` says who asks and which instances serve; without a prefill instance (aggregated) only
    `decode` is called. Both legs raise LegFailed as long as the client has no head of an answer.
    """

    def __init__(self, request: web.Request, upstream: Upstream, routed: LegRecord) -> None:
        self.record = routed
        self._request = request
        self._upstream = upstream
        self._headers = {"Content-Type": "application/json", "X-Request-Id": routed.request_id}
        if key := request.headers.get("Authorization"):
            self._headers["Authorization"] = key

    def failed(self, failure: LegFailed) -> None:
        """Note which leg failed, and how."""
        self.record = replace(self.record, error=str(failure))

    def cancelled(self) -> None:
        """Note that the client went away, and during which leg."""
        leg = "decode" if self.record.decode_sent_s > 0 else "prefill"
        why = "the client closed the connection, or the proxy was stopped"
        self.record = replace(self.record, error=f"{leg} cancelled: {why}")

    async def prefill(self, body: Mapping[str, Any], connector: Connector) -> dict[str, Any]:
        """Run the prefill leg; returns what its answer adds to the body of the decode leg."""
        instance = self.record.prefill_instance
        data = orjson.dumps(prefill_body(body, connector))
        self.record = replace(self.record, prefill_sent_s=monotonic())
        async with self._upstream.answer(
            "prefill", instance, self._request.path, self._headers, data
        ) as response:
            said = await response.read()
        self.record = replace(self.record, prefill_done_s=monotonic())
        try:
            answer = json_object(said)
        except ValueError as error:
            raise LegFailed("prefill", instance, f"answered 200, but {error}", 200) from error
        if answer.get("metrics"):
            metrics = orjson.dumps(answer["metrics"]).decode()
            self.record = replace(self.record, prefill_engine_metrics=metrics)
        try:
            return connector.hand_over(answer)
        except ValueError as error:
            raise LegFailed("prefill", instance, str(error), 200) from error

    async def decode(self, body: bytes) -> web.StreamResponse:
        """Run the decode leg and pass its answer on, chunk by chunk, as it comes."""
        out = web.StreamResponse(headers={"X-Request-Id": self.record.request_id})
        last = b""
        self.record = replace(self.record, decode_sent_s=monotonic())
        try:
            async with self._upstream.answer(
                "decode", self.record.decode_instance, self._request.path, self._headers, body
            ) as response:
                self.record = replace(self.record, decode_head_s=monotonic())
                out.headers["Content-Type"] = response.headers.get("Content-Type", "text/plain")
                await _to_client(out.prepare(self._request))
                while chunk := await response.content.readany():
                    if not last:
                        self.record = replace(self.record, decode_first_byte_s=monotonic())
                    await _to_client(out.write(chunk))
                    last = chunk
                self.record = replace(self.record, decode_done_s=monotonic())
        except LegFailed as failure:
            if not out.prepared:
                raise
            self.failed(failure)
            await self._break_off(out, failure, last)
        # aiohttp ends the response after this returns, so the leg is recorded before the client
        # can know that it is done and ask for it.
        return out

    async def _break_off(self, out: web.StreamResponse, failure: LegFailed, last: bytes) -> None:
        """End an answer whose instance failed so that no client takes it for a whole one."""
        if out.content_type == "text/event-stream":
            event = b"data: " + orjson.dumps(failure.payload) + b"\n\n"
            whole = not last or last.endswith((b"\n\n", b"\r\n\r\n"))
            await _to_client(out.write(event if whole else b"\n\n" + event))
        elif self._request.transport is not None:
            # Closed without a last chunk: the client sees the body break.
            self._request.transport.close()


def prefill_body(body: Mapping[str, Any], connector: Connector) -> dict[str, Any]:
    """The client's request as the prefill instance gets it: one token, not streamed.

    `stream_options` and `min_tokens` go, as they contradict that; sampling fields stay.
    """
    leg = {key: body[key] for key in body if key not in ("stream_options", "min_tokens")}
    leg |= {"stream": False, "max_tokens": 1}
    if "max_completion_tokens" in leg:
        leg["max_completion_tokens"] = 1
    return {**leg, **connector.prefill_asks}


def json_object(text: bytes) -> dict[str, Any]:
    """Raises ValueError with a sentence when `text` is no JSON object."""
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise ValueError(f"the body is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError("the body is JSON, but not an object")
    return value


async def _to_client(writing: Awaitable[object]) -> None:
    """Await a write; a client that has gone ends the request as its cancellation would."""
    try:
        await writing
    except ConnectionResetError as error:
        raise asyncio.CancelledError from error
