"""The highest load of each arm within the TTFT and TPOT limits, and what would limit it next.

A load (an arrival rate, or the users of a closed loop) meets the limits if the wanted fraction of
its requests has TTFT and TPOT within them. An arm serves the highest load that met them, if no
lower one missed them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf, isnan, nan
from typing import TYPE_CHECKING

import numpy as np

from workbench.experiment.findings.decision.point_findings import gpus_of
from workbench.experiment.findings.load_findings import kept_up, median_per_s, sent_load
from workbench.experiment.findings.sentences import count, percent
from workbench.experiment.load_unit import RATE, USERS, LoadUnit, load_text
from workbench.experiment.plan.compared import rivals
from workbench.experiment.plan.offered_load.loads import latency_limits
from workbench.experiment.plan.offered_load.search import Answer, Limits, Point
from workbench.experiment.plan.plan import ExperimentPlan
from workbench.experiment.result.facts import ArmFacts
from workbench.experiment.result.finding_rows import DecisionRow, LoadRow, PointRow
from workbench.metrics.gates.gate import Gate
from workbench.metrics.gates.gate_effects import Failed, Spoil, failed_gates, spoil, told
from workbench.metrics.gates.gate_table import gate_row
from workbench.params.pd_sweep import PdSweep

if TYPE_CHECKING:
    import pandas as pd

_HOW_TO_ASK = (
    "No decision: set a latency limit and several rates or concurrencies (example: -p"
    " ttft_limit_ms 500 -p rates_per_s 1,2,4)."
)
_NO_LOAD = (
    "No decision: a trace or ramp has no single rate (example: -p ttft_limit_ms 500"
    " -p rates_per_s 1,2,4)."
)
_UNIT = {unit.kind: unit for unit in (RATE, USERS)}
_MOST_WORDS = 14
"""Of a headline."""


def limits_given(plan: ExperimentPlan) -> Limits | None:
    """The latency limits of a PD sweep; None without any."""
    if not isinstance(plan.params, PdSweep) or plan.sized:
        return None
    limits = latency_limits(plan.params)
    return limits if str(limits) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Level:
    """One measured load of an arm, and how many of its requests met the limits."""

    load: float
    """Of a rate what was sent: few arrivals, drawn at random, differ from the requested rate."""
    requested: float
    pass_name: str
    requests: int
    share: float
    low: float
    high: float
    throughput_per_s: float = nan
    behind: bool = False
    """Responses fell behind arrivals."""

    def doubtful(self, wanted: float) -> bool:
        """Whether its interval contains the wanted fraction."""
        return self.low < wanted <= self.high


def decision_rows(
    plan: ExperimentPlan,
    requests: pd.DataFrame,
    legs: pd.DataFrame,
    *,
    loads: Sequence[LoadRow],
    found: Mapping[str, Answer],
    arms: Iterable[ArmFacts],
    points: Sequence[PointRow],
    gates: Sequence[Gate],
) -> tuple[DecisionRow, ...]:
    """A row for each arm that was measured; empty without limits, or without a single load.

    `loads` and `found` are those of a sweep or search.
    """
    limits = limits_given(plan)
    if limits is None:
        return ()
    of_arm = {arm.label: arm for arm in arms}
    rows = []
    for arm in plan.arms:
        mine = requests[requests["arm"] == arm.label]
        levels = [_of_load(row) for row in loads if row.arm == arm.label]
        unit = USERS if plan.arrivals.kind == "closed" else RATE
        if plan.loads is None:
            levels = [_of_point(p, mine, limits) for p in points if p.arm == arm.label]
        if levels := [level for level in levels if not isnan(level.load)]:
            space = of_arm[arm.label].decode_kv_tokens if arm.label in of_arm else ()
            verdict = _Verdict.of(levels, limits.share, found.get(arm.label), unit=unit)
            at = verdict.met or min(levels, key=lambda level: level.load)
            room = _Room.of(
                mine[mine["pass"] == at.pass_name], legs, space, split=arm.disaggregated
            )
            rows.append(
                DecisionRow(
                    arm=arm.label,
                    gpus=gpus_of(arm),
                    load=unit.kind,
                    met=verdict.met.load if verdict.met else nan,
                    missed=verdict.missed.load if verdict.missed else nan,
                    pass_name=at.pass_name,
                    settled=verdict.settled,
                    note="; ".join(filter(None, (verdict.note, room.short))),
                    share=at.share,
                    share_low=at.low,
                    share_high=at.high,
                    throughput_per_s=at.throughput_per_s,
                    kv_tokens=room.kv_tokens,
                    request_tokens=room.request_tokens,
                    running=room.running,
                    head_room=room.head_room,
                    hand_offs=room.hand_offs,
                    gate=_gate(gates, arm.label, at.pass_name),
                )
            )
    return tuple(rows)


def _of_load(row: LoadRow) -> _Level:
    return _Level(
        load=sent_load(row),
        requested=row.requested,
        pass_name=row.unit.pass_name(row.requested),
        requests=row.n_requests,
        share=row.share,
        low=row.share_low,
        high=row.share_high,
        throughput_per_s=row.achieved_per_s,
        behind=row.unit == RATE and not kept_up(row),
    )


def _of_point(point: PointRow, requests: pd.DataFrame, limits: Limits) -> _Level:
    """The only load of a run without a sweep."""
    rows = requests[requests["pass"] == point.pass_name]
    met = limits.met(rows["ttft_s"], rows["tpot_s"]).groupby(rows["round"]).agg(["size", "sum"])
    counted = Point(load=nan, sent=tuple(met["size"]), met=tuple(met["sum"]))
    low, high = counted.interval
    load = point.users
    if not isnan(point.rate_per_s):
        sent = median_per_s(part["scheduled_s"] for _, part in rows.groupby("round"))
        load = point.rate_per_s if isnan(sent) else sent
    return _Level(
        load=load,
        requested=point.rate_per_s,
        pass_name=point.pass_name,
        requests=len(rows),
        share=counted.share,
        low=low,
        high=high,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Verdict:
    """The highest load that met the limits, and the lowest that missed them."""

    met: _Level | None
    missed: _Level | None
    settled: bool
    note: str

    @classmethod
    def of(
        cls, levels: Sequence[_Level], wanted: float, answer: Answer | None, *, unit: LoadUnit
    ) -> _Verdict:
        """By the fraction of each load; intervals say whether it is settled.

        A search has its own `answer`, which is taken where it is resolved.
        """
        ordered = sorted(levels, key=lambda level: level.load)
        missed = next((level for level in ordered if not level.share >= wanted), None)
        below = [level for level in ordered if missed is None or level.load < missed.load]
        met = below[-1] if below else None
        if answer is not None and answer.resolved:
            by_load = {level.requested: level for level in ordered}
            met, missed = by_load[answer.met], by_load[answer.missed]
        doubtful = [level for level in (met, missed) if level and level.doubtful(wanted)]
        notes = []
        if doubtful:
            first = doubtful[0]
            notes.append(
                f"{count(first.requests, 'request')} at {unit.said(first.load)} do not"
                f" decide {percent(wanted)} (95 % CI {percent(first.low)} to {percent(first.high)})"
            )
        elif answer is not None and answer.reason:
            notes.append(f"{answer.reason}{' (rates as requested)' * (unit == RATE)}")
        if met and met.behind:
            notes.append(
                f"responses fell behind ({met.throughput_per_s:.3g} per s), so the queue would grow"
            )
        settled = not doubtful and (answer is None or answer.resolved)
        return cls(met=met, missed=missed, settled=settled, note="; ".join(notes))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Room:
    """KV space of the instances that decode, and how many requests held it at the same time."""

    kv_tokens: float
    request_tokens: int
    running: float
    head_room: float
    hand_offs: float

    @classmethod
    def of(
        cls, requests: pd.DataFrame, legs: pd.DataFrame, space: Sequence[float], *, split: bool
    ) -> _Room:
        """Of one pass of one arm. Each instance holds whole requests, so it is rounded down.

        With a split, a request is a hand-off from the time that decode has it until its first
        token, and runs from there; decode reserves KV for both. Without one it runs throughout.
        """
        longest = int((requests["prompt_tokens"] + requests["max_tokens"]).max())
        fits = sum(space_tokens // longest for space_tokens in space) if space else nan
        last = requests["chunk_s"].map(lambda stamps: stamps[-1] if len(stamps) else nan)
        hand_offs, running = nan, nan
        if not split:
            running = _most_at_once(requests["round"], requests["sent_s"], last)
        elif "decode_sent_s" in legs:
            keys = ["arm", "round", "pass", "request_id"]
            times = ["decode_sent_s", "decode_first_byte_s"]
            known = requests.assign(last_s=last).merge(legs[[*keys, *times]], on=keys)
            begun, shown = known["decode_sent_s"], known["decode_first_byte_s"]
            running = _most_at_once(known["round"], shown, known["last_s"])
            hand_offs = _most_at_once(known["round"], begun, shown)
        return cls(
            kv_tokens=sum(space) if space else nan,
            request_tokens=longest,
            running=running,
            head_room=max(0.0, fits - running) if not isnan(fits - running) else nan,
            hand_offs=hand_offs,
        )

    @property
    def short(self) -> str:
        """That decode has no KV for more hand-offs; empty if it has."""
        if isnan(self.head_room) or not self.hand_offs >= self.head_room:
            return ""
        return (
            f"decode has KV for {count(int(self.head_room), 'hand-off')} and"
            f" {self.hand_offs:g} were under way, so KV space limits the load"
        )


def _most_at_once(
    rounds: pd.Series[int], begun_s: pd.Series[float], ended_s: pd.Series[float]
) -> float:
    """Most intervals that overlap, over all rounds; those without both ends do not count."""
    most = nan
    for number in rounds.unique():
        begun, ended = (each[rounds == number].to_numpy(float) for each in (begun_s, ended_s))
        known = np.isfinite(begun) & np.isfinite(ended)
        times = np.concatenate([begun[known], ended[known]])
        steps = np.repeat([1, -1], int(known.sum()))
        if len(times):
            # one that ends makes room for one that begins at the same time
            order = np.lexsort((steps, times))
            most = np.fmax(most, steps[order].cumsum().max())
    return float(most)


def _gate(gates: Sequence[Gate], arm: str, pass_name: str) -> str:
    """The gate that takes the times of this pass away, or that would if it failed."""
    does = spoil(failed_gates(gates), "times", arms=[arm], passes=[pass_name])
    if does.effect:
        word = {"struck": "not valid", "rough": "rough", "doubt": "use with caution"}[does.effect]
        return f"{word}: {does.why}"
    deciding = [
        gate
        for gate in gates
        if gate_row(gate.name).takes.get("times") in ("struck", "rough")
        and gate_row(gate.name).only_pass in ("", pass_name)
    ]
    open_ = [gate_row(gate.name).shown for gate in deciding if gate.outcome == "INCONCLUSIVE"]
    if open_:
        more = f" and {len(open_) - 1} more" * (len(open_) > 1)
        return f"inconclusive: {open_[0]}{more} (not valid or rough if it fails)"
    return f"{count(len(deciding), 'gate')} passed" if deciding else "no gate checked it"


def decision_headline(plan: ExperimentPlan, rows: Sequence[DecisionRow]) -> tuple[str, list[str]]:
    """What the first subject and its best baseline serve, in at most 14 words, and both arms.

    Empty without rows.
    """
    limits = limits_given(plan)
    if not rows or limits is None:
        return "", []
    first = rows[0]
    against = [other.label for arm, other in rivals(plan.arms) if arm.label == first.arm]
    others = sorted((row for row in rows if row.arm in against), key=lambda row: -_amount(row))
    for arms in ([first, *others[:1]], [first]):
        for within in (_within(limits), "the limits"):
            text = _served(arms, within)
            if len(text.split()) <= _MOST_WORDS:
                return text, [row.arm for row in arms]
    return "", []


def decision_sentence(
    plan: ExperimentPlan, rows: Sequence[DecisionRow], failed: Failed = ()
) -> str:
    """What each arm serves, or how to ask for it; empty for other notebooks.

    Arms whose times failed gates take away, or make rough, have a sentence that begins with that.
    """
    if not isinstance(plan.params, PdSweep) or plan.sized or plan.profiles:
        return ""
    limits = limits_given(plan)
    if limits is None:
        return _HOW_TO_ASK
    if not rows:
        return _NO_LOAD
    alike: dict[Spoil, list[DecisionRow]] = {}
    for row in rows:
        does = spoil(failed, "times", arms=[row.arm], passes=[row.pass_name])
        alike.setdefault(does if told("", does) else Spoil(), []).append(row)
    within, share = _within(limits), percent(limits.share)
    return " ".join(
        told(f"{_served(own, within)} (for {share} of requests).", does)
        for does, own in alike.items()
    )


def _served(rows: Sequence[DecisionRow], within: str) -> str:
    """`1p4d lmcache serves 6.2 req/s within 500 ms TTFT; 5a 4.1`."""
    first, *others = rows
    lead, load = _what(first)
    said = [f"{first.arm} serves {lead}{_UNIT[first.load].said(load)} within {within}"]
    for row in others:
        lead, load = _what(row)
        said.append(f"{row.arm} {lead}{load_text(load)}")
    return "; ".join(said)


def _what(row: DecisionRow) -> tuple[str, float]:
    """A qualifier (none, `about `, `at least ` or `less than `) and the load."""
    if isnan(row.met):
        return "less than ", row.missed
    return "about " if not row.settled else "at least " if isnan(row.missed) else "", row.met


def _amount(row: DecisionRow) -> float:
    return 0.0 if isnan(row.met) else row.met


def _within(limits: Limits) -> str:
    """`500 ms TTFT and 50 ms TPOT`"""
    known = (("TTFT", limits.ttft_s), ("TPOT", limits.tpot_s))
    return " and ".join(f"{1000 * each:g} ms {name}" for name, each in known if each < inf)
