from math import isnan

import pandas as pd
import pytest

from workbench.claims.serving.served import latency_ratio, noise_of_rounds, throughput_ratio
from workbench.metrics.latency import latencies
from workbench.records import RequestRecord, to_frame


def rows(arm, name, ttft_s, rounds=5):
    """Two requests a round with that TTFT, a little more in each round, and 10 ms a token."""
    frames = []
    for number in range(rounds):
        first = ttft_s * (1 + 0.01 * number)
        records = [
            RequestRecord(
                index=index, request_id=f"{number} {index}", prompt_tokens=1000,
                ideal_reuse_tokens=0, max_tokens=11, scheduled_s=index, sent_s=index,
                chunk_s=tuple(index + first + 0.01 * token for token in range(11)),
                chunk_tokens=(1,) * 11, output_tokens=11, text="t",
            )
            for index in (100, 101)
        ]  # fmt: skip
        frames.append(latencies(to_frame(records, **{"arm": arm, "round": number, "pass": name})))
    return pd.concat(frames, ignore_index=True)


def test_a_ratio_of_latencies_is_value_over_baseline():
    both = pd.concat([rows("on", "warm", 0.1), rows("on", "cold", 0.4)])
    ratio = latency_ratio(both, ("on", "warm"), ("on", "cold"), "ttft_s")
    assert ratio.estimate == pytest.approx(0.25)
    assert ratio.low == pytest.approx(0.25) == ratio.high  # rounds drift alike, so pairs agree
    assert ratio.runs == 5


def test_the_interval_of_an_equivalence_test_is_narrower():
    noisy = pd.concat([rows("a", "cold", 0.2), rows("b", "cold", 0.2)])
    spread = noisy["arm"].eq("b") & noisy["round"].eq(2)
    noisy.loc[spread, "tpot_s"] *= 1.2
    sides = ("b", "cold"), ("a", "cold")
    wide = latency_ratio(noisy, *sides, "tpot_s")
    tost = latency_ratio(noisy, *sides, "tpot_s", confidence=0.9)
    assert wide.low < tost.low < tost.high < wide.high


def test_throughput_is_higher_where_a_pass_is_shorter():
    both = pd.concat([rows("on", "cold", 0.1), rows("off", "cold", 0.4)])
    assert throughput_ratio(both, ("on", "cold"), ("off", "cold")).estimate > 1


def test_two_rounds_have_no_interval():
    both = pd.concat([rows("a", "cold", 0.1, rounds=2), rows("b", "cold", 0.1, rounds=2)])
    ratio = latency_ratio(both, ("a", "cold"), ("b", "cold"), "ttft_s")
    assert ratio.runs == 2 and isnan(ratio.low)


def test_the_noise_floor_is_what_equal_arms_differ_by():
    both = pd.concat([rows("a", "cold", 0.100), rows("a again", "cold", 0.105)])
    assert noise_of_rounds(both, "a again", "a") == pytest.approx(0.05)
    assert isnan(noise_of_rounds(both, "a", "none"))
    assert noise_of_rounds(both, "a again", "a", "system_tps") > 0
