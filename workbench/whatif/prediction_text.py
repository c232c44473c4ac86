"""Predictions as lines of text: the error of held-out runs first, then the numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import isnan
from pathlib import Path
from typing import Any

from workbench.experiment.findings.sentences import percent
from workbench.experiment.load_unit import USERS
from workbench.experiment.plan.offered_load.traffic import arrivals_of
from workbench.experiment.result.predicted import METRICS, check_words
from workbench.experiment.result.result import load_result
from workbench.params.pd_sweep import PdSweep
from workbench.whatif.held_out import CHECKED, HeldOut, checked_error, differs, held_out
from workbench.whatif.load_text import limits_text, requests_text
from workbench.whatif.prediction import Predicted, Prediction, check_no_price, check_used, predict
from workbench.whatif.profiles.profile import Profile
from workbench.whatif.profiles.profile_file import read_profile


def prediction_page(
    profile_file: Path, given: Mapping[str, Any], measured: Sequence[Path] = ()
) -> str:
    """What `workbench predict` prints. `measured` are folders of held-out runs.

    Raises ResultError, PlanError and ParameterError.
    """
    check_used(given)
    check_no_price(given)
    profile = read_profile(profile_file)
    params = profile.params(given)
    lines = [f"profile {profile.run_id}" + " (simulated engine)" * profile.simulated]
    fits = {"prefill": profile.prefill, "decode step": profile.decode, "transfer": profile.transfer}
    off = ", ".join(f"{name} {percent(one.residual)}" for name, one in fits.items())
    lines.append(f"  times differ from their fit, in the median: {off}")
    lines += _aggregated(profile)
    lines += (f"  {doubt}" for doubt in profile.doubts)
    folders = dict.fromkeys(folder.resolve() for folder in measured)
    checks = [row for folder in folders for row in held_out(profile, load_result(folder))]
    lines += map(_checked, checks)
    for topology in params.topologies:
        found = predict(profile, params, topology)
        lines += ["", *_lines(found, params, checks)]
    return "\n".join(lines)


def _aggregated(profile: Profile) -> Iterator[str]:
    """The prediction errors on the 1a of the profile's own run."""
    each = [
        f"{name.removeprefix('cold, ')}: TTFT {percent(ttft, signed=True)},"
        f" TPOT {percent(tpot, signed=True)}"
        for name, (ttft, tpot) in profile.aggregated.items()
    ]
    if each:
        yield f"  prediction errors on the profile's own 1a (not fitted), {'; '.join(each)}"


def _where(row: HeldOut) -> str:
    if row.users:
        load = f"at {USERS.said(row.users)}"
    elif row.rate_per_s:
        load = f"at {row.rate_per_s:g} req/s"
    else:
        kind = row.predicted.load.arrivals
        load = "in a closed loop" if kind == "closed" else f"with arrivals of a {kind}"
    return f"held-out {row.arm} {load}"


def _checked(row: HeldOut) -> str:
    where = f"{_where(row)}, {row.requests} requests"
    if row.spoiled.struck:
        return f"{where}: left out, {row.spoiled.said}"
    if row.predicted.refused:
        return f"{where}: {row.predicted.refused}"
    errors = ", ".join(
        f"{METRICS[name][0]} {percent(row.error(name), 1, signed=True)}" for name in CHECKED
    )
    note = row.no_check or row.spoiled.said
    return f"{where}: {errors}" + (f" ({note})" if note else "")


def _checked_only(checks: Sequence[HeldOut]) -> str:
    """Where the profile was checked, for a prediction elsewhere."""
    usable = [row for row in checks if not row.no_check and not isnan(row.error("ttft_s"))]
    if not usable:
        return "checked nowhere: no held-out pass is valid, predicted and large enough"
    worst = max((row.error("ttft_s") for row in usable), key=abs)
    most: dict[str, float] = {}
    for row in usable:
        name, busy = str(row.predicted.topology), row.predicted.closed.utilisation
        most[name] = max(busy, most.get(name, 0.0))
    where = " and ".join(f"{name} up to {percent(busy)} of its rate" for name, busy in most.items())
    return f"checked on {where} only, worst TTFT error {percent(worst, signed=True)}"


def _no_checks(found: Prediction, checks: Sequence[HeldOut]) -> Iterator[str]:
    """Why the held-out passes of this topology do not check it."""
    for row in checks:
        if row.predicted.topology == found.topology and not row.no_check:
            yield f"  {_where(row)} does not check it: {differs(row, found)}"


def _lines(found: Prediction, params: PdSweep, checks: Sequence[HeldOut]) -> Iterator[str]:
    closed = found.closed
    busy = "" if isnan(closed.utilisation) else f", utilisation {percent(closed.utilisation)}"
    most = f"at most {closed.bound_per_s:.3g} req/s (limit: {closed.bottleneck})"
    yield f"{found.topology}: {most}{busy}"
    if found.refused:
        yield f"  {found.refused}"
        return
    if found.simulated is not None:
        rows = found.simulated.requests
        asked = requests_text(params, rows["prompt_tokens"], rows["output_tokens"])
        yield f"  {asked}; {arrivals_of(params, len(rows)).describe()}"
        if limits := limits_text(params):
            yield f"  limits: {limits}"
    unchecked = False
    for one in found.numbers:
        if not isnan(one.value):
            error = checked_error(checks, found, one.metric)
            unchecked |= one.metric in CHECKED and isnan(error)
            yield f"  {_number(one)}  {check_words(error)}"
    if checks and unchecked:
        yield from _no_checks(found, checks)
        yield f"  {_checked_only(checks)}"
    yield "  p99: not predicted (no check supports it)"
    if not isnan(closed.wait_s):
        simulated_s = max(0.0, closed.simulated_wait_s)  # a difference of means
        yield (
            "  mean prefill queue of a long run: simulated"
            f" {1000 * simulated_s:.3g} ms (+- {1000 * closed.simulated_error_s:.3g}),"
            f" Pollaczek-Khinchine {1000 * closed.wait_s:.3g} ms"
        )
    yield from (f"  {doubt}" for doubt in found.doubts)


def _number(one: Predicted) -> str:
    name, factor, unit = METRICS[one.metric]
    label = f"{name}, median" if unit == "ms" else name
    low, high = factor * one.low, factor * one.high
    return f"{label:14} {factor * one.value:8.4g} {unit:6} [{low:.4g}, {high:.4g}]"
