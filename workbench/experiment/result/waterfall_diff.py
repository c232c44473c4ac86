"""By how much TTFT differs between two arms, part by part of the waterfall.

A part's difference is the mean over rounds of each round's mean over paired requests, with a t
interval over rounds: means of parts add up to the mean of TTFT, which medians would not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import floor, isnan, log10, nan
from typing import TYPE_CHECKING

from workbench.experiment.result.finding_rows import Comparison
from workbench.metrics.statistics import ROUNDS_FOR_INTERVAL, t_interval
from workbench.metrics.waterfall.waterfall import PARTS

if TYPE_CHECKING:
    import pandas as pd

_PIECES = PARTS | {"residual_s": "untimed residual"}
_SERVERS = ("prefill_server_s", "decode_server_s")
_JOINED = "API servers + KV transfer + decode queue"
_NAMED = 3
"""The most parts that a sentence names."""
_SMALL = 0.05
"""A part below this fraction of the largest one is not named, even if it is significant."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """How much longer one part takes in an arm than in its baseline; without a name all of TTFT."""

    name: str = ""
    mean_s: float
    low_s: float
    high_s: float

    @property
    def sure(self) -> bool:
        """Whether the interval excludes 0; not corrected for several parts."""
        return self.low_s > 0 or self.high_s < 0

    @property
    def signed(self) -> str:
        """`+28.8 ms [25.1, 32.4]`"""
        ends = f"[{milliseconds(self.low_s)}, {milliseconds(self.high_s)}]"
        return f"{'+' * (self.mean_s > 0)}{milliseconds(self.mean_s)} ms {ends}"

    @property
    def size(self) -> str:
        """`28.8 ms [25.1, 32.4]`, whatever its sign."""
        if self.mean_s > 0:
            return self.signed[1:]
        return Part(mean_s=-self.mean_s, low_s=-self.high_s, high_s=-self.low_s).size


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """TTFT of an arm less that of its baseline in one cache state, whole and in parts."""

    total: Part
    parts: tuple[Part, ...]
    rounds: int
    pairs: int
    left_out: int
    """Pairs with an incomplete waterfall."""


def why(waterfall: pd.DataFrame, comparisons: Sequence[Comparison]) -> list[str]:
    """What makes TTFT differ, for each pair of arms and cache state.

    `waterfall` is `metrics.waterfall.waterfall` of the run. The pairs are subjects and their
    opponents; in a run without opponents every other arm is compared with the first one.
    """
    return [
        f"{arm} vs {baseline}, {name}:"
        f" {_explained(difference(waterfall, arm=arm, baseline=baseline, name=name))}."
        for arm, name, baseline in _pairs(waterfall, comparisons)
    ]


def difference(waterfall: pd.DataFrame, *, arm: str, baseline: str, name: str) -> Difference:
    """Mean difference of TTFT and of each part in the pass `name`; requests are paired by index."""
    rows = waterfall[waterfall["arm"].isin([arm, baseline]) & (waterfall["pass"] == name)]
    pieces = dict(_PIECES)
    if "at_once" in rows and rows["at_once"].any():
        # Of legs sent at once the API servers' time is in the transfer: so for both arms.
        joined = rows[["transfer_queue_s", *_SERVERS]].sum(axis=1, skipna=False)
        rows = rows.assign(transfer_queue_s=joined)
        pieces = {key: label for key, label in pieces.items() if key not in _SERVERS}
        pieces["transfer_queue_s"] = _JOINED
    own, other = (
        rows[rows["arm"] == label].set_index(["round", "index"])[["ttft_s", *pieces]]
        for label in (arm, baseline)
    )
    apart = own - other
    whole = apart.dropna()
    per_round = whole.groupby(level="round").mean()

    def part(column: str, label: str = "") -> Part:
        mean, low, high = t_interval(per_round[column])
        if len(per_round) < ROUNDS_FOR_INTERVAL:
            low = high = nan
        return Part(name=label, mean_s=mean, low_s=low, high_s=high)

    return Difference(
        total=part("ttft_s"),
        parts=tuple(part(column, label) for column, label in pieces.items()),
        rounds=len(per_round),
        pairs=len(whole),
        left_out=len(apart) - len(whole),
    )


def _pairs(
    waterfall: pd.DataFrame, comparisons: Sequence[Comparison]
) -> list[tuple[str, str, str]]:
    """(arm, cache state, baseline arm) of every difference."""
    rivals = [
        row
        for row in comparisons
        if row.kind in ("opponent", "no-offload") and row.metric == "ttft_s"
    ]
    if rivals:
        return [(row.arm, row.pass_name, row.baseline_arm) for row in rivals]
    measured = waterfall[["arm", "pass"]].drop_duplicates()
    if measured.empty:
        return []
    baseline = measured["arm"].iloc[0]
    shared = set(measured.loc[measured["arm"] == baseline, "pass"])
    return [
        (arm, name, baseline)
        for arm, name in measured.itertuples(index=False)
        if arm != baseline and name in shared
    ]


def _explained(found: Difference) -> str:
    if not found.pairs:
        return "no pair of requests has a complete waterfall"
    if isnan(found.total.low_s):
        return f"no CI, since it needs {ROUNDS_FOR_INTERVAL} rounds and has {found.rounds}"
    least_s = _SMALL * max(abs(part.mean_s) for part in found.parts)
    sure = [part for part in found.parts if part.sure and abs(part.mean_s) >= least_s]
    sure.sort(key=lambda part: -abs(part.mean_s))
    text = _said(found.total, sure)
    if not found.left_out:
        return text
    pairs = f"request pair{'s' * (found.left_out > 1)}"
    return f"{text}. Left out: {found.left_out} {pairs} without a complete waterfall"


def _said(total: Part, sure: Sequence[Part]) -> str:
    """How TTFT differs, and the parts that differ significantly, those of the same sign first."""
    if not total.sure:
        parts = (
            f"Parts that differ significantly: {_listed(sure)}"
            if sure
            else "No part differs significantly"
        )
        return f"no significant difference in mean TTFT ({total.signed}). {parts}"
    longer = total.mean_s > 0
    driving = [part for part in sure if (part.mean_s > 0) == longer]
    against = [part for part in sure if (part.mean_s > 0) != longer]
    value, _, ends = total.size.partition(" [")
    text = f"mean TTFT is {value} {'higher' if longer else 'lower'} [{ends}. "
    text += f"Largest parts: {_listed(driving)}" if driving else "No part differs significantly"
    return f"{text}. Partly offset by: {_listed(against)}" if against else text


def _listed(parts: Sequence[Part]) -> str:
    text = ", ".join(f"{part.name} {part.signed}" for part in parts[:_NAMED])
    more = len(parts) - _NAMED
    return f"{text} and {more} smaller part{'s' * (more > 1)}" if more > 0 else text


def milliseconds(seconds: float) -> str:
    """Three significant digits, at most two decimals: 0.35, 28.8, 2,360."""
    value = 1000 * seconds
    decimals = 2 - floor(log10(abs(value))) if value else 0
    return f"{value:,.{min(2, max(0, decimals))}f}"
