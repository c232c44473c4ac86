"""Queueing theory without a simulation: the highest rate, and the wait for prefill."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, nan

import numpy as np

from workbench.topology import Topology
from workbench.whatif.model.costs import Costs
from workbench.whatif.model.simulation import Load, plain_load, simulate

DIFFERENCE = 0.1
"""Largest difference between simulated and closed form, as a fraction of wait and service, in
addition to the simulation's own error."""
ENGINE_STEPS = "engine steps"
"""What limits an aggregated instance: each step may have prompt tokens and output tokens."""
_LONG, _BATCHES = 10_000, 20
"""Requests of the simulation that is compared, since the formula is for an endless queue; and in
how many parts its error is estimated (batch means, three standard errors)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosedForm:
    """The rate at which each part of a topology is full, and the mean wait for one prefill."""

    highest_per_s: dict[str, float]
    """By part, in requests per second: prefill queue, link, decode KV and decode steps; or engine
    steps."""
    rate_per_s: float
    """The offered rate, of a ramp the highest. Of a closed loop what the simulation completes,
    and NaN before it."""
    wait_s: float = nan
    """Mean wait for one prefill instance with Poisson arrivals (Pollaczek-Khinchine)."""
    simulated_wait_s: float = nan
    simulated_error_s: float = nan
    service_s: float = nan
    """Mean time of a prefill."""

    @property
    def bottleneck(self) -> str:
        """The part that is full first."""
        return min(self.highest_per_s, key=lambda part: self.highest_per_s[part])

    @property
    def bound_per_s(self) -> float:
        return min(self.highest_per_s.values())

    @property
    def utilisation(self) -> float:
        """Rate / highest rate."""
        return self.rate_per_s / self.bound_per_s

    @property
    def differs(self) -> bool:
        """Whether simulation and formula differ by more than DIFFERENCE and the error of both."""
        off_s = abs(self.simulated_wait_s - self.wait_s) - self.simulated_error_s
        return off_s > DIFFERENCE * (self.wait_s + self.service_s)


def closed_form(
    topology: Topology, load: Load, costs: Costs, *, rate_per_s: float, poisson: bool
) -> ClosedForm:
    """The highest rates of a topology for this mix of requests, and the check of the simulation."""
    uncached = load.prompt_tokens - load.cached_tokens
    both = zip(uncached.tolist(), load.cached_tokens.tolist(), strict=True)
    services_s = np.array([costs.prefill_s(new, before) for new, before in both])
    service_s = float(services_s.mean())
    length = float((load.prompt_tokens + load.output_tokens / 2).mean())
    tokens = float(load.output_tokens.mean())
    role = "decode" if topology.disaggregated else "aggregated"
    slots = float(costs.step_sequences)
    fits = costs.kv_tokens[role] / length
    steps_s = tokens * costs.decode_s(slots, slots * length) / slots
    kv_s = tokens * costs.decode_s(fits, fits * length) / fits
    if topology.disaggregated:
        backs = topology.decode
        highest = {
            "prefill queue": topology.prefill / service_s,
            "link": backs / costs.concurrent_s if costs.concurrent_s else inf,
            "decode KV": backs / kv_s,
            "decode steps": backs / steps_s,
        }
    else:
        highest = {ENGINE_STEPS: topology.aggregated / (service_s + max(kv_s, steps_s))}
    wait_s = simulated_s = error_s = nan
    load_of_one = rate_per_s * service_s
    if topology.prefill == 1 and poisson and load_of_one < 1:
        wait_s = rate_per_s * float((services_s**2).mean()) / (2 * (1 - load_of_one))
        rng = np.random.default_rng(0)
        drawn = rng.integers(0, len(uncached), _LONG)
        offsets_s = np.cumsum(rng.exponential(1 / rate_per_s, _LONG))
        long = plain_load(uncached[drawn], np.ones(_LONG, np.int64), offsets_s)
        rows = simulate(topology, long, costs).requests
        # The last step of a prompt has room for the next one, which then leaves the queue early.
        whole_s = rows["prefill_queue_s"] + rows["prefill_compute_s"]
        simulated_s = float(whole_s.mean()) - service_s
        means_s = whole_s.to_numpy(float).reshape(_BATCHES, -1).mean(axis=1)
        error_s = 3 * float(means_s.std(ddof=1)) / _BATCHES**0.5
    return ClosedForm(
        highest_per_s=highest,
        rate_per_s=rate_per_s or nan,
        wait_s=wait_s,
        simulated_wait_s=simulated_s,
        simulated_error_s=error_s,
        service_s=service_s,
    )
