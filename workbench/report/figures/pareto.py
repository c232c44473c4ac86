"""The Pareto chart of a sweep: throughput per GPU against tokens/s per user, a marker per load."""

from __future__ import annotations

from collections.abc import Sequence
from math import log10
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.metrics.gates.gate_effects import spoil
from workbench.report.figures import marks
from workbench.report.figures.chart import Chart, draw, no_data
from workbench.report.numbers import number

_LABELLED = 14
"""At most this many points have their load beside them."""
_CLOSE = 1.15
"""Two values within this factor are drawn almost at the same place."""
_TITLE = "Throughput and speed per user"


def pareto(frame: pd.DataFrame) -> Chart | None:
    """Throughput per GPU against tokens/s per user, for each arm; None without points.

    Takes `result.points`. Each cold pass is a marker; the line joins those of an arm that no other
    of its points surpasses in both directions. Points whose times a failed gate makes rough are
    hollow, those that it strikes are crossed out too and are never on the line. Several models,
    told by a column `model`, have a panel each.
    """
    if frame.empty:
        return None
    per = frame.attrs.get("unit", "GPU")
    known = frame["gpu_tps"].notna().any()
    y, what = (
        ("gpu_tps", f"tokens/s per {per}") if known else ("system_tps", "tokens/s of all instances")
    )
    rows = marks.records(frame, ("user_tps", y))
    rows = [row | {"effect": _effect(frame, row)} for row in rows if row[y] > 0]
    if not rows:
        return no_data(_TITLE, "no pass has both TPOT and throughput.")
    arms = marks.unique(rows, "arm")
    look = marks.looks(arms)
    models = marks.unique(rows, "model") if "model" in frame else [""]

    def paint(figure: Figure) -> None:
        panels = figure.subplots(1, len(models), squeeze=False)[0]
        for axes, model in zip(panels, models, strict=True):
            mine = [row for row in rows if not model or row["model"] == model]
            axes.set_title(model)
            for arm in arms:
                _arm(axes, [row for row in mine if row["arm"] == arm], look[arm], y)
            _label(axes, mine if len(rows) <= _LABELLED else (), y)
            for axis, key in (("x", "user_tps"), ("y", y)):
                marks.log_axis(axes, [row[key] for row in mine], axis=axis, most=6)  # type: ignore[arg-type]
            axes.set_xlabel("tokens/s per user: 1 / median TPOT (log scale)")
        panels[0].set_ylabel(f"output {what} (log scale)")

    found = _found(rows, y, per) if len(models) == 1 else _TITLE
    spoken = "; ".join(
        f"{row['arm']} {_load(row) or row['pass']}: {number(row[y])} {what},"
        f" {number(row['user_tps'])} per user"
        for row in rows
    )
    lines = any(len(_front([r for r in rows if r["arm"] == arm], y)) > 1 for arm in arms)
    hollow = any(row["effect"] == "rough" for row in rows)
    crossed = any(row["effect"] == "struck" for row in rows)
    return draw(
        paint,
        title=found,
        body_px=360,
        alt=f"{found}. {spoken}.",
        caption="Up and right is better. Each marker is a cold pass at one load."
        + " Lines join the Pareto points of each arm." * lines
        + " Hollow: a gate makes it rough." * hollow
        + " Crossed out: not valid." * crossed
        + f" The number of {per}s is unknown, so throughput is not divided." * (not known),
        keys=look,
        shows=("times",),
        attrs=frame.attrs,
    )


def _found(rows: Sequence[marks.Row], y: str, per: str) -> str:
    """Which arm has the highest throughput, and which is fastest for a user; only valid ones."""
    valid = [row for row in rows if row["effect"] != "struck"]
    if not valid:
        return _TITLE
    most = max(valid, key=lambda row: row[y])
    fastest = max(valid, key=lambda row: row["user_tps"])
    peak, speed = (f"{number(r[key])} tok/s" for r, key in ((most, y), (fastest, "user_tps")))
    if len(valid) == 1:
        return f"{most['arm']}: {peak} per {per}, {speed} per user"
    if most["arm"] == fastest["arm"]:
        return (
            f"{most['arm']}: highest throughput per {per} ({peak}) and fastest per user ({speed})"
        )
    return (
        f"Highest throughput per {per}: {most['arm']} ({peak}); fastest per user: {fastest['arm']}"
        f" ({speed})"
    )


def _effect(frame: pd.DataFrame, row: marks.Row) -> str:
    """What failed gates do to a point."""
    failed = frame.attrs.get("failed_gates", ())
    return spoil(failed, "times", passes=[row["pass"]], arms=[row["arm"]]).effect


def _front(rows: Sequence[marks.Row], y: str) -> list[marks.Row]:
    """The valid points that no other surpasses in one direction and equals in the other."""
    valid = [row for row in rows if row["effect"] != "struck"]
    front: list[marks.Row] = []
    for row in sorted(valid, key=lambda row: (-row["user_tps"], -row[y])):
        if not front or row[y] > front[-1][y]:
            front.append(row)
    return front


def _arm(axes: Axes, rows: Sequence[marks.Row], look: marks.Look, y: str) -> None:
    front = _front(rows, y)
    if len(front) > 1:
        xs, ys = ([row[key] for row in front] for key in ("user_tps", y))
        axes.plot(xs, ys, color=look.colour, linewidth=1.4, zorder=2)
    for row in rows:
        hollow = row["effect"] in ("rough", "struck")
        fill: dict[str, Any] = {"markerfacecolor": "white"} if hollow else {}
        axes.plot(
            row["user_tps"], row[y], marker=look.marker, markersize=9, color=look.colour,
            linestyle=" ", markeredgewidth=1.8, zorder=3, **fill,
        )  # fmt: skip
        if row["effect"] == "struck":
            axes.plot(
                row["user_tps"], row[y], marker="x", markersize=11, color=marks.RED,
                markeredgewidth=1.8, linestyle=" ", zorder=4,
            )  # fmt: skip


def _label(axes: Axes, rows: Sequence[marks.Row], y: str) -> None:
    """The load of each point; of those at one load that are close together, at the rightmost."""
    told: list[tuple[str, float, float]] = []
    for row in sorted(rows, key=lambda row: -row["user_tps"]):
        text, at = _load(row), (row["user_tps"], row[y])
        if any(text == known and _close(at, other) for known, *other in told):
            continue
        told.append((text, *at))
        axes.annotate(
            text, at, xytext=(8, 5), textcoords="offset points", fontsize=11, color=marks.GREY
        )


def _close(one: Sequence[float], other: Sequence[float]) -> bool:
    return all(abs(log10(a / b)) < log10(_CLOSE) for a, b in zip(one, other, strict=True))


def _load(row: marks.Row) -> str:
    """`8/s`, `4 users`; empty where a trace or ramp has no single load."""
    if pd.notna(row["rate_per_s"]):
        return f"{row['rate_per_s']:g}/s"
    users = row["users"]
    return f"{users:g} user{'s' * (users != 1)}" if pd.notna(users) else ""
