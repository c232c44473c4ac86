"""What a live hit analysis finds and says, on rows whose answer is known."""

from __future__ import annotations

from dataclasses import replace
from math import nan
from pathlib import Path

import pandas as pd
import pytest

from tests.experiment.hits.hit_rows import requests
from workbench.experiment.hits.hit_analysis import HitResult
from workbench.experiment.hits.hit_findings import HitRatio, ratios, tiers
from workbench.experiment.hits.run_sentences import by_counters, cards, headline, sentences
from workbench.experiment.plan.hit_plan import MAIN, NO_STORE
from workbench.experiment.result.facts import RunFacts
from workbench.metrics.statistics import Ratio

PROMPTS = [("a", 400, 0), ("b", 4000, 0)]


@pytest.fixture
def measured() -> pd.DataFrame:
    """Three rounds: cold takes 100 and 200 ms, 10 % more with LMCache, loading takes 20 and 40."""
    parts = []
    for number in range(3):
        slow = 1 + 0.001 * number
        for arm, name, ttft_s, cached in (
            (NO_STORE, "cold", 0.1, 0), (MAIN, "cold", 0.11, 0), (MAIN, "store-warm", 0.02, 0.8),
            (MAIN, "50% in LMCache", 0.1 / slow**9, 0.4), ("chunk 512", "store-warm", 0.03, 0.5),
        ):  # fmt: skip
            rows = requests(
                arm, name, [(f"{n}{arm}{name}", p, int(cached * p)) for n, p, _ in PROMPTS],
                ttft_s=ttft_s * slow, round=number,
            )  # fmt: skip
            parts.append(rows)
    return pd.concat(parts, ignore_index=True)


def as_served(rows: pd.DataFrame) -> pd.DataFrame:
    """All cached tokens came from L1."""
    cached = rows["cached_tokens"].astype(float)
    return rows.assign(
        engine=0.0, l1=cached, l2=0.0, computed=rows["prompt_tokens"] - cached, held=cached,
        idle=0.0, ideal=rows["ideal_reuse_tokens"],
    )  # fmt: skip


def found(rows: pd.DataFrame) -> list[HitRatio]:
    return ratios(rows, as_served(rows), {MAIN: 256, "chunk 512": 512})


def test_ratios_are_paired_by_prompt(measured: pd.DataFrame) -> None:
    by_key = {(r.what, r.arm, r.pass_name, r.prompt_tokens): r for r in found(measured)}
    cost = by_key["storing", MAIN, "cold", 0]
    assert cost.ratio.value == pytest.approx(1 / 1.1, rel=1e-3)
    assert cost.ratio.verdict == "slower"
    loading = by_key["loading", MAIN, "store-warm", 4000]
    assert loading.ratio.value == pytest.approx(5, rel=1e-3)
    assert loading.loaded_share == 0.8
    assert by_key["chunk", "chunk 512", "store-warm", 0].loaded_share == pytest.approx(0.5)
    assert "disk" not in {what for what, *_ in by_key}  # no such arm was measured
    row = loading.as_row()
    assert (row["pass"], row["ratio"], row["low"]) == (
        "store-warm", loading.ratio.value, loading.ratio.low
    )  # fmt: skip


def test_the_tables_for_a_reader(measured: pd.DataFrame, tmp_path: Path) -> None:
    rows = as_served(measured)
    counts = pd.DataFrame(columns=["arm", "round", "pass"])
    run = RunFacts(
        notebook="lmcache_hit_analysis", run_id="r", status="success",
        tiers=tuple(tiers(rows, counts)), ratios=tuple(row.as_row() for row in found(measured)),
    )  # fmt: skip
    result = HitResult(run=run, folder=tmp_path, frames={"served": rows})
    shown = result.ratios_table.iloc[0]
    assert (shown["arm, pass"], shown["baseline arm, pass"]) == ("lmcache, cold", "no store, cold")
    assert (shown["TTFT ratio"], shown["verdict"]) == ("0.909x [0.909, 0.909]", "slower")
    warm = result.tiers_table.set_index("arm, pass").loc["lmcache, store-warm"]
    assert (warm["LMCache L1"], warm["hit rate"]) == ("10,560", "80.0 %")
    assert warm["hit rate reported by LMCache"] == "not reported"


def test_sentences_say_what_intervals_carry(measured: pd.DataFrame) -> None:
    rows = found(measured)
    said = sentences(rows, [])
    assert headline(rows).startswith("Loading 4,000 tokens from LMCache: TTFT 5.0x faster; storing")
    assert any("Break-even, whole prompt in L1: below 400 tokens" in s for s in said)
    assert any("Break-even, 50% in LMCache: not reached (400 to 4,000" in s for s in said)
    assert any("increases cold TTFT (+10.0 %, 95 % CI +10.0 to" in s for s in said)
    assert any("if at least 12.5 % of such prompts are sent again" in s for s in said)
    assert [card.label for card in cards(rows, [])] == [
        "TTFT speed-up from loading 4,000 tokens", "change of cold TTFT with storing",
    ]  # fmt: skip


def ratio(length: int, low: float, high: float) -> HitRatio:
    value = Ratio(value=(low + high) / 2, low=low, high=high, rounds=3, pairs=9)
    return HitRatio(
        what="loading", arm=MAIN, pass_name="store-warm", baseline_arm=NO_STORE,
        baseline_pass="cold", prompt_tokens=length, loaded_share=0.8, chunk_tokens=256,
        ttft_ms=1.0, baseline_ttft_ms=1.0, ratio=value,
    )  # fmt: skip


FASTER, UNCLEAR = (1.1, 1.3), (0.9, 1.3)


@pytest.mark.parametrize(
    ("ends", "words"),
    [
        ((FASTER, FASTER), "below 1,000 tokens. Loading is faster"),
        (
            (UNCLEAR, FASTER),
            "at most 2,000 tokens. Loading is significantly faster than recomputing",
        ),
        (
            (FASTER, UNCLEAR),
            "unclear. Loading is significantly faster at 1,000 tokens, but not at 2,000",
        ),
        ((UNCLEAR, UNCLEAR), "not reached"),
        (((nan, nan), (nan, nan)), "not judged"),
        ((), "nothing was loaded"),
    ],
)
def test_break_even_is_where_loading_begins_to_win(
    ends: tuple[tuple[float, float], ...], words: str
) -> None:
    rows = [ratio(1000 * n, *bounds) for n, bounds in enumerate(ends, start=1)]
    (said,) = sentences(rows or [ratio(0, *FASTER)], [])
    assert said.startswith("Break-even, whole prompt in L1") and words in said


NONE = (nan, nan)


@pytest.mark.parametrize("gain", [FASTER, (0.5, 0.7), UNCLEAR, NONE])
@pytest.mark.parametrize("cost", [FASTER, (0.5, 0.7), UNCLEAR, NONE])
def test_a_headline_has_at_most_14_words(
    gain: tuple[float, float], cost: tuple[float, float]
) -> None:
    loading, storing = ratio(10_000, *gain), ratio(0, *cost)
    if gain is NONE:
        loading = replace(loading, ratio=replace(loading.ratio, value=1.2))
    storing = replace(storing, what="storing", pass_name="cold")
    assert len(headline([loading, storing]).split()) <= 14


def test_two_rounds_judge_nothing(measured: pd.DataFrame) -> None:
    rows = found(measured[measured["round"] < 2])
    assert "Loading from LMCache: too few rounds to judge" in headline(rows)
    said = " ".join(sentences(rows, []))
    assert "not judged, because" in said and "Too few rounds to compare TTFT" in said


def counted(**counts: float) -> pd.DataFrame:
    return pd.DataFrame([{"arm": MAIN, "round": 0, "pass": "engine-warm", **counts}])


def test_a_hit_that_the_engine_had_too_is_claimed_and_not_credited() -> None:
    rows = as_served(requests(MAIN, "engine-warm", [("a", 400, 384)]))
    rows = rows.assign(engine=384.0, l1=0.0, held=256.0, idle=256.0)
    (tier,) = tiers(rows, counted(requested=256.0, claimed=256.0))
    assert (tier["hit_share"], tier["claimed_share"], tier["idle"]) == (0.96, 1.0, 256)
    assert "reports 256 hit tokens (100 % of those looked up)" in sentences([], [tier])[0]
    assert cards([], [tier])[0].value == 100


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ({"engine": 384.0, "loaded": 0.0, "claimed": 256.0}, "LMCache's own counter reports 256"),
        ({"engine": nan, "loaded": 0.0, "claimed": 0.0}, "do not report which cache"),
    ],
)
def test_servers_that_run_already_say_it_by_their_counters(
    counts: dict[str, float], words: str
) -> None:
    rows = as_served(requests(MAIN, "engine-warm", [("a", 400, 384)]))
    assert words in by_counters(tiers(rows, counted(**counts)))[0]
