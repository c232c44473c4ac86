"""The front door of a simulated vLLM, for runs that attach to a server."""

import asyncio
import json
import re
from dataclasses import dataclass, field, replace
from typing import Any

from aiohttp import web

from workbench.metrics.prometheus import parse
from workbench.serve.simulated.answers import usage
from workbench.serve.simulated.exposition import Series, vllm_series
from workbench.serve.simulated.instance import Instance
from workbench.serve.simulated.scheduler import Sequence
from workbench.serve.vllm import SERVED_MODEL


@dataclass
class Door:
    """The front door of a simulated vLLM: notes what it is asked, and refuses as it is told to.

    It is engine, KV store and proxy in one, which is enough for an attached server.
    """

    url: str
    instance: Instance
    asked: list[str] = field(default_factory=list)
    """Method and path of every request but GET /metrics and probes."""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    """Of all completions, those of probes too."""
    probes: int = 0
    prompts: list[tuple[int, ...]] = field(default_factory=list)
    """Of all completions but probes."""
    written_chunks: list[int] = field(default_factory=lambda: [0])
    """What the store says it has written, one reading after the other."""
    cpu_s: list[float] = field(default_factory=lambda: [0.0])
    """Of the proxy, likewise."""
    key: str = ""
    """Asked for everywhere but below /store."""
    keys: dict[str, str] = field(default_factory=dict)
    """What each path was given as one, last."""
    models: list[str] = field(default_factory=lambda: ["their-model"])
    models_left: int = 10**9
    """How often /v1/models still answers."""
    refuses: set[str] = field(default_factory=set)
    """Fields of a body, or of its stream_options, that are answered with HTTP 400."""
    text_only: Any = None
    """A tokenizer: prompts are text, and token ids are answered with HTTP 500."""
    first_token_from_prefill: bool = False
    """As LMCache's proxy: the decode instance gets prompt and first token, and counts so."""
    fails: set[int] = field(default_factory=set)
    """Completions, counted from 1, that are answered with HTTP 500."""
    busy: bool = False
    """Completions are answered with HTTP 503."""
    hangs_after: int = 10**9
    """Completions after which the next ones never end."""
    hanging: asyncio.Event = field(default_factory=asyncio.Event)
    shows: tuple[str, ...] = ("",)
    """Beginnings of the engine's series that /metrics shows."""
    lacks: tuple[str, ...] = ()
    """Series of the engine that it does not have."""

    @property
    def series(self) -> Series:
        return self.instance.series

    def counted(self, source: str) -> float:
        """Prompt tokens of one source."""
        return parse(self.series.page(), "").sum(
            "vllm:prompt_tokens_by_source_total", source=source
        )

    def counts(self, value: float, **label: str) -> None:
        """Count prompt tokens of a source, or requests of a finished_reason."""
        name = "prompt_tokens_by_source" if "source" in label else "request_success"
        self.series.add(f"vllm:{name}_total", value, **label)

    def goes_wrong(self, fault: str) -> None:
        self.instance.settings = replace(self.instance.settings, fault=fault)

    def restarts(self) -> None:
        """Its counters begin anew."""
        self.instance.series = self.instance.scheduler.series = vllm_series(nixl=False)

    async def opened(self, request: web.Request, handler: Any) -> web.StreamResponse:
        path = request.path
        self.keys[path] = request.headers.get("Authorization", "")
        if path.startswith("/store/"):
            return web.json_response({})
        if self.key and self.keys[path] != f"Bearer {self.key}":
            raise web.HTTPUnauthorized
        if path == "/metrics":
            return web.Response(text=self.metrics((await handler(request)).body.decode()))
        self.asked.append(f"{request.method} {path}")
        match path:
            case "/v1/models":
                self.models_left -= 1
                if self.models_left < 0:
                    raise web.HTTPServiceUnavailable
                return web.json_response({"data": [{"id": name} for name in self.models]})
            case "/v1/completions":
                return await self.complete(request, handler)
            case "/cache/clear":
                return web.json_response({})
            case "/legs":
                return web.json_response([])
            case "/stats":
                return web.json_response({"cpu_s": next_of(self.cpu_s)})
        return await handler(request)

    async def complete(self, request: web.Request, handler: Any) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        probe = request.headers.get("X-Request-Id", "").startswith("probe-")
        if probe:
            self.probes += 1
            self.asked.pop()  # asked before the run, see test_probe
        if self.busy:
            raise web.HTTPServiceUnavailable
        for name in sorted(self.refuses & {*body, *body.get("stream_options", ())}):
            error = {"message": f"Unrecognized request argument supplied: {name}"}
            return web.json_response({"error": error}, status=400)
        if self.text_only is not None:
            if not isinstance(body["prompt"], str):
                raise web.HTTPInternalServerError
            body = body | {"prompt": self.text_only.completion(body["prompt"])}
        if not probe:
            self.prompts.append(tuple(body["prompt"]))
            if len(self.prompts) > self.hangs_after:
                self.hanging.set()
                await asyncio.Event().wait()
            if len(self.prompts) in self.fails:
                return web.json_response({"error": {"message": "no"}}, status=500)
        request._read_bytes = json.dumps(body | {"model": SERVED_MODEL}).encode()
        return await handler(request)

    def usage(self, sequence: Sequence, made: int) -> dict[str, Any]:
        if not self.first_token_from_prefill:
            return usage(sequence, made)
        counts = {"prompt_tokens": len(sequence.prompt) + 1, "completion_tokens": made - 1}
        return counts if made > 1 else {}

    def metrics(self, page: str) -> str:
        lines = [
            line
            for line in page.splitlines()
            if line.removeprefix("# TYPE ").startswith(self.shows)
            and not re.match(rf"(# TYPE )?({'|'.join(self.lacks) or 'none'})\b", line)
        ]
        return "\n".join([
            *lines,
            "# TYPE lmcache_mp_l1_write_chunks_total counter",
            f"lmcache_mp_l1_write_chunks_total {next_of(self.written_chunks)}",
            "# TYPE lmcache_mp_lookup_requested_tokens_total counter",
            "lmcache_mp_lookup_requested_tokens_total 0",
            "",
        ])  # fmt: skip


def next_of(readings: list[Any]) -> Any:
    """The first of them, which is gone then unless it is the last."""
    return readings.pop(0) if len(readings) > 1 else readings[0]
