"""Who served prompt tokens: what the figures say, and that they never draw what is not known."""

from math import nan

import pandas as pd
import pytest

from tests.report.conftest import text, words
from workbench.report import figures


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


def test_each_arm_has_a_panel_and_each_pass_its_name(served):
    chart = figures.served_over_requests(served, arms=["small", "lmcache", "absent"])
    shown = words(chart)
    assert shown.count("engine-warm") == 2
    assert [name for name in shown if name in ("small", "lmcache")] == ["small", "lmcache"]
    for name in ("engine prefix cache", "LMCache memory (L1)", "LMCache L2", "computed"):
        assert name in shown
    assert "disk-warm: engine prefix cache 0, LMCache memory (L1) 0, LMCache L2 3,000" in chart.alt


def test_a_tier_is_named_if_it_is_the_only_one(served):
    names = {"lmcache": "lmcache, L2 on disk", "small": "lmcache, L2 on Redis"}
    tiers = served.assign(arm=served["arm"].map(names))
    assert "LMCache L2" in words(figures.served_over_requests(tiers))
    one = tiers[tiers["arm"] == "lmcache, L2 on Redis"]
    assert "LMCache Redis (L2)" in words(figures.served_over_requests(one))


def test_the_title_says_what_lmcache_served(served):
    lmcache = served[served["arm"] == "lmcache"]
    chart = figures.served_over_requests(lmcache)
    assert "LMCache served 100 % of store-warm prompt tokens (lmcache)" in text(chart)
    other = lmcache[lmcache["pass"] != "store-warm"]
    assert "Who served each prompt token, by pass" in text(figures.served_over_requests(other))


def test_without_the_named_arms_all_are_drawn(served):
    chart = figures.served_over_requests(served, arms=["absent"])
    assert {"small", "lmcache"} <= set(words(chart))


def test_many_requests_are_drawn_as_means(served):
    log = pd.concat([served[served["arm"] == "small"]] * 200, ignore_index=True)
    chart = figures.served_over_requests(log.assign(arm="log", **{"pass": "in-process"}))
    assert chart.caption.startswith("Each bar is the mean of neighbouring requests.")
    assert "LMCache" in words(chart)  # that generation does not say which of its tiers it was
    assert len(chart.svg) < 300_000


def test_what_a_log_does_not_say_is_named_and_not_drawn(served):
    log = served[served["pass"] == "store-warm"].assign(
        arm="log", engine=nan, computed=nan, prompt_tokens=nan, **{"pass": "mp"}
    )
    chart = figures.served_over_requests(log)
    assert chart.caption.endswith("Unknown for some requests: engine prefix cache, computed.")
    assert "computed" not in words(chart)
    assert "Hit tokens: LMCache memory (L1) 6,000" in text(chart)


def test_hits_stand_beside_the_ideal_and_what_lmcache_claims(tiers):
    chart = figures.hits_by_tier(tiers)
    shown = words(chart)
    assert "Engine-warm: LMCache reports 100 % hits, the engine needed none" in text(chart)
    assert "98.0 %; 100 %" in shown and "90.0 %; 100 %" in shown
    assert "lmcache, cold" not in shown
    assert "Black mark: an infinite cache." in chart.caption


def test_a_log_has_no_counters_of_lmcache_beside_it(tiers):
    chart = figures.hits_by_tier(tiers.assign(ideal_share=nan, claimed_share=nan))
    assert chart.caption == "Right: combined hit rate."
    assert "LMCache reports" not in text(chart)


def test_a_log_without_lengths_has_no_hit_rate(tiers):
    chart = figures.hits_by_tier(tiers.assign(prompt_tokens=nan, engine=nan))
    assert "No data: the log has no prompt lengths" in chart.alt


def test_each_role_has_a_bar_and_decode_its_own_share_as_title():
    row = {"arm": "1p1d", "pass": "cold", "round": 0, "engine_hit": 0.0}
    sources = pd.DataFrame(
        [
            row | {"role": "prefill", "sent": 900, "computed": 900.0, "external_hit": 0.0},
            row | {"role": "decode", "sent": 900, "computed": 90.0, "external_hit": 810.0},
        ]
    )
    chart = figures.token_sources(sources)
    assert "Decode instances recomputed 10 % of their prompt tokens" in text(chart)
    assert {"1p1d, cold: prefill", "1p1d, cold: decode", "900"} < set(words(chart))
    silent = figures.token_sources(sources.assign(computed=nan))
    assert "No data: no server reports" in silent.alt


def test_what_was_loaded_is_drawn_by_tier_where_every_round_knows_it():
    row = {"arm": "1a", "role": "aggregated", "sent": 900, "engine_hit": 0.0}
    loaded = {"computed": 90.0, "external_hit": 810.0}
    sources = pd.DataFrame(
        [
            row | loaded | {"pass": name, "round": number, "memory": 0.0, "redis": redis}
            for name, rounds in (("store-warm", [810.0, nan]), ("remote-warm", [810.0, 810.0]))
            for number, redis in enumerate(rounds)
        ]
    )
    chart = figures.token_sources(sources)
    assert "1a store-warm aggregated: computed 180, engine prefix cache 0," in chart.alt
    assert "loaded through the connector 1,620, loaded from Redis 0." in chart.alt
    assert "loaded through the connector 0, loaded from Redis 1,620." in chart.alt
