"""Servers that answer and count in ways of their own, through the whole pipeline."""

from math import isnan

import pandas as pd
import pytest

from tests.runs import outcomes
from workbench.experiment.environment import TIMING_GATES
from workbench.experiment.result.result import Result
from workbench.experiment.run.run import run
from workbench.metrics.counters import SERIES
from workbench.serve.simulated.scheduler import Sequence


def sentence(result: Result, name: str) -> str:
    return next(gate["sentence"] for gate in result.facts["gates"] if gate["name"] == name)


def ratios(result: Result, metric: str) -> list[float]:
    return [row.ratio.value for row in result.run.comparisons if row.metric == metric]


async def test_a_gateway_that_buffers_takes_ttft_and_tpot_ratios_and_leaves_the_rest(
    attached, vllm
):
    vllm.goes_wrong("buffered_stream")
    result = await run(attached(output_tokens=12), echo=lambda _: None)
    assert outcomes(result.facts)["answers were streamed"] in (
        "FAIL",
        "INCONCLUSIVE",
    )  # a late client
    assert "4 of 4 responses of attached arrived in one piece" in sentence(
        result, "answers were streamed"
    )
    assert all(map(isnan, ratios(result, "ttft_s") + ratios(result, "tpot_s")))
    assert not any(map(isnan, ratios(result, "e2e_s") + ratios(result, "system_tps")))
    withheld = [r for r in result.facts["comparisons"] if r["metric"] == "ttft_s"]
    assert {row["sentence"] for row in withheld} == {"withheld: the stream was buffered"}
    assert "No TTFT comparison: the stream was buffered" in result.facts["finding"]
    assert result.requests["ttft_s"].notna().all()
    assert any(d.startswith("TPOT is unknown for 4 of 4 responses") for d in result.doubts)
    assert outcomes(result.facts)["output counts equal"] == "PASS"


async def test_a_server_that_streams_is_left_alone(attached):
    result = await run(attached(output_tokens=12), echo=lambda _: None)
    assert outcomes(result.facts)["answers were streamed"] == "PASS"
    assert outcomes(result.facts)["cached tokens plausible"] == "PASS"
    assert not any(map(isnan, ratios(result, "ttft_s") + ratios(result, "tpot_s")))


@pytest.mark.parametrize("seen", [True, False])
async def test_a_usage_that_calls_new_prompts_cached_is_told(attached, vllm, seen):
    vllm.goes_wrong("usage_all_cached")
    result = await run(attached() if seen else attached(decode_urls=[]), echo=lambda _: None)
    assert outcomes(result.facts)["cached tokens plausible"] == "FAIL"
    assert "Responses report 1,000 of 1,000 cold prompt tokens as cached" in sentence(
        result, "cached tokens plausible"
    )
    if seen:
        assert outcomes(result.facts)["cold was cold"] == "PASS"


VLLM_0_10 = (
    "vllm:prefix_cache_queries", "vllm:prefix_cache_hits", "vllm:prompt_tokens_total",
    "vllm:num_preemptions", "vllm:request_success", "vllm:cache_config_info",
)  # fmt: skip
"""The series of its /metrics, as far as they are read."""


async def test_counters_of_vllm_0_10_prove_cold_and_warm_passes(attached, vllm):
    vllm.shows = VLLM_0_10
    result = await run(attached(), echo=lambda _: None)
    states = ("cold was cold", "engine-warm was engine-warm", "the ledger closes")
    assert [outcomes(result.facts)[name] for name in states] == ["PASS"] * 3
    (warm,) = [row for row in result.facts["token_sources"] if row["pass"] == "engine-warm"]
    assert (warm["engine_hit"], warm["external_hit"]) == (2 * 384, 0)


async def test_where_counters_of_vllm_0_10_do_not_suffice_the_version_that_does_is_named(
    attached, vllm, monkeypatch
):
    vllm.shows = VLLM_0_10
    # A connector may have loaded these.
    monkeypatch.setattr(Sequence, "cached", property(lambda sequence: sequence.local or 100))
    result = await run(attached(), echo=lambda _: None)
    assert outcomes(result.facts)["engine-warm was engine-warm"] == "PASS"
    assert outcomes(result.facts)["cold was cold"] == "INCONCLUSIVE"
    assert "vLLM 0.16 or later" in sentence(result, "cold was cold")


@pytest.mark.parametrize("series", SERIES)
async def test_what_a_series_that_a_server_lacks_would_prove_is_left_open(attached, vllm, series):
    """Each gate passes or says what is unknown, and no token is counted that nobody counted."""
    vllm.lacks = (series,)
    result = await run(attached(), echo=lambda _: None)
    on_content = {
        name: outcome
        for name, outcome in outcomes(result.facts).items()
        if name not in TIMING_GATES
    }
    assert set(on_content.values()) <= {"PASS", "INCONCLUSIVE"}
    assert series not in set(pd.read_parquet(result.folder / "counters.parquet")["series"])
    if series == "vllm:prompt_tokens_by_source_total":  # the hits of each cache add up to it
        assert on_content["cold was cold"] == "PASS"
