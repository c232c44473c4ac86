"""Whether a run is worse than its baseline by more than is allowed, or how many rounds decide it.

Each comparison is decided by its 95 % interval. "No regression" needs every comparison to pass, so
it needs no correction for their number (an intersection-union test, Berger, Technometrics 24 (1982)
295-300). "Regression" needs only one, so its p values are corrected by Holm's method.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from math import inf, isfinite, isnan, log, nan
from pathlib import Path
from typing import Literal

from workbench.errors import ParameterError, ResultError, must_be
from workbench.experiment.between.differences import (
    Difference,
    check_alike,
    differences,
    distinct_labels,
    first_line,
    options,
)
from workbench.experiment.between.unpaired import (
    Compared,
    Kind,
    Launches,
    compared,
    geometric_mean,
    launches_of,
    pairs_of,
    selected,
    spoilt,
)
from workbench.experiment.result.facts import ArmFacts
from workbench.experiment.result.result import Result
from workbench.metrics.gates.gate_effects import touching
from workbench.metrics.latency import succeeded
from workbench.metrics.statistics import (
    MOST_ROUNDS,
    ROUNDS_FOR_INTERVAL,
    holm,
    noise_floor,
    rounds_to_decide,
)

Outcome = Literal["no regression", "regression", "undecided"]
METRICS = ("ttft_s", "tpot_s", "system_tps")
"""E2E is left out: it is TTFT and TPOT together."""
_ALPHA = 0.025
"""One side of a 95 % interval."""
_ONLY_WITHOUT_HOLM = "beyond the limit only without Holm's correction"


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """One metric of an arm and pass, and whether it is worse than allowed."""

    row: Compared
    outcome: Outcome
    why: str = ""
    """Why it is undecided."""
    rounds: float = nan
    """Rounds in each run that would decide it; infinite if no number does, NaN if others help."""
    width: float = 1.0
    """Factor by which the noise floor widens both ends of the interval."""

    @property
    def change(self) -> tuple[float, float, float]:
        """The change with the interval that decides, which the noise floor widens."""
        ratio = self.row.ratio
        ends = replace(ratio, low=ratio.low / self.width, high=ratio.high * self.width)
        return replace(self.row, ratio=ends).change


@dataclass(frozen=True, slots=True, kw_only=True)
class Floor:
    """How far equal runs or arms are from each other in 95 % of cases, as a ratio - 1."""

    of: Mapping[str, float]
    """By metric; empty if it is not known."""
    source: str
    """What it comes from, in words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Regression:
    """The answer of `judge`."""

    outcome: Outcome
    judged: tuple[Judged, ...]
    """Regressions first, then undecided ones, the worst change first."""
    settings: str
    """Which settings differ from the baseline."""
    differences: tuple[Difference, ...]
    floor: Floor
    allow: float
    missing: tuple[str, ...]
    """Arms and passes of the baseline that the run did not measure."""
    added: tuple[str, ...]
    """Arms and passes of the run without a baseline, and metrics that only the run has."""
    unfinished: tuple[str, ...]
    """The runs that did not finish. With one of them there is no \"no regression\"."""
    simulated: bool
    doubts: tuple[str, ...]

    @property
    def rounds(self) -> float:
        """Rounds in each run that decide all that rounds can decide; NaN if there are none."""
        known = [each.rounds for each in self.judged if isfinite(each.rounds)]
        return max(known, default=nan)

    def count(self, outcome: Outcome) -> int:
        return sum(each.outcome == outcome for each in self.judged)


def allowed_loss(text: str) -> float:
    """`5%` as 0.05. Raises ParameterError."""
    number, sign, rest = text.strip().partition("%")
    try:
        value = float(number)
    except ValueError:
        value = nan
    if not sign or rest.strip() or not 0 < value < 100:
        raise ParameterError(
            must_be("--allow", "a percentage above 0 and below 100", text, "--allow 5%")
        )
    return value / 100


def judge(
    run: Result,
    bases: Sequence[Result],
    *,
    allow: float,
    arm: str = "",
    cache_state: str = "",
    unlike: Collection[str] = (),
) -> Regression:
    """Whether `run` is worse than its baseline by more than `allow` (0.05: latency 5 % higher).

    The first of `bases` is the baseline; others repeat it and give the noise floor. `arm` and
    `cache_state` select. Raises ResultError for runs that must not be compared, and where nothing
    can be.
    """
    first = bases[0]
    labels = distinct_labels([each.folder.name for each in (first, run)])
    check_alike(dict(zip(labels, (first.run, run.run), strict=True)), unlike, command="gate")
    _check_distinct([run, *bases])
    _check_repetitions(bases)
    for each in (run, *bases):
        selected(each, arm=arm, cache_state=cache_state)
    ours, theirs, *more = (
        launches_of(each, arm=arm, cache_state=cache_state) for each in (run, *bases)
    )
    pairs, (added, missing) = pairs_of(ours, theirs)
    if not pairs:
        raise ResultError(
            f"{run.folder} and {first.folder} have no arm and pass in common; got"
            f" {_listed(ours.kinds)} and {_listed(theirs.kinds)}. Leave out --arm and --pass, or"
            " give a run of the same model and topology"
        )
    floor = _floor([ours, theirs, *more])
    every = list(compared(ours, theirs, metrics=METRICS, more=more))
    judged = _judge([row for row in every if _known(row)], floor, allow, _failures(run))
    outcomes = {each.outcome for each in judged}
    unfinished = tuple(_unfinished([run, *bases]))
    open_ = "undecided" in outcomes or missing or unfinished
    decided: Outcome = "undecided" if open_ else "no regression"
    found = differences(first.run, run.run)
    return Regression(
        outcome="regression" if "regression" in outcomes else decided if judged else "undecided",
        judged=tuple(sorted(judged, key=_worst_first)),
        settings=first_line(found),
        differences=found,
        floor=floor,
        allow=allow,
        missing=tuple(map(", ".join, missing)),
        added=(*map(", ".join, added), *_without_baseline(every)),
        unfinished=unfinished,
        simulated=run.run.simulated or any(base.run.simulated for base in bases),
        doubts=tuple(_doubts([run, *bases])),
    )


def _judge(
    rows: Sequence[Compared], floor: Floor, allow: float, failures: Mapping[Kind, str]
) -> list[Judged]:
    usable = [not _void(row) for row in rows]
    limits = [_limit(row.metric, allow) for row in rows]
    wider = [1 + floor.of.get(row.metric, 0.0) for row in rows]
    p_values = [
        row.ratio.p_worse_than(limit / width) if good else nan
        for row, limit, width, good in zip(rows, limits, wider, usable, strict=True)
    ]
    worse, tested = holm(p_values, _ALPHA), max(1, sum(p == p for p in p_values))
    return [
        replace(
            _judged(
                row, limit, width, worse=bool(below), tested=tested,
                failed=failures.get(row.kind, ""),
            ),
            width=width,
        )
        for row, limit, width, below in zip(rows, limits, wider, worse, strict=True)
    ]  # fmt: skip


def _judged(
    row: Compared, limit: float, width: float, *, worse: bool, tested: int, failed: str
) -> Judged:
    ratio = row.ratio
    if worse:
        return Judged(row=row, outcome="regression")
    if void := _void(row):
        return Judged(row=row, outcome="undecided", why=void)
    if isnan(ratio.value):
        why = f"the run has no value{f': {failed}' if failed else ''}"
        return Judged(row=row, outcome="undecided", why=why)
    if ratio.low / width >= limit:
        return Judged(row=row, outcome="no regression")
    alpha = _ALPHA / tested if ratio.value < limit else _ALPHA
    distance = abs(log(ratio.value) - log(limit)) - log(width)
    rounds = rounds_to_decide(ratio.spread, distance, alpha=alpha)
    if isnan(ratio.low):
        few = min(ratio.rounds, ratio.baseline_rounds)
        why = f"an interval needs {ROUNDS_FOR_INTERVAL} rounds in each run, one has {few}"
        return Judged(
            row=row, outcome="undecided", why=why,
            rounds=float(ROUNDS_FOR_INTERVAL) if isnan(rounds) else rounds,
        )  # fmt: skip
    if distance <= 0:
        why = "the change is closer to the limit than the noise floor"
        return Judged(row=row, outcome="undecided", why=why, rounds=inf)
    # Both runs have so many rounds, and they did not decide it.
    rounds = max(rounds, min(ratio.rounds, ratio.baseline_rounds) + 1.0)
    beyond = ratio.high * width < limit
    why = f"{_ONLY_WITHOUT_HOLM if beyond else 'the interval contains the limit'}; {_more(rounds)}"
    return Judged(row=row, outcome="undecided", why=why, rounds=rounds)


def _more(rounds: float) -> str:
    needed = f"{rounds:.0f}" if isfinite(rounds) else f"more than {MOST_ROUNDS}"
    return f"needs {needed} rounds in each run"


def _limit(metric: str, allow: float) -> float:
    """The worst ratio that is allowed: a latency `allow` higher, a throughput `allow` lower."""
    return 1 - allow if metric == "system_tps" else 1 / (1 + allow)


def _void(row: Compared) -> str:
    """The gate that makes an absolute time invalid or rough, which no interval includes."""
    return row.spoilt.said if row.spoilt.effect in ("struck", "rough") else ""


def _known(row: Compared) -> bool:
    """False for what the baseline has no value of, such as TPOT of responses with one token."""
    return not isnan(row.theirs)


def _without_baseline(rows: Sequence[Compared]) -> Iterator[str]:
    """Passes that failed altogether in the baseline, and metrics that only the run has."""
    whole = {row.kind: True for row in rows}
    for row in rows:
        whole[row.kind] &= not _known(row)
    yield from (
        f"{', '.join(kind)} (no value in the baseline)" for kind, all_ in whole.items() if all_
    )
    for row in rows:
        if not _known(row) and not isnan(row.ours) and not whole[row.kind]:
            yield f"{row.name} (no value in the baseline)"


def _failures(run: Result) -> dict[Kind, str]:
    """Arms and passes of which every request failed."""
    found: dict[Kind, str] = {}
    for (arm, cache_state), rows in run.requests.groupby(["arm", "pass"], sort=False):
        if not succeeded(rows).any():
            found[str(arm), str(cache_state)] = f"all {len(rows)} requests failed"
    return found


def _worst_first(each: Judged) -> tuple[int, float]:
    rank = ("regression", "undecided", "no regression").index(each.outcome)
    value = each.row.ratio.value
    return rank, value if not isnan(value) else inf


def _check_distinct(runs: Sequence[Result]) -> None:
    """Refuse a run that is given twice: its launches would count twice and shrink each interval."""
    seen: dict[object, Path] = {}
    for each in runs:
        names: list[object] = [each.folder.resolve()]
        if each.run.started_at:
            names.append((each.run.run_id, each.run.started_at))
        for name in names:
            if name in seen:
                raise ResultError(
                    f"each run must be given once, got {seen[name]} and {each.folder}, which are"
                    " the same run. Give different runs (example: workbench gate"
                    " outputs/pd_sweep/RUN --against base/pd_sweep/RUN)"
                )
        seen |= dict.fromkeys(names, each.folder)


def _check_repetitions(bases: Sequence[Result]) -> None:
    """Refuse repetitions of the baseline that differ from it in a setting."""
    first, *others = bases
    for other in others:
        found = [
            each
            for each in differences(first.run, other.run)
            if each.counted and each.group != "commit"
        ]
        if found:
            raise ResultError(
                f"baseline runs must be repetitions of one another, but {first_line(found)} in"
                f" {first.folder.name} and {other.folder.name}. Give only runs with the same"
                " settings (example: --against outputs/pd_sweep/RUN_1 outputs/pd_sweep/RUN_2)"
            )


def _floor(every: Sequence[Launches]) -> Floor:
    """From repetitions of the baseline, else from arms with equal command lines, else unknown."""
    run, *bases = every
    if len(bases) > 1:
        found = _log_ratios(
            (one, kind, other, kind) for one, other in combinations(bases, 2) for kind in one.kinds
        )
        return Floor(of=found, source=f"from {len(bases)} runs of the baseline")
    for launches, name in ((bases[0], "the baseline"), (run, "the run")):
        twins = list(_twins(launches))
        if found := _log_ratios((launches, one, launches, other) for one, other in twins):
            arms = dict.fromkeys(arm for pair in twins for arm, _ in pair)
            return Floor(of=found, source=f"from equal arms of {name} ({', '.join(arms)})")
    return Floor(of={}, source="unknown, because the baseline is one run without equal arms")


def _log_ratios(pairs: Iterator[tuple[Launches, Kind, Launches, Kind]]) -> dict[str, float]:
    """The noise floor of each metric over pairs of equals."""
    ratios: dict[str, list[float]] = {}
    for one, kind, other, like in pairs:
        if any(
            spoilt(*side).effect in ("struck", "rough") for side in ((one, kind), (other, like))
        ):
            continue
        for metric in METRICS:
            sides = (one.numbers.get((metric, kind), ()), other.numbers.get((metric, like), ()))
            ratio = geometric_mean(sides[0]) / geometric_mean(sides[1])
            if isfinite(ratio):
                ratios.setdefault(metric, []).append(ratio)
    return {metric: noise_floor(each) for metric, each in ratios.items()}


def _twins(launches: Launches) -> Iterator[tuple[Kind, Kind]]:
    """Passes of arms with equal command lines: an A/A comparison within a run.

    The model and the topology must be equal too: command lines are compared without folders, so
    two models whose folders end alike have the same.
    """

    def same(arm: ArmFacts) -> object:
        lines = [options(line) for line in arm.command_lines]
        return arm.short_model, arm.model, arm.topology, lines

    for one, other in combinations(launches.run.arms, 2):
        if one.command_lines and same(one) == same(other):
            for label, name in launches.kinds:
                if label == one.label and (other.label, name) in launches.kinds:
                    yield (label, name), (other.label, name)


def _listed(kinds: Collection[Kind]) -> str:
    return "; ".join(map(", ".join, kinds)) or "nothing"


def _unfinished(results: Sequence[Result]) -> Iterator[str]:
    labels = distinct_labels([each.folder.name for each in results])
    for result, label in zip(results, labels, strict=True):
        if result.run.status != "success":
            yield label


def _doubts(results: Sequence[Result]) -> Iterator[str]:
    """What limits the use of the runs."""
    labels = distinct_labels([each.folder.name for each in results])
    for result, label in zip(results, labels, strict=True):
        if result.run.status != "success":
            yield f"{label} did not finish: its result is partial."
        for name in touching(result.run.failed_gates):
            yield f"{label}: gate {name!r} failed."
