"""What the prefix cache of one instance does, in sentences: its gain, its cost, its break-even."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan

from workbench.experiment.findings.clauses import (
    REPEATS,
    Row,
    prompts,
    resolved,
    row_of,
    warm_clause,
)
from workbench.experiment.plan.plan import ExperimentPlan

__all__ = ["break_even", "cache_finding"]


def cache_finding(plan: ExperimentPlan, comparisons: Sequence[Row]) -> str:
    """What a warm cache gains, and what a cache costs or, where prompts repeat, gains from cold."""
    warm = row_of(comparisons, kind="cache-state", metric="ttft_s", **{"pass": "engine-warm"})
    cost = row_of(comparisons, kind="cache-off", metric="ttft_s", **{"pass": "cold"})
    if warm is None or isnan(warm["ratio"]):
        return f"The prefix cache was measured with {prompts(plan)}, but no pass can be compared"
    text = warm_clause("prefix cache", prompts(plan), [warm])
    if cost is None or isnan(cost["low"]):
        return text
    if (reuse := plan.workload.sample.ideal_reuse) >= REPEATS:
        return f"{_from_cold(cost, prompts(plan), reuse)}; {_once_warm(warm)}"
    if resolved(cost):
        percent = 100 * (1 / cost["ratio"] - 1)
        return f"{text}; keeping it changes a cold prompt's TTFT by {percent:+.1f} %"
    return f"{text}; what keeping it costs a cold prompt cannot be told from noise here"


def _from_cold(gain: Row, prompt: str, reuse: float) -> str:
    """Cache on beside off, both cold, with a workload that repeats `reuse` of its own tokens."""
    repeats = f"this workload repeats {reuse:.0%} of its tokens"
    if not resolved(gain):
        return (
            f"What the prefix cache does to TTFT of {prompt} from cold cannot be told from noise"
            f" here, though {repeats}"
        )
    if gain["ratio"] > 1:
        return (
            f"The prefix cache cuts TTFT of {prompt} {gain['ratio']:.3g} times from cold, since"
            f" {repeats}"
        )
    longer = 1 / gain["ratio"]
    return (
        f"The prefix cache makes TTFT of {prompt} {longer:.3g} times longer from cold, though"
        f" {repeats}"
    )


def _once_warm(warm: Row) -> str:
    """What a second pass over the same prompts adds to that."""
    if not resolved(warm):
        return "what a warm one adds cannot be told from noise here"
    if warm["ratio"] > 1:
        return f"a warm one cuts that {warm['ratio']:.3g} times more"
    return f"with a warm one it is {1 / warm['ratio']:.3g} times longer than that"


def break_even(plan: ExperimentPlan, summary: Sequence[Row], comparisons: Sequence[Row]) -> str:
    """From which cached share on the prefix cache pays, in one sentence; empty for other runs.

    Of prompts that repeat one another no cost is known: the cache saves in the cold pass already.
    A cold prompt costs TTFT(on, cold) - TTFT(off) more and a full hit saves TTFT(on, cold) -
    TTFT(warm); TTFT falls about linearly with the cached share, so it pays from cost / saving.
    """
    cost = row_of(comparisons, kind="cache-off", metric="ttft_s", **{"pass": "cold"})
    rows = {(r["arm"], r["pass"]): 1000 * r["median"] for r in summary if r["metric"] == "ttft_s"}
    known = [("cache off", "cold"), ("cache on", "cold"), ("cache on", "engine-warm")]
    if cost is None or isnan(cost["ratio"]) or not all(key in rows for key in known):
        return ""
    if (reuse := plan.workload.sample.ideal_reuse) >= REPEATS:
        return (
            f"These prompts repeat {reuse:.0%} of their tokens, so the cold pass shows what the"
            " cache gains and what it costs together; workload cold_start shows the cost alone."
        )
    off, cold, warm = (rows[key] for key in known)
    if not warm < cold:
        return "A full hit saved no TTFT here, so there is nothing that the cache could pay with."
    saved = f"a full hit saves {cold - warm:.0f} ms of TTFT"
    if isnan(cost["low"]) or not resolved(cost):
        return f"What the cache costs a cold prompt cannot be told from noise; {saved}."
    if cost["ratio"] >= 1:
        return f"A cold prompt is not slower with the cache on; {saved}: it pays from any hit."
    share = (cold - off) / (cold - warm)
    return (
        f"A cold prompt takes {cold - off:.1f} ms longer with the cache on, {saved}: the cache"
        f" pays once {share:.1%} of a prompt's tokens are found in it."
    )
