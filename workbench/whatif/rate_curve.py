"""A quick prediction for sliders: a topology and its aggregated baseline, by arrival rate.

It simulates fewer requests and draws than `predict`, so it takes about a second.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.errors import ParameterError, check_positive, must_be
from workbench.experiment.plan.engine_setup import engine_of
from workbench.experiment.plan.offered_load.traffic import workload_of
from workbench.topology import Topology
from workbench.whatif.prediction import (
    SATURATED,
    Case,
    Prediction,
    case_of,
    check_no_price,
    check_steady,
    check_used,
    interval,
    predict_case,
)
from workbench.whatif.profiles.profile import Profile

if TYPE_CHECKING:
    import pandas as pd

REQUESTS, DRAWS, RATES = 150, 10, 5
"""Requests in a simulation, draws after the first one at the chosen rate, and other rates."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quick:
    """A prediction at the chosen rate, and medians at other rates."""

    profile: Profile
    rate_per_s: float
    prediction: Prediction
    beside: Prediction | None
    """The same number of aggregated instances; None if the topology is aggregated itself."""
    curves: pd.DataFrame
    """A row for each topology and rate: ttft_s and tpot_s, with intervals at the chosen rate. Empty
    if the chosen rate is refused."""
    link: float

    @property
    def sentence(self) -> str:
        """The numbers at the chosen rate and the bottleneck, or why nothing is predicted."""
        found, closed = self.prediction, self.prediction.closed
        where = f"{found.topology} at {self.rate_per_s:.3g} req/s"
        if found.refused:
            return f"{where}: {found.refused}"
        times = (1000 * found.number(f"{name}_s").value for name in ("ttft", "tpot"))
        ttft, tpot = (f"{ms:.3g} ms" for ms in times)
        busy = f"{100 * closed.utilisation:.0f} % utilised"
        return f"{where}: TTFT {ttft}, TPOT {tpot}; bottleneck: {closed.bottleneck} ({busy})"

    @property
    def notes(self) -> list[str]:
        """How it differs from `workbench predict`, and its doubts."""
        simulated = self.prediction.simulated
        requests = len(simulated.requests) if simulated else REQUESTS
        found = [
            f"Quick prediction, not checked here: {requests} requests, {interval(DRAWS)}."
            " workbench predict simulates more."
        ]
        if self.link != 1:
            found.append(
                f"The link bandwidth ({self.link:g}x the profiled one) is assumed, not measured."
            )
        return [*found, *self.profile.doubts, *self.prediction.doubts]


def with_link(profile: Profile, link: float) -> Profile:
    """The profile with `link` times its bandwidth (terms of bytes and concurrent transfers)."""
    scale = np.array([1 / link if term in ("bytes", "others") else 1.0
                      for term in profile.transfer.terms])  # fmt: skip

    def scaled(values: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(float(value) for value in scale * values)

    fit = profile.transfer
    resamples = tuple(map(scaled, fit.resamples))
    fit = replace(fit, coefficients=scaled(fit.coefficients), resamples=resamples)
    return replace(profile, transfer=fit)


def quick(profile: Profile, given: Mapping[str, Any], *, link: float = 1.0) -> Quick:
    """Predict `given`, parameters of `pd_sweep` with one topology and a rate.

    `link` multiplies the bandwidth between instances. Raises ParameterError and PlanError as
    `predict` does; a prediction that is refused has no curves.
    """
    check_positive(link=link)
    check_used(given)
    check_no_price(given)
    sized = {"requests": REQUESTS, **given}
    check_steady(str(sized.get("arrivals", "auto")), "because a slider moves the rate")
    if not sized.get("topology"):
        raise ParameterError(must_be("topology", "one topology", "", "1p2d"))
    params = profile.params(sized)
    if len(params.topologies) != 1:
        raise ParameterError(must_be("topology", "one topology", params.topology, "1p2d"))
    check_positive(rate_per_s=params.rate_per_s)
    profile = with_link(profile, link)
    settings, model, _ = engine_of(params)
    workload = workload_of(params, settings, model).sample
    topology = params.topologies[0]
    case = case_of(profile, params, topology, workload=workload)
    found = predict_case(case, draws=DRAWS, compared=False)
    other = None
    if topology.disaggregated:
        plain = Topology(aggregated=topology.instances)
        other = case_of(profile, params, plain, workload=workload)
    beside = predict_case(other, draws=DRAWS, compared=False) if other else None
    rows: list[dict[str, Any]] = []
    if not found.refused:
        rows = _curve(case, found)
        rows += _curve(other, beside) if other and beside else []
    return Quick(
        profile=profile, rate_per_s=params.rate_per_s, prediction=found, beside=beside,
        curves=_frame(rows, simulated=profile.simulated), link=link,
    )  # fmt: skip


def started(profile: Profile, values: Mapping[str, Any]) -> dict[str, Any]:
    """The first values; by default 1p2d, half its highest rate, and the longest profiled prompt.

    Prompts have one length, and are unique or share a prefix. Raises as `quick` does.
    """
    longest = int(profile.prefill.ranges["tokens"][1])
    given = {"topology": "1p2d", "shared_share": 0.0, "prompt_tokens": longest, **values}
    workload = "shared_prefix" if float(given["shared_share"]) else "short"
    given = {"workload": workload, "requests": REQUESTS} | given
    params = profile.params({**given, "rate_per_s": given.get("rate_per_s", 1.0)})
    given |= {"prompt_tokens": params.lengths[0], "output_tokens": params.output_tokens}
    if "rate_per_s" not in given:
        case = case_of(profile, params, params.topologies[0])
        given["rate_per_s"] = float(f"{case.closed_form().bound_per_s / 2:.2g}")
    return given


def _curve(case: Case, chosen: Prediction) -> list[dict[str, Any]]:
    """Medians at rates up to saturation, and at the chosen rate with intervals."""
    end_per_s = SATURATED * chosen.closed.bound_per_s
    rows = []
    for rate in np.linspace(end_per_s / RATES, 0.999 * end_per_s, RATES):
        found = predict_case(case.at(float(rate)), draws=0, compared=False)
        rows.append(_row(found, float(rate), chosen=False))
    rows.append(_row(chosen, case.params.rate_per_s, chosen=True))
    return sorted((row for row in rows if row["ttft_s"] > 0), key=lambda row: row["rate_per_s"])


def _row(found: Prediction, rate_per_s: float, *, chosen: bool) -> dict[str, Any]:
    row: dict[str, Any] = {
        "topology": str(found.topology), "rate_per_s": rate_per_s, "chosen": chosen,
    }  # fmt: skip
    for name in ("ttft", "tpot"):
        one = found.number(f"{name}_s")
        row |= {f"{name}_s": one.value, f"{name}_low_s": one.low, f"{name}_high_s": one.high}
    return row


def _frame(rows: list[dict[str, Any]], *, simulated: bool) -> pd.DataFrame:
    import pandas as pd

    ends = [f"{name}{end}_s" for name in ("ttft", "tpot") for end in ("", "_low", "_high")]
    frame = pd.DataFrame(rows, columns=["topology", "rate_per_s", "chosen", *ends])
    frame.attrs["simulated"] = simulated
    return frame
