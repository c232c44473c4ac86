"""What a sweep or search over loads found: rows, headline, sentences and key numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import isnan, nan
from statistics import median
from typing import TYPE_CHECKING

from workbench.experiment.findings.sentences import count, marked, percent
from workbench.experiment.load_unit import RATE
from workbench.experiment.plan.offered_load.loads import Loads
from workbench.experiment.plan.offered_load.search import Answer, Limits
from workbench.experiment.result.finding_rows import Card, LoadRow
from workbench.metrics.gates.gate_effects import Failed
from workbench.metrics.statistics import quantile

if TYPE_CHECKING:
    import pandas as pd

_KEPT_UP = 0.95


def load_rows(loads: Loads | None, requests: pd.DataFrame) -> tuple[LoadRow, ...]:
    """One row per arm and load: fraction within the limits, goodput, latencies."""
    if loads is None:
        return ()
    at_rates = loads.unit == RATE
    rows = []
    for arm in requests["arm"].unique():
        mine = requests[requests["arm"] == arm]
        for point in sorted(loads.points(requests, arm), key=lambda point: point.load):
            group = mine[mine[loads.unit.column] == point.load]
            by_round = [part for _, part in group.groupby("round")]
            achieved_per_s = median_per_s(
                [stamps[-1] for stamps in part["chunk_s"] if len(stamps)] for part in by_round
            )
            ttft = quantile(group["ttft_s"], 0.5)
            low, high = point.interval
            rows.append(
                LoadRow(
                    arm=arm,
                    rate_per_s=point.load if at_rates else nan,
                    users=nan if at_rates else point.load,
                    n_requests=sum(point.sent),
                    n_rounds=len(point.sent),
                    share=point.share,
                    share_low=low,
                    share_high=high,
                    offered_per_s=(
                        median_per_s(part["scheduled_s"] for part in by_round) if at_rates else nan
                    ),
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


def sent_load(row: LoadRow) -> float:
    """The load that was sent: users, or the offered rate.

    A round of too few requests has no offered rate, so there it is the requested one.
    """
    return row.requested if isnan(row.offered_per_s) else row.offered_per_s


def _sent_of(row: LoadRow) -> str:
    """`52.3 req/s`, `8 users`"""
    return row.unit.said(sent_load(row))


def median_per_s(rounds: Iterable[Iterable[float]]) -> float:
    """Events per second, from a round's first to its last; NaN where no round has two of them."""
    rates = []
    for times_s in map(sorted, rounds):
        if len(times_s) > 1 and times_s[-1] > times_s[0]:
            rates.append((len(times_s) - 1) / (times_s[-1] - times_s[0]))
    return median(rates) if rates else nan


def kept_up(row: LoadRow) -> bool:
    """Whether throughput reached the offered rate; False in a closed loop, which has none.

    A slow first response shortens the time from the first to the last end, so throughput may
    exceed the offered rate.
    """
    return row.achieved_per_s >= _KEPT_UP * row.offered_per_s


def answers(loads: Loads | None, requests: pd.DataFrame) -> dict[str, Answer]:
    """What a search found for each arm; empty without a search."""
    if loads is None or loads.search is None or requests.empty:
        return {}
    return {
        str(arm): loads.search.answer(loads.points(requests, str(arm)))
        for arm in requests["arm"].unique()
    }


def load_headline(rows: Sequence[LoadRow], found: Mapping[str, Answer]) -> str:
    """What the first arm reached, in at most 14 words; empty without loads."""
    if not rows:
        return ""
    arm = rows[0].arm
    mine = [row for row in rows if row.arm == arm]
    top, kept_up = _top(mine)
    answer = found.get(arm)
    if answer is not None:
        known = "was not resolved"
        if answer.resolved:
            met = next(row for row in mine if row.requested == answer.met)
            known = f"is {met.unit.after_noun(sent_load(met))}"
        return f"{arm}: the highest {top.unit.noun} within the limits {known}"
    if kept_up:
        return f"{arm}: throughput matched every rate up to {top.offered_per_s:.3g} req/s"
    return f"{arm}: throughput {_peak(top, mine)}"


def reached(rows: Sequence[LoadRow], found: Mapping[str, Answer]) -> str:
    """What the first of these arms reached, for a headline about several models."""
    mine = [row for row in rows if row.arm == rows[0].arm]
    if not mine:
        return "not measured"
    if (answer := found.get(mine[0].arm)) is not None:
        return _sent(answer.met, mine) if answer.resolved else "not resolved"
    top, kept_up = _top(mine)
    if kept_up:
        return f"matched {top.offered_per_s:.3g} req/s"
    return f"{_verb(top, mine)} {top.achieved_per_s:.3g} req/s"


def _top(rows: Sequence[LoadRow]) -> tuple[LoadRow, bool]:
    """The load with the highest throughput, and whether throughput kept up with every rate."""
    always = all(map(kept_up, rows))
    return max(rows, key=lambda r: r.offered_per_s if always else r.achieved_per_s), always


def _peak(top: LoadRow, rows: Sequence[LoadRow]) -> str:
    """`peaked at 10 req/s with 20 req/s offered`, `peaked at 10 req/s with 8 users`."""
    return f"{_verb(top, rows)} {top.achieved_per_s:.3g} req/s with {_given(top)}"


def _verb(top: LoadRow, rows: Sequence[LoadRow]) -> str:
    """With more users than were measured, throughput may be higher: then it is no peak."""
    return "reached" if top.users >= max(row.users for row in rows) else "peaked at"


def _given(row: LoadRow) -> str:
    """`20 req/s offered`, `8 users`"""
    return f"{row.offered_per_s:.3g} req/s offered" if row.unit == RATE else _sent_of(row)


def load_sentences(
    loads: Loads | None, rows: Sequence[LoadRow], found: Mapping[str, Answer]
) -> list[str]:
    """One sentence per arm: the highest load within the limits, or the throughput reached."""
    if loads is None:
        return []
    said = []
    for arm in dict.fromkeys(row.arm for row in rows):
        mine = [row for row in rows if row.arm == arm]
        if arm in found:
            said.append(f"{arm}: {_found(loads.limits, found[arm], mine)}.")
            continue
        top, kept_up = _top(mine)
        if kept_up:
            text = f"throughput matched every offered rate, up to {top.offered_per_s:.3g} req/s"
        else:
            text = f"throughput {_peak(top, mine)}"
        if str(loads.limits):
            best = max(mine, key=lambda row: row.goodput_per_s)
            text += (
                f"; goodput {_verb(best, mine)} {best.goodput_per_s:.3g} req/s with {_given(best)}"
                f" ({loads.limits})"
            )
        said.append(f"{arm}: {text}.")
    return said


def _found(limits: Limits, answer: Answer, rows: Sequence[LoadRow]) -> str:
    unit = rows[0].unit
    wanted = f"{unit.noun} at which {percent(limits.share)} of requests meet {limits}"
    if not answer.resolved:
        ends = []
        if not isnan(answer.met):
            ends.append(f"{_sent(answer.met, rows)} met the limits")
        if not isnan(answer.missed):
            ends.append(f"{_sent(answer.missed, rows)} missed the limits")
        known = f". {', '.join(ends)}" if ends else ""
        why = f"Reason{' (rates as requested)' * (unit == RATE)}: {answer.reason}"
        return f"the highest {wanted} is not resolved{known}. {why}"
    by_load = {row.requested: row for row in rows}
    met, missed = (
        f"{unit.after_noun(sent_load(row))} ({percent(row.share)} [{percent(row.share_low)},"
        f" {percent(row.share_high)}] met them)"
        for row in (by_load[answer.met], by_load[answer.missed])
    )
    return f"the highest tested {wanted} is {met}; the lowest that fails is {missed}"


def _sent(requested: float, rows: Sequence[LoadRow]) -> str:
    """`52.3 req/s`: what was sent at a requested load of a search."""
    known = (_sent_of(row) for row in rows if row.requested == requested)
    return next(known, rows[0].unit.said(requested))


def load_cards(
    loads: Loads | None,
    rows: Sequence[LoadRow],
    found: Mapping[str, Answer],
    failed_gates: Failed = (),
) -> tuple[Card, ...]:
    """Up to three key numbers of the first arm: its load, and TTFT at the lowest and highest."""
    mine = [row for row in rows if row.arm == rows[0].arm and not isnan(row.ttft_s)]
    if loads is None or not mine:
        return ()
    cards = [_load_card(loads, mine, found.get(mine[0].arm))]
    cards += [
        Card(
            label=f"Median TTFT at {_sent_of(row)}, {row.arm}",
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


def _load_card(loads: Loads, rows: Sequence[LoadRow], answer: Answer | None) -> Card:
    """What a search found if it is resolved, else the highest throughput."""
    top, kept_up = _top(rows)
    n_rounds, unit = count(top.n_rounds, "round"), RATE.name
    if answer is not None and answer.resolved:
        met = next(row for row in rows if row.requested == answer.met)
        label, value = f"Highest {met.unit.noun} within the limits", sent_load(met)
        note, unit = f"{loads.limits}; missed at {_sent(answer.missed, rows)}", met.unit.name
    elif kept_up:
        label, value = "Highest offered rate", top.offered_per_s
        note = f"throughput kept up; {n_rounds}"
    else:
        label, value = "Peak throughput", top.achieved_per_s
        if _verb(top, rows) == "reached":
            label = "Highest throughput"
        note = f"with {_given(top)}; {n_rounds}"
    return Card(
        label=f"{label}, {rows[0].arm}",
        value=value,
        unit=unit,
        note=note,
        rests_on="times",
        arms=(rows[0].arm,),
    )
