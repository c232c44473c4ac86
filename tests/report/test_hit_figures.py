"""The figures of the hit analysis: what they say, and that they never draw what is not known."""

from __future__ import annotations

from math import nan
from xml.etree import ElementTree

import pandas as pd
import pytest

from workbench.report import figures
from workbench.report.figures import Chart


def words(chart: Chart) -> list[str]:
    root = ElementTree.fromstring(chart.svg)
    return ["".join(node.itertext()).strip() for node in root.iter() if node.tag.endswith("}text")]


def text(chart: Chart) -> str:
    """All texts in one, so that a title which was wrapped is found whole."""
    return " ".join(words(chart))


@pytest.fixture
def served() -> pd.DataFrame:
    """Two requests of each pass: computed, then by the engine, then from L1 and the disk."""
    tiers = {"cold": "computed", "engine-warm": "engine", "store-warm": "l1", "disk-warm": "l2"}
    rows = [
        {"arm": arm, "round": 0, "pass": name, "prompt_tokens": 1000.0 * n,
         **{tier: 1000.0 * n * (tier == mine) for tier in ("engine", "l1", "l2", "computed")}}
        for arm in ("lmcache", "small") for name, mine in tiers.items() for n in (1, 2)
    ]  # fmt: skip
    return pd.DataFrame(rows)


@pytest.fixture
def tiers() -> pd.DataFrame:
    row = {"arm": "lmcache", "requests": 2, "prompt_tokens": 1000.0, "engine": 0.0, "l1": 0.0,
           "l2": 0.0, "computed": 1000.0, "held": 0.0, "idle": 0.0, "hit_share": 0.0,
           "ideal_share": 0.999, "claimed_share": 0.0}  # fmt: skip
    warm = {"engine": 980.0, "computed": 20.0, "idle": 900.0, "hit_share": 0.98}
    return pd.DataFrame(
        [
            row | {"pass": "cold", "ideal_share": 0.0},
            row | warm | {"pass": "engine-warm", "claimed_share": 1.0},
            row | {"pass": "store-warm", "l1": 500.0, "l2": 400.0, "computed": 100.0,
                   "hit_share": 0.9, "claimed_share": 1.0},
        ]
    )  # fmt: skip


@pytest.fixture
def ratios() -> pd.DataFrame:
    rows = []
    for what, arm, name, base, value in (
        ("storing", "lmcache", "cold", "no store", 0.9),
        ("loading", "lmcache", "store-warm", "no store", 2.0),
        ("loading", "lmcache", "50% in LMCache", "no store", 1.2),
        ("chunk", "lmcache", "store-warm", "lmcache", 1.0),
        ("chunk", "chunk 512", "store-warm", "lmcache", 0.8),
    ):
        for length in (0, 400, 3900):
            rows.append(
                {"what": what, "arm": arm, "pass": name, "baseline_arm": base,
                 "baseline_pass": "cold", "prompt_tokens": length, "ratio": value,
                 "low": 0.9 * value, "high": 1.1 * value, "n_rounds": 3, "n_pairs": 6,
                 "loaded_share": 0.8 if arm == "lmcache" else 0.5,
                 "chunk_tokens": 512 if arm == "chunk 512" else 256}
            )  # fmt: skip
    return pd.DataFrame(rows)


def test_each_arm_has_a_panel_and_each_pass_its_name(served: pd.DataFrame) -> None:
    chart = figures.served_over_requests(served, arms=["small", "lmcache", "absent"])
    shown = words(chart)
    assert shown.count("engine-warm") == 2
    assert [text for text in shown if text in ("small", "lmcache")] == ["small", "lmcache"]
    for name in ("engine's own cache", "LMCache, L1", "LMCache, L2", "computed"):
        assert name in shown
    assert "lmcache, disk-warm: engine's own cache 0, LMCache, L1 0, LMCache, L2 3,000" in chart.alt


def test_without_the_named_arms_all_are_drawn(served: pd.DataFrame) -> None:
    chart = figures.served_over_requests(served, arms=["absent"])
    assert {"small", "lmcache"} <= set(words(chart))


def test_many_requests_are_drawn_as_means(served: pd.DataFrame) -> None:
    log = pd.concat([served[served["arm"] == "small"]] * 200, ignore_index=True)
    chart = figures.served_over_requests(log.assign(arm="log", **{"pass": "in-process"}))
    assert chart.caption.startswith("Each bar is the mean of neighbouring requests.")
    assert "LMCache" in words(chart)  # that generation does not say which of its tiers it was
    assert len(chart.svg) < 300_000


def test_what_a_log_does_not_say_is_named_and_not_drawn(served: pd.DataFrame) -> None:
    log = served[served["pass"] == "store-warm"].assign(
        arm="log", engine=nan, computed=nan, prompt_tokens=nan, **{"pass": "mp"}
    )
    chart = figures.served_over_requests(log)
    assert chart.caption.endswith("Not known for every request: engine's own cache, computed.")
    assert "computed" not in words(chart)
    assert "Tokens found: LMCache, L1 6,000" in text(chart)


def test_hits_stand_beside_the_ideal_and_what_lmcache_claims(tiers: pd.DataFrame) -> None:
    chart = figures.hits_by_tier(tiers)
    shown = words(chart)
    assert "Engine-warm, LMCache calls 100% of its lookups hits, and the engine needed" in text(
        chart
    )
    assert "98.0%; 100.0%" in shown and "90.0%; 100.0%" in shown
    assert "lmcache, cold" not in shown
    assert "black mark" in chart.caption


def test_a_log_has_no_counters_of_lmcache_beside_it(tiers: pd.DataFrame) -> None:
    chart = figures.hits_by_tier(tiers.assign(ideal_share=nan, claimed_share=nan))
    assert chart.caption == "At the right the share served from any cache."
    assert "LMCache says" not in text(chart)


def test_a_log_without_lengths_has_no_hit_rate(tiers: pd.DataFrame) -> None:
    chart = figures.hits_by_tier(tiers.assign(prompt_tokens=nan, engine=nan))
    assert "No data: the log does not say how long prompts were" in chart.alt


def test_the_cost_of_storing_is_a_change_of_ttft(ratios: pd.DataFrame) -> None:
    chart = figures.cost_of_storing(ratios)
    assert "LMCache changes cold TTFT by +11.1 % [+1.0, +23.5]" in text(chart)
    assert {"all prompts", "400 tokens", "3,900 tokens"} <= set(words(chart))


def test_a_cost_that_may_be_none_is_called_so(ratios: pd.DataFrame) -> None:
    chart = figures.cost_of_storing(ratios.assign(high=1.2))
    assert "What LMCache costs a cold prompt is not told from noise" in text(chart)


def test_break_even_has_a_line_for_each_state(ratios: pd.DataFrame) -> None:
    chart = figures.break_even(ratios)
    shown = words(chart)
    assert {"store-warm", "50% in LMCache", "as fast as recomputing", "400", "3900"} <= set(shown)
    assert "store-warm 2x" in text(chart)
    assert "50% in LMCache 1.2x" in text(chart)


def test_without_intervals_marks_are_hollow_and_the_title_says_so(ratios: pd.DataFrame) -> None:
    chart = figures.break_even(ratios.assign(low=nan, high=nan))
    assert "(no interval)" in text(chart)


def test_the_chunk_shows_share_and_ttft(ratios: pd.DataFrame) -> None:
    chart = figures.chunk_effect(ratios)
    assert "80.0% with 256, 50.0% with 512" in text(chart)
    assert "against chunk 256" in chart.caption


@pytest.mark.parametrize("figure", ["cost_of_storing", "break_even", "chunk_effect"])
def test_a_log_has_none_of_these(figure: str) -> None:
    chart = getattr(figures, figure)(pd.DataFrame())
    assert "No data: a log has no TTFT; a live run measures it." in chart.alt


def test_a_failed_gate_stands_in_every_title(
    served: pd.DataFrame, tiers: pd.DataFrame, ratios: pd.DataFrame
) -> None:
    for frame, draw in (
        (served, figures.served_over_requests), (tiers, figures.hits_by_tier),
        (ratios, figures.cost_of_storing), (ratios, figures.break_even),
        (ratios, figures.chunk_effect),
    ):  # fmt: skip
        frame.attrs["failed_gates"] = ["cold was cold"]
        assert "Not proven: gate “cold was cold” failed." in text(draw(frame))
