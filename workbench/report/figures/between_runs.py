"""Ratios between two runs: a column for each metric, a row for each arm and pass."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from workbench.report.figures import marks
from workbench.report.figures.chart import Chart, draw, no_data
from workbench.report.numbers import quantity

_COLUMNS = {
    "ttft_s": "TTFT", "tpot_s": "TPOT", "e2e_s": "E2E", "system_tps": "Throughput",
}  # fmt: skip
_ROW_PX, _HEAD_PX = 30, 96


def between_runs(
    ratios: pd.DataFrame, run: str, baseline: str, *, simulated: bool = False
) -> Chart:
    """Speed-ups of `run` over `baseline` with their 95 % intervals; above 1 the run is better.

    `ratios` has the columns metric, arm, pass, baseline_arm, ratio, low, high, n_rounds,
    baseline_rounds and struck; what a failed gate takes away is not drawn.
    """
    heading = f"{run} vs {baseline}"
    usable = ratios[~ratios["struck"]] if len(ratios) else ratios
    rows = marks.ratio_rows(usable)
    if not rows:
        return no_data(heading, "no arm and pass has a valid number in both runs.")
    kinds = list(dict.fromkeys((row["arm"], row["pass"]) for row in rows))
    labels = [_label(rows, kind) for kind in kinds]
    look = marks.looks(marks.unique(rows, "pass"))
    metrics = [metric for metric in _COLUMNS if any(row["metric"] == metric for row in rows)]

    def paint(figure: Figure) -> None:
        board = figure.subplots(1, len(metrics), sharey=True, squeeze=False)
        for axes, metric in zip(board[0], metrics, strict=True):
            own = [row for row in rows if row["metric"] == metric]
            for row in own:
                y = kinds.index((row["arm"], row["pass"]))
                marks.mark(axes, row["ratio"], y, (row["low"], row["high"]), look[row["pass"]])
            axes.axvline(1, color=marks.BLACK, linewidth=1.2, zorder=1)
            marks.log_axis(axes, [*marks.ends(own, "ratio"), 0.9, 1.1], most=3)
            axes.set_title(_COLUMNS[metric], size=13, pad=9)
        marks.row_axis(board[0][0], labels)
        for axes in board[0][1:]:
            axes.grid(axis="y", visible=False)
            for y in range(len(labels)):
                axes.axhline(y, color=marks.RULE, linewidth=1, zorder=0)

    judged = any(row["verdict"] != "no_interval" for row in rows)
    rounds = (marks.span(rows, name, "round") for name in ("n_rounds", "baseline_rounds"))
    few = "" if judged else " Hollow marker: no CI (too few rounds)."
    return draw(
        paint,
        title=_found(rows),
        body_px=_ROW_PX * len(kinds) + _HEAD_PX,
        alt=f"{heading}. "
        + " ".join(
            f"{_COLUMNS[row['metric']]}, {row['arm']}, {row['pass']}:"
            f" {quantity(row['ratio'], 'x')}."
            for row in rows
        ),
        caption="Speed-up over the baseline (log scale); above 1 the run is better. 95 % CI by"
        f" Welch's t interval over launches ({' and '.join(rounds)}).{few}",
        keys=look,
        shows=("times", "ratios"),
        intervals=judged,
        attrs={"simulated": simulated},
    )


def _label(rows: Sequence[marks.Row], kind: tuple[str, str]) -> str:
    row = next(row for row in rows if (row["arm"], row["pass"]) == kind)
    other = "" if row["arm"] == row["baseline_arm"] else f" vs {row['baseline_arm']}"
    return f"{row['arm']}{other}, {row['pass']}"


def _found(rows: Sequence[marks.Row]) -> str:
    """`TTFT: 2 faster, 1 slower, 6 not significant`."""
    own = [row for row in rows if row["metric"] == "ttft_s"] or list(rows)
    name = _COLUMNS[own[0]["metric"]]
    words = {
        "faster": "faster", "slower": "slower", "undecided": "not significant",
        "no_interval": "without interval",
    }  # fmt: skip
    counts = {text: sum(row["verdict"] == v for row in own) for v, text in words.items()}
    return f"{name}: {', '.join(f'{n} {text}' for text, n in counts.items() if n)}"
