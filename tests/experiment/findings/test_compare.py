from math import isnan

import pandas as pd
import pytest

from workbench.experiment.findings.compare import compare, summarise


def only(table, **wanted):
    (row,) = (r for r in table if all(getattr(r, k) == v for k, v in wanted.items()))
    return row


@pytest.fixture
def requests(rows):
    """1p1d beside 2a in three rounds of two requests: warm is ten times faster, 1p1d twice."""
    parts = []
    for number in range(3):
        drift = 1 + number  # what a round has in common leaves no trace in a paired ratio
        for arm, cold_s in (("1p1d lmcache", 1.0), ("2a", 2.0), ("2a lmcache", 2.0)):
            for name, share in (("cold", 1.0), ("engine-warm", 0.1), ("store-warm", 0.2)):
                if arm == "2a" and name == "store-warm":
                    continue
                ttft_s = [cold_s * share * drift, 3 * cold_s * share * drift]
                parts.append(rows(arm, name, ttft_s, round=number))
    return pd.concat(parts, ignore_index=True)


def test_a_summary_has_a_row_for_each_arm_pass_and_metric(requests):
    summary = summarise(requests)
    assert len(summary) == 8 * 5  # 2a has no store-warm pass
    metrics = {row.metric for row in summary}
    assert metrics == {"ttft_s", "tpot_s", "e2e_s", "request_tps", "system_tps"}


def test_the_median_is_over_the_requests_of_all_rounds(requests):
    row = only(summarise(requests), arm="2a", metric="ttft_s", pass_name="cold")
    assert row.estimate.value == pytest.approx(6.0)  # of 2, 4, 6, 6, 12, 18
    assert row.estimate.low <= row.estimate.value <= row.estimate.high
    assert (row.n_requests, row.n_failed, row.n_rounds) == (6, 0, 3)
    assert (row.topology, row.connector) == ("2a", "none")


def test_a_request_decodes_its_tokens_at_one_speed(requests):
    row = only(summarise(requests), arm="2a", metric="request_tps", pass_name="cold")
    assert row.estimate.value == pytest.approx(100.0)


def test_the_throughput_of_a_pass_counts_rounds_not_requests(rows):
    # 22 tokens in 2 x (0.9 + 0.1) s, and in twice that time.
    requests = pd.concat(
        [rows("1a", "cold", [0.9] * 2), rows("1a", "cold", [1.9] * 2, round=1)], ignore_index=True
    )
    row = only(summarise(requests), metric="system_tps")
    assert row.estimate.value == pytest.approx((11.0 + 5.5) / 2)
    assert isnan(row.estimate.low)


def test_failed_requests_are_counted_and_have_no_latency(rows, failed):
    row = only(summarise(rows("1a", "cold", [1.0, failed, 3.0])), metric="ttft_s")
    assert (row.n_requests, row.n_failed, row.estimate.value) == (3, 1, 2.0)


def test_a_pass_in_which_all_failed_has_no_median(rows, failed):
    assert all(isnan(row.estimate.value) for row in summarise(rows("1a", "cold", [failed] * 3)))


def test_a_warm_pass_is_compared_with_the_cold_one_of_its_arm(sweep, requests):
    comparisons = compare(sweep(topology="1p1d"), requests)
    row = only(comparisons, kind="cache-state", metric="ttft_s", arm="2a", pass_name="engine-warm")
    assert row.ratio.value == pytest.approx(10.0)
    assert (row.baseline_arm, row.baseline_pass) == ("2a", "cold")
    assert (row.ratio.rounds, row.ratio.pairs) == (3, 6)
    assert row.ratio.low == pytest.approx(row.ratio.high)  # every round says exactly the same


def test_a_subject_is_compared_with_its_opponents_in_the_same_state(sweep, requests):
    comparisons = [r for r in compare(sweep(topology="1p1d"), requests) if r.kind == "opponent"]
    ttft = {
        (r.baseline_arm, r.pass_name): r.ratio.value for r in comparisons if r.metric == "ttft_s"
    }
    # 2a without a store has no store-warm pass to be compared.
    assert ttft == {
        key: pytest.approx(2.0)
        for key in (
            ("2a", "cold"), ("2a", "engine-warm"),
            ("2a lmcache", "cold"), ("2a lmcache", "engine-warm"), ("2a lmcache", "store-warm"),
        )
    }  # fmt: skip
    assert all(r.baseline_pass == r.pass_name for r in comparisons)
    assert {r.arm for r in comparisons} == {"1p1d lmcache"}


def test_more_throughput_is_a_ratio_above_one(sweep, requests):
    row = only(
        compare(sweep(topology="1p1d"), requests),
        kind="opponent", metric="system_tps", baseline_arm="2a", pass_name="cold",
    )  # fmt: skip
    # 22 tokens in 4 and in 8 seconds, nearly: the answers themselves take 0.1 s each.
    assert 1.9 < row.ratio.value < 2.0


def test_unlike_numbers_of_gpus_are_not_compared(sweep, rows):
    plan = sweep(topology="1p1d,1p2d", opponents=True)
    requests = pd.concat(
        [rows(arm.label, p.name, [1.0]) for arm in plan.arms for p in arm.passes], ignore_index=True
    )
    pairs = {(r.arm, r.baseline_arm) for r in compare(plan, requests) if r.kind == "opponent"}
    assert pairs == {
        ("1p1d lmcache", "2a"), ("1p1d lmcache", "2a lmcache"),
        ("1p2d lmcache", "3a"), ("1p2d lmcache", "3a lmcache"),
    }  # fmt: skip


def test_an_instance_that_spans_more_gpus_than_the_subject_is_no_opponent(sweep, rows, machine_has):
    machine_has("cuda", gpus=8)
    plan = sweep(topology="1p1d", aggregated_tp=4, connector="nixl")
    requests = pd.concat([rows(arm.label, "cold", [1.0]) for arm in plan.arms], ignore_index=True)
    assert compare(plan, requests) == ()
    assert any("its aggregated baseline only" in doubt for doubt in plan.doubts)


def test_what_was_not_measured_is_not_compared(sweep, rows):
    # The run broke off after the first arm's cold pass.
    assert compare(sweep(topology="1p1d"), rows("1p1d lmcache", "cold", [1.0])) == ()


def test_a_failed_request_leaves_its_pair_out(sweep, rows, failed):
    plan = sweep(topology="1p1d", opponents=False)
    requests = pd.concat(
        [
            rows("1p1d lmcache", "cold", [1.0, 1.0]),
            rows("1p1d lmcache", "engine-warm", [0.1, failed]),
        ],
        ignore_index=True,
    )
    row = only(compare(plan, requests), metric="ttft_s")
    assert row.ratio.value == pytest.approx(10.0)
    assert row.ratio.pairs == 1
    assert "1 of 2 pairs left out" in row.ratio.note
    assert isnan(row.ratio.low)  # one round


def test_the_prefix_cache_is_compared_with_none(prefix_cache, rows):
    plan = prefix_cache(shares=[0.5])
    times = {"cold": 1.1, "50% cached": 0.5, "engine-warm": 0.1}
    parts = [rows("cache off", "cold", [1.0], round=number) for number in range(3)]
    parts += [rows("cache on", name, [s], round=n) for name, s in times.items() for n in range(3)]
    comparisons = compare(plan, pd.concat(parts, ignore_index=True))
    off = {
        r.pass_name: r.ratio.value
        for r in comparisons
        if r.kind == "cache-off" and r.metric == "ttft_s"
    }
    assert off == {
        "cold": pytest.approx(1 / 1.1),
        "50% cached": pytest.approx(2.0),
        "engine-warm": pytest.approx(10.0),
    }
