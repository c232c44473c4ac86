"""Figures of topologies and cache states: the four charts of a sweep, and ratios in rows.

They take `result.summary` and `result.comparisons`; a frame's `attrs` say what is simulated and
which gates failed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, log10

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from workbench.report.figures import marks
from workbench.report.figures.chart import Chart, draw, for_each_model, no_data, text_px
from workbench.report.numbers import quantity, time_scale, times

WARM = ("store-warm", "offload-warm", "cross-instance", "engine-warm", "warm")
_AGAINST = {
    "cache-state": ("cold", "no arm was measured both cold and warm."),
    "opponent": ("aggregated baseline", "no PD split was measured together with its baseline."),
}
"""What each kind of comparison is against, and why there may be none."""
_NAMES = {"ttft_s": "TTFT", "tpot_s": "TPOT", "e2e_s": "E2E", "system_tps": "Throughput"}
_PANEL_PX, _PLOT_PX = 222, 330
"""Height of a panel with its titles, and about the width of its axes."""
_LABELLED = 8
"""A panel with at most this many marks has their numbers above them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Panel:
    """One of the four charts."""

    title: str
    rows: Sequence[marks.Row]
    key: str
    """The column that is drawn, between `low` and `high`."""
    unit: str
    log: bool
    best: str
    """`lower is better`, `higher is better`."""


@for_each_model
def topology_overview(
    summary: pd.DataFrame, comparisons: pd.DataFrame, predictions: pd.DataFrame | None = None
) -> Chart:
    """TTFT, its speed-up, throughput and its speed-up, by topology and cache state.

    A speed-up compares a warm pass with the cold pass of the same arm. The aggregated baseline of
    each PD topology (same GPU count, and the same connector where it was measured) is a reference
    mark in its column. `predictions` of the cold pass (`result.predictions`) are hollow.
    """
    heading = "TTFT and throughput by topology"
    rows = marks.records(summary, ("median", "low", "high"), metric="ttft_s")
    if not rows:
        return no_data(heading, "no request succeeded.")
    rivals, baselines = baselines_of(summary, comparisons)
    measured = [arm for arm in marks.unique(rows, "arm") if arm not in baselines]
    predicted = _predicted(predictions, rows, measured)
    # in the order that was asked for, which the predictions have
    columns = list(dict.fromkeys([*marks.unique(predicted, "arm"), *measured]))
    rows += [row for row in predicted if row["metric"] == "ttft_s"]
    names = dict(zip(columns, _column_names(rows, columns, rivals), strict=True))
    # A baseline has no column of its own, so a state that only it has is not drawn.
    met = {row["pass"] for row in rows if row["arm"] in columns}
    look = {name: one for name, one in marks.looks(_states(rows)).items() if name in met}
    panels = _panels(summary, comparisons, predicted)

    def paint(figure: Figure) -> None:
        for axes, panel in zip(figure.subplots(2, 2).flat, panels, strict=True):
            # ratios are not predicted
            drawn = [arm for arm in columns if panel.key == "median" or arm in measured]
            _panel(axes, panel, drawn, names, rivals, look)

    return draw(
        paint,
        title=_gain(comparisons, columns) or heading,
        body_px=2 * _PANEL_PX,
        alt=f"{heading}. {' '.join(_spoken(panel) for panel in panels)}",
        caption=_explained(panels, compared=bool(rivals)),
        keys=look | ({"aggregated baseline": marks.REFERENCE} if rivals else {}),
        shows=("times", "ratios"),
        attrs=summary.attrs,
    )


def _predicted(
    predictions: pd.DataFrame | None, rows: Sequence[marks.Row], columns: Sequence[str]
) -> list[marks.Row]:
    """The predictions as summary rows. A measured topology's prediction goes to its arm's column.

    A refused prediction has no row.
    """
    if predictions is None or predictions.empty:
        return []
    arms = {row["topology"]: row["arm"] for row in rows if row["arm"] in columns}
    return [
        row | {"arm": arms.get(row["topology"], row["topology"]), "pass": marks.PREDICTED,
               "median": row["value"]}
        for row in marks.records(predictions, ("value", "low", "high"))
    ]  # fmt: skip


def _states(rows: Sequence[marks.Row]) -> list[str]:
    """The cache states in the order in which the arm with most of them met them."""
    of_arm: dict[str, list[str]] = {}
    for row in rows:
        of_arm.setdefault(row["arm"], []).append(row["pass"])
    longest = max(of_arm.values(), key=len)
    return list(dict.fromkeys([*longest, *marks.unique(rows, "pass")]))


def baselines_of(
    summary: pd.DataFrame, comparisons: pd.DataFrame
) -> tuple[dict[str, str], set[str]]:
    """The reference of each PD arm, with the same connector if there is one; all opponents."""
    if comparisons.empty:
        return {}, set()
    connector = dict(zip(summary["arm"], summary["connector"], strict=True))
    opponents = comparisons[comparisons["kind"] == "opponent"]
    found: dict[str, str] = {}
    for arm, rival in zip(opponents["arm"], opponents["baseline_arm"], strict=True):
        if arm not in found or connector.get(rival) == connector.get(arm):
            found[arm] = rival
    return found, set(opponents["baseline_arm"])


def _column_names(
    rows: Sequence[marks.Row], columns: Sequence[str], rivals: Mapping[str, str]
) -> list[str]:
    """The topology where it names one column alone, else the arm; the baseline's below it."""
    topology = {row["arm"]: str(row["topology"]) for row in rows}
    short = [topology[arm] for arm in columns]
    names = [
        name if name and short.count(name) == 1 else arm
        for name, arm in zip(short, columns, strict=True)
    ]
    below = [f"\nvs {topology.get(rivals[arm], rivals[arm])}" if arm in rivals else ""
             for arm in columns]  # fmt: skip
    return [name + second for name, second in zip(names, below, strict=True)]


def _panels(
    summary: pd.DataFrame, comparisons: pd.DataFrame, predicted: Sequence[marks.Row]
) -> list[_Panel]:
    """The four charts in the order in which they are read."""
    medians, ratio = ("median", "low", "high"), "cache-state"
    panels = []
    for metric, name in (("ttft_s", "TTFT"), ("system_tps", "Throughput")):
        timed = metric == "ttft_s"
        rows = marks.records(summary, medians, metric=metric)
        rows += [row for row in predicted if row["metric"] == metric]
        factor, unit = (1.0, "tok/s")
        if timed:
            factor, unit = time_scale(max((row["median"] for row in rows), default=0))
        scaled = [row | {key: row[key] * factor for key in medians} for row in rows]
        best = "lower is better" if timed else "higher is better"
        panels += [
            _Panel(title=f"{name}, {unit}", rows=scaled, key="median", unit="", log=timed,
                   best=best),
            _Panel(title=f"{name} speed-up over cold", key="ratio", unit="x", log=True,
                   rows=marks.ratio_rows(comparisons, metric=metric, kind=ratio),
                   best="higher is better"),
        ]  # fmt: skip
    return panels


def _panel(
    axes: Axes,
    panel: _Panel,
    columns: Sequence[str],
    names: Mapping[str, str],
    rivals: Mapping[str, str],
    look: Mapping[str, marks.Look],
) -> None:
    at = {(row["arm"], row["pass"]): row for row in panel.rows}
    states = [state for state in look if any((arm, state) in at for arm in columns)]
    step = 0.8 / max(1, len(states))
    places = {
        (arm, state): nth + step * (place - (len(states) - 1) / 2)
        for nth, arm in enumerate(columns)
        for place, state in enumerate(states)
        if (arm, state) in at
    }
    labelled = len(columns) * len(states) <= _LABELLED
    shown = []
    beside = {key: at.get((rivals.get(key[0], ""), key[1])) for key in places}
    for key, x in places.items():
        row, other = at[key], beside[key]
        if other:
            marks.reference(axes, x, other, panel.key, width=0.8 * step)
        marks.mark(axes, x, row[panel.key], (row["low"], row["high"]), look[key[1]], upright=True)
        shown += [row, other] if other else [row]
    ends = marks.ends(shown, panel.key)
    speed, room = panel.unit == "x", 0.14 if labelled else 0.0
    if not ends:
        axes.set_yticks([])
        axes.text(0.5, 0.5, "not measured", color=marks.GREY, ha="center", transform=axes.transAxes)
    elif panel.log:
        marks.log_axis(axes, [*ends, *((0.9, 1.2) if speed else ())], axis="y", most=6)
        low, high = axes.get_ylim()
        axes.set_ylim(low / (1 if speed else (high / low) ** room), high * (high / low) ** room)
        if speed:
            axes.axhline(1, color=marks.BLACK, linewidth=1.2, zorder=1)
    else:
        axes.set_ylim(0, (1.08 + room) * max(ends))
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        axes.yaxis.set_major_formatter(marks.NUMBERS)
    if labelled:
        for key, x in places.items():
            _label(axes, x, at[key], beside[key], panel)
    axes.set_xlim(-0.5, len(columns) - 0.5)
    axes.grid(axis="x", visible=False)
    axes.tick_params(axis="x", length=0)
    said = [names[arm] for arm in columns]
    widest = max(text_px(line, size=12) for name in said for line in name.split("\n"))
    turned = 90 if widest > _PLOT_PX / len(columns) else 0
    axes.set_xticks(range(len(columns)), said, rotation=turned, color=marks.BLACK)
    for edge in range(1, len(columns)):
        axes.axvline(edge - 0.5, color=marks.RULE, linewidth=1, zorder=0)
    axes.set_title(panel.title, size=13, pad=9)
    axes.set_title(panel.best, size=12, weight="normal", loc="right", color=marks.GREY, pad=9)


def _label(axes: Axes, x: float, row: marks.Row, other: marks.Row | None, panel: _Panel) -> None:
    """The number of a mark, below it where its baseline is above it and there is room."""
    value = row[panel.key]
    known = [end for end in (row["low"], value, row["high"]) if isfinite(end)]
    scale = log10 if panel.log else float
    floor, top = (scale(end) for end in axes.get_ylim())
    floor = scale(1) if panel.unit == "x" and min(known) > 1 else floor
    room = (scale(min(known)) - floor) / (top - floor)
    below = other is not None and other[panel.key] > value and room > 0.15
    axes.annotate(
        quantity(value, panel.unit), (x, min(known) if below else max(known)),
        xytext=(0, -7 if below else 7), textcoords="offset points", ha="center",
        va="top" if below else "bottom", size=12, zorder=5,
    )  # fmt: skip


def _gain(comparisons: pd.DataFrame, columns: Sequence[str]) -> str:
    """What the warmest store does to TTFT; empty where nothing compares."""
    gains = [row for row in marks.ratio_rows(comparisons, metric="ttft_s", kind="cache-state")
             if row["arm"] in columns]  # fmt: skip
    warm = next((state for state in WARM if any(row["pass"] == state for row in gains)), "")
    gains = [row for row in gains if row["pass"] == warm]
    clear = [row["ratio"] for row in gains if not marks.undecided(row)]
    if not gains or any(ratio < 1 for ratio in clear):
        return ""
    if not clear and all(row["verdict"] == "no_interval" for row in gains):
        return f"Too few rounds to compare {warm} with cold TTFT"
    if not clear:
        return f"No significant difference between {warm} and cold TTFT"
    low, high = times(min(clear)), times(max(clear))
    faster = high if low == high else f"{low} to {high}"
    where = f" in {len(clear)} of {len(gains)} topologies" if len(clear) < len(gains) else ""
    return f"{warm[:1].upper()}{warm[1:]} TTFT is {faster} faster than cold{where}"


def _spoken(panel: _Panel) -> str:
    said = (f"{row['arm']} {row['pass']} {quantity(row[panel.key], panel.unit)}"
            for row in panel.rows)  # fmt: skip
    return f"{panel.title}: {'; '.join(said) or 'not measured'}."


def _explained(panels: Sequence[_Panel], *, compared: bool) -> str:
    """What the marks are, and how many requests and rounds they rest on."""
    rows = [row for panel in panels for row in panel.rows if row["pass"] != marks.PREDICTED]
    ttfts, ratios = [row for row in panels[0].rows if row in rows], panels[1].rows
    rounds = marks.span(ttfts, "n_rounds", "round")
    said = [f"Medians with 95 % CI ({marks.span(ttfts, 'n_requests', 'request')} in {rounds})."]
    if ratios:
        pairs = marks.span(ratios, "n_pairs", "request pair")
        said.append(f"TTFT speed-up = cold / warm TTFT of the same prompts ({pairs}).")
    if compared:
        said.append("Line and grey box: median and CI of the aggregated baseline.")
    if not all(marks.has_interval(row["low"], row["high"]) for row in rows):
        said.append("Hollow marker: no CI (too few requests or rounds).")
    if len(rows) < sum(len(panel.rows) for panel in panels):
        said.append("Thin, hollow marker: prediction with its 91 % prediction interval. Speed-ups"
                    " are not predicted.")  # fmt: skip
    return " ".join(said)


@for_each_model
def speedups(comparisons: pd.DataFrame, metric: str, *, kind: str = "opponent") -> Chart | None:
    """Ratios of one metric with their intervals, a row each; above 1 the first-named arm is better.

    `kind` is `opponent` (against the aggregated baseline) or `cache-state` (against cold). None for
    a sweep over loads, which compares nothing.
    """
    name = _NAMES.get(metric, metric)
    other, why_none = _AGAINST[kind]
    rows = marks.ratio_rows(comparisons, metric=metric, kind=kind)
    if not rows and comparisons.attrs.get("swept"):
        return None
    if not rows:
        return no_data(f"{name} vs {other}", why_none)
    subjects, verdicts = [_subject(row) for row in rows], [_verdict(row) for row in rows]
    look = marks.looks(marks.unique(rows, "pass"))
    own, ratio = ("arm", "ratio") if kind == "opponent" else ("warm", "speed-up")
    base = "baseline" if kind == "opponent" else "cold"
    arm = "arm" if kind == "opponent" else "pass"
    of = [marks.span(rows, "n_rounds", "round")]
    formula, better = f"{own} / {base}", "has a higher throughput"
    if metric != "system_tps":
        formula, better = f"{base} / {own}", "is faster"
        of.append(f"{marks.span(rows, 'n_pairs', 'request pair')} each")

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        styles = [look[row["pass"]] for row in rows]
        marks.interval_rows(
            axes, rows, "ratio", styles, labels=subjects, texts=verdicts, at=1.0, heading=ratio
        )
        marks.log_axis(axes, [*marks.ends(rows, "ratio"), 0.8, 1.25])
        axes.set_xlabel(f"{name} {ratio}, {formula} (log scale)")

    judged = any(row["verdict"] != "no_interval" for row in rows)
    found = f"{name} vs {other}: {_compared(name, rows)}"
    spoken = (f"{s}: {v}".replace("\n", ", ") for s, v in zip(subjects, verdicts, strict=True))
    return draw(
        paint,
        title=found,
        body_px=46 * len(rows) + 84,
        alt=f"{found}. {'; '.join(spoken)}.",
        caption=f"{name} {ratio}s with 95 % CI ({', '.join(of)}). {ratio.capitalize()} = {formula}."
        f" Above 1: the first-named {arm} {better}.",
        keys=look,
        shows=("ratios",),
        intervals=judged,
        attrs=comparisons.attrs,
    )


def _compared(name: str, rows: Sequence[marks.Row]) -> str:
    """`3 of 8 faster, 1 slower, 4 not significant`: what the intervals decide."""
    clear = [row["ratio"] for row in rows if not marks.undecided(row)]
    if all(row["verdict"] == "no_interval" for row in rows):
        return "too few rounds to judge"
    better = sum(ratio > 1 for ratio in clear)
    words = ("higher", "lower") if name.startswith("Throughput") else ("faster", "slower")
    counts = (better, len(clear) - better, len(rows) - len(clear))
    parts = zip(counts, (*words, "not significant"), strict=True)
    first, *more = [f"{count} {word}" for count, word in parts if count]
    return ", ".join([first.replace(" ", f" of {len(rows)} ", 1), *more])


def _subject(row: marks.Row) -> str:
    other = row["baseline_pass"] if row["kind"] == "cache-state" else row["baseline_arm"]
    return f"{row['arm']}, {row['pass']}\nvs {other}"


def _verdict(row: marks.Row) -> str:
    if row["verdict"] == "no_interval":
        return f"{quantity(row['ratio'], 'x')}\ntoo few rounds for a CI"
    return marks.ratio_text(row) + ("\nnot significant" if marks.undecided(row) else "")
