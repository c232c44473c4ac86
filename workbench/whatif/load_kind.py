"""The kind of a load: a held-out pass checks only predictions of the same kind."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from workbench.load.workload.workload import Workload
from workbench.params.pd_sweep import PdSweep

FACTOR = 1.25
"""Two loads of one kind have mean lengths that differ by at most this factor."""
_NAMES = {"prompt_tokens": "prompt tokens", "new_tokens": "prompt tokens without their shared part",
          "output_tokens": "output tokens"}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadKind:
    """Workload, arrivals and mean lengths."""

    workload: str
    arrivals: str
    """Kind of arrivals; of gamma with its burstiness."""
    prompt_tokens: float
    new_tokens: float
    """Prompt tokens that no earlier request of the workload has."""
    output_tokens: float

    @classmethod
    def of(cls, params: PdSweep, workload: Workload) -> LoadKind:
        """The kind of the requests that these parameters send."""
        requests, arrivals = workload.requests, str(params.arrival_kind)
        if arrivals == "gamma":
            arrivals += f" (burstiness {params.burstiness:g})"
        return cls(
            workload=params.workload,
            arrivals=arrivals,
            prompt_tokens=_mean(one.prompt_tokens for one in requests),
            new_tokens=_mean(one.prompt_tokens - one.ideal_reuse_tokens for one in requests),
            output_tokens=_mean(one.max_tokens for one in requests),
        )

    def differs(self, other: LoadKind) -> str:
        """`arrivals closed, here poisson`, where `other` is here; empty if both are one kind."""
        for name in ("workload", "arrivals"):
            own, here = getattr(self, name), getattr(other, name)
            if own != here:
                return f"{name} {own}, here {here}"
        for name, said in _NAMES.items():
            own, here = getattr(self, name), getattr(other, name)
            if max(own, here) > FACTOR * min(own, here):
                return f"{own:,.0f} {said}, here {here:,.0f}"
        return ""


def _mean(values: Iterable[int]) -> float:
    return float(np.mean(list(values)))
