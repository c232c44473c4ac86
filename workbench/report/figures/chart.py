"""A finished figure as SVG text, and the drawing board that all figures share.

The board is 780 px wide (one SVG unit is one CSS pixel), with the finding as title, a key under
it, and the axes laid out below so that long labels take the room that they need. Nothing global
is touched: the style holds only while a figure is drawn, and no pyplot figure is opened.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from workbench.metrics.gates.gate_table import KINDS, Kind, spoil
from workbench.report.figures.looks import AMBER, BLACK, GREY, RED, RULE, Look, handle
from workbench.report.numbers import number

__all__ = [
    "WIDTH_PX",
    "Chart",
    "draw",
    "log_ticks",
    "no_data",
    "wrapped",
]

WIDTH_PX = 780

_STYLE: Any = {
    "axes.axisbelow": True,
    "axes.edgecolor": GREY,
    "axes.grid": True,
    "axes.labelcolor": BLACK,
    "axes.labelsize": 13,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 13,
    "axes.titleweight": "bold",
    "figure.facecolor": "white",
    "font.family": "DejaVu Sans",
    "grid.color": RULE,
    "grid.linewidth": 1.0,
    "lines.linewidth": 2.0,
    "lines.solid_capstyle": "butt",
    "savefig.facecolor": "white",
    "svg.fonttype": "none",
    "svg.hashsalt": "workbench",
    "text.color": BLACK,
    "text.parse_math": False,
    "xtick.color": GREY,
    "xtick.labelsize": 12,
    "xtick.major.size": 4,
    "ytick.color": GREY,
    "ytick.labelsize": 12,
    "ytick.major.size": 0,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A figure that shows itself when it is the last expression of a notebook cell."""

    svg: str
    alt: str
    """What the figure shows, in a sentence for a reader who cannot see it."""
    caption: str

    def _repr_mimebundle_(
        self, include: object = None, exclude: object = None
    ) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
        data = {"image/svg+xml": self.svg, "text/plain": self.alt}
        return data, {"image/svg+xml": {"alt": self.alt, "caption": self.caption}}


def draw(
    paint: Callable[[Figure], None],
    *,
    title: str,
    body_px: float,
    alt: str,
    caption: str,
    keys: Mapping[str, Look] | None = None,
    shows: Sequence[Kind] = (),
    intervals: bool = True,
    marks: Mapping[Any, Any] | None = None,
) -> Chart:
    """Draw a figure: `paint` fills the body, `body_px` high; title and key stand above it.

    `shows` names the kinds of number in it, `intervals` says whether any has one.
    `marks` are the `attrs` of the frame that is drawn.
    `simulated` writes that word into the figure, so that it cannot pass for a measurement.
    `failed_gates`, a list of names, greys what is drawn where a gate strikes these kinds, and says
    so in the title, as it says that times are rough; a doubt stands in the caption.
    """
    marks = marks or {}
    simulated = bool(marks.get("simulated"))
    does = spoil(marks.get("failed_gates", ()), *(shows or KINDS), interval=intervals)
    said = f"{does.said[:1].upper()}{does.said[1:]}." if does.effect else ""
    if does.effect in ("struck", "rough"):
        title = f"{said} {title}"
    elif does.effect:
        caption = f"{caption} {said}".strip()
    alt = f"{said} {alt}".strip()
    ink = {"struck": RED, "rough": AMBER}.get(does.effect, BLACK)
    with mpl.rc_context(_STYLE):
        lines = wrapped(title, WIDTH_PX - (110 if simulated else 6), size=15, weight="bold")
        rows = _key_rows(keys or {})
        head_px = 22 * len(lines) + 24 * len(rows) + 10
        height_px = head_px + body_px
        figure = Figure(figsize=(WIDTH_PX / 72, height_px / 72), layout="constrained")
        engine = figure.get_layout_engine()
        assert engine is not None
        engine.set(rect=(0, 0, 1, body_px / height_px), w_pad=3 / 72, h_pad=3 / 72)  # type: ignore[call-arg]

        def write(x: float, y: float, text: str, **style: Any) -> None:
            figure.text(x / WIDTH_PX, 1 - y / height_px, text, va="center", **style)

        for i, line in enumerate(lines):
            write(3, 12 + 22 * i, line, size=15, weight="bold", color=ink)
        if simulated:
            write(WIDTH_PX - 3, 12, "simulated", size=13, weight="bold", color=AMBER, ha="right")
        for i, row in enumerate(rows):
            y = 22 * len(lines) + 16 + 24 * i
            for x, name, look in row:
                figure.add_artist(
                    handle(look, x / WIDTH_PX, 1 - y / height_px, px=(1 / WIDTH_PX, 1 / height_px))
                )
                write(x + 25, y, name, size=13)
        paint(figure)
        text = io.StringIO()
        figure.savefig(text, format="svg", dpi=144, metadata=dict.fromkeys(_METADATA))
    svg = _plain_svg(text.getvalue())
    return Chart(svg=_greyed(svg) if does.struck else svg, alt=alt, caption=caption)


def no_data(title: str, reason: str) -> Chart:
    """A figure that says why there is nothing to see."""
    sentence = f"No data: {reason}"

    def paint(figure: Figure) -> None:
        lines = wrapped(sentence, WIDTH_PX - 6)
        figure.text(3 / WIDTH_PX, 0.32, "\n".join(lines), size=13, color=GREY, va="center")

    return draw(paint, title=title, body_px=56, alt=f"{title}. {sentence}", caption="")


def log_ticks(axes: Axes, low: float, high: float, *, axis: str = "x", most: int = 9) -> None:
    """Make an axis logarithmic from `low` to `high`, with plain numbers at 1, 2 and 5."""
    if high / low < 1.6:
        low, high = low / 1.3, high * 1.3
    low, high = low / (high / low) ** 0.04, high * (high / low) ** 0.04
    ticks: list[float] = []
    for steps in ((1, 2, 5), (1, 3), (1,)):
        all_ticks = [step * 10.0**power for power in range(-9, 13) for step in steps]
        ticks = [tick for tick in all_ticks if low <= tick <= high]
        if len(ticks) <= most:
            break
    if len(ticks) < 3:
        ticks = [float(t) for t in MaxNLocator(5).tick_values(low, high) if low <= t <= high]
    axes.set(**{f"{axis}scale": "log", f"{axis}lim": (low, high)})
    line = axes.xaxis if axis == "x" else axes.yaxis
    line.set_major_locator(FixedLocator(ticks))
    line.set_minor_locator(NullLocator())
    line.set_major_formatter(lambda tick, _: _tick(tick))


def wrapped(text: str, width_px: float, **font: Any) -> list[str]:
    """The text in lines that are at most `width_px` wide."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and _text_px(longer, **font) > width_px:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


_METADATA = ("Date", "Creator", "Format", "Type")


def _tick(value: float) -> str:
    return number(round(value)) if value >= 100 else f"{value:g}"


def _text_px(text: str, *, size: float = 13, weight: str = "normal") -> float:
    """Width of a text in px, in a font that is wider than most: a safe upper bound."""
    font = FontProperties(family="DejaVu Sans", size=size, weight=weight)
    return float(TextPath((0, 0), text, prop=font).get_extents().width) if text.strip() else 0.0


def _key_rows(keys: Mapping[str, Look]) -> list[list[tuple[float, str, Look]]]:
    """The key's entries with their left edges, broken into as many rows as they need."""
    rows: list[list[tuple[float, str, Look]]] = []
    x = float(WIDTH_PX)
    for name, look in keys.items():
        width = 25 + _text_px(name) + 24
        if x + width > WIDTH_PX:
            rows.append([])
            x = 3.0
        rows[-1].append((x, name, look))
        x += width
    return rows


def _greyed(svg: str) -> str:
    """All axes without colour and pale: nobody shall read a number off them in passing."""
    return svg.replace('<g id="axes_', '<g style="filter:grayscale(1);opacity:.45" id="axes_')


def _plain_svg(text: str) -> str:
    """The `<svg>` element alone: in px to two decimals, in the reader's own font, no metadata.

    Its style rule would reach every drawing of a page, so it becomes an attribute of the root.
    """
    svg = re.sub(
        r"<metadata>.*?</metadata>\s*|<!--.*?-->\s*|<defs>\s*<style.*?</style>\s*</defs>\s*",
        "",
        text[text.index("<svg") :],
        flags=re.DOTALL,
    )
    svg = re.sub(r'(width|height)="([\d.]+)pt"', r'\1="\2"', svg, count=2)
    svg = re.sub(
        r' (?:d|x|y|transform)="[^"]*"', lambda m: re.sub(r"(\.\d\d)\d+", r"\1", m[0]), svg
    )
    svg = svg.replace("<svg ", f"<svg {_ROOT} ", 1)
    return _small(svg)


_ROOT = "stroke-linejoin='round' font-family='system-ui, \"Noto Sans\", sans-serif'"


def _small(svg: str) -> str:
    """The same drawing in half the bytes: no line breaks, and no groups or names without a use.

    A page of claims holds dozens of drawings, and matplotlib wraps each tick three times.
    """
    used = set(re.findall(r'#([\w-]+)[)"]', svg))
    svg = re.sub(r">\s+<", "><", svg)
    svg = re.sub(r' transform="rotate\(-?0 [^"]*"', "", svg)
    svg = re.sub(r"(; )?font-family: [^;\"]*(?(1)|(; )?)", "", svg)
    svg = re.sub(
        r' id="([^"]*)"',
        lambda m: m[0] if m[1] in used or m[1].startswith("axes_") else "",
        svg,
    )
    svg = re.sub(r"\s*\n\s*", " ", svg)
    parts: list[str] = []
    bare: list[bool] = []
    for part in re.split(r"(</?g\b[^>]*>)", svg):
        if part.startswith("<g"):
            if part.endswith("/>"):
                continue
            bare.append(part == "<g>")
            if bare[-1]:
                continue
        elif part == "</g>" and bare.pop():
            continue
        parts.append(part)
    return "".join(parts)
