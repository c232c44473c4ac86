"""What a sweep or search over rates found: rows, headline, sentences and key numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import isnan, nan
from statistics import median
from typing import TYPE_CHECKING

from workbench.experiment.findings.sentences import count, marked, percent
from workbench.experiment.plan.rates import Rates
from workbench.experiment.plan.search import Answer, Limits
from workbench.experiment.result.facts import Card, RateRow
from workbench.experiment.result.point_tables import load_text
from workbench.metrics.gates.gate_effects import Failed
from workbench.metrics.statistics import quantile

if TYPE_CHECKING:
    import pandas as pd

_KEPT_UP = 0.95


def rate_rows(rates: Rates | None, requests: pd.DataFrame) -> tuple[RateRow, ...]:
    """One row per arm and offered rate: fraction within the limits, goodput, latencies."""
    if rates is None or "rate_per_s" not in requests:
        return ()
    rows = []
    for arm in requests["arm"].unique():
        mine = requests[requests["arm"] == arm]
        for point in sorted(rates.points(requests, arm), key=lambda point: point.rate_per_s):
            group = mine[mine["rate_per_s"] == point.rate_per_s]
            by_round = [part for _, part in group.groupby("round")]
            achieved_per_s = median_per_s(
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
                    offered_per_s=median_per_s(part["scheduled_s"] for part in by_round),
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


def sent_per_s(row: RateRow) -> float:
    """The rate that was sent; the requested one where a round has too few requests to know it."""
    return row.rate_per_s if isnan(row.offered_per_s) else row.offered_per_s


def median_per_s(rounds: Iterable[Iterable[float]]) -> float:
    """Events per second, from a round's first to its last; NaN where no round has two of them."""
    rates = []
    for times_s in map(sorted, rounds):
        if len(times_s) > 1 and times_s[-1] > times_s[0]:
            rates.append((len(times_s) - 1) / (times_s[-1] - times_s[0]))
    return median(rates) if rates else nan


def kept_up(row: RateRow) -> bool:
    """Whether throughput reached the offered rate.

    A slow first response shortens the time from the first to the last end, so throughput may
    exceed the offered rate.
    """
    return row.achieved_per_s >= _KEPT_UP * row.offered_per_s


def answers(rates: Rates | None, requests: pd.DataFrame) -> dict[str, Answer]:
    """What a search found for each arm; empty without a search."""
    if rates is None or rates.search is None or requests.empty:
        return {}
    return {
        str(arm): rates.search.answer(rates.points(requests, str(arm)))
        for arm in requests["arm"].unique()
    }


def rate_headline(rows: Sequence[RateRow], found: Mapping[str, Answer]) -> str:
    """What the first arm reached, in at most 14 words; empty without rates."""
    if not rows:
        return ""
    arm = rows[0].arm
    mine = [row for row in rows if row.arm == arm]
    top, kept_up = _top(mine)
    answer = found.get(arm)
    if answer is not None:
        known = f"is {_sent(answer.met_per_s, mine)}" if answer.resolved else "was not resolved"
        return f"{arm}: the highest rate within the limits {known}"
    if kept_up:
        return f"{arm}: throughput matched every rate up to {top.offered_per_s:.3g} req/s"
    return (
        f"{arm}: throughput peaked at {top.achieved_per_s:.3g} req/s with"
        f" {top.offered_per_s:.3g} req/s offered"
    )


def reached(rows: Sequence[RateRow], found: Mapping[str, Answer]) -> str:
    """What the first of these arms reached, for a headline about several models."""
    mine = [row for row in rows if row.arm == rows[0].arm]
    if not mine:
        return "not measured"
    if (answer := found.get(mine[0].arm)) is not None:
        return _sent(answer.met_per_s, mine) if answer.resolved else "not resolved"
    top, kept_up = _top(mine)
    if kept_up:
        return f"matched {top.offered_per_s:.3g} req/s"
    return f"peaked at {top.achieved_per_s:.3g} req/s"


def _top(rows: Sequence[RateRow]) -> tuple[RateRow, bool]:
    """The rate with the highest throughput, and whether throughput kept up with every rate."""
    always = all(map(kept_up, rows))
    return max(rows, key=lambda r: r.offered_per_s if always else r.achieved_per_s), always


def rate_sentences(
    rates: Rates | None, rows: Sequence[RateRow], found: Mapping[str, Answer]
) -> list[str]:
    """One sentence per arm: the highest rate within the limits, or the throughput reached."""
    if rates is None:
        return []
    said = []
    for arm in dict.fromkeys(row.arm for row in rows):
        mine = [row for row in rows if row.arm == arm]
        if arm in found:
            said.append(f"{arm}: {_found(rates.limits, found[arm], mine)}.")
            continue
        top, kept_up = _top(mine)
        if kept_up:
            text = f"throughput matched every offered rate, up to {top.offered_per_s:.3g} req/s"
        else:
            text = (
                f"throughput peaked at {top.achieved_per_s:.3g} req/s with"
                f" {top.offered_per_s:.3g} req/s offered"
            )
        if str(rates.limits):
            best = max(mine, key=lambda row: row.goodput_per_s)
            text += (
                f"; goodput peaked at {best.goodput_per_s:.3g} req/s with"
                f" {best.offered_per_s:.3g} req/s offered ({rates.limits})"
            )
        said.append(f"{arm}: {text}.")
    return said


def _found(limits: Limits, answer: Answer, rows: Sequence[RateRow]) -> str:
    wanted = f"rate at which {percent(limits.share)} of requests meet {limits}"
    if not answer.resolved:
        ends = []
        if not isnan(answer.met_per_s):
            ends.append(f"{_sent(answer.met_per_s, rows)} met the limits")
        if not isnan(answer.missed_per_s):
            ends.append(f"{_sent(answer.missed_per_s, rows)} missed the limits")
        known = f". {', '.join(ends)}" if ends else ""
        why = f"Reason (rates as requested): {answer.reason}"
        return f"the highest {wanted} is not resolved{known}. {why}"
    by_rate = {row.rate_per_s: row for row in rows}
    met, missed = (
        f"{load_text(sent_per_s(row))} req/s ({percent(row.share)} [{percent(row.share_low)},"
        f" {percent(row.share_high)}] met them)"
        for row in (by_rate[answer.met_per_s], by_rate[answer.missed_per_s])
    )
    return f"the highest tested {wanted} is {met}; the lowest that fails is {missed}"


def _sent(requested_per_s: float, rows: Sequence[RateRow]) -> str:
    """`52.3 req/s`: what was sent at a requested rate of a search."""
    sent = next((sent_per_s(row) for row in rows if row.rate_per_s == requested_per_s), nan)
    return f"{load_text(requested_per_s if isnan(sent) else sent)} req/s"


def rate_cards(
    rates: Rates | None,
    rows: Sequence[RateRow],
    found: Mapping[str, Answer],
    failed_gates: Failed = (),
) -> tuple[Card, ...]:
    """Up to three key numbers of the first arm: its rate, and TTFT at the lowest and highest."""
    mine = [row for row in rows if row.arm == rows[0].arm and not isnan(row.ttft_s)]
    if rates is None or not mine:
        return ()
    cards = [_rate_card(rates, mine, found.get(mine[0].arm))]
    cards += [
        Card(
            label=f"Median TTFT at {load_text(sent_per_s(row))} req/s, {row.arm}",
            value=1000 * row.ttft_s,
            unit="ms",
            low=1000 * row.ttft_low_s,
            high=1000 * row.ttft_high_s,
            note=f"{count(row.n_rounds, 'round')}, {count(row.n_requests, 'request')}",
            rests_on="times",
            arms=(row.arm,),
        )
        for row in dict.fromkeys((mine[0], mine[-1]))
    ]
    return marked(cards, failed_gates)


def _rate_card(rates: Rates, rows: Sequence[RateRow], answer: Answer | None) -> Card:
    """What a search found if it is resolved, else the highest throughput."""
    top, kept_up = _top(rows)
    n_rounds = count(top.n_rounds, "round")
    if answer is not None and answer.resolved:
        met = next(row for row in rows if row.rate_per_s == answer.met_per_s)
        label, value = "Highest rate within the limits", sent_per_s(met)
        note = f"{rates.limits}; missed at {_sent(answer.missed_per_s, rows)}"
    elif kept_up:
        label, value = "Highest offered rate", top.offered_per_s
        note = f"throughput kept up; {n_rounds}"
    else:
        label, value = "Peak throughput", top.achieved_per_s
        note = f"with {top.offered_per_s:.3g} req/s offered; {n_rounds}"
    return Card(
        label=f"{label}, {rows[0].arm}",
        value=value,
        unit="req/s",
        note=note,
        rests_on="times",
        arms=(rows[0].arm,),
    )
