"""Described machines, invented rows, and a pretended vLLM server, so that no engine is needed."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from math import nan
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from workbench.experiment.plan import arms, engine_setup
from workbench.experiment.plan.plan import ExperimentPlan
from workbench.hardware import machine
from workbench.hardware.gpus import Gpu
from workbench.hardware.kv import engine_hit_tokens
from workbench.metrics.latency import latencies
from workbench.params.notebooks import PdSweep, PrefixCache
from workbench.records import RequestRecord, to_frame

REAL = machine.facts()


@pytest.fixture
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with 1 KiB of KV per token and the vocabulary of the tiny model."""
    folder = tmp_path_factory.mktemp("model")
    sizes = {
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "hidden_size": 64,
    }
    sizes |= {"head_dim": 32, "vocab_size": 12_288, "max_position_embeddings": 40_960}
    (folder / "config.json").write_text(json.dumps(sizes))
    return folder


@pytest.fixture
def machine_has(monkeypatch: pytest.MonkeyPatch, model: Path) -> Callable[..., None]:
    """Say what the machine is like: a CPU with 24 GB free, unless told otherwise."""

    def say(
        platform: str = "cpu",
        gpus: int = 0,
        free_gb: float = 24.0,
        visible: str = "",
        fast_bf16: bool = True,
    ) -> None:
        found = replace(
            REAL,
            platform=platform,
            gpus=tuple(Gpu(index=i, name="a GPU") for i in range(gpus)),
            memory_free_gb=free_gb,
            shm_free_gb=8.0,
            fast_bf16=fast_bf16,
            visible_devices=visible,
        )
        monkeypatch.setattr(machine, "facts", lambda: found)

    say()
    monkeypatch.setattr(engine_setup, "tiny_model", lambda layers: model)
    return say


@pytest.fixture
def sweep(machine_has: Callable[..., None]) -> Callable[..., ExperimentPlan]:
    """`sweep(topology="1p1d")` is the plan of pd_sweep with those parameters."""
    return lambda **params: arms.plan(PdSweep(**params))


@pytest.fixture
def prefix_cache(machine_has: Callable[..., None]) -> Callable[..., ExperimentPlan]:
    return lambda **params: arms.plan(PrefixCache(**params))


@pytest.fixture
def rows() -> Callable[..., pd.DataFrame]:
    """Makes the `requests` rows of one pass in one round, one request for each TTFT given.

    A request of 11 tokens: the first after its TTFT, then one every 10 ms; a TTFT of NaN is a
    request that failed. Requests follow one another.
    """

    def make(arm: str, name: str, ttft_s: list[float], *, round: int = 0) -> pd.DataFrame:
        records, now_s = [], 100.0
        for index, first_s in enumerate(ttft_s):
            ok = first_s == first_s
            stamps = tuple(now_s + first_s + 0.01 * i for i in range(11)) if ok else ()
            records.append(
                RequestRecord(
                    index=index,
                    request_id=f"{arm}-{name}-{round}-{index}",
                    prompt_tokens=1000,
                    ideal_reuse_tokens=0,
                    max_tokens=11,
                    scheduled_s=now_s,
                    sent_s=now_s,
                    chunk_s=stamps,
                    chunk_tokens=(1,) * len(stamps),
                    output_tokens=11 if ok else -1,
                    text="the same",
                    error="" if ok else "reset",
                )
            )
            now_s = stamps[-1] if ok else now_s
        topology, _, connector = arm.partition(" ")
        constants: dict[str, Any] = {"arm": arm, "topology": topology, "workload": "reference"}
        constants |= {"connector": connector or "none", "round": round, "pass": name}
        return latencies(to_frame(records, **constants))

    return make


@pytest.fixture
def failed() -> float:
    """The TTFT of a request that failed, for `rows`."""
    return nan


@dataclass
class FakeVllm:
    """One server that streams, counts and resets as vLLM does; its cache holds whole prompts.

    It is the engine, its KV store and its proxy in one, which is enough for an attached server.
    """

    url: str = ""
    asked: list[str] = field(default_factory=list)
    """Method and path of every request but GET /metrics."""
    completions: int = 0
    cache: set[tuple[int, ...]] = field(default_factory=set)
    sources: dict[str, float] = field(default_factory=lambda: {"local_compute": 0.0})
    finished: int = 0
    written_chunks: list[int] = field(default_factory=lambda: [0])
    """What the store says it has written, one reading after the other."""
    # faults
    fails: set[int] = field(default_factory=set)
    """Completions, counted from 1, that are answered with HTTP 500."""
    refuses_resets: bool = False
    models_left: int = 10**9
    """How often /v1/models still answers."""
    hangs_after: int = 10**9
    """Completions after which the next ones never end."""
    hanging: asyncio.Event = field(default_factory=asyncio.Event)
    over: asyncio.Event = field(default_factory=asyncio.Event)
    cpu_s: list[float] = field(default_factory=lambda: [0.0])
    key: str = ""
    """Asked for everywhere but below /store."""
    keys: dict[str, str] = field(default_factory=dict)
    """What each path was given as one, last."""
    # other front doors than vLLM's own
    models: list[str] = field(default_factory=lambda: ["their-model"])
    refuses: set[str] = field(default_factory=set)
    """Fields of a body, or of its stream_options, that are answered with HTTP 400."""
    text_only: Any = None
    """A tokenizer: prompts are text, and token ids are answered with HTTP 500."""
    first_token_from_prefill: bool = False
    """As LMCache's proxy: the decode instance gets prompt and first token, and counts so."""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    """Of all completions, those of probes too."""
    probes: int = 0
    busy: bool = False
    """Completions are answered with HTTP 503."""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        given = request.headers.get("Authorization", "")
        self.keys[request.path] = given
        if request.path.startswith("/store/"):
            return web.json_response({})
        if self.key and given != f"Bearer {self.key}":
            raise web.HTTPUnauthorized
        if request.path == "/metrics":
            return web.Response(text=self.metrics())
        self.asked.append(f"{request.method} {request.path}")
        match request.path:
            case "/v1/models":
                self.models_left -= 1
                if self.models_left < 0:
                    raise web.HTTPServiceUnavailable
                return web.json_response({"data": [{"id": name} for name in self.models]})
            case "/v1/completions":
                return await self.complete(request)
            case "/reset_prefix_cache":
                if not self.refuses_resets:
                    self.cache.clear()
                return web.json_response({"success": not self.refuses_resets})
            case "/cache/clear":
                return web.json_response({})
            case "/legs":
                return web.json_response([])
            case "/stats":
                cpu_s = self.cpu_s.pop(0) if len(self.cpu_s) > 1 else self.cpu_s[0]
                return web.json_response({"cpu_s": cpu_s})
        raise web.HTTPNotFound

    async def complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(dict(body))
        probe = request.headers.get("X-Request-Id", "").startswith("probe-")
        if probe:
            self.probes += 1
            self.asked.pop()  # asked before the run, see test_front_door
        if self.busy:
            raise web.HTTPServiceUnavailable
        for name in sorted(self.refuses & {*body, *body.get("stream_options", ())}):
            error = {"message": f"Unrecognized request argument supplied: {name}"}
            return web.json_response({"error": error}, status=400)
        if self.text_only is not None:
            if not isinstance(body["prompt"], str):
                raise web.HTTPInternalServerError
            body["prompt"] = self.text_only.completion(body["prompt"])
        if probe:
            return await self.stream(request, body, hit=0)
        self.completions += 1
        if self.completions > self.hangs_after:
            self.hanging.set()
            await self.over.wait()
        if self.completions in self.fails:
            return web.json_response({"error": {"message": "no"}}, status=500)
        prompt = tuple(body["prompt"])
        hit = engine_hit_tokens(len(prompt), block_tokens=16) if prompt in self.cache else 0
        self.cache.add(prompt)
        for source, tokens in (("local_cache_hit", hit), ("local_compute", len(prompt) - hit)):
            self.sources[source] = self.sources.get(source, 0.0) + tokens
        self.finished += 1
        return await self.stream(request, body, hit=hit)

    async def stream(
        self, request: web.Request, body: dict[str, Any], *, hit: int
    ) -> web.StreamResponse:
        prompt = body["prompt"]
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        shift = int(self.first_token_from_prefill)
        wanted = body.get("stream_options", {})
        for made in range(1, body["max_tokens"] + 1):
            finish = "length" if made == body["max_tokens"] else None
            event: dict[str, Any] = {
                "choices": [{"index": 0, "text": f" {made}", "finish_reason": finish}]
            }
            if wanted and made > shift and (finish or "continuous_usage_stats" in wanted):
                event["usage"] = {
                    "prompt_tokens": len(prompt) + shift,
                    "completion_tokens": made - shift,
                    "prompt_tokens_details": {"cached_tokens": hit},
                }
            await response.write(f"data: {json.dumps(event)}\n\n".encode())
            await asyncio.sleep(0.001)  # tokens of an engine never come together
        await response.write(b"data: [DONE]\n\n")
        return response

    def metrics(self) -> str:
        written = self.written_chunks.pop(0) if len(self.written_chunks) > 1 else None
        written = self.written_chunks[0] if written is None else written
        counters = {
            'vllm:request_success_total{finished_reason="length"}': self.finished,
            "vllm:num_preemptions_total": 0,
            "lmcache_mp_l1_write_chunks_total": written,
            "lmcache_mp_lookup_requested_tokens_total": 0,
        } | {
            f'vllm:prompt_tokens_by_source_total{{source="{source}"}}': tokens
            for source in ("local_compute", "local_cache_hit", "external_kv_transfer")
            for tokens in [self.sources.get(source, 0.0)]
        }
        families = sorted({name.partition("{")[0] for name in counters})
        gauges = {"vllm:num_requests_running": 0, 'vllm:cache_config_info{block_size="16"}': 1}
        lines = [f"# TYPE {name} counter" for name in families]
        return "\n".join([*lines, *(f"{k} {v}" for k, v in (counters | gauges).items()), ""])


@pytest.fixture
async def vllm() -> AsyncIterator[FakeVllm]:
    fake = FakeVllm()
    app = web.Application(client_max_size=2**26)
    app.router.add_route("*", "/{any:.*}", fake.handle)
    async with TestServer(app) as running:
        fake.url = f"http://127.0.0.1:{running.port}"
        yield fake
        fake.over.set()


@pytest.fixture
def attached(
    vllm: FakeVllm, sweep: Callable[..., ExperimentPlan], tmp_path: Path
) -> Callable[..., ExperimentPlan]:
    """The plan of a sweep on the pretended server: short prompts, one aggregated instance."""

    def plan(**params: Any) -> ExperimentPlan:
        short = {"prompt_tokens": 500, "output_tokens": 4, "rounds": 1, "requests": 2}
        where = {"engine": "attach", "base_url": vllm.url, "decode_urls": [vllm.url]}
        return sweep(**{**short, **where, "output_dir": str(tmp_path), **params})

    return plan
