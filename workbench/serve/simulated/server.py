"""The HTTP front of a pretend instance: vLLM's endpoints, and the faults of its streams."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import orjson
from aiohttp import web

from workbench.serve.simulated.answers import (
    Asked,
    BadRequest,
    chunk,
    error_event,
    read_request,
    usage_chunk,
    whole,
)
from workbench.serve.simulated.instance import Instance
from workbench.serve.simulated.links import Links
from workbench.serve.simulated.sequence import Sequence
from workbench.serve.simulated.series import CONTENT_TYPE
from workbench.serve.simulated.settings import InstanceSettings
from workbench.serve.vllm import SERVED_MODEL

__all__ = ["instance_app"]

BULK_TOKENS = 4
LATE_FINISH_S = 0.05
BREAKS_AFTER = 2
"""Tokens of a struck stream before it breaks, stalls or is preempted."""
STALLS_AT = 4
"""Which of its requests a stalled instance never answers to the end."""


def instance_app(settings: InstanceSettings) -> web.Application:
    """A pretend vLLM server as an aiohttp application, serve it with `handler_cancellation`."""
    front = _Front(Instance(settings))
    app = web.Application(client_max_size=2**26)
    app.cleanup_ctx.append(front.alive)
    app.router.add_post("/v1/completions", front.generate)
    app.router.add_post("/v1/chat/completions", front.generate)
    app.router.add_get("/v1/models", front.models)
    app.router.add_get("/health", front.health)
    app.router.add_get("/version", front.version)
    app.router.add_get("/metrics", front.metrics)
    app.router.add_post("/reset_prefix_cache", front.reset)
    app.router.add_post("/simulated/pull", front.pull)
    return app


class _Front:
    def __init__(self, instance: Instance) -> None:
        self.instance = instance
        self.settings = instance.settings
        self.fault = instance.settings.fault

    async def alive(self, _app: web.Application) -> AsyncIterator[None]:
        """The engine's loop and its connections, as long as the server runs."""
        seed = self.settings.name.encode() if self.fault == "hash_seed_mismatch" else b""
        self.instance.links = Links(self.settings.store_url, key_seed=seed)
        working = asyncio.create_task(self.instance.work())
        yield
        working.cancel()
        await self.instance.links.close()

    async def generate(self, request: web.Request) -> web.StreamResponse:
        chat = request.path.endswith("chat/completions")
        try:
            asked = read_request(
                await request.read(), chat=chat, context_tokens=self.settings.context_tokens
            )
        except BadRequest as refusal:
            return _json(refusal.body, status=refusal.status)
        request_id = request.headers.get("X-Request-Id", "")
        out: web.StreamResponse | None = None
        if asked.stream:
            out = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        sequence, number = await self.instance.submit(asked, request_id)
        try:
            if out is None:
                return await self._whole(sequence, asked)
            await out.prepare(request)
            held = b""
            async for event in self._stream(sequence, asked, number):
                if self.fault == "buffered_stream" and number:
                    held += event
                else:
                    await out.write(event)
            await out.write(held)
            return out
        finally:
            self.instance.end(sequence)

    async def models(self, _: web.Request) -> web.Response:
        model = {
            "id": SERVED_MODEL,
            "object": "model",
            "owned_by": "workbench",
            "root": "simulated",
        }
        model["max_model_len"] = self.settings.context_tokens  # type: ignore[assignment]
        return _json({"object": "list", "data": [model]})

    async def health(self, _: web.Request) -> web.Response:
        return web.Response()

    async def version(self, _: web.Request) -> web.Response:
        return _json({"version": "simulated"})

    async def metrics(self, _: web.Request) -> web.Response:
        engine = self.instance.engine
        gauges = {
            "vllm:num_requests_running": len(engine.running),
            "vllm:num_requests_waiting": len(engine.waiting),
            "vllm:kv_cache_usage_perc": engine.pool.usage,
        }
        config = {
            "block_size": "128",
            "num_gpu_blocks": str(self.settings.blocks),
            "enable_prefix_caching": str(self.settings.prefix_caching),
        }
        page = self.instance.series.page(gauges, {"vllm:cache_config_info": config})
        return web.Response(body=page.encode(), headers={"Content-Type": CONTENT_TYPE})

    async def reset(self, _: web.Request) -> web.Response:
        return _json({"success": self.instance.reset()})

    async def pull(self, request: web.Request) -> web.Response:
        """Private: what a prefill leg has left here for a decode instance."""
        sequence = self.instance.pulled(orjson.loads(await request.read())["request_id"])
        if sequence is None:
            return _json({}, status=404)
        contents = [content.hex() for content in sequence.contents]
        return _json({"contents": contents, "final": sequence.final.hex()})

    async def _whole(self, sequence: Sequence, asked: Asked) -> web.Response:
        for _ in range(asked.max_tokens):
            await self.instance.token(sequence)
        await self.instance.stored(sequence)
        return _json(whole(sequence, asked, self.instance.hand_over(sequence)))

    async def _stream(self, sequence: Sequence, asked: Asked, number: int) -> AsyncIterator[bytes]:
        struck = self.instance.struck
        if self.fault == "role_chunk_first" and number:
            yield chunk(sequence, asked, [], 0, finished=False)
        bulk = BULK_TOKENS if self.fault == "tokens_in_bulk" else 1
        late = self.fault == "late_finish" and number > 0
        tokens: list[int] = []
        for made in range(1, asked.max_tokens + 1):
            tokens.append(await self.instance.token(sequence))
            if made == 1 and asked.chat:
                yield chunk(sequence, asked, [], 0, finished=False)
            last = made == asked.max_tokens
            if last or len(tokens) == bulk:
                yield chunk(sequence, asked, tokens, made, finished=last and not late)
                tokens = []
            if made == BREAKS_AFTER and not last:
                if struck(sequence, "error_in_stream"):
                    yield error_event()
                    yield b"data: [DONE]\n\n"
                    return
                if struck(sequence, "truncated_stream"):
                    return
                if struck(sequence, "preemption"):
                    self.instance.preempt(sequence)
                if self.fault == "stalled_instance" and number == STALLS_AT:
                    await asyncio.Event().wait()
        await self.instance.stored(sequence)
        if late:
            await asyncio.sleep(LATE_FINISH_S)
            yield chunk(sequence, asked, [], asked.max_tokens, finished=True)
        if self.fault == "usage_all_cached" and number:
            sequence.reported_cached = len(sequence.prompt)
        if asked.usage:
            yield usage_chunk(sequence, asked)
        yield b"data: [DONE]\n\n"


def _json(value: object, *, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(value), status=status, content_type="application/json")
