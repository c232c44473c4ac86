"""The HTTP server of a simulated instance: vLLM's endpoints, and faults in streams."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import orjson
from aiohttp import web

from workbench.serve.simulated.answers import (
    DONE,
    ENGINE_DIED,
    LOAD_FAILED,
    Asked,
    BadRequest,
    chunk,
    error_event,
    read_request,
    usage_chunk,
    whole,
)
from workbench.serve.simulated.instance import Instance, InstanceSettings
from workbench.serve.simulated.kv_blocks import BLOCK_TOKENS
from workbench.serve.simulated.peers import MooncakePeer
from workbench.serve.simulated.scheduler import Sequence
from workbench.serve.simulated.store import json_response, page_response
from workbench.serve.vllm import SERVED_MODEL

BULK_TOKENS = 4
LATE_FINISH_S = 0.05
BREAKS_AFTER = 2
"""Tokens of an affected stream before it breaks, stalls or is preempted."""
STALLS_AT = 4
"""The request that a stalled instance never finishes."""


def instance_app(instance: Instance) -> web.Application:
    """A simulated vLLM server as an aiohttp application; serve it with `handler_cancellation`."""
    front = _Front(instance)
    app = web.Application(client_max_size=2**26)
    app.cleanup_ctx.append(instance.alive)
    app.add_routes([
        web.post("/v1/completions", front.generate),
        web.post("/v1/chat/completions", front.generate),
        web.get("/v1/models", front.models),
        web.get("/health", front.health),
        web.get("/version", front.version),
        web.get("/metrics", front.metrics),
        web.post("/reset_prefix_cache", front.reset),
        web.post("/simulated/pull", front.pull),
    ])  # fmt: skip
    return app


def bootstrap_app(instance: Instance) -> web.Application:
    """Mooncake's bootstrap server of a prefill instance, on a port of its own."""

    async def query(_: web.Request) -> web.Response:
        peer = instance.peer
        return json_response(peer.addresses() if isinstance(peer, MooncakePeer) else {})

    app = web.Application()
    app.router.add_get("/query", query)
    return app


class _Front:
    def __init__(self, instance: Instance) -> None:
        self.instance = instance

    @property
    def settings(self) -> InstanceSettings:
        return self.instance.settings

    async def generate(self, request: web.Request) -> web.StreamResponse:
        chat = request.path.endswith("chat/completions")
        try:
            asked = read_request(
                await request.read(), chat=chat, context_tokens=self.settings.context_tokens
            )
        except BadRequest as refusal:
            return json_response(refusal.body, status=refusal.status)
        sequence = await self.instance.submit(asked, request.headers.get("X-Request-Id", ""))
        try:
            if not asked.stream:
                return await self._whole(sequence, asked)
            out = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
            await out.prepare(request)
            held = b""
            async for event in self._stream(sequence, asked):
                if self.settings.fault == "buffered_stream" and sequence.number:
                    held += event
                else:
                    await out.write(event)
            await out.write(held)
            return out
        finally:
            self.instance.end(sequence)

    async def models(self, _: web.Request) -> web.Response:
        model = {"id": SERVED_MODEL, "object": "model", "owned_by": "workbench"}
        length = {"root": "simulated", "max_model_len": self.settings.context_tokens}
        return json_response({"object": "list", "data": [model | length]})

    async def health(self, _: web.Request) -> web.Response:
        return web.Response()

    async def version(self, _: web.Request) -> web.Response:
        return json_response({"version": "simulated"})

    async def metrics(self, _: web.Request) -> web.Response:
        scheduler, series = self.instance.scheduler, self.instance.series
        series.gauge("vllm:num_requests_running", len(scheduler.running))
        series.gauge("vllm:num_requests_waiting", len(scheduler.waiting))
        series.gauge("vllm:kv_cache_usage_perc", scheduler.pool.usage)
        series.gauge(
            "vllm:cache_config_info",
            1,
            block_size=str(BLOCK_TOKENS),
            num_gpu_blocks=str(self.settings.blocks),
            enable_prefix_caching=str(self.settings.prefix_caching),
        )
        return page_response(series.page())

    async def reset(self, request: web.Request) -> web.Response:
        external = request.query.get("reset_external") == "true"
        return json_response({"success": await self.instance.reset(external=external)})

    async def pull(self, request: web.Request) -> web.Response:
        """Private: a prompt's KV for a decode instance."""
        peer = self.instance.peer
        said = peer and await peer.send(orjson.loads(await request.read()))
        return json_response(said or {}, status=200 if said else 404)

    async def _whole(self, sequence: Sequence, asked: Asked) -> web.Response:
        for _ in range(asked.max_tokens):
            if await sequence.tokens.get() is None:
                return json_response(LOAD_FAILED, status=500)
        await self.instance.stored(sequence)
        peer = self.instance.peer
        params = peer.hand_over(sequence) if peer else None
        return json_response(whole(sequence, asked, params))

    async def _stream(self, sequence: Sequence, asked: Asked) -> AsyncIterator[bytes]:
        # Faults do not affect warm-ups; those of single requests affect every second one.
        fault = self.settings.fault if sequence.number else ""
        strikes = fault if sequence.struck else ""
        if fault == "role_chunk_first":
            yield chunk(sequence, asked, [], 0, finished=False)
        bulk = BULK_TOKENS if self.settings.fault == "tokens_in_bulk" else 1
        tokens: list[int] = []
        for made in range(1, asked.max_tokens + 1):
            token = await sequence.tokens.get()
            if token is None:
                yield error_event(LOAD_FAILED) + DONE
                return
            tokens.append(token)
            if made == 1 and asked.chat:
                yield chunk(sequence, asked, [], 0, finished=False)
            last = made == asked.max_tokens
            if last or len(tokens) == bulk:
                finished = last and fault != "late_finish"
                yield chunk(sequence, asked, tokens, made, finished=finished)
                tokens = []
            if made == BREAKS_AFTER and not last:
                if strikes == "error_in_stream":
                    yield error_event(ENGINE_DIED) + DONE
                    return
                if strikes == "truncated_stream":
                    return
                if strikes == "preemption":
                    self.instance.preempt(sequence)
                if fault == "stalled_instance" and sequence.number == STALLS_AT:
                    await asyncio.Event().wait()
        await self.instance.stored(sequence)
        if fault == "late_finish":
            await asyncio.sleep(LATE_FINISH_S)
            yield chunk(sequence, asked, [], asked.max_tokens, finished=True)
        if fault == "usage_all_cached":
            sequence.reported_cached = len(sequence.prompt)
        if asked.usage:
            yield usage_chunk(sequence, asked)
        yield DONE
