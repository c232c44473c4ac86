from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t

from workbench.experiment.result.why import differences, table, why
from workbench.metrics.waterfall import PARTS

PAIR = pd.DataFrame(
    [
        {
            "kind": "opponent",
            "metric": "ttft_s",
            "arm": "1p1d nixl",
            "pass": "cold",
            "baseline_arm": "2a",
        },
        {
            "kind": "opponent",
            "metric": "tpot_s",
            "arm": "1p1d nixl",
            "pass": "cold",
            "baseline_arm": "2a",
        },
        {
            "kind": "cache-state",
            "metric": "ttft_s",
            "arm": "1p1d nixl",
            "pass": "engine-warm",
            "baseline_arm": "1p1d nixl",
        },
    ]
)


def split(arm: str, name: str = "cold", rounds: int = 5, **parts_ms: float) -> pd.DataFrame:
    """Two requests a round with those parts, and 1 ms of residual."""
    rows = []
    for number in range(rounds):
        for index in range(2):
            parts = dict.fromkeys(PARTS, 0.0) | {k: v / 1000 for k, v in parts_ms.items()}
            ttft_s = sum(parts.values()) + 0.001
            rows.append(
                {
                    "arm": arm,
                    "round": number,
                    "pass": name,
                    "index": index,
                    **parts,
                    "residual_s": 0.001,
                    "ttft_s": ttft_s,
                    "note": "",
                }
            )
    return pd.DataFrame(rows)


def noisy(frame: pd.DataFrame, part: str, by_ms: float, seed: int = 0) -> pd.DataFrame:
    """The frame with a launch's own luck added to a part, and so to TTFT."""
    luck = np.random.default_rng(seed).normal(0, by_ms / 1000, frame["round"].nunique())
    added = luck[frame["round"].to_numpy()]
    return frame.assign(**{part: frame[part] + added, "ttft_s": frame["ttft_s"] + added})


def one(*frames: pd.DataFrame, pairs: pd.DataFrame = PAIR) -> str:
    said = why(pd.concat(frames), pairs)
    assert len(said) == 1
    return said[0]


def test_the_parts_that_make_the_difference_are_named_with_their_sizes() -> None:
    later = split("1p1d nixl", prefill_compute_s=300, transfer_queue_s=180, prefill_queue_s=60)
    assert one(later, split("2a", prefill_compute_s=300, prefill_queue_s=10)) == (
        "1p1d nixl beside 2a, cold: first token 230 ms [230, 230] later: KV transfer + decode queue"
        " +180 ms [180, 180], prefill queue +50.0 ms [50.0, 50.0]."
    )


def test_a_gain_is_explained_and_what_works_against_it_is_said() -> None:
    sooner = split("1p1d nixl", prefill_queue_s=10, transfer_queue_s=30)
    assert one(sooner, split("2a", prefill_queue_s=200)) == (
        "1p1d nixl beside 2a, cold: first token 160 ms [160, 160] sooner: prefill queue -190 ms"
        " [-190, -190]; against it KV transfer + decode queue +30.0 ms [30.0, 30.0]."
    )


def test_a_part_stands_out_although_the_noise_of_another_hides_the_total() -> None:
    split_arm = noisy(split("1p1d nixl", prefill_compute_s=300, transfer_queue_s=20),
                      "prefill_compute_s", 100)  # fmt: skip
    text = one(split_arm, split("2a", prefill_compute_s=300))
    assert text.startswith(
        "1p1d nixl beside 2a, cold: no difference of TTFT detectable at this n ("
    )
    assert text.endswith("), yet KV transfer + decode queue +20.0 ms [20.0, 20.0].")
    assert "prefill compute" not in text


def test_no_part_is_blamed_where_none_stands_out() -> None:
    luck = noisy(split("1p1d nixl", prefill_compute_s=300), "prefill_compute_s", 50)
    text = one(luck, split("2a", prefill_compute_s=300))
    assert text.startswith(
        "1p1d nixl beside 2a, cold: no difference of TTFT detectable at this n ("
    )
    assert text.endswith("]), and no part stands out.")


def test_a_sure_total_of_parts_that_are_not_sure_is_not_explained() -> None:
    """What one part takes in a launch another gives back: TTFT is surely 20 ms later."""
    subject = noisy(split("1p1d nixl", prefill_compute_s=320), "prefill_compute_s", 300)
    swing = subject["prefill_compute_s"] - 0.32
    subject = subject.assign(prefill_queue_s=-swing, ttft_s=subject["ttft_s"] - swing)
    text = one(subject, split("2a", prefill_compute_s=300))
    assert "20.0 ms [20.0, 20.0] later, but no part explains it at this n" in text


def test_the_smallest_parts_are_counted_and_the_tiny_ones_are_not() -> None:
    many = dict(zip(PARTS, (0.1, 40, 30, 60, 20, 10, 0, 0, 0), strict=True))
    text = one(split("1p1d nixl", **many), split("2a"))
    assert "prefill compute +60.0 ms" in text
    assert text.endswith("and 2 smaller parts.")
    assert "proxy" not in text


@pytest.mark.parametrize(("rounds", "words"), [(1, "1 round gives"), (2, "2 rounds give")])
def test_too_few_rounds_explain_nothing(rounds: int, words: str) -> None:
    frames = (split(arm, rounds=rounds, prefill_compute_s=9) for arm in ("1p1d nixl", "2a"))
    assert f"not explained, since {words} no interval (it takes 3)" in one(*frames)


def test_requests_without_a_whole_waterfall_are_left_out_and_counted() -> None:
    subject, rival = split("1p1d nixl", transfer_queue_s=20), split("2a")
    subject.loc[0, "residual_s"] = math.nan
    assert one(subject, rival).endswith("+20.0 ms [20.0, 20.0] (1 pairs left out).")
    subject["residual_s"] = math.nan
    assert one(subject, rival) == (
        "1p1d nixl beside 2a, cold: not explained, since no request of both has a whole waterfall."
    )


def test_without_opponents_topologies_are_set_beside_the_first() -> None:
    frames = pd.concat(
        [
            split("1p1d nixl", prefill_queue_s=100),
            split("2p1d nixl", prefill_queue_s=20),
            split("2p1d nixl", "store-warm"),
        ]
    )
    none = PAIR[PAIR["kind"] == "cache-state"]
    for pairs in (none, pd.DataFrame()):
        assert why(frames, pairs) == [
            "2p1d nixl beside 1p1d nixl, cold: first token 80.0 ms [80.0, 80.0] sooner: prefill"
            " queue -80.0 ms [-80.0, -80.0]."
        ]
    assert why(frames.iloc[:0], none) == []


def test_parts_add_up_to_ttft_and_intervals_are_those_of_rounds() -> None:
    subject = noisy(split("1p1d nixl", transfer_queue_s=20), "transfer_queue_s", 5)
    rows = differences(pd.concat([subject, split("2a")]), PAIR).set_index("part")
    parts = rows.drop(index="ttft_s")["mean"].sum()
    assert parts == pytest.approx(rows.loc["ttft_s", "mean"])
    per_round = subject.groupby("round")["transfer_queue_s"].mean()
    reach = t.ppf(0.975, 4) * per_round.std(ddof=1) / math.sqrt(5)
    found = rows.loc["transfer_queue_s"]
    assert found["mean"] == pytest.approx(per_round.mean())
    assert found["high"] - found["mean"] == pytest.approx(reach)
    assert (found["n_rounds"], found["n_pairs"], found["n_left_out"]) == (5, 10, 0)


def test_the_table_has_medians_in_milliseconds_with_intervals_where_there_are_any() -> None:
    frame = pd.concat(
        [
            split("1p1d nixl", transfer_queue_s=20),
            split("2a", rounds=1, stream_s=2500),
            split("2a", "engine-warm", rounds=1, stream_s=0.25),
        ]
    )
    assert table(frame).to_dict("records") == [
        {"pass": name, "median, ms": part, "1p1d nixl": first, "2a": second}
        for name, part, first, second in (
            ("cold", "KV transfer + decode queue", "20.0 [20.0, 20.0]", "0"),
            ("cold", "stream", "0", "2,500"),
            ("cold", "residual", "1.00 [1.00, 1.00]", "1.00"),
            ("cold", "TTFT", "21.0 [21.0, 21.0]", "2,501"),
            ("engine-warm", "stream", "", "0.25"),
            ("engine-warm", "residual", "", "1.00"),
            ("engine-warm", "TTFT", "", "1.25"),
        )
    ]
    unknown = split("2a").assign(residual_s=math.nan)
    assert set(table(unknown)["2a"]) == {"not known"}
