"""Plotly figures of the widgets: looks, axes, and buttons that save them as SVG and PNG."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import anywidget
import numpy as np
import traitlets
from plotly import graph_objects as go
from plotly.subplots import make_subplots

from workbench.explorer.sampling import Values
from workbench.report.figures.chart import text_px
from workbench.report.figures.marks import BLACK, RULE, looks

GL_FROM = 2_000
"""With more points, marks are drawn by WebGL; fewer stay vectors in a saved SVG."""
_SYMBOLS = {
    "o": 0, "s": 1, "D": 2, "^": 5, "v": 6, "<": 7, ">": 8, "p": 13, "h": 14, "P": 3, "X": 4,
    "*": 17,
}  # fmt: skip
"""Plotly's numbers for the report's markers, since checking 10,000 names is slow."""
MARKER = {"size": 6, "opacity": 0.65, "line": {"width": 0}}
_LEGEND_FONT, _LEGEND_ROW_PX, _LEGEND_MARK_PX = 11, 18, 45
_NARROW_PX = 520
"""The legend fits in a figure of this width."""
_WIDE = 20
"""Values that spread over a larger factor get a log axis."""
_FONT = "system-ui, sans-serif"


def markers(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Colour and symbol of each series, as on the report's figures."""
    found = looks(names, "point")
    return {
        name: {"color": look.colour, "symbol": _SYMBOLS.get(look.marker, 0)}
        for name, look in found.items()
    }


def colours(names: Sequence[str]) -> dict[str, Any]:
    """A colour scale that gives the number of a series its colour; names are slow to check."""
    count = len(names)
    edges = [(n + end) / count for n in range(count) for end in (0, 1)]
    scale = [[edge, names[n // 2]] for n, edge in enumerate(edges)]
    return {"colorscale": scale, "cmin": -0.5, "cmax": count - 0.5, "showscale": False}


def place_legend(figure: Any, entries: Sequence[str], *, panels_px: int) -> None:
    """Put the legend below the panels, where it fits in a narrow window, and set the height."""
    longest_px = max(text_px(entry, size=_LEGEND_FONT) for entry in entries) if entries else 0
    columns = max(1, int(_NARROW_PX / (_LEGEND_MARK_PX + longest_px)))
    figure.layout.height = panels_px + _LEGEND_ROW_PX * -(-len(entries) // columns)
    figure.layout.legend = {
        "orientation": "h", "xref": "container", "x": 0, "yref": "container", "y": 0,
        "yanchor": "bottom", "itemclick": False, "itemdoubleclick": False, "maxheight": 1,
        "font": {"size": _LEGEND_FONT},
    }  # fmt: skip


def axis_type(values: Values) -> str:
    """`log` if the values spread over a factor of 20, otherwise `linear`."""
    known = values[np.isfinite(values)]
    if not len(known):
        return "linear"
    low, high = float(known.min()), float(known.max())
    return "log" if high > _WIDE * low > 0 else "linear"


class _Board(go.FigureWidget):  # type: ignore[misc]
    on_boxes: Callable[[Sequence[Mapping[str, Any]]], None] | None = None
    """Called with the boxes that the browser shows after a brush, in data units."""

    @traitlets.observe("_js2py_relayout")  # type: ignore[untyped-decorator]
    def _handler_js2py_relayout(self, change: Any) -> None:
        """Take out the boxes of selections: they have undefined values, which plotly refuses.

        Its error takes a second to write. `on_selection` has no box for any panel but the first,
        and tells nothing about a box without points.
        """
        boxes = change["new"] and change["new"]["relayout_data"].pop("selections", None)
        super()._handler_js2py_relayout(change)
        if isinstance(boxes, list) and self.on_boxes is not None:
            self.on_boxes([box for box in boxes if isinstance(box, Mapping)])

    @traitlets.observe("_js2py_pointsCallback")  # type: ignore[untyped-decorator]
    def _handler_js2py_pointsCallback(self, change: Any) -> None:
        """Mark the points of all traces at once; else the browser redraws after each trace."""
        brushed = change["new"] and change["new"]["event_type"] == "plotly_selected"
        with self.batch_update() if brushed else nullcontext():
            super()._handler_js2py_pointsCallback(change)


def panels(rows: int, cols: int, specs: Sequence[Sequence[Any]], **options: Any) -> go.Figure:
    """An empty figure of panels."""
    figure = make_subplots(rows=rows, cols=cols, specs=[list(row) for row in specs], **options)
    # Made for a white page; on a dark page the style sheet inverts the lightness.
    figure.update_layout(
        template="plotly_white", font={"family": _FONT, "color": BLACK, "size": 13},
        margin={"l": 70, "r": 20, "t": 40, "b": 50}, dragmode="select", selectdirection="any",
        autosize=True,
        hoverlabel={"font": {"family": _FONT}},
    )  # fmt: skip
    figure.update_xaxes(gridcolor=RULE, zeroline=False, title_font_size=12, title_standoff=8)
    figure.update_yaxes(gridcolor=RULE, zeroline=False, title_font_size=12)
    return figure


def board(figure: go.Figure) -> Any:
    """The widget of a figure; its modebar selects by box, zooms and resets.

    The figure must be drawn already: what changes before the browser shows it may get lost.
    """
    made = _Board(figure)
    made._config = {
        "displaylogo": False, "displayModeBar": True, "responsive": True,
        "showSendToCloud": False, "modeBarButtonsToRemove": ["lasso2d", "autoScale2d"],
    }  # fmt: skip
    return made


class Front(anywidget.AnyWidget):  # type: ignore[misc]
    """Code that runs in the browser: it keeps arrow keys from JupyterLab, and saves a figure.

    With a `target`, the CSS class of a figure, it shows two buttons; otherwise nothing.
    """

    _esm = Path(__file__).with_name("front.js")
    target = traitlets.Unicode().tag(sync=True)
    filename = traitlets.Unicode().tag(sync=True)


def save_buttons(figure: Any, name: str) -> Front:
    """The buttons of one figure."""
    target = f"wb-figure-{id(figure):x}"
    figure.add_class(target)
    return Front(target=target, filename=name)


def set_axis(axis: Any, label: str, values: Values) -> None:
    """Label and scale of an axis for these values."""
    kind = axis_type(values)
    title = f"{label} (log scale)" if kind == "log" else label
    # Plotly labels 2 to 9 between powers of ten with the digit alone, one above the other.
    ticks = [m * 10.0**n for n in range(-9, 10) for m in (1, 2, 5)] if kind == "log" else None
    axis.update(
        title={"text": title}, type=kind, autorange=True,
        tickmode="array" if ticks else "auto", tickvals=ticks,
        ticktext=[f"{each:,g}" for each in ticks] if ticks else None,
    )  # fmt: skip


def scatter(points: int) -> type[Any]:
    """What draws that many points in all."""
    return go.Scattergl if points > GL_FROM else go.Scatter  # type: ignore[no-any-return]
