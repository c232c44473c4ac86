from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t

from tests.experiment.result.waterfalls import split
from workbench.experiment.result.finding_rows import Comparison
from workbench.experiment.result.waterfall_diff import difference, why
from workbench.metrics.statistics import Ratio
from workbench.metrics.waterfall.waterfall import PARTS

KINDS = [("opponent", "ttft_s", "2a"), ("opponent", "tpot_s", "2a"), ("cache-state", "ttft_s", "")]
PAIR = [
    Comparison(
        kind=kind, metric=metric, arm="1p1d nixl", pass_name="cold" if rival else "engine-warm",
        baseline_arm=rival or "1p1d nixl", baseline_pass="cold", sentence="",
        ratio=Ratio(value=1.0, low=1.0, high=1.0, rounds=5, pairs=5),
    )
    for kind, metric, rival in KINDS
]  # fmt: skip


def noisy(frame, part, by_ms, seed=0):
    """The frame with a launch's own luck added to a part, and so to TTFT."""
    luck = np.random.default_rng(seed).normal(0, by_ms / 1000, frame["round"].nunique())
    added = luck[frame["round"].to_numpy()]
    return frame.assign(**{part: frame[part] + added, "ttft_s": frame["ttft_s"] + added})


def one(*frames, pairs=PAIR):
    said = why(pd.concat(frames), pairs)
    assert len(said) == 1
    return said[0]


def test_the_parts_that_make_the_difference_are_named_with_their_sizes():
    later = split("1p1d nixl", prefill_compute_s=300, transfer_queue_s=180, prefill_queue_s=60)
    assert one(later, split("2a", prefill_compute_s=300, prefill_queue_s=10)) == (
        "1p1d nixl vs 2a, cold: mean TTFT is 230 ms higher [230, 230]. Largest parts: KV transfer +"
        " decode queue +180 ms [180, 180], prefill queue +50.0 ms [50.0, 50.0]."
    )


def test_a_gain_is_explained_and_what_works_against_it_is_said():
    sooner = split("1p1d nixl", prefill_queue_s=10, transfer_queue_s=30)
    assert one(sooner, split("2a", prefill_queue_s=200)) == (
        "1p1d nixl vs 2a, cold: mean TTFT is 160 ms lower [160, 160]. Largest parts: prefill queue"
        " -190 ms [-190, -190]. Partly offset by: KV transfer + decode queue +30.0 ms [30.0, 30.0]."
    )


def test_api_servers_are_joined_with_the_transfer_where_one_arm_cannot_tell_them_apart():
    """Else 30 ms of API server would be missing on one side and extra on the other."""
    at_once = split("1p1d nixl", transfer_queue_s=80, prefill_compute_s=300).assign(at_once=True)
    other = split("2a", prefill_server_s=30, prefill_compute_s=300).assign(at_once=False)
    assert one(at_once, other) == (
        "1p1d nixl vs 2a, cold: mean TTFT is 50.0 ms higher [50.0, 50.0]. Largest parts: API"
        " servers + KV transfer + decode queue +50.0 ms [50.0, 50.0]."
    )


def test_a_part_stands_out_although_the_noise_of_another_hides_the_total():
    split_arm = noisy(split("1p1d nixl", prefill_compute_s=300, transfer_queue_s=20),
                      "prefill_compute_s", 100)  # fmt: skip
    text = one(split_arm, split("2a", prefill_compute_s=300))
    assert text.startswith("1p1d nixl vs 2a, cold: no significant difference in mean TTFT (")
    assert text.endswith(
        "). Parts that differ significantly: KV transfer + decode queue +20.0 ms [20.0, 20.0]."
    )
    assert "prefill compute" not in text


def test_no_part_is_blamed_where_none_stands_out():
    luck = noisy(split("1p1d nixl", prefill_compute_s=300), "prefill_compute_s", 50)
    text = one(luck, split("2a", prefill_compute_s=300))
    assert text.startswith("1p1d nixl vs 2a, cold: no significant difference in mean TTFT (")
    assert text.endswith("]). No part differs significantly.")


def test_a_sure_total_of_parts_that_are_not_sure_is_not_explained():
    """What one part takes in a launch another gives back: TTFT is surely 20 ms later."""
    subject = noisy(split("1p1d nixl", prefill_compute_s=320), "prefill_compute_s", 300)
    swing = subject["prefill_compute_s"] - 0.32
    subject = subject.assign(prefill_queue_s=-swing, ttft_s=subject["ttft_s"] - swing)
    text = one(subject, split("2a", prefill_compute_s=300))
    assert "20.0 ms higher [20.0, 20.0]. No part differs significantly." in text


def test_the_smallest_parts_are_counted_and_the_tiny_ones_are_not():
    many = dict(zip(PARTS, (0.1, 40, 30, 60, 20, 10, 0, 0, 0), strict=True))
    text = one(split("1p1d nixl", **many), split("2a"))
    assert "prefill compute +60.0 ms" in text
    assert text.endswith("and 2 smaller parts.")
    assert "proxy" not in text


@pytest.mark.parametrize("rounds", [1, 2])
def test_too_few_rounds_explain_nothing(rounds):
    frames = (split(arm, rounds=rounds, prefill_compute_s=9) for arm in ("1p1d nixl", "2a"))
    assert f"no CI, since it needs 3 rounds and has {rounds}" in one(*frames)


def test_requests_without_a_whole_waterfall_are_left_out_and_counted():
    subject, rival = split("1p1d nixl", transfer_queue_s=20), split("2a")
    subject.loc[0, "residual_s"] = math.nan
    assert one(subject, rival).endswith(
        "+20.0 ms [20.0, 20.0]. Left out: 1 request pair without a complete waterfall."
    )
    subject["residual_s"] = math.nan
    assert one(subject, rival) == (
        "1p1d nixl vs 2a, cold: no pair of requests has a complete waterfall."
    )


def test_without_opponents_topologies_are_set_beside_the_first():
    frames = pd.concat(
        [
            split("1p1d nixl", prefill_queue_s=100),
            split("2p1d nixl", prefill_queue_s=20),
            split("2p1d nixl", "store-warm"),
        ]
    )
    for pairs in (PAIR[2:], []):
        assert why(frames, pairs) == [
            "2p1d nixl vs 1p1d nixl, cold: mean TTFT is 80.0 ms lower [80.0, 80.0]. Largest parts:"
            " prefill queue -80.0 ms [-80.0, -80.0]."
        ]
    assert why(frames.iloc[:0], []) == []


def test_parts_add_up_to_ttft_and_intervals_are_those_of_rounds():
    subject = noisy(split("1p1d nixl", transfer_queue_s=20), "transfer_queue_s", 5)
    both = pd.concat([subject, split("2a")])
    found = difference(both, arm="1p1d nixl", baseline="2a", name="cold")
    assert sum(part.mean_s for part in found.parts) == pytest.approx(found.total.mean_s)
    per_round = subject.groupby("round")["transfer_queue_s"].mean()
    reach = t.ppf(0.975, 4) * per_round.std(ddof=1) / math.sqrt(5)
    (part,) = (part for part in found.parts if part.name == PARTS["transfer_queue_s"])
    assert part.mean_s == pytest.approx(per_round.mean())
    assert part.high_s - part.mean_s == pytest.approx(reach)
    assert (found.rounds, found.pairs, found.left_out) == (5, 10, 0)
