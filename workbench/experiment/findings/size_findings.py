"""What a working-set sweep found: from which size on host memory pays, and what it costs below."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan, nan
from typing import TYPE_CHECKING

from workbench.experiment.findings.sentences import (
    count,
    first,
    marked,
    percent,
    ratio_note,
    ratio_text,
    sample_text,
)
from workbench.experiment.plan.plan import ExperimentPlan
from workbench.experiment.plan.working_sets import AGAIN, size_name
from workbench.experiment.result.finding_rows import Card, Comparison, SizeRow
from workbench.hardware.kv import host_memory_blocks
from workbench.metrics.gates.gate_effects import Failed
from workbench.metrics.passes import PassCounters
from workbench.metrics.statistics import three_digits
from workbench.params.pd_sweep import PdSweep

if TYPE_CHECKING:
    import pandas as pd


def size_rows(
    plan: ExperimentPlan,
    requests: pd.DataFrame,
    comparisons: Sequence[Comparison],
    passes: Sequence[PassCounters],
) -> tuple[SizeRow, ...]:
    """One row per arm with host memory, working set and pass."""
    if not isinstance(plan.params, PdSweep):
        return ()
    medians = requests.groupby(["arm", "pass"])["ttft_s"].median()
    rows = []
    for arm in plan.arms:
        for size in sorted(plan.params.working_sets):
            for asked in ("cold", AGAIN):
                name = f"{asked} at {size_name(size)}"
                row = first(
                    comparisons, kind="no-offload", metric="ttft_s", arm=arm.label, pass_name=name
                )
                if row is None:
                    continue
                (measured,) = (p for p in arm.passes if p.name == name)
                rows.append(
                    SizeRow(
                        arm=arm.label,
                        baseline_arm=row.baseline_arm,
                        asked=asked,
                        times=size,
                        host_times=_host_times(plan, passes, arm.store_gb),
                        prompts=measured.requests,
                        hit_share=_hit_share(passes, arm.label, name),
                        baseline_hit_share=_hit_share(passes, row.baseline_arm, name),
                        ttft_s=float(medians[arm.label, name]),
                        baseline_ttft_s=float(medians[row.baseline_arm, name]),
                        ratio=row.ratio,
                    )
                )
    return tuple(rows)


def _host_times(plan: ExperimentPlan, passes: Sequence[PassCounters], store_gb: float) -> float:
    """What host memory holds, in KV spaces; NaN where the bytes of a token are unknown."""
    block_tokens = passes[0].block_tokens if passes else 0
    block_bytes = block_tokens * plan.kv_bytes_per_token
    if not block_bytes > 0:
        return nan
    blocks = host_memory_blocks(store_gb, block_bytes=block_bytes)
    return blocks * block_tokens / plan.kv_space_tokens


def _hit_share(passes: Sequence[PassCounters], arm: str, name: str) -> float:
    """Fraction of the prompt tokens of a pass that a cache served, over all rounds."""
    seen = [s for p in passes if (p.arm, p.pass_name) == (arm, name) for s in p.sources.values()]
    tokens = sum(sources.total for sources in seen)
    return sum(sources.cached for sources in seen) / tokens if tokens else nan


def pays(rows: Sequence[SizeRow]) -> tuple[list[SizeRow], list[SizeRow], list[SizeRow]]:
    """The working sets that host memory makes faster, slower, and those that are undecided, when
    prompts are sent again."""
    again = [row for row in rows if row.asked == AGAIN]
    faster = [row for row in again if row.ratio.verdict == "faster"]
    slower = [row for row in again if row.ratio.verdict == "slower"]
    return faster, slower, [row for row in again if row not in faster and row not in slower]


def size_headline(rows: Sequence[SizeRow]) -> str:
    """From which working set on host memory pays, in at most 14 words; empty without rows."""
    mine = [row for row in rows if row.arm == rows[0].arm]
    if not mine:
        return ""
    faster, slower, _ = pays(mine)
    if all(row.ratio.verdict == "no_interval" for row in mine):
        return "Offloading: not judged, too few rounds for intervals"
    if faster:
        span = _sizes(faster)
        slow = f"; slower at {_listed(slower)}" if slower else ""
        return f"Offloading: TTFT faster for working sets of {span} KV space{slow}"
    if slower:
        return f"Offloading: TTFT slower for working sets of {_listed(slower)} KV space"
    return "Offloading: no significant effect on TTFT for any working set"


def pays_at(rows: Sequence[SizeRow]) -> str:
    """The same of the first of these arms, for a headline about several models."""
    faster, slower, _ = pays([row for row in rows if row.arm == rows[0].arm])
    if faster:
        return f"faster at {_sizes(faster)}"
    return f"slower at {_listed(slower)}" if slower else "not significantly different"


def _sizes(rows: Sequence[SizeRow]) -> str:
    sizes = [row.times for row in rows]
    return f"{sizes[0]:g}x" if len(sizes) == 1 else f"{sizes[0]:g}x to {sizes[-1]:g}x"


def _listed(rows: Sequence[SizeRow]) -> str:
    return ", ".join(f"{row.times:g}x" for row in rows)


def size_sentences(rows: Sequence[SizeRow]) -> list[str]:
    """The break-even, each working set, and what storing costs cold prompts."""
    said = []
    for arm in dict.fromkeys(row.arm for row in rows):
        mine = [row for row in rows if row.arm == arm]
        said.append(break_even_size(mine))
        said += [_sentence(row) for row in mine]
    return said


def break_even_size(rows: Sequence[SizeRow]) -> str:
    """Where host memory begins to pay, between two measured working sets, and where it ends."""
    faster, _, others = pays(rows)
    again = sorted((row for row in rows if row.asked == AGAIN), key=lambda row: row.times)
    arm = f"{rows[0].arm} over {rows[0].baseline_arm}"
    if not faster:
        if all(row.ratio.verdict == "no_interval" for row in others):
            return f"Break-even of offloading ({arm}): not judged, too few rounds for intervals."
        return f"Break-even of offloading ({arm}): none; no measured working set is faster with it."
    start, end = faster[0].times, faster[-1].times
    below = [row.times for row in again if row.times < start]
    above = [row.times for row in again if row.times > end]
    text = f"between {below[-1]:g}x and {start:g}x KV space" if below else f"at or below {start:g}x"
    if above:
        text += f"; no longer at {above[0]:g}x"
        if not isnan(rows[0].host_times):
            text += f", as host memory holds {rows[0].host_times:.3g}x"
    return f"Break-even of offloading ({arm}): {text}."


def _sentence(row: SizeRow) -> str:
    """`Again at 2x KV space: with host memory TTFT is 9.1x faster [8, 10] (...); hits 98 %, without
    0 %.`"""
    what = f"{row.asked.capitalize()} at {size_name(row.times)} ({count(row.prompts, 'prompt')})"
    ratio = row.ratio
    if ratio.verdict in ("faster", "slower"):
        slow = ratio.verdict == "slower"
        ends = sorted((1 / ratio.high, 1 / ratio.low)) if slow else (ratio.low, ratio.high)
        factor = three_digits(1 / ratio.value if slow else ratio.value)
        found = (
            f"offloading makes TTFT {factor}x {ratio.verdict}"
            f" [{three_digits(ends[0])}, {three_digits(ends[1])}]"
        )
    elif ratio.verdict == "undecided":
        found = f"no significant effect of offloading on TTFT, without / with {ratio_text(ratio)}"
    else:
        found = f"TTFT without / with offloading is {ratio_text(ratio)}, too few rounds for a CI"
    hits = ""
    if row.asked == AGAIN and not isnan(row.hit_share + row.baseline_hit_share):
        hits = f"; cache hits {percent(row.hit_share)}, without {percent(row.baseline_hit_share)}"
    return f"{what}: {found} ({sample_text(ratio)}){hits}."


def size_cards(rows: Sequence[SizeRow], failed_gates: Failed = ()) -> tuple[Card, ...]:
    """Up to three key numbers of the first arm: the largest gain, the smallest, and the cost."""
    mine = [row for row in rows if row.arm == rows[0].arm and not isnan(row.ratio.value)]
    again = sorted((r for r in mine if r.asked == AGAIN), key=lambda row: row.ratio.value)
    cold = sorted((r for r in mine if r.asked == "cold"), key=lambda row: row.times)
    wanted = list(dict.fromkeys([*again[-1:], *again[:1], *cold[:1]]))
    cards = [
        Card(
            label=f"TTFT without / with offloading, {'sent ' * (row.asked == AGAIN)}{row.asked} at"
            f" {size_name(row.times)}",
            value=row.ratio.value,
            unit="x",
            low=row.ratio.low,
            high=row.ratio.high,
            note=ratio_note(row.ratio),
            rests_on="ratios",
            passes=(f"{row.asked} at {size_name(row.times)}",),
            arms=row.arms,
        )
        for row in wanted
    ]
    return marked(cards, failed_gates)
