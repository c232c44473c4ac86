"""What a Prometheus recorded during a run: the dashboard's panels as small multiples."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from workbench.experiment.result.facts import PassTime
from workbench.report.figures import marks
from workbench.report.figures.chart import Chart, draw, no_data, text_px
from workbench.report.numbers import number

_COLUMNS = 2
_PANEL_PX, _LEGEND_PX = 150, 15
_LEGEND_ROW_PX = 350
_FACTORS = {"B": (1e-6, "MB"), "B/s": (1e-6, "MB/s"), "fraction": (100.0, "%")}
"""How a unit of a panel is drawn, if not as it is."""
_PALE = 0.14


def panels(frame: pd.DataFrame) -> Chart | None:
    """A small diagram for each panel with data, over time, with the passes shaded; else None.

    Takes `result.panels`. A panel whose lines are always zero is only named in the caption; if all
    are, a sentence stands for the figure.
    """
    if frame.empty:
        return None
    by_title = {str(title): rows for title, rows in frame.groupby("title", sort=False)}
    drawn = {title: rows for title, rows in by_title.items() if rows["value"].any()}
    zero = [title for title in by_title if title not in drawn]
    if not drawn:
        return no_data("What Prometheus recorded", "every line of every panel is zero.")
    times: tuple[PassTime, ...] = frame.attrs.get("pass_times", ())
    begin_s = min([float(frame["unix_s"].min()), *(one.from_s for one in times)])
    rate_s = float(frame["rate_s"].iloc[0])
    states = dict.fromkeys(one.pass_name for one in times)
    look = marks.looks(list(states), "point")
    looks = {
        title: marks.looks([str(line) for line in rows["line"].unique()], "line")
        for title, rows in drawn.items()
    }
    rows_high = [
        max(len(_legend_rows(looks[title])) for title in titles)
        for titles in _in_rows(list(drawn))
    ]  # fmt: skip

    def paint(figure: Figure) -> None:
        ratios = [_PANEL_PX + _LEGEND_PX * lines for lines in rows_high]
        grid = figure.add_gridspec(len(rows_high), _COLUMNS, height_ratios=ratios)
        for at, (title, lines) in enumerate(drawn.items()):
            axes = figure.add_subplot(grid[at // _COLUMNS, at % _COLUMNS])
            for one in times:
                colour = look[one.pass_name].colour
                ends = one.from_s - begin_s, one.to_s - begin_s
                axes.axvspan(*ends, color=colour, alpha=_PALE, linewidth=0)
            _draw_lines(axes, lines, looks[title], begin_s)
            _name(axes, title, str(lines["unit"].iloc[0]), looks[title])
            axes.set_xlim(0, float(frame["unix_s"].max()) - begin_s)
            if at + _COLUMNS >= len(drawn):
                axes.set_xlabel("seconds since the first pass")

    found = f"What Prometheus recorded: {len(drawn)} panels"
    shortest_s = min((one.to_s - one.from_s for one in times), default=rate_s)
    caption = f"Rates and quantiles are computed over {rate_s:.3g} s."
    if shortest_s < rate_s:
        caption += (
            f" The shortest pass took {shortest_s:.3g} s, so passes blur into each other here:"
            " use the tables for single passes."
        )
    if zero:
        caption += f" Always zero: {', '.join(zero)}."
    return draw(
        paint,
        title=found,
        body_px=sum(_PANEL_PX + _LEGEND_PX * lines for lines in rows_high) + 24,
        alt=f"{found}. {_spoken(drawn)}.",
        caption=f"{caption} Shaded: passes. Gates and the ledger do not use these samples.",
        keys={
            state: marks.Area(colour=_paler(look[state].colour)) for state in states
        },
        attrs={"simulated": frame.attrs.get("simulated", False)},
    )  # fmt: skip


def _draw_lines(
    axes: Axes, lines: pd.DataFrame, looks: dict[str, marks.Look], begin_s: float
) -> None:
    factor, _ = _FACTORS.get(str(lines["unit"].iloc[0]), (1.0, ""))
    for name, points in lines.groupby("line", sort=False):
        look = looks[str(name)]
        # Where a sample is missing, the line must have a gap.
        at_s = points["unix_s"].to_numpy() - begin_s
        values = points["value"].to_numpy() * factor
        step_s = pd.Series(at_s).diff().median()
        parts = (pd.Series(at_s).diff() > 1.5 * step_s).cumsum()
        for _, part in parts.groupby(parts):
            axes.plot(
                at_s[part.index], values[part.index], color=look.colour, linestyle=look.dash,
                linewidth=1.4, marker="o" if len(part) == 1 else "", markersize=3,
            )  # fmt: skip


def _name(axes: Axes, title: str, unit: str, looks: dict[str, marks.Look]) -> None:
    """Title, unit and key above a diagram."""
    _, shown = _FACTORS.get(unit, (1.0, unit))
    axes.set_ylim(bottom=0)
    whole = unit in ("requests", "servers", "chunks")
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=whole))
    axes.yaxis.set_major_formatter(lambda tick, _: f"{tick:,.0f}" if tick >= 10 else f"{tick:g}")
    axes.tick_params(labelsize=10)
    rows = _legend_rows(looks)
    columns = max(map(len, rows))
    axes.legend(
        [look.handle() for look in looks.values()], list(looks), fontsize=10, ncols=columns,
        loc="lower left", bbox_to_anchor=(0, 1.0), columnspacing=1.0, labelspacing=0.2,
    )  # fmt: skip
    axes.set_title(f"{title}, {shown}", fontsize=11, pad=4 + _LEGEND_PX * len(rows))


def _legend_rows(looks: Iterable[str]) -> list[list[str]]:
    """The names of a key in rows that are as wide as a diagram, in equal columns."""
    names = list(looks)
    widest = max(34 + text_px(name, size=10) for name in names)
    columns = max(1, int(_LEGEND_ROW_PX // widest))
    return [names[at : at + columns] for at in range(0, len(names), columns)]


def _in_rows(titles: list[str]) -> list[list[str]]:
    return [titles[at : at + _COLUMNS] for at in range(0, len(titles), _COLUMNS)]


def _paler(colour: str) -> str:
    """The colour as it looks where it is shaded, on white."""
    parts = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return "#" + "".join(f"{round(255 - _PALE * (255 - part)):02x}" for part in parts)


def _spoken(drawn: dict[str, pd.DataFrame]) -> str:
    """The highest value of each line."""
    said = []
    for title, lines in drawn.items():
        factor, unit = _FACTORS.get(str(lines["unit"].iloc[0]), (1.0, str(lines["unit"].iloc[0])))
        tops = lines.groupby("line", sort=False)["value"].max() * factor
        each = ", ".join(f"{name} {number(top)}" for name, top in tops.items())
        said.append(f"{title}, highest in {unit}: {each}")
    return "; ".join(said)
