"""Rates: the passes of a sweep or search, and what each offered rate gave."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isnan, nan
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.experiment.plan.search import Answer, Limits, Point, Search
from workbench.metrics.statistics import quantile
from workbench.params.notebooks import PdSweep

if TYPE_CHECKING:
    import pandas as pd

_KEPT_UP = 0.95
_LONGEST_S = 300.0
"""A search goes down to a rate at which a pass takes so long."""


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
        return f"a search for the highest rate with {self.limits.share:.0%} within {self.limits}"

    @property
    def top_per_s(self) -> float:
        """The highest rate that can be sent: what open files have to suffice for."""
        return self.search.top_per_s if self.search else max(self.given)

    def of_round(self, number: int, arm: str, rows: Callable[[], pd.DataFrame]) -> Iterator[float]:
        """The rates of an arm in one round; `rows` has the requests measured so far.

        A search chooses each rate by what the ones before it gave, in the first round. Later
        rounds repeat its rates.
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
        """An arm's rates so far in the order in which they were tried first."""
        if "rate_per_s" not in rows:
            return []
        mine = rows[(rows["arm"] == arm) & rows["rate_per_s"].gt(0)]
        points = []
        for rate, group in mine.groupby("rate_per_s", sort=False):
            good = self.good(group)
            by_round = [good[group["round"] == number] for number in group["round"].unique()]
            points.append(
                Point(
                    rate_per_s=float(rate),  # type: ignore[arg-type]
                    sent=tuple(len(part) for part in by_round),
                    met=tuple(int(part.sum()) for part in by_round),
                )
            )
        return points

    def good(self, rows: pd.DataFrame) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Which requests met the limits; one that failed did not."""
        pairs = zip(rows["ttft_s"], rows["tpot_s"], strict=True)
        return np.array([self.limits.met(ttft_s, tpot_s) for ttft_s, tpot_s in pairs], dtype=bool)


def rates_of(params: PdSweep, requests: int) -> Rates | None:
    """What the parameters ask for; None without rates to sweep or search."""
    limits = Limits(
        ttft_s=params.ttft_limit_ms / 1000 or np.inf,
        tpot_s=params.tpot_limit_ms / 1000 or np.inf,
        share=params.limits_share,
    )
    if params.search:
        search = Search(
            limits=limits,
            first_per_s=params.rate_per_s or 1.0,
            bottom_per_s=requests / _LONGEST_S,
            top_per_s=requests / (limits.ttft_s if limits.ttft_s < np.inf else 1.0),
        )
        return Rates(limits=limits, search=search)
    return Rates(given=tuple(params.rates_per_s), limits=limits) if params.rates_per_s else None


def rate_rows(rates: Rates | None, requests: pd.DataFrame) -> list[dict[str, Any]]:
    """One row for each arm and offered rate: shares, goodput, latencies, each with its interval.

    `rate_per_s` is the rate that was asked for, `offered_per_s` that of the times drawn for it, and
    `achieved_per_s` the rate at which answers ended, between the first and the last of a round.
    `goodput_per_s` is the last times the share of requests that met the limits.
    """
    if rates is None or "rate_per_s" not in requests:
        return []
    rows: list[dict[str, Any]] = []
    for arm in requests["arm"].unique():
        for point in sorted(rates.points(requests, arm), key=lambda point: point.rate_per_s):
            group = requests[
                (requests["arm"] == arm) & (requests["rate_per_s"] == point.rate_per_s)
            ]
            rounds = [part for _, part in group.groupby("round")]
            achieved_per_s = _median_per_s(
                [stamps[-1] for stamps in part["chunk_s"] if len(stamps)] for part in rounds
            )
            ttft = quantile(group["ttft_s"], 0.5)
            low, high = point.interval
            rows.append(
                {
                    "arm": arm,
                    "rate_per_s": point.rate_per_s,
                    "n_requests": sum(point.sent),
                    "n_rounds": len(point.sent),
                    "share": point.share,
                    "share_low": low,
                    "share_high": high,
                    "offered_per_s": _median_per_s(part["scheduled_s"] for part in rounds),
                    "achieved_per_s": achieved_per_s,
                    "goodput_per_s": point.share * achieved_per_s,
                    "ttft_s": ttft.value,
                    "ttft_low_s": ttft.low,
                    "ttft_high_s": ttft.high,
                    "ttft_p90_s": quantile(group["ttft_s"], 0.9).value,
                    "tpot_s": quantile(group["tpot_s"], 0.5).value,
                }
            )
    return rows


def _median_per_s(rounds: Iterable[Iterable[float]]) -> float:
    """Events per second, from a round's first to its last; NaN where no round has two of them."""
    rates = []
    for times_s in map(sorted, rounds):
        if len(times_s) > 1 and times_s[-1] > times_s[0]:
            rates.append((len(times_s) - 1) / (times_s[-1] - times_s[0]))
    return median(rates) if rates else nan


def kept_up(row: Mapping[str, Any]) -> bool:
    """Whether answers of one rate ended as fast as its requests came.

    A first answer that was slow shortens the time from first to last end, so more may seem to end
    than came.
    """
    return bool(row["achieved_per_s"] >= _KEPT_UP * row["offered_per_s"])


def answers(rates: Rates | None, requests: pd.DataFrame) -> dict[str, Answer]:
    """What a search found for each arm; empty where none was asked for."""
    if rates is None or rates.search is None or requests.empty:
        return {}
    return {
        str(arm): rates.search.answer(rates.points(requests, str(arm)))
        for arm in requests["arm"].unique()
    }


def rate_sentences(
    rates: Rates | None, rows: Sequence[dict[str, Any]], found: dict[str, Answer]
) -> list[str]:
    """One sentence for each arm: the highest rate within the limits, or what the sweep reached."""
    if rates is None:
        return []
    said = []
    for arm in dict.fromkeys(row["arm"] for row in rows):
        mine = [row for row in rows if row["arm"] == arm]
        if arm in found:
            said.append(f"{arm}: {_found(rates.limits, found[arm], mine)}.")
            continue
        top = max(mine, key=lambda row: float(row["achieved_per_s"]))
        text = (
            f"{arm}: answers kept up with every rate, the highest {top['offered_per_s']:.3g}"
            " requests/s"
            if all(map(kept_up, mine))
            else f"{arm}: answers ended at {top['achieved_per_s']:.3g} a second at most, with"
            f" {top['offered_per_s']:.3g} requests/s offered"
        )
        if str(rates.limits):
            best = max(mine, key=lambda row: float(row["goodput_per_s"]))
            text += (
                f"; goodput was {best['goodput_per_s']:.3g} requests/s at most, at"
                f" {best['offered_per_s']:.3g} offered ({rates.limits})"
            )
        said.append(f"{text}.")
    return said


def _found(limits: Limits, answer: Answer, rows: Sequence[dict[str, Any]]) -> str:
    wanted = f"{limits.share:.0%} of requests with {limits}"
    if not answer.resolved:
        ends = []
        if not isnan(answer.met_per_s):
            ends.append(f"{answer.met_per_s:g} requests/s met the limits ({wanted})")
        if not isnan(answer.missed_per_s):
            ends.append(f"{answer.missed_per_s:g} missed them")
        known = f", {' and '.join(ends)}" if ends else f" ({wanted})"
        return f"not resolved{known}: {answer.reason}"
    by_rate = {row["rate_per_s"]: row for row in rows}
    parts = [
        f"{row['share']:.0%} [{row['share_low']:.0%}, {row['share_high']:.0%}] at"
        f" {row['rate_per_s']:g}, of which {row['offered_per_s']:.3g} were offered"
        for row in (by_rate[answer.met_per_s], by_rate[answer.missed_per_s])
    ]
    return (
        f"{answer.met_per_s:g} requests/s is the highest rate tried with at least {wanted}"
        f" ({' and '.join(parts)})"
    )
