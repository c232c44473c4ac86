"""Predictions compared with measured runs of topologies that were not profiled."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from math import isnan, nan

from workbench.errors import ParameterError, PlanError, ResultError
from workbench.experiment.findings.sentences import percent
from workbench.experiment.plan.offered_load.traffic import LEAST_ARRIVALS, LEAST_CLOSED
from workbench.experiment.result.result import Result
from workbench.metrics.gates.gate_effects import Spoil, spoil
from workbench.metrics.latency import own_concurrency, succeeded, system_tps
from workbench.metrics.passes import is_cold
from workbench.topology import Topology
from workbench.whatif.prediction import Prediction, predict
from workbench.whatif.profiles.profile import Profile

CHECKED = ("ttft_s", "tpot_s", "e2e_s", "system_tps")
"""The metrics that are compared; the limits of goodput may differ."""
PROFILED = ("1p1d", "1a")
"""Topologies that are profiled, so they cannot check a prediction."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """One cold pass of one arm: measured, and predicted from the profile alone."""

    arm: str
    rate_per_s: float
    """0 in a closed loop, and for a trace."""
    users: int
    """Requests in flight of a user sweep; 0 otherwise."""
    requests: int
    answered: int
    """Requests that succeeded, in the round with the fewest."""
    measured: dict[str, float]
    """Medians over all rounds by metric; of `system_tps` the mean of the rounds."""
    predicted: Prediction
    spoiled: Spoil = field(default_factory=Spoil)
    """What failed gates of the measured run do to its times."""

    @property
    def no_check(self) -> str:
        """Why this pass checks no prediction; empty if it can."""
        if self.predicted.refused:
            return self.predicted.refused
        reasons = [self.spoiled.said] if self.spoiled.effect in ("struck", "rough") else []
        closed = self.predicted.load.arrivals == "closed"
        least = LEAST_CLOSED if closed else LEAST_ARRIVALS
        if self.answered < least:
            loop = "a closed loop" if closed else "an open loop"
            reasons.append(f"{self.answered} answered requests (a check in {loop} needs {least})")
        return "; ".join(reasons)

    def error(self, metric: str) -> float:
        """Predicted / measured - 1; NaN where nothing was predicted, or the run is not valid."""
        if self.spoiled.struck:
            return nan
        measured = self.measured[metric]
        return self.predicted.number(metric).value / measured - 1 if measured else nan


def held_out(
    profile: Profile, result: Result, *, with_profiled: bool = False, skip_refused: bool = False
) -> list[HeldOut]:
    """Predict each cold pass of each arm of a measured pd_sweep.

    Arms with a KV store that the profile does not have are left out. So are 1p1d and 1a, which were
    profiled; `with_profiled` keeps them, to hold out another load. `skip_refused` leaves out
    passes that the profile does not fit, if it fits others.

    Raises ResultError for a run without such a pass, PlanError and ParameterError where the
    profile does not fit it.
    """
    if result.run.notebook != "pd_sweep":  # the passes of a profile differ in more than the rate
        raise ResultError(
            f"{result.run.run_id} is not a pd_sweep, so it has no held-out topology; measure one"
            " (example: workbench run pd_sweep -p topology 1p2d -p rate_per_s 2 -p requests 24)"
        )
    rows, failed = result.requests, result.run.failed_gates
    stores = {arm.label: arm.connector for arm in result.run.arms}
    found, foreign, refused = [], set[str](), list[PlanError]()
    for (arm, name), group in rows.groupby(["arm", "pass"], sort=False):
        text = str(group["topology"].iloc[0])
        if (text in PROFILED and not with_profiled) or not is_cold(str(name)):
            continue
        if (store := stores.get(str(arm), "none")) not in ("none", profile.connector):
            foreign.add(store)
            continue
        try:
            topology = Topology.parse(text)
        except ParameterError:
            continue
        rate_per_s = float(group["rate_per_s"].iloc[0]) or result.run.parameters["rate_per_s"]
        given = dict(result.run.parameters)
        own = own_concurrency(group)
        given |= {"topology": text, "rate_per_s": rate_per_s, "rates_per_s": [], "search": False}
        given |= {"concurrencies": []} | ({"concurrency": own} if own else {})
        if topology.aggregated:
            given["connector"] = profile.connector  # which moves nothing here
        params = profile.params(given)
        try:
            predicted = predict(profile, params, topology)
        except PlanError as error:
            if not skip_refused:
                raise
            refused.append(error)
            continue
        rounds = group.groupby("round")
        measured = {name: float(group[name].median()) for name in CHECKED[:3]}
        measured["system_tps"] = float(rounds.apply(system_tps).mean())
        found.append(
            HeldOut(
                arm=str(arm),
                rate_per_s=rate_per_s,
                users=own,
                requests=len(group) // len(rounds),
                answered=int(succeeded(group).groupby(group["round"]).sum().min()),
                measured=measured,
                predicted=predicted,
                spoiled=spoil(failed, "times", passes={str(name)}, arms={str(arm)}),
            )
        )
    if not found and refused:
        raise refused[0]
    if not found and foreign:
        raise ResultError(
            f"{result.run.run_id} moves KV with {', '.join(sorted(foreign))}, but the profile is"
            f" for {profile.connector}; profile the other one (example: workbench profile -p"
            f" connector {min(foreign)})"
        )
    if not found:
        raise ResultError(
            f"{result.run.run_id} has no cold pass of a topology other than 1p1d and 1a, which were"
            " profiled; measure another one (example: workbench run pd_sweep -p topology 1p2d -p"
            " rate_per_s 2 -p requests 24)"
        )
    return found


def differs(row: HeldOut, found: Prediction) -> str:
    """Why a held-out pass does not check a prediction of its topology; empty if it does."""
    if row.no_check:
        return row.no_check
    if other := row.predicted.load.differs(found.load):
        return other
    most, here = row.predicted.closed.utilisation, found.closed.utilisation
    return "" if here <= most + 1e-9 else f"utilisation {percent(most)}, here {percent(here)}"


def checked_error(checks: Iterable[HeldOut], found: Prediction, metric: str) -> float:
    """The largest error of the held-out passes that check this number; NaN if none does."""
    errors = [
        error
        for row in checks
        if metric in CHECKED and row.predicted.topology == found.topology
        if not differs(row, found) and not isnan(error := row.error(metric))
    ]
    return max(errors, key=abs, default=nan)
