"""What is simulated, in words: requests and limits."""

from __future__ import annotations

from collections.abc import Collection

from workbench.experiment.plan.offered_load.loads import latency_limits
from workbench.params.pd_sweep import PdSweep


def requests_text(
    params: PdSweep, prompt_tokens: Collection[int], output_tokens: Collection[int]
) -> str:
    """`24 requests (short), prompts of 1,000 to 8,000 tokens, 32 output tokens`."""
    return (
        f"{len(prompt_tokens):,} requests ({params.workload}), prompts of"
        f" {span(prompt_tokens)} tokens, {span(output_tokens)} output tokens"
    )


def limits_text(params: PdSweep) -> str:
    """`TTFT at most 500 ms for 90 % of requests`; empty without a limit."""
    limits = str(latency_limits(params))
    return f"{limits} for {share_text(params)} of requests" if limits else ""


def share_text(params: PdSweep) -> str:
    """`90 %`: the fraction of requests that must meet the limits."""
    return f"{100 * params.limits_share:.4g} %"


def span(counts: Collection[int]) -> str:
    """`1,000 to 4,000`, or `4,000` where all are that."""
    return " to ".join(dict.fromkeys(f"{count:,}" for count in (min(counts), max(counts))))
