"""What a working-set sweep says, from ratios whose answer is plain."""

from math import nan

import pytest

from tests.wording import words
from workbench.experiment.findings.size_findings import (
    break_even_size,
    size_cards,
    size_headline,
    size_sentences,
)
from workbench.experiment.result.finding_rows import SizeRow
from workbench.metrics.statistics import Ratio

NOISE, FASTER, SLOWER, ALONE = (1.0, 0.9, 1.1), (9.0, 8.0, 10.0), (0.8, 0.7, 0.9), (2.0, nan, nan)


def rows(*again, cold=NOISE, host_times=3.0):
    """Working sets of 0.5x, 1.5x, 3x, ... with these ratios when sent again."""
    made = []
    for number, value in enumerate(again):
        times = (0.5, 1.5, 3.0, 8.0)[number]
        for asked, (ratio, low, high) in (("cold", cold), ("again", value)):
            made.append(
                SizeRow(
                    arm="1a offload", baseline_arm="1a", asked=asked, times=times,
                    host_times=host_times, prompts=int(8 * times), hit_share=0.98,
                    baseline_hit_share=0.0, ttft_s=0.1, baseline_ttft_s=0.1 * ratio,
                    ratio=Ratio(value=ratio, low=low, high=high, rounds=3, pairs=24),
                )
            )  # fmt: skip
    return tuple(made)


@pytest.mark.parametrize(
    ("again", "headline", "break_even"),
    [
        (
            (NOISE, FASTER, FASTER),
            "Offloading: TTFT faster for working sets of 1.5x to 3x KV space",
            "between 0.5x and 1.5x KV space.",
        ),
        (
            (SLOWER, FASTER, NOISE),
            "Offloading: TTFT faster for working sets of 1.5x KV space; slower at 0.5x",
            "between 0.5x and 1.5x KV space; no longer at 3x, as host memory holds 3x.",
        ),
        (
            (FASTER, FASTER),
            "Offloading: TTFT faster for working sets of 0.5x to 1.5x KV space",
            "at or below 0.5x.",
        ),
        (
            (NOISE, SLOWER),
            "Offloading: TTFT slower for working sets of 1.5x KV space",
            "none; no measured working set is faster with it.",
        ),
        (
            (NOISE, NOISE),
            "Offloading: no significant effect on TTFT for any working set",
            "none; no measured working set is faster with it.",
        ),
    ],
)
def test_the_break_even_is_where_intervals_leave_no_effect(again, headline, break_even):
    made = rows(*again)
    assert size_headline(made) == headline
    assert words(headline) <= 14
    assert break_even_size(made) == f"Break-even of offloading (1a offload over 1a): {break_even}"


def test_without_intervals_nothing_is_judged():
    made = rows(ALONE, ALONE, cold=ALONE)
    assert size_headline(made) == "Offloading: not judged, too few rounds for intervals"
    assert "not judged, too few rounds" in break_even_size(made)


def test_each_size_says_when_offloading_is_slower_and_what_was_hit():
    said = size_sentences(rows(SLOWER, FASTER, cold=SLOWER))
    assert said[1] == (
        "Cold at 0.5x KV space (4 prompts): offloading makes TTFT 1.25x slower [1.11, 1.43]"
        " (3 rounds, 24 request pairs)."
    )
    assert said[-1] == (
        "Again at 1.5x KV space (12 prompts): offloading makes TTFT 9.00x faster [8.00, 10.0]"
        " (3 rounds, 24 request pairs); cache hits 98 %, without 0 %."
    )


def test_the_key_numbers_are_the_best_the_worst_and_the_cost():
    cards = size_cards(rows(SLOWER, FASTER, NOISE))
    assert [(card.label, card.value) for card in cards] == [
        ("TTFT without / with offloading, sent again at 1.5x KV space", 9.0),
        ("TTFT without / with offloading, sent again at 0.5x KV space", 0.8),
        ("TTFT without / with offloading, cold at 0.5x KV space", 1.0),
    ]
    assert size_headline(()) == "" and size_cards(()) == ()
