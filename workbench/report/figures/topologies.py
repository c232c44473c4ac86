"""Figures of arms and cache states: medians of TTFT and TPS, and the ratios between them.

They take `result.summary` and `result.comparisons`; a frame's `attrs` mark what is simulated or
not proven.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.report.figures import marks
from workbench.report.figures.chart import Chart, draw, no_data
from workbench.report.numbers import number, quantity, time_scale

_WARM = ("store-warm", "cross-instance", "engine-warm", "warm")
_WHY_NONE = {
    "": "no two arms or cache states were both measured.",
    "cache-state": "no arm was measured both cold and warm.",
    "opponent": "no arm was measured beside as many aggregated instances.",
}


def ttft_by_topology(summary: pd.DataFrame, comparisons: pd.DataFrame) -> Chart:
    """Median TTFT of each arm and cache state with its interval, and the speed-up that it is.

    The speed-up at the right compares cold with one warm state: store-warm if there is one.
    """
    rows = marks.records(summary, ("median", "low", "high"), metric="ttft_s")
    if not rows:
        return no_data("TTFT by topology", "no arm has a median TTFT; no request succeeded.")
    gains = marks.ratio_rows(comparisons, metric="ttft_s", kind="cache-state")
    warm = next((state for state in _WARM if any(row["pass"] == state for row in gains)), "")
    gains = [row for row in gains if row["pass"] == warm]
    of_arm = {row["arm"]: row for row in gains}
    factor, unit = time_scale(max(row["median"] for row in rows))

    def finish(axes: Axes) -> None:
        marks.log_axis(axes, (end * factor for end in marks.ends(rows, "median")))
        axes.set_xlabel(f"TTFT, {unit} (log scale)")
        if of_arm:
            beside = [of_arm.get(arm) for arm in marks.unique(rows, "arm")]
            marks.column_at_right(
                axes,
                f"{warm} speed-up",
                [marks.ratio_text(row) if row else "-" for row in beside],
                grey=[row is None or marks.undecided(row) for row in beside],
            )

    note = " Grey: the interval of the speed-up holds 1, or there is none."
    return _medians(
        summary,
        rows,
        finish,
        factor=factor,
        title=_gain(gains, warm) or "TTFT by topology and cache state",
        alt="Median TTFT by arm and cache state.",
        note=note * any(map(marks.undecided, of_arm.values())),
    )


def tps_by_topology(summary: pd.DataFrame, *, metric: str = "request_tps") -> Chart:
    """Median tokens per second of each arm and cache state: `request_tps` or `system_tps`."""
    name = marks.NAMES.get(metric, metric)
    rows = marks.records(summary, ("median", "low", "high"), metric=metric)
    if not rows:
        return no_data(f"{name} by topology", f"no arm has a median {name}.")
    low, high = (extreme(rows, key=lambda row: float(row["median"])) for extreme in (min, max))

    def finish(axes: Axes) -> None:
        axes.set_xlim(0, 1.06 * max(marks.ends(rows, "median")))
        per = "of one request (1 / TPOT)" if metric == "request_tps" else "of all requests together"
        axes.set_xlabel(f"output tokens per second {per}")

    found = f"{name} is {quantity(high['median'], 'tok/s')}"
    if len(rows) > 1:
        found = (
            f"{name} is from {number(low['median'])} ({low['arm']}, {low['pass']})"
            f" to {quantity(high['median'], 'tok/s')} ({high['arm']}, {high['pass']})"
        )
    return _medians(
        summary,
        rows,
        finish,
        title=found,
        alt=f"Median {name} by arm and cache state.",
        unit="tok/s",
    )


def _medians(
    summary: pd.DataFrame,
    rows: Sequence[marks.Row],
    finish: Callable[[Axes], None],
    *,
    title: str,
    alt: str,
    unit: str = "s",
    note: str = "",
    factor: float = 1.0,
) -> Chart:
    """One row per arm, one mark per cache state, set apart so that none hides another."""
    arms, passes = marks.unique(rows, "arm"), marks.unique(rows, "pass")
    look = marks.looks(passes)
    step = min(0.22, 0.9 / len(passes))

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for row in rows:
            apart = step * (passes.index(row["pass"]) - (len(passes) - 1) / 2)
            x, low, high = (row[key] * factor for key in ("median", "low", "high"))
            marks.mark(axes, x, arms.index(row["arm"]) + apart, (low, high), look[row["pass"]])
        marks.row_axis(axes, arms)
        finish(axes)

    spoken = [f"{row['arm']} {row['pass']} {quantity(row['median'], unit)}" for row in rows]
    return draw(
        paint,
        body_px=max(42, 11 * len(passes)) * len(arms) + 84,
        title=title,
        alt=f"{alt} {'; '.join(spoken)}.",
        caption=_sample(rows) + note,
        keys=look,
        shows=("times",),
        attrs=summary.attrs,
    )


def _gain(gains: Sequence[marks.Row], warm: str) -> str:
    """The finding in a sentence; empty where the arms do not agree on one."""
    clear = [row["ratio"] for row in gains if not marks.undecided(row)]
    if not gains or any(ratio < 1 for ratio in clear):
        return ""
    if not clear and not any(row["verdict"] != "no_interval" for row in gains):
        return f"TTFT cold and {warm}: too few rounds to judge a difference"
    if not clear:
        return f"TTFT: no difference detectable between cold and {warm}"
    low, high = number(min(clear)), number(max(clear))
    times = high if low == high else f"{low} to {high}"
    where = f" in {len(clear)} of {len(gains)} arms" if len(clear) < len(gains) else ""
    return f"TTFT is {times} times lower {warm} than cold{where}"


def _sample(rows: Sequence[marks.Row]) -> str:
    """What the medians rest on; the system's TPS is one number a round."""
    unit = "round" if any(row["metric"] == "system_tps" for row in rows) else "request"
    hollow = not all(marks.has_interval(row["low"], row["high"]) for row in rows)
    rounds = marks.span(rows, "n_rounds", "round")
    sample = (
        rounds if unit == "round" else f"{marks.span(rows, 'n_requests', 'request')} in {rounds}"
    )
    return f"Median and 95 % interval of {sample} per arm and cache state." + (
        f" Hollow: too few {unit}s for an interval." if hollow else ""
    )


def speedups(comparisons: pd.DataFrame, metric: str, *, kind: str = "") -> Chart | None:
    """Ratios of one metric with their intervals; above 1 the first named is better.

    `kind` keeps one kind of comparison: `cache-state` or `opponent`. An interval that holds 1 is
    called what it is: no difference detectable. None for a sweep over rates, which compares none.
    """
    name = marks.NAMES.get(metric, metric)
    rows = marks.ratio_rows(comparisons, metric=metric, **({"kind": kind} if kind else {}))
    rows.sort(key=lambda row: str(row["kind"]))
    if not rows and comparisons.attrs.get("swept"):
        return None
    if not rows:
        return no_data(f"{name} speed-ups", _WHY_NONE[kind])
    subjects, verdicts = [_subject(row) for row in rows], [_verdict(row) for row in rows]
    look = marks.looks(marks.unique(rows, "pass"))

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        styles = [look[row["pass"]] for row in rows]
        marks.interval_rows(axes, rows, "ratio", styles, labels=subjects, texts=verdicts, at=1.0)
        marks.log_axis(axes, [*marks.ends(rows, "ratio"), 0.8, 1.25])
        axes.set_xlabel(f"{name} ratio (log scale): below 1 worse, above 1 better")

    clear = sum(not marks.undecided(row) for row in rows)
    judged = any(row["verdict"] != "no_interval" for row in rows)
    found = f"{name} differs detectably in {clear} of {len(rows)} comparisons"
    if not clear:
        what = "no difference detectable in" if judged else "too few rounds to judge"
        found = f"{name}: {what} {len(rows)} comparison{'s' * (len(rows) > 1)}"
    spoken = (f"{s}: {v}".replace("\n", ", ") for s, v in zip(subjects, verdicts, strict=True))
    return draw(
        paint,
        title=found,
        body_px=46 * len(rows) + 84,
        alt=f"{found}. {'; '.join(spoken)}.",
        caption=f"Ratio of paired {name} and its 95 % interval over"
        f" {marks.span(rows, 'n_rounds', 'round')}, {marks.span(rows, 'n_pairs', 'pair')}."
        " Above 1 the first named is better.",
        keys=look,
        shows=("ratios",),
        intervals=judged,
        attrs=comparisons.attrs,
    )


def _subject(row: marks.Row) -> str:
    other = row["baseline_pass"] if row["kind"] == "cache-state" else row["baseline_arm"]
    return f"{row['arm']}, {row['pass']}\nagainst {other}"


def _verdict(row: marks.Row) -> str:
    if row["verdict"] == "no_interval":
        return f"{quantity(row['ratio'], 'x')}\ntoo few rounds for an interval"
    return marks.ratio_text(row) + ("\nno difference detectable" if marks.undecided(row) else "")
