"""The rates of a sweep or search, and how many requests met the limits at each so far."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from workbench.experiment.plan.search import Limits, Point, Search
from workbench.params.notebooks import PdSweep

if TYPE_CHECKING:
    import pandas as pd

_LONGEST_S = 300.0
"""A search stops going down at the rate at which a pass takes this long."""
_SEARCHED_RATES = 7
"""How many a search tries, roughly."""


def rate_name(rate_per_s: float) -> str:
    """The name of the cold pass at one rate."""
    return f"cold at {rate_per_s:g}/s"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """The rates of a run: given ones, or a search for the highest that meets the limits."""

    given: tuple[float, ...] = ()
    limits: Limits
    search: Search | None = None

    def __str__(self) -> str:
        if self.search is None:
            return ", ".join(map(rate_name, self.given))
        return (
            f"a search for the highest rate with {100 * self.limits.share:.0f} % of requests within"
            f" {self.limits}"
        )

    @property
    def top_per_s(self) -> float:
        """The highest rate that can be sent, for which open files are reserved."""
        return self.search.top_per_s if self.search else max(self.given)

    @property
    def expected(self) -> tuple[float, ...]:
        """The rates that the estimated duration is based on: those given, or a doubling search."""
        if (search := self.search) is None:
            return self.given
        doubled = (search.first_per_s * 2**n for n in range(_SEARCHED_RATES))
        return tuple(min(search.top_per_s, max(search.bottom_per_s, rate)) for rate in doubled)

    def of_round(self, number: int, arm: str, rows: Callable[[], pd.DataFrame]) -> Iterator[float]:
        """The rates of an arm in one round; `rows` has the requests measured so far.

        In the first round a search chooses each rate from the results so far. Later rounds
        repeat its rates.
        """
        if self.search is None:
            yield from self.given
            return
        if number:
            yield from [point.rate_per_s for point in self.points(rows(), arm)]
            return
        tried: set[float] = set()
        while (rate := self.search.next_rate(self.points(rows(), arm))) is not None:
            if rate in tried:
                return  # it could not be measured
            tried.add(rate)
            yield rate

    def points(self, rows: pd.DataFrame, arm: str) -> list[Point]:
        """An arm's rates so far, in the order of their first use."""
        if "rate_per_s" not in rows:
            return []
        mine = rows[(rows["arm"] == arm) & rows["rate_per_s"].gt(0)]
        met = self.limits.met(mine["ttft_s"], mine["tpot_s"])
        by_round = met.groupby([mine["rate_per_s"], mine["round"]], sort=False).agg(["size", "sum"])
        return [
            Point(
                rate_per_s=float(rate),  # type: ignore[arg-type]
                sent=tuple(counts["size"].tolist()),
                met=tuple(counts["sum"].tolist()),
            )
            for rate, counts in by_round.groupby(level=0, sort=False)
        ]


def latency_limits(params: PdSweep) -> Limits:
    """The TTFT and TPOT limits of the parameters; infinite where none is given."""
    return Limits(
        ttft_s=params.ttft_limit_ms / 1000 or np.inf,
        tpot_s=params.tpot_limit_ms / 1000 or np.inf,
        share=params.limits_share,
    )


def rates_of(params: PdSweep, requests: int) -> Rates | None:
    """The rates of the parameters; None without a sweep or search."""
    limits = latency_limits(params)
    if params.search:
        search = Search(
            limits=limits,
            first_per_s=params.rate_per_s or 1.0,
            bottom_per_s=requests / _LONGEST_S,
            top_per_s=requests / (limits.ttft_s if limits.ttft_s < np.inf else 1.0),
        )
        return Rates(limits=limits, search=search)
    return Rates(given=tuple(params.rates_per_s), limits=limits) if params.rates_per_s else None
