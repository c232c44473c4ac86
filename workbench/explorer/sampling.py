"""Which of many rows a chart draws, and the note that says so."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

MOST_POINTS = 10_000
"""Points that a chart draws. Browsers without a GPU need 100 ms for them."""
_STEPS = 400
"""Points of a distribution."""

Rows = NDArray[np.int64]
Values = NDArray[np.float64]


def shuffled(count: int) -> Rows:
    """A random rank for each row; equal for the same number of rows, so samples stay the same."""
    return np.random.default_rng(0).permutation(count)


def sample(groups: Sequence[Rows], values: Values, ranks: Rows, *, most: int) -> list[Rows]:
    """At most about `most` rows, evenly from the groups, always with the extremes of each.

    What a small group does not use of its share goes to the others.
    """
    left, drawn = most, {}
    by_size = sorted(range(len(groups)), key=lambda number: len(groups[number]))
    for done, number in enumerate(by_size):
        rows = groups[number]
        share = max(3, left // (len(groups) - done))
        if len(rows) > share:
            lowest, highest = rows[np.argmin(values[rows])], rows[np.argmax(values[rows])]
            picked = rows[np.argpartition(ranks[rows], share - 2)[: share - 2]]
            rows = np.unique(np.concatenate([picked, [lowest, highest]]))
        drawn[number] = rows
        left -= len(rows)
    return [drawn[number] for number in range(len(groups))]


def distribution(values: Values) -> tuple[Values, Values]:
    """The cumulative distribution: values, and the percentage at or below. Of all rows."""
    ordered = np.sort(values)
    percent = 100 * np.arange(1, len(ordered) + 1) / max(1, len(ordered))
    if len(ordered) <= _STEPS:
        return ordered, percent
    at = np.unique(np.linspace(0, len(ordered) - 1, _STEPS).astype(np.int64))
    return ordered[at], percent[at]


def drawn_note(drawn: int, total: int, what: str) -> str:
    """`10,000 of 100,000 requests drawn, a random sample with the extremes.`"""
    if not total:
        return f"No {what} to draw."
    if drawn >= total:
        return f"All {total:,} {what} are drawn."
    return (
        f"{drawn:,} of {total:,} {what} are drawn: a random sample with the extremes."
        " Distributions and selections use all of them."
    )
