"""The figure of ratios: what a cache state or a topology gains, around the line at 1."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from workbench.report.figures.chart import Chart, draw, no_data
from workbench.report.figures.dots import (
    Row,
    column_at_right,
    dot,
    has_interval,
    log_span,
    pick,
    ratio_text,
    row_axis,
    span,
    undecided,
    unique,
)
from workbench.report.figures.looks import BLACK, NAMES, looks
from workbench.report.numbers import quantity

__all__ = ["speedups"]


_WHY_NONE = {
    "": "no two arms or cache states were both measured.",
    "cache-state": "no arm was measured both cold and warm.",
    "opponent": "no arm was measured beside as many aggregated instances.",
}


def speedups(
    comparisons: pd.DataFrame, metric: str, *, kind: str = "", title: str = "", caption: str = ""
) -> Chart | None:
    """Ratios of one metric with their intervals; above 1 the first named is better.

    `kind` keeps one kind of comparison: `cache-state` or `opponent`. An interval that holds 1 is
    called what it is: no difference detectable. None for a sweep over rates, which compares none.
    """
    name = NAMES.get(metric, metric)
    rows = [row for row in pick(comparisons, metric, "ratio") if kind in ("", row["kind"])]
    if not rows and comparisons.attrs.get("swept"):
        return None
    if not rows:
        return no_data(f"{name} speed-ups", _WHY_NONE[kind])
    rows.sort(key=lambda row: str(row["kind"]))
    subjects = [_subject(row) for row in rows]
    verdicts = [_verdict(row) for row in rows]

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        look = looks(unique(rows, "pass"))
        for y, row in enumerate(rows):
            dot(axes, row, look[row["pass"]], y=y, key="ratio")
        row_axis(axes, subjects)
        ends = (row[key] for row in rows for key in ("low", "ratio", "high"))
        log_span(axes, [*ends, 0.8, 1.25])
        axes.axvline(1, color=BLACK, linewidth=1.2, zorder=1)
        axes.set_xlabel(f"{name} ratio (log scale): below 1 worse, above 1 better")
        column_at_right(
            axes,
            "ratio",
            [(text, undecided(row)) for text, row in zip(verdicts, rows, strict=True)],
        )

    clear = sum(not undecided(row) for row in rows)
    found = f"{name} differs detectably in {clear} of {len(rows)} comparisons"
    if not clear:
        judged = any(has_interval(row) for row in rows)
        what = "no difference detectable in" if judged else "too few rounds to judge"
        found = f"{name}: {what} {len(rows)} comparison{'s' * (len(rows) > 1)}"
    spoken = (f"{s}: {v}".replace("\n", ", ") for s, v in zip(subjects, verdicts, strict=True))
    return draw(
        paint,
        title=title or found,
        body_px=46 * len(rows) + 84,
        alt=f"{found}. {'; '.join(spoken)}.",
        caption=caption
        or f"Ratio of paired {name} and its 95 % interval over {span(rows, 'n_rounds', 'round')},"
        f" {span(rows, 'n_pairs', 'pair')}. Above 1 the first named is better.",
        keys=looks(unique(rows, "pass")),
        shows=("ratios",),
        intervals=any(has_interval(row) for row in rows),
        marks=comparisons.attrs,
    )


def _subject(row: Row) -> str:
    other = row["baseline_pass"] if row["kind"] == "cache-state" else row["baseline_arm"]
    return f"{row['arm']}, {row['pass']}\nagainst {other}"


def _verdict(row: Row) -> str:
    if not has_interval(row):
        return f"{quantity(row['ratio'], 'x')}\ntoo few rounds for an interval"
    return ratio_text(row) + ("\nno difference detectable" if undecided(row) else "")
