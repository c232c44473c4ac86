"""Servers that answer and count in ways of their own, through the whole pipeline."""

import asyncio
import json
from collections.abc import Callable
from math import isnan
from typing import Any

import pytest
from aiohttp import web

from workbench.experiment.result.result import Result
from workbench.experiment.run.run import run


def outcomes(result: Result) -> dict[str, str]:
    return {gate["name"]: gate["outcome"] for gate in result.facts["gates"]}


def sentence(result: Result, name: str) -> str:
    return next(gate["sentence"] for gate in result.facts["gates"] if gate["name"] == name)


@pytest.fixture
def answers(vllm: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`answers(...)` makes the pretended server stream its tokens in another way.

    `pause_s` lies between two tokens, `gathered` holds all back until the end, and `cached` is
    what its usage calls cached of a prompt of so many tokens.
    """

    def change(
        pause_s: float = 0.005,
        gathered: bool = False,
        cached: Callable[[int], int] = lambda tokens: 0,
    ) -> None:
        async def complete(request: web.Request) -> web.StreamResponse:
            body = await request.json()
            prompt = tuple(body["prompt"])
            known = prompt in vllm.cache
            vllm.cache.add(prompt)
            hit = (len(prompt) - 1) // 16 * 16 if known else 0
            for source, tokens in (("local_cache_hit", hit), ("local_compute", len(prompt) - hit)):
                vllm.sources[source] = vllm.sources.get(source, 0.0) + tokens
            vllm.finished += 1
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await response.prepare(request)
            held = b""
            for made in range(1, body["max_tokens"] + 1):
                await asyncio.sleep(pause_s)
                finish = "length" if made == body["max_tokens"] else None
                usage = {"prompt_tokens": len(prompt), "completion_tokens": made}
                usage |= {"prompt_tokens_details": {"cached_tokens": hit or cached(len(prompt))}}
                choice = {"index": 0, "text": f" {made}", "finish_reason": finish}
                held += f"data: {json.dumps({'choices': [choice], 'usage': usage})}\n\n".encode()
                if not gathered or finish:
                    await response.write(held)
                    held = b""
            await response.write(b"data: [DONE]\n\n")
            return response

        monkeypatch.setattr(vllm, "complete", complete)

    return change


def ratios(result: Result, metric: str) -> list[float]:
    rows = [row for row in result.facts["comparisons"] if row["metric"] == metric]
    return [row["ratio"] for row in rows]


async def test_a_gateway_that_buffers_takes_ttft_and_tpot_ratios_and_leaves_the_rest(
    attached, answers
):
    answers(gathered=True)
    result = await run(attached(output_tokens=12), echo=lambda _: None)
    assert outcomes(result)["answers were streamed"] in ("FAIL", "INCONCLUSIVE")  # a late client
    assert "the stream was buffered: TTFT equals E2E in 4 of 4" in sentence(
        result, "answers were streamed"
    )
    assert all(map(isnan, ratios(result, "ttft_s") + ratios(result, "tpot_s")))
    assert not any(map(isnan, ratios(result, "e2e_s") + ratios(result, "system_tps")))
    withheld = [r for r in result.facts["comparisons"] if r["metric"] == "ttft_s"]
    assert {row["sentence"] for row in withheld} == {"withheld: the stream was buffered"}
    assert "cannot be compared: the stream was buffered" in result.facts["finding"]
    assert result.requests["ttft_s"].notna().all()
    assert any(d.startswith("TPOT is not known for 4 of 4 answers") for d in result.doubts)
    assert outcomes(result)["output counts equal"] == "PASS"


async def test_a_server_that_streams_is_left_alone(attached, answers):
    answers()
    result = await run(attached(output_tokens=12), echo=lambda _: None)
    assert outcomes(result)["answers were streamed"] == "PASS"
    assert outcomes(result)["cached tokens plausible"] == "PASS"
    assert not any(map(isnan, ratios(result, "ttft_s") + ratios(result, "tpot_s")))


@pytest.mark.parametrize("seen", [True, False])
async def test_a_usage_that_calls_new_prompts_cached_is_told(attached, answers, seen):
    answers(pause_s=0.0, cached=lambda tokens: tokens)
    result = await run(attached() if seen else attached(decode_urls=[]), echo=lambda _: None)
    assert outcomes(result)["cached tokens plausible"] == "FAIL"
    assert "answers call 1,000 of 1,000 prompt tokens cached" in sentence(
        result, "cached tokens plausible"
    )
    if seen:
        assert outcomes(result)["cold was cold"] == "PASS"


def vllm_0_10(vllm: Any) -> str:
    """Its /metrics, as far as they are read."""
    hits, computed = (vllm.sources.get(s, 0.0) for s in ("local_cache_hit", "local_compute"))
    counters = {
        "vllm:prefix_cache_queries_total": hits + computed,
        "vllm:prefix_cache_hits_total": hits,
        "vllm:prompt_tokens_total": hits + computed,
        "vllm:num_preemptions_total": 0,
        'vllm:request_success_total{finished_reason="length"}': vllm.finished,
    }
    lines = [f"# TYPE {name.partition('{')[0]} counter\n{name} {n}" for name, n in counters.items()]
    return "\n".join([*lines, 'vllm:cache_config_info{block_size="16"} 1', ""])


async def test_counters_of_vllm_0_10_prove_cold_and_warm_passes(
    attached, vllm, answers, monkeypatch
):
    monkeypatch.setattr(vllm, "metrics", lambda: vllm_0_10(vllm))
    answers(pause_s=0.0)
    result = await run(attached(), echo=lambda _: None)
    states = ("cold was cold", "engine-warm was engine-warm", "the ledger closes")
    assert [outcomes(result)[name] for name in states] == ["PASS"] * 3
    (warm,) = [row for row in result.facts["token_sources"] if row["pass"] == "engine-warm"]
    assert (warm["engine_hit"], warm["external_hit"]) == (2 * 496, 0)


async def test_where_counters_of_vllm_0_10_do_not_suffice_the_version_that_does_is_named(
    attached, vllm, answers, monkeypatch
):
    monkeypatch.setattr(vllm, "metrics", lambda: vllm_0_10(vllm))
    answers(pause_s=0.0, cached=lambda tokens: 100)  # a connector may have loaded these
    result = await run(attached(), echo=lambda _: None)
    assert outcomes(result)["engine-warm was engine-warm"] == "PASS"
    assert outcomes(result)["cold was cold"] == "INCONCLUSIVE"
    assert "what a connector loads is not counted; vLLM 0.16 and later say it" in sentence(
        result, "cold was cold"
    )
