"""The gate on physics: no measured rate lies above what the hardware can do at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from workbench.metrics.gates.gate import Gate, judge
from workbench.metrics.latency import succeeded

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Ceilings", "below_ceilings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceilings:
    """Rooflines of one arm's instances, from `workbench.hardware.physics`."""

    prefill_tps: float
    """Prompt tokens per second of the instance that prefills."""
    decode_tps: float
    """Output tokens per second of one request on the instance that answers."""


def below_ceilings(
    requests: pd.DataFrame, ceilings: Mapping[str, Ceilings], unknown: str = ""
) -> Gate:
    """Cold prompts are not computed, and tokens not generated, faster than the roofline allows.

    `ceilings` by arm; `unknown` says why there are none. Of cold passes only the tokens that the
    workload does not repeat count as computed. A rate above a ceiling means that tokens were
    cached, merged or not counted, whatever every other gate says.
    """
    rows = requests[succeeded(requests)]
    problems, nearest = [], 0.0
    for arm, limit in ceilings.items():
        mine = rows[rows["arm"] == arm]
        cold = mine[mine["pass"] == "cold"]
        computed = cold["prompt_tokens"] - cold["ideal_reuse_tokens"]
        for what, rates, ceiling in (
            (
                "prompt tokens per second of a cold prompt",
                computed / cold["ttft_s"],
                limit.prefill_tps,
            ),
            ("output tokens per second of one request", 1 / mine["tpot_s"], limit.decode_tps),
        ):
            fastest = float(rates.max()) if len(rates) else 0.0
            nearest = max(nearest, fastest / ceiling)
            if fastest > ceiling:
                problems.append(
                    f"{arm}: {fastest:,.0f} {what}, where the hardware can do {ceiling:,.0f}"
                )
    return judge(
        "below the ceilings",
        holds=f"no rate of {len(ceilings)} arms is above its roofline; the nearest is at"
        f" {nearest:.0%} of it",
        problems=problems,
        unknown=[unknown] if unknown else [],
        next_step="look for a cache that nobody counted, or for a wrong model, GPU or token count",
        if_unknown="give a local model folder, and a GPU that workbench/hardware/physics.py knows",
    )
