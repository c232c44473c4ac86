"""The explorer: its widgets, what a user does with them, and what is then drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import ipywidgets as widgets
import numpy as np
from numpy.typing import NDArray
from plotly import graph_objects as go

from workbench.errors import WorkbenchError
from workbench.explorer import pictures
from workbench.explorer.sampling import (
    MOST_POINTS,
    Values,
    distribution,
    drawn_note,
    sample,
)
from workbench.explorer.side import side_of
from workbench.explorer.sources import Source
from workbench.explorer.style import style
from workbench.explorer.widget import Widget

_LISTED = 50
_SIDES = ("A", "B")
_NOTHING = np.array([np.nan])
_CHOICE_STYLE, _CHOICE_WIDTH = {"description_width": "60px"}, "250px"
"""Three choices beside each other in a usual window, two in a narrow one."""


class Explorer(Widget):
    """Explores one source, or two side by side."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sides = [side_of(one) for one in sources]
        self._busy = False
        what = sources[0].what
        metrics = [name for name in sources[0].metrics if all(name in s.metrics for s in sources)]
        self.metric = widgets.Dropdown(
            options=metrics, description="Metric", style=_CHOICE_STYLE,
            layout=widgets.Layout(width=_CHOICE_WIDTH),
        )  # fmt: skip
        self.arms, self.passes = (
            _chooser(title, dict.fromkeys(v for s in sources for v in s.rows[column].unique()))
            for title, column in ((sources[0].arm, "arm"), (sources[0].state, "pass"))
        )
        self.note, self.selection = widgets.HTML(), widgets.HTML()
        self.clear = widgets.Button(description="Clear selection", disabled=True)
        self.find = widgets.Text(
            description="Find", placeholder="number or id",
            continuous_update=False,
        )  # fmt: skip
        self.found = widgets.Select(
            options=[], description=what.capitalize(), rows=8,
            layout=widgets.Layout(width="auto"),
        )  # fmt: skip
        self.page = widgets.HTML(
            f"<p>Click a point, or choose one of the {escape(what)} above, to see its details.</p>"
        )
        self._traces: dict[tuple[int, str, str], Any] = {}
        self.figure: Any = self._panels()
        self._draw()
        self.figure, keys = pictures.board(self.figure), list(self._traces)
        self._traces = dict(zip(keys, self.figure.data, strict=True))
        save = pictures.save_buttons(self.figure, f"explore-{sources[0].title.split()[0]}")
        self._connect()
        titles = " and ".join(
            f"{f'{name}: ' if len(sources) > 1 else ''}{s.title}"
            for name, s in zip(_SIDES, sources, strict=False)
        )
        super().__init__(
            [
                widgets.HTML(f"{style()}<h3>{escape(titles)}</h3>"),
                widgets.HBox([self.metric, self.arms, self.passes], layout=_wrapping()),
                self.note,
                self.figure,
                widgets.HBox([save, self.clear], layout=_wrapping()),
                self.selection,
                self.find,
                self.found,
                self.page,
            ]
        )

    def _panels(self) -> go.Figure:
        """The figure with all traces, empty: per side and series two of points, one line."""
        double, count = len(self.sides) > 1, len(self.sides)
        # Panels below each other: beside each other they are too small in a narrow window.
        specs: list[list[Any]] = [
            [{}] * count,
            [{"colspan": count}, *[None] * (count - 1)],
            [{}] * count,
        ]
        self._places = {
            (side, panel): (row, 1 if panel == "spread" else side + 1)
            for side in range(count)
            for row, panel in enumerate(("time", "spread", "share"), 1)
        }
        figure = pictures.panels(3, count, specs, vertical_spacing=0.1, horizontal_spacing=0.1)
        names = list(dict.fromkeys(name for side in self.sides for name in side.names))
        self._looks = pictures.markers(names)
        points = min(MOST_POINTS, sum(len(side.series) for side in self.sides))
        traces, keys = [], []
        solid = {"marker": {"opacity": pictures.MARKER["opacity"]}}  # a line is never dimmed
        for number, side in enumerate(self.sides):
            for panel in ("time", "share"):
                # One trace for all series: a trace costs the browser more than a thousand points.
                traces.append(
                    pictures.scatter(points)(
                        mode="markers", showlegend=False,
                    )
                )  # fmt: skip
                keys.append((number, panel, ""))
            for name in side.names:
                label = f"{_SIDES[number]}: {name}" if double else name
                look = self._looks[name]
                line = {"color": look["color"], "dash": "dash" if number else "solid"}
                traces.append(
                    go.Scatter(mode="lines+markers", name=label, line=line,
                               marker=look | {"size": 7, "maxdisplayed": 4},
                               selected=solid, unselected=solid)
                )  # fmt: skip
                keys.append((number, "spread", name))
        rows, cols = zip(*(self._places[key[:2]] for key in keys), strict=True)
        figure.add_traces(traces, rows=list(rows), cols=list(cols))
        self._traces = dict(zip(keys, figure.data, strict=True))
        entries = [trace.name for trace in traces if trace.name]
        pictures.place_legend(figure, entries, panels_px=820)
        for number, side in enumerate(self.sides):
            time, share = self._axes(figure, number, "time"), self._axes(figure, number, "share")
            which = f"{_SIDES[number]}: " * double
            time[0].title.text = f"{which}{side.source.x_label}"
            share[0].title.text = f"{which}{side.source.share_label}"
            self._axes(figure, number, "spread")[1].title.text = "at or below, %"
            if number:  # the same scale on both sides
                for panel, axes in (("time", time), ("share", share)):
                    axes[1].matches = self._axes(figure, 0, panel)[1].anchor.replace("x", "y")
        return figure

    def _axes(self, figure: Any, side: int, panel: str) -> tuple[Any, Any]:
        plot = figure.get_subplot(*self._places[side, panel])
        return plot.xaxis, plot.yaxis

    def _connect(self) -> None:
        for choice in (self.metric, self.arms, self.passes):
            choice.observe(lambda _: self._chosen(), "value")
        for (number, panel, _), trace in self._traces.items():
            if panel != "spread":
                trace.on_click(lambda _, points, __, side=number: self._clicked(side, points))
            trace.on_deselect(lambda *_: self._deselected())
        self.figure.on_boxes = self._selected
        for number in range(len(self.sides)):
            axis = self._axis_name(number, "time")
            self.figure.layout.on_change(
                lambda *_, number=number: self._zoomed(number), f"{axis}.range", f"{axis}.autorange"
            )
        self.clear.on_click(lambda _: self._cleared())
        self.find.observe(lambda change: self._list(change["new"]), "value")
        self.found.observe(lambda change: self._open(change["new"]), "value")

    def _axis_name(self, side: int, panel: str) -> str:
        """`xaxis2`, the name in the layout."""
        anchor = str(self._axes(self.figure, side, panel)[1].anchor)
        return f"xaxis{anchor.removeprefix('x')}"

    # ---- what the user does

    def _chosen(self) -> None:
        """Other arms, passes or metric: a selection was made on what is no longer drawn."""
        if not self.clear.disabled:
            self._cleared(draw=False)
        self._draw()

    def _clicked(self, side: int, points: Any) -> None:
        if points.point_inds:
            self._show(side, int(self.sides[side].drawn[points.point_inds[0]]))

    def _selected(self, boxes: Sequence[Mapping[str, Any]]) -> None:
        """Select the rows in any of the boxes, also those that are not drawn."""
        if self._busy or not boxes:
            return
        inside: dict[int, NDArray[np.bool_]] = {}
        for box in boxes:
            x, y = (sorted((box[f"{axis}0"], box[f"{axis}1"])) for axis in "xy")
            for number, panel in self._places:
                if self._axes(self.figure, number, panel)[1].anchor == box["xref"]:
                    rows = self.sides[number].inside(panel, self._values(number), x, y)
                    inside[number] = rows | inside.get(number, np.zeros_like(rows))
        self._busy = True
        with self.figure.batch_update():
            for number, side in enumerate(self.sides):
                side.brushed = inside.get(number)
                for panel in ("time", "share"):  # otherwise equal points are not sent again
                    self._traces[number, panel, ""].selectedpoints = None
        self._busy = False
        self._draw(rescale=False)

    def _deselected(self) -> None:
        """A double click; Plotly reports it once for each trace."""
        if not self.clear.disabled:
            self._cleared()

    def _zoomed(self, number: int) -> None:
        if self._busy:
            return
        side, (axis, _) = self.sides[number], self._axes(self.figure, number, "time")
        now = None if axis.autorange is True or not axis.range else (axis.range[0], axis.range[1])
        if now != side.zoomed:
            side.zoomed = now
            if side.chosen.sum() > MOST_POINTS // len(self.sides):
                self._draw(rescale=False)

    def _cleared(self, *, draw: bool = True) -> None:
        for side in self.sides:
            side.brushed = None
        self._busy = True
        # Plotly's widget does not know the box that the browser drew, but can replace it.
        self.figure.layout.selections = [{"x0": 0, "x1": 0, "y0": 0, "y1": 0}]
        self.figure.layout.selections = ()
        self._busy = False
        if draw:
            self._draw(rescale=False)

    # ---- what is shown

    def _values(self, number: int) -> Values:
        return self.sides[number].source.metrics[self.metric.value]

    def _draw(self, *, rescale: bool = True) -> None:
        """Redraw all panels from the chosen rows."""
        if self.metric.value is None:
            self.note.value = "<p>No row has a value.</p>"
            return
        self._busy = True
        with self.figure.batch_update():
            counts = [self._draw_side(number, rescale) for number in range(len(self.sides))]
        self._busy = False
        drawn, total = (sum(count[i] for count in counts) for i in (0, 1))
        lines = [drawn_note(drawn, total, self.sides[0].source.what)]
        said = [side.source.notes for side in self.sides]
        both = [note for note in said[0] if all(note in notes for notes in said)]
        lines[0] = " ".join([*lines, *both])
        for name, notes in zip(_SIDES, said, strict=False):
            if own := " ".join(note for note in notes if note not in both):
                lines.append(f"{name}: {own}")
        self.note.value = "".join(f"<p>{escape(line)}</p>" for line in lines)
        self.clear.disabled = all(side.brushed is None for side in self.sides)
        self.selection.value = self._summary()
        self._list(self.find.value)

    def _draw_side(self, number: int, rescale: bool) -> tuple[int, int]:
        """Draw one side; returns how many rows are drawn, and of how many."""
        side, values = self.sides[number], self._values(number)
        side.choose(values, self.arms.value, self.passes.value)
        x, chosen = side.x, side.chosen
        near = chosen if rescale else side.near()
        groups = [np.flatnonzero(near & (side.series == n)) for n in range(len(side.names))]
        parts = sample(groups, values, side.ranks, most=MOST_POINTS // len(self.sides))
        side.drawn = at = np.concatenate([*parts, np.zeros(0, np.int64)])
        marked = None if side.brushed is None else np.flatnonzero(side.brushed[at])
        counts = [len(part) for part in parts]
        symbols = [self._looks[name]["symbol"] for name in side.names]
        marker = pictures.MARKER | {
            "color": side.series[at], "symbol": np.repeat(symbols, counts).tolist(),
        } | pictures.colours([self._looks[name]["color"] for name in side.names])  # fmt: skip
        texts = np.repeat(side.names, counts)
        numbered = side.source.numbered
        which = ", ".join(f"{name} %{{customdata[{n}]}}" for n, name in enumerate(numbered))
        numbers = np.column_stack([column[at] for column in numbered.values()])
        # When a box is removed, Plotly reports an empty selection late: then no point is dimmed.
        dimmed = pictures.MARKER["opacity"] if side.brushed is None else 0.1
        of = {"time": (x, side.source.x_label), "share": (side.share, side.source.share_label)}
        for panel, (across, label) in of.items():
            self._traces[number, panel, ""].update(
                x=across[at], y=values[at], text=texts, customdata=numbers, marker=marker,
                selectedpoints=marked, unselected={"marker": {"opacity": dimmed}},
                hovertemplate=f"%{{text}}, {which}<br>{self.metric.value}: %{{y:,.4g}}"
                f"<br>{label}: %{{x:,.4g}}<extra></extra>",
            )  # fmt: skip
        for series, name in enumerate(side.names):
            of_series = side.series == series
            line = values[side.picked & of_series]
            # Without any point Plotly would take it off the legend.
            below, percent = distribution(line) if len(line) else (_NOTHING, _NOTHING)
            # Plotly's widget drops from a trace what a batch sets on other traces only.
            marker = pictures.MARKER | self._looks[name] | {"size": 7}
            self._traces[number, "spread", name].update(
                x=below, y=percent, visible=bool((chosen & of_series).any()), marker=marker,
                hovertemplate=f"%{{fullData.name}}<br>{self.metric.value}: %{{x:,.4g}}"
                "<br>at or below: %{y:.1f} %<extra></extra>",
            )  # fmt: skip
        if rescale:
            label, shown = self.metric.value, values[chosen]
            time, share_axes = (self._axes(self.figure, number, p) for p in ("time", "share"))
            for axis in (time[1], share_axes[1], self._axes(self.figure, number, "spread")[0]):
                pictures.set_axis(axis, label, shown)
            if number:  # the panels to the left have the label
                time[1].title.text = share_axes[1].title.text = ""
            if side.zoomed is not None:
                time[0].autorange = True
                side.zoomed = None
        return len(at), int(near.sum())

    def _summary(self) -> str:
        """Count, median and p90 of the selected rows, by series."""
        if all(side.brushed is None for side in self.sides):
            return ""
        lines = []
        for number, side in enumerate(self.sides):
            prefix = f"{_SIDES[number]}: " if len(self.sides) > 1 else ""
            for name, values in side.selected(self._values(number)):
                low, high = np.percentile(values, [50, 90])
                lines.append(
                    f"<tr><td>{escape(prefix + name)}</td><td>{len(values):,}</td>"
                    f"<td>{low:,.4g}</td><td>{high:,.4g}</td></tr>"
                )
        head = f"<tr><th>selected</th><th>{self.sides[0].source.what}</th><th>median</th>"
        metric = escape(str(self.metric.value))
        body = (
            f"{head}<th>p90</th></tr>{''.join(lines)}"
            if lines
            else (f"<tr><td>No {self.sides[0].source.what} in this box.</td></tr>")
        )
        return f"<table><caption>Selection, {metric}</caption>{body}</table>"

    def _list(self, wanted: str) -> None:
        """The rows that match `wanted`, otherwise those with the largest values."""
        wanted = wanted.strip()
        options: list[tuple[str, tuple[int, int]]] = []
        for number, side in enumerate(self.sides):
            values = self._values(number)
            rows = side.largest(values, wanted, _LISTED)
            prefix = f"{_SIDES[number]}: " if len(self.sides) > 1 else ""
            options += [
                (f"{values[row]:,.4g}  {prefix}{side.source.name(int(row))}", (number, int(row)))
                for row in rows
            ]
        if wanted and not options:
            what = self.sides[0].source.what
            self.page.value = f"<p>No match among these {escape(what)}: {escape(wanted)}</p>"
        self._busy = True
        self.found.options = options
        self.found.value = None
        self._busy = False

    def _open(self, chosen: tuple[int, int] | None) -> None:
        if chosen is not None and not self._busy:
            self._show(*chosen)

    def _show(self, side: int, row: int) -> None:
        try:
            self.page.value = self.sides[side].source.page(row)
        except WorkbenchError as error:
            self.page.value = f"<p>{escape(str(error))}</p>"


def _chooser(title: str, values: dict[Any, None]) -> Any:
    """A list to choose from; hidden where there is only one thing."""
    names = list(values)
    return widgets.SelectMultiple(
        options=names, value=names, description=title, rows=max(2, min(6, len(names))),
        style=_CHOICE_STYLE,
        layout=widgets.Layout(width=_CHOICE_WIDTH, display="none" if len(names) == 1 else None),
    )  # fmt: skip


def _wrapping() -> Any:
    return widgets.Layout(flex_flow="row wrap", align_items="flex-start")
