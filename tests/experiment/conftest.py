"""Described machines, invented rows, and a pretended vLLM server, so that no engine is needed."""

import json
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from math import nan
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from aiohttp import web

from tests.experiment.door import Door
from tests.wording import PRIVATE, words
from workbench.experiment.findings import findings
from workbench.experiment.findings.findings import conclude
from workbench.experiment.plan import arms, engine_setup
from workbench.experiment.plan.plan import ExperimentPlan
from workbench.experiment.result.facts import RunFacts
from workbench.experiment.run import run_facts
from workbench.hardware import machine
from workbench.hardware.gpus import Gpu
from workbench.metrics.latency import latencies
from workbench.params.notebooks import PrefixCache
from workbench.params.pd_sweep import PdSweep
from workbench.records import RequestRecord, to_frame
from workbench.serve.processes.ports import free_ports
from workbench.serve.simulated import answers
from workbench.serve.simulated.__main__ import serving
from workbench.serve.simulated.instance import Instance, InstanceSettings
from workbench.serve.simulated.server import instance_app

REAL = machine.facts()


@pytest.fixture(autouse=True)
def short_sentences(monkeypatch: pytest.MonkeyPatch) -> None:
    """In whatever a test concludes a headline has at most 14 words, a doubt or limit 25.

    Words in brackets do not count.
    """

    def concluded(*args: Any, **given: Any) -> RunFacts:
        facts = conclude(*args, **given)
        # A doubt with lines of a log has them below its own.
        others = (text.partition("\n")[0] for text in (*facts.doubts, *facts.limits))
        for most, texts in ((14, (facts.finding, facts.unproven)), (25, others)):
            assert [text for text in texts if words(text) > most] == []
        notes = (f"{card.label} {card.note}" for card in facts.numbers)
        texts = (facts.finding, facts.scope, facts.break_even, *facts.sentences, *notes)
        for text in (*texts, *facts.doubts, *facts.limits):
            assert [word for word in PRIVATE if re.search(rf"\b{word}\b", text)] == [], text
        return facts

    for module in (findings, run_facts):
        monkeypatch.setattr(module, "conclude", concluded)


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
    monkeypatch.setattr(engine_setup, "tiny_model", lambda **_: model)
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


@pytest.fixture
async def vllm(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Door]:
    (port,) = free_ports(1)
    door = Door(f"http://127.0.0.1:{port}", Instance(InstanceSettings(port=port)))

    @web.middleware
    async def opened(request: web.Request, handler: Any) -> web.StreamResponse:
        return await door.opened(request, handler)

    app = instance_app(door.instance)
    app.middlewares.append(opened)
    monkeypatch.setattr(answers, "usage", door.usage)
    async with serving([(app, port)]):
        yield door


@pytest.fixture
def attached(
    vllm: Door, sweep: Callable[..., ExperimentPlan], tmp_path: Path
) -> Callable[..., ExperimentPlan]:
    """The plan of a sweep on the pretended server: short prompts, one aggregated instance."""

    def plan(**params: Any) -> ExperimentPlan:
        short = {"prompt_tokens": 500, "output_tokens": 4, "rounds": 1, "requests": 2}
        where = {"engine": "attach", "base_url": vllm.url, "decode_urls": [vllm.url]}
        return sweep(**{**short, **where, "output_dir": str(tmp_path), **params})

    return plan
