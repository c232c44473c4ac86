"""What the rates of a sweep or search gave: rows, sentences and key numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import isnan, nan
from statistics import median
from typing import TYPE_CHECKING

from workbench.experiment.findings.sentences import marked, rounds
from workbench.experiment.plan.rates import Rates
from workbench.experiment.plan.search import Answer, Limits
from workbench.experiment.result.facts import Card, RateRow
from workbench.metrics.statistics import quantile

if TYPE_CHECKING:
    import pandas as pd

_KEPT_UP = 0.95


def rate_rows(rates: Rates | None, requests: pd.DataFrame) -> tuple[RateRow, ...]:
    """One row for each arm and offered rate: shares, goodput, latencies, each with its interval."""
    if rates is None or "rate_per_s" not in requests:
        return ()
    rows = []
    for arm in requests["arm"].unique():
        mine = requests[requests["arm"] == arm]
        for point in sorted(rates.points(requests, arm), key=lambda point: point.rate_per_s):
            group = mine[mine["rate_per_s"] == point.rate_per_s]
            by_round = [part for _, part in group.groupby("round")]
            achieved_per_s = _median_per_s(
                [stamps[-1] for stamps in part["chunk_s"] if len(stamps)] for part in by_round
            )
            ttft = quantile(group["ttft_s"], 0.5)
            low, high = point.interval
            rows.append(
                RateRow(
                    arm=arm,
                    rate_per_s=point.rate_per_s,
                    n_requests=sum(point.sent),
                    n_rounds=len(point.sent),
                    share=point.share,
                    share_low=low,
                    share_high=high,
                    offered_per_s=_median_per_s(part["scheduled_s"] for part in by_round),
                    achieved_per_s=achieved_per_s,
                    goodput_per_s=point.share * achieved_per_s,
                    ttft_s=ttft.value,
                    ttft_low_s=ttft.low,
                    ttft_high_s=ttft.high,
                    ttft_p90_s=quantile(group["ttft_s"], 0.9).value,
                    tpot_s=quantile(group["tpot_s"], 0.5).value,
                )
            )
    return tuple(rows)


def _median_per_s(rounds: Iterable[Iterable[float]]) -> float:
    """Events per second, from a round's first to its last; NaN where no round has two of them."""
    rates = []
    for times_s in map(sorted, rounds):
        if len(times_s) > 1 and times_s[-1] > times_s[0]:
            rates.append((len(times_s) - 1) / (times_s[-1] - times_s[0]))
    return median(rates) if rates else nan


def _kept_up(row: RateRow) -> bool:
    """Whether answers of one rate ended as fast as its requests came.

    A first answer that was slow shortens the time from first to last end, so more may seem to end
    than came.
    """
    return row.achieved_per_s >= _KEPT_UP * row.offered_per_s


def answers(rates: Rates | None, requests: pd.DataFrame) -> dict[str, Answer]:
    """What a search found for each arm; empty where none was asked for."""
    if rates is None or rates.search is None or requests.empty:
        return {}
    return {
        str(arm): rates.search.answer(rates.points(requests, str(arm)))
        for arm in requests["arm"].unique()
    }


def rate_sentences(
    rates: Rates | None, rows: Sequence[RateRow], found: Mapping[str, Answer]
) -> list[str]:
    """One sentence for each arm: the highest rate within the limits, or what the sweep reached."""
    if rates is None:
        return []
    said = []
    for arm in dict.fromkeys(row.arm for row in rows):
        mine = [row for row in rows if row.arm == arm]
        if arm in found:
            said.append(f"{arm}: {_found(rates.limits, found[arm], mine)}.")
            continue
        top = max(mine, key=lambda row: row.achieved_per_s)
        if all(map(_kept_up, mine)):
            text = (
                f"answers kept up with every rate, the highest {top.offered_per_s:.3g} requests/s"
            )
        else:
            text = (
                f"answers ended at {top.achieved_per_s:.3g} a second at most, with"
                f" {top.offered_per_s:.3g} requests/s offered"
            )
        if str(rates.limits):
            best = max(mine, key=lambda row: row.goodput_per_s)
            text += (
                f"; goodput was {best.goodput_per_s:.3g} requests/s at most, at"
                f" {best.offered_per_s:.3g} offered ({rates.limits})"
            )
        said.append(f"{arm}: {text}.")
    return said


def _found(limits: Limits, answer: Answer, rows: Sequence[RateRow]) -> str:
    wanted = f"{limits.share:.0%} of requests with {limits}"
    if not answer.resolved:
        ends = []
        if not isnan(answer.met_per_s):
            ends.append(f"{answer.met_per_s:g} requests/s met the limits ({wanted})")
        if not isnan(answer.missed_per_s):
            ends.append(f"{answer.missed_per_s:g} missed them")
        known = f", {' and '.join(ends)}" if ends else f" ({wanted})"
        return f"not resolved{known}: {answer.reason}"
    by_rate = {row.rate_per_s: row for row in rows}
    parts = [
        f"{row.share:.0%} [{row.share_low:.0%}, {row.share_high:.0%}] at {row.rate_per_s:g}, of"
        f" which {row.offered_per_s:.3g} were offered"
        for row in (by_rate[answer.met_per_s], by_rate[answer.missed_per_s])
    ]
    return (
        f"{answer.met_per_s:g} requests/s is the highest rate tried with at least {wanted}"
        f" ({' and '.join(parts)})"
    )


def rate_cards(
    rates: Rates | None,
    rows: Sequence[RateRow],
    found: Mapping[str, Answer],
    failed_gates: Sequence[str] = (),
) -> tuple[Card, ...]:
    """Up to three key numbers of what was asked for, the first arm: its rate, and TTFT at two."""
    mine = [row for row in rows if row.arm == rows[0].arm and not isnan(row.ttft_s)]
    if rates is None or not mine:
        return ()
    cards = [_rate_card(rates, mine, found.get(mine[0].arm))]
    cards += [
        Card(
            label=f"median TTFT at {row.rate_per_s:g} requests/s, {row.arm}",
            value=1000 * row.ttft_s,
            unit="ms",
            low=1000 * row.ttft_low_s,
            high=1000 * row.ttft_high_s,
            note=f"{row.n_requests} requests, {rounds(row.n_rounds)}",
            rests_on="times",
        )
        for row in dict.fromkeys((mine[0], mine[-1]))
    ]
    return marked(cards, failed_gates)


def _rate_card(rates: Rates, rows: Sequence[RateRow], answer: Answer | None) -> Card:
    """The answer of a search where it has one, else how fast answers ended at most."""
    arm = rows[0].arm
    if answer is not None and answer.resolved:
        label, value = f"highest rate within the limits, {arm}", answer.met_per_s
        note = f"{rates.limits}; {answer.missed_per_s:g}/s missed them"
    elif all(map(_kept_up, rows)):
        top = max(rows, key=lambda row: row.offered_per_s)
        label, value = f"highest rate offered, {arm}", top.offered_per_s
        note = f"answers kept up with it, {rounds(top.n_rounds)}"
    else:
        top = max(rows, key=lambda row: row.achieved_per_s)
        label, value = f"answers ended at most, {arm}", top.achieved_per_s
        note = f"with {top.offered_per_s:.3g}/s offered, {rounds(top.n_rounds)}"
    return Card(label=label, value=value, unit="/s", note=note, rests_on="times")
