"""The figure of several models: their speed-ups side by side."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from workbench.metrics.gates.gate_effects import struck_arms
from workbench.report.figures import marks
from workbench.report.figures.chart import Chart, draw
from workbench.report.figures.topologies import WARM, baselines_of
from workbench.report.numbers import times

_OTHER = {"cache-state": "baseline_pass", "opponent": "baseline_arm"}
"""What a ratio is against, by kind of comparison."""


def speedups_by_model(summary: pd.DataFrame, comparisons: pd.DataFrame) -> Chart | None:
    """TTFT ratios of several models, a group of rows per comparison and in it a row per model.

    For each topology what the warmest cache does, then what the PD split does to cold prompts.
    Takes `result.summary` and `result.comparisons`; None where they have one model.
    """
    if "model" not in comparisons or comparisons["model"].nunique() < 2:
        return None
    groups: dict[str, list[marks.Row]] = {}
    for row in _chosen(summary, comparisons):
        groups.setdefault(_what(row), []).append(row)
    rows = [row for group in groups.values() for row in group]
    if not rows:
        return None
    models = marks.unique(rows, "model")
    look = marks.looks(models)
    labels = [what if not n else "" for what, group in groups.items() for n in range(len(group))]
    texts = [marks.ratio_text(row) for row in rows]

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        styles = [look[str(row["model"])] for row in rows]
        marks.interval_rows(
            axes, rows, "ratio", styles, labels=labels, texts=texts, at=1.0, heading="speed-up"
        )
        marks.log_axis(axes, [*marks.ends(rows, "ratio"), 0.8, 1.25])
        axes.set_xlabel("TTFT speed-up, baseline / arm (log scale)")
        edge = -0.5
        for group in list(groups.values())[:-1]:
            edge += len(group)
            axes.axhline(edge, color=marks.GREY, linewidth=1, zorder=0)

    first, group = next(iter(groups.items()))
    found = ", ".join(f"{times(row['ratio'])} on {row['model']}" for row in group)
    few = all(row["verdict"] == "no_interval" for row in rows)
    grey = "" if few or not any(map(marks.undecided, rows)) else " Grey: not significant."
    return draw(
        paint,
        title=f"TTFT speed-up, {first}: {found}",
        body_px=30 * len(rows) + 84,
        alt=f"TTFT speed-ups by model. {_spoken(rows, labels)}",
        caption=f"Paired TTFT ratios{'' if few else ' with 95 % CI'}"
        f" ({marks.span(rows, 'n_rounds', 'round')},"
        f" {marks.span(rows, 'n_pairs', 'request pair')} each). Above 1: the first-named is faster."
        f"{' Too few rounds for a CI.' if few else grey}",
        keys=look,
        shows=("ratios",),
        intervals=not few,
        attrs=comparisons.attrs,
    )


def _chosen(summary: pd.DataFrame, comparisons: pd.DataFrame) -> list[marks.Row]:
    """The warmest state against cold, and cold prompts against the baseline, of each subject."""
    rivals, baselines = baselines_of(summary, comparisons)
    bad = struck_arms(comparisons.attrs.get("failed_gates", {}), "ratios")  # the caption says why
    comparisons = comparisons[~comparisons[["arm", "baseline_arm"]].isin([*bad]).any(axis=1)]
    warm = marks.ratio_rows(comparisons, metric="ttft_s", kind="cache-state")
    warm = [row for row in warm if row["arm"] not in baselines]
    state = next((state for state in WARM if any(row["pass"] == state for row in warm)), "")
    split = marks.ratio_rows(comparisons, metric="ttft_s", kind="opponent", **{"pass": "cold"})
    return [row for row in warm if row["pass"] == state] + [
        row for row in split if row["baseline_arm"] == rivals.get(row["arm"])
    ]


def _what(row: marks.Row) -> str:
    """`1p1d lmcache, store-warm vs cold`: the comparison without its model."""
    lead = f"{row['model']} "
    other = str(row[_OTHER[row["kind"]]]).removeprefix(lead)
    return f"{str(row['arm']).removeprefix(lead)}, {row['pass']} vs {other}"


def _spoken(rows: Sequence[marks.Row], labels: Sequence[str]) -> str:
    said = []
    for row, label in zip(rows, labels, strict=True):
        said.append(f"{label}{': ' * bool(label)}{marks.ratio_text(row)} on {row['model']}")
    return f"{'; '.join(said)}."
