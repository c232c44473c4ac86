"""A run with predictions: profile 1p1d, measure some topologies, predict all, and compare."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import nan
from pathlib import Path
from typing import Any

from workbench.errors import PlanError, ResultError, WorkbenchError
from workbench.experiment.findings.headline import headline
from workbench.experiment.findings.sentences import percent
from workbench.experiment.plan.plan import ExperimentPlan
from workbench.experiment.result.facts import RunFacts
from workbench.experiment.result.predicted import (
    FitRow,
    HeldOutRow,
    OwnErrorRow,
    PredictedRow,
    within_goal,
)
from workbench.experiment.result.result import Result, load_result
from workbench.experiment.result.run_folder import RunFolder, output_root
from workbench.experiment.run.run_log import Echo, OnRecord, echo_line
from workbench.metrics.statistics import three_digits
from workbench.params.pd_sweep import PdSweep
from workbench.whatif.held_out import CHECKED, HeldOut, checked_error, held_out
from workbench.whatif.prediction import Prediction, check_turns, predict
from workbench.whatif.profile_plan import profile_plan as plan_of_profile
from workbench.whatif.profiles.measured_profile import (
    LARGEST_RESIDUAL,
    LARGEST_TRANSFER_RESIDUAL,
    profile_of,
)
from workbench.whatif.profiles.profile import Profile
from workbench.whatif.profiles.profile_file import read_profile

_DOUBT = "Predictions: {}"
_PER = {
    "steps": (1, "step"), "tokens": (1_000, "1,000 tokens"),
    "pairs": (1_000_000, "million pairs of tokens"), "sequences": (1, "sequence"),
    "kv_tokens": (1_000, "1,000 KV tokens"), "bytes": (1_000_000, "MB"),
    "others": (1, "other transfer"),
}  # fmt: skip
"""How many of each input a coefficient is shown for, and its name."""


def profile_plan(plan: ExperimentPlan) -> ExperimentPlan | None:
    """The plan of the profile that a run with `predict` needs; None for a run without.

    Raises PlanError and ParameterError for a workload or connector that cannot be predicted.
    """
    if not (isinstance(plan.params, PdSweep) and plan.params.predict):
        return None
    check_turns(plan.params, plan.workload.sample)
    return plan_of_profile(plan.params)


async def run_and_predict(
    plan: ExperimentPlan,
    *,
    echo: Echo = echo_line,
    on_record: OnRecord | None = None,
) -> Result:
    """Run a plan; with `predict`, profile first and add predictions to the result.

    A finished profile of the same parameters is reused, and an interrupted one is resumed. If no
    profile can be made, the result says why. Raises the same errors as `experiment.run.run.run`.
    """
    from workbench.experiment.run.run import run

    if (profiling := profile_plan(plan)) is None:
        return await run(plan, echo=echo, on_record=on_record)
    profile, said = _kept(profiling), ""
    if profile is not None:
        echo(f"profile {profile.run_id}: reusing an earlier measurement")
    else:
        try:
            profile = with_fits(await run(profiling, echo=echo))[1]
        except ResultError as error:
            said = f"No predictions: {error}."
    result = await run(plan, echo=echo, on_record=on_record)
    if profile is None:
        return _written(result, replace(result.run, profile=said))
    return _with_predictions(result, profile, _home(profiling))


def with_fits(result: Result) -> tuple[Result, Profile]:
    """Add the fits to the result of a profiling run; returns it and the profile, both written.

    Raises ResultError as `profile_of` does.
    """
    profile, run = profile_of(result), result.run
    fits = _fits(profile)
    off = ", ".join(f"{percent(row.residual)} ({row.part})" for row in fits)
    said = f"Profile of 1p1d ({profile.connector}): median fit residuals {off}"
    found, unproven = headline(said, run.failed_gates, "times")
    facts = replace(
        run,
        finding=found,
        unproven=unproven,
        fits=fits,
        own_errors=_own_errors(profile),
        doubts=(*run.doubts, *profile.doubts),
    )
    return _written(result, facts, profile), profile


def forget_profile(params: PdSweep) -> None:
    """Delete the kept profile, so that the next run with `predict` measures a new one."""
    made = plan_of_profile(params)
    RunFolder.forget(params.output_dir, made.notebook, made.run_id)
    (_home(made) / "profile.json").unlink(missing_ok=True)


def _home(profiling: ExperimentPlan) -> Path:
    return output_root(profiling.params.output_dir) / profiling.notebook / profiling.run_id


def _kept(profiling: ExperimentPlan) -> Profile | None:
    """The profile of an earlier run, if it is of this machine and of the installed versions."""
    try:
        found = read_profile(_home(profiling) / "profile.json")
        found.params({})
    except (ResultError, PlanError):
        return None
    return None if found.changed_versions else found


def _written(result: Result, facts: RunFacts, profile: Profile | None = None) -> Result:
    if profile is not None:
        path = profile.write(result.folder)
        facts = replace(facts, files={**facts.files, "profile": path.name})
    RunFolder(home=result.folder, attempt=result.folder).write_facts(facts)
    return replace(result, run=facts)


def _with_predictions(result: Result, profile: Profile, profiled: Path) -> Result:
    try:
        checks = held_out(profile, result, skip_refused=True)
    except WorkbenchError:  # nothing was held out, or every prediction is refused below
        checks = []
    measured = {check.predicted.topology: check.predicted for check in checks}
    params = profile.params(result.run.parameters)
    predicted: list[PredictedRow] = []
    doubts: dict[str, list[str]] = {}
    for topology in params.topologies:
        try:
            found = measured.get(topology) or predict(profile, params, topology)
        except PlanError as error:
            predicted.append(_row(str(topology), refused=f"not predicted: {error}"))
            continue
        predicted += _rows(found, checks)
        for doubt in found.doubts:
            if doubt not in result.run.doubts:  # of the load, which was measured too
                doubts.setdefault(doubt, []).append(str(topology))
    every = {row.topology for row in predicted if not row.refused}
    more = [_DOUBT.format(doubt) for doubt in profile.doubts]
    for doubt, topologies in doubts.items():
        where = "" if {*topologies} == every else f"{', '.join(topologies)}: "
        more.append(_DOUBT.format(where + doubt))
    facts = replace(
        result.run,
        profile=_about(profile, profiled),
        fits=_fits(profile),
        own_errors=_own_errors(profile),
        predictions=tuple(predicted),
        held_out=tuple(row for check in checks for row in _compared(check)),
        doubts=(*result.run.doubts, *more),
    )
    return _written(result, facts, profile)


def _about(profile: Profile, folder: Path) -> str:
    """Which run the profile is from, and when it was measured."""
    try:
        when = f", measured {load_result(folder).run.finished_at[:16].replace('T', ' ')} UTC"
    except ResultError:
        when = ""
    return f"Profile of 1p1d and 1a: run {profile.run_id}{when}."


def _fits(profile: Profile) -> tuple[FitRow, ...]:
    return tuple(
        FitRow(
            part=part,
            formula=" + ".join(
                _term(part, term, value)
                for term, value in zip(one.terms, one.coefficients, strict=True)
                if value
            ),
            residual=one.residual,
            limit=limit,
            ranges={name: (low, high) for name, (low, high) in one.ranges.items()},
            measured_s=one.measured_s,
            fitted_s=one.fitted_s,
        )
        for part, one, limit in (
            ("prefill", profile.prefill, LARGEST_RESIDUAL),
            ("decode step", profile.decode, LARGEST_RESIDUAL),
            ("transfer", profile.transfer, LARGEST_TRANSFER_RESIDUAL),
        )
    )


def _own_errors(profile: Profile) -> tuple[OwnErrorRow, ...]:
    return tuple(
        OwnErrorRow(pass_name=name, ttft_error=ttft, tpot_error=tpot)
        for name, (ttft, tpot) in profile.aggregated.items()
    )


def _term(part: str, term: str, value: float) -> str:
    """`9.3 ms`, `21 ms per 1,000 tokens`, `0.9 x wait for a decode step`"""
    if term == "waits":  # which is in seconds itself
        return f"{value:.2g} x wait for a decode step"
    if term == "transfers" or (part, term) == ("decode step", "steps"):
        return f"{three_digits(1000 * value)} ms"
    times, per = _PER[term]
    return f"{three_digits(1000 * times * value)} ms per {per}"


def _row(topology: str, **own: Any) -> PredictedRow:
    unknown: dict[str, Any] = dict.fromkeys(
        ("rate_per_s", "utilisation", "highest_per_s", "value", "low", "high"), nan
    )
    empty = {"bottleneck": "", "metric": "", "checked": False, "refused": ""}
    return PredictedRow(topology=topology, **(unknown | empty | own))


def _rows(found: Prediction, checks: Sequence[HeldOut]) -> list[PredictedRow]:
    """A row for each predicted metric, or one that says why there is none."""
    closed = found.closed
    known = {
        "rate_per_s": closed.rate_per_s,
        "utilisation": closed.utilisation,
        "highest_per_s": closed.bound_per_s,
        "bottleneck": closed.bottleneck,
    }
    if found.refused:
        return [_row(str(found.topology), refused=found.refused, **known)]
    rows = []
    for one in found.numbers:
        error = checked_error(checks, found, one.metric)
        rows.append(
            _row(
                str(found.topology),
                metric=one.metric,
                value=one.value,
                low=one.low,
                high=one.high,
                checked=within_goal(error),
                error=error,
                **known,
            )
        )
    return rows


def _compared(check: HeldOut) -> list[HeldOutRow]:
    note = f"no check: {check.no_check}" if check.no_check else ""
    if check.spoiled.struck:
        note = f"left out, {check.spoiled.said}"
    rows = []
    for metric in CHECKED:
        one = check.predicted.number(metric)
        rows.append(
            HeldOutRow(
                arm=check.arm,
                topology=str(check.predicted.topology),
                rate_per_s=check.rate_per_s,
                arrivals=check.predicted.load.arrivals,
                n_requests=check.requests,
                metric=metric,
                measured=check.measured[metric],
                value=one.value,
                low=one.low,
                high=one.high,
                error=check.error(metric),
                note=check.predicted.refused or note,
            )
        )
    return rows
