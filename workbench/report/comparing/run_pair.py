"""Two runs beside each other: ratios of their launches as a frame, a table and sentences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from math import isnan
from typing import TYPE_CHECKING

from workbench.experiment.between.differences import (
    Difference,
)
from workbench.experiment.between.unpaired import (
    NAMES,
    Compared,
)
from workbench.metrics.statistics import UnpairedRatio, Verdict, three_digits

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPair:
    """A run and the first run that was given."""

    label: str
    baseline: str
    settings: str
    """Which settings differ: `1 setting differs: connector (none and lmcache)`."""
    differences: tuple[Difference, ...]
    rows: tuple[Compared, ...]
    alone: tuple[str, ...]
    """Arms and passes that only one of them has."""

    @property
    def ratios(self) -> pd.DataFrame:
        """One row per metric, arm and pass: ratio, low and high; above 1 better than the baseline.

        `spoilt` says why a number must not be used, or is rough.
        """
        import pandas as pd

        return pd.DataFrame(
            [
                {
                    "metric": row.metric, "arm": row.kind[0], "pass": row.kind[1],
                    "baseline_arm": row.baseline[0], "ratio": row.ratio.value,
                    "low": row.ratio.low, "high": row.ratio.high, "verdict": row.ratio.verdict,
                    "value": row.ours, "baseline": row.theirs, "n_rounds": row.ratio.rounds,
                    "baseline_rounds": row.ratio.baseline_rounds, "spoilt": row.spoilt.said,
                    "struck": row.spoilt.struck,
                }
                for row in self.rows
            ]
        )  # fmt: skip


def told_by_ratios(pair: RunPair, *, several: bool) -> Iterable[str]:
    """What the launches of two runs say, a sentence per metric."""
    who = f"{pair.label}, " if several else ""
    if not pair.rows:
        yield (
            f"Nothing was compared: {pair.label} and {pair.baseline} have no arm and pass in"
            " common."
        )
    if pair.alone:
        more = f" and {len(pair.alone) - 4} more" * (len(pair.alone) > 4)
        yield f"In one run only, so not compared: {'; '.join(pair.alone[:4])}{more}."
    for metric, name in NAMES.items():
        rows = [row for row in pair.rows if row.metric == metric]
        good = [row for row in rows if not row.spoilt.struck and not isnan(row.ratio.value)]
        verdicts = Counter(row.ratio.verdict for row in good)
        said = [
            f"{verdicts[verdict]} {_word(metric, verdict)}"
            for verdict in _VERDICTS
            if verdicts[verdict]
        ]
        left = len(rows) - len(good)
        said += [f"{left} not valid or unknown"] if left else []
        if rows:
            lead = f"{who}{name}"
            yield f"{lead[:1].upper()}{lead[1:]} of {_count(len(rows))}: {', '.join(said)}."


def _word(metric: str, verdict: Verdict) -> str:
    text = _VERDICTS[verdict]
    higher = {"faster": "higher", "slower": "lower"}
    return higher.get(text, text) if metric == "system_tps" else text


def _count(n: int) -> str:
    return f"{n} arm{'s' * (n > 1)} and pass{'es' * (n > 1)}"


_VERDICTS: dict[Verdict, str] = {
    "faster": "faster", "slower": "slower", "undecided": "not significant",
    "no_interval": "without interval (too few rounds)",
}  # fmt: skip


_METRICS = {
    metric: name if metric == "system_tps" else f"{name}, geometric mean"
    for metric, name in NAMES.items()
}
"""Their ratios are not those of the medians shown beside them: see `Compared.ours`."""


def ratio_table(pair: RunPair) -> pd.DataFrame:
    """The ratios of a pair as text; what a failed gate takes away is not shown."""
    import pandas as pd

    lines = []
    for row in pair.rows:
        ours, theirs = (_quantity(row.metric, value) for value in (row.ours, row.theirs))
        lines.append(
            {
                "metric": _METRICS[row.metric],
                "arm": _arms(row),
                "pass": row.kind[1],
                "baseline": theirs,
                "run": ours,
                "ratio": "withheld" if row.spoilt.struck else ratio_text(row.ratio),
                "verdict": verdict_text(row),
            }
        )
    return pd.DataFrame(lines)


def _arms(row: Compared) -> str:
    same = row.kind[0] == row.baseline[0]
    return row.kind[0] if same else f"{row.kind[0]} vs {row.baseline[0]}"


def ratio_text(ratio: UnpairedRatio) -> str:
    """`1.05x [1.01, 1.09]`."""
    if isnan(ratio.value):
        return "not known"
    ends = "" if isnan(ratio.low) else f" [{three_digits(ratio.low)}, {three_digits(ratio.high)}]"
    return f"{three_digits(ratio.value)}x{ends}"


def verdict_text(row: Compared) -> str:
    """`faster`, `not significant`, or the gate that takes the number away."""
    if row.spoilt.struck or isnan(row.ratio.value):
        return row.spoilt.said or "not known"
    word = _word(row.metric, row.ratio.verdict)
    return f"{word} ({row.spoilt.said})" if row.spoilt.effect else word


def _quantity(metric: str, value: float) -> str:
    if metric == "system_tps":
        return "unknown" if isnan(value) else f"{three_digits(value)} tok/s"
    return "unknown" if isnan(value) else f"{milliseconds(value)} ms"


def milliseconds(seconds: float) -> str:
    """The number without its unit, in three digits."""
    return three_digits(1000 * seconds)
