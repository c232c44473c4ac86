"""A finished figure as SVG text, and the board that every figure is drawn on.

The board is 780 px wide (one SVG unit is one CSS pixel): the finding as title, a key, the axes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from itertools import groupby
from typing import Any, ParamSpec, TypeVar, cast
from xml.etree import ElementTree

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.ft2font import LoadFlags
from matplotlib.text import Text

from workbench.metrics.gates.gate_effects import Failed, Spoil, of_the_run, spoil, touching
from workbench.metrics.gates.gate_table import KINDS, Kind
from workbench.report.figures.marks import AMBER, BLACK, GREY, RED, RULE, Key

WIDTH_PX = 780
_LONG_ALT = 1600
_BETWEEN_PX = 18
"""Between the charts of two models."""

_STYLE: Any = {
    "axes.axisbelow": True,
    "axes.edgecolor": GREY,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.labelcolor": BLACK,
    "axes.labelsize": 13,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 13,
    "axes.titleweight": "bold",
    "figure.constrained_layout.h_pad": 3 / 72,
    "figure.constrained_layout.w_pad": 3 / 72,
    "figure.constrained_layout.wspace": 0.04,
    "figure.dpi": 72,
    "figure.facecolor": "white",
    "figure.labelsize": 13,
    "font.family": "DejaVu Sans",
    "grid.color": RULE,
    "grid.linewidth": 1.0,
    "hatch.linewidth": 1.0,
    "legend.borderaxespad": 0,
    "legend.borderpad": 0.3,
    "legend.columnspacing": 1.8,
    "legend.fontsize": 13,
    "legend.frameon": False,
    "legend.handlelength": 1.4,
    "legend.handletextpad": 0.55,
    "legend.labelspacing": 0.6,
    "lines.linewidth": 2.0,
    "lines.solid_capstyle": "butt",
    "path.simplify_threshold": 0.5,
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


_Given = ParamSpec("_Given")
_Drawn = TypeVar("_Drawn", bound=Chart | None)


def for_each_model(figure: Callable[_Given, _Drawn]) -> Callable[_Given, _Drawn]:
    """Draws a figure once for each model of its frames (column `model`), below one another.

    Without that column, or with one model, it is the figure itself.
    """

    @wraps(figure)
    def drawn(*frames: _Given.args, **options: _Given.kwargs) -> _Drawn:
        given = [frame for frame in frames if isinstance(frame, pd.DataFrame) and "model" in frame]
        models = list(dict.fromkeys(name for frame in given for name in frame["model"].dropna()))
        if len(models) < 2:
            return figure(*frames, **options)
        charts = {}
        for model in models:
            own: Any = [_of_model(f, model) if isinstance(f, pd.DataFrame) else f for f in frames]
            charts[model] = figure(*own, **options)
        shown = {model: chart for model, chart in charts.items() if chart is not None}
        return cast(_Drawn, _below_one_another(shown) if shown else None)

    return drawn


def _of_model(frame: pd.DataFrame, model: str) -> pd.DataFrame:
    """The rows of one model, and what failed of its arms; their labels without the model."""
    if "model" not in frame:
        return frame
    attrs, lead = dict(frame.attrs), f"{model} "
    mine = frame[frame["model"] == model].copy()
    sides = [side for side in ("arm", "baseline_arm") if side in mine]
    arms = {arm for side in sides for arm in mine[side].astype(str)}
    for side in sides:
        mine[side] = mine[side].astype(str).str.removeprefix(lead)
    failed = touching(attrs.get("failed_gates", {}), arms=arms)
    attrs["failed_gates"] = {
        gate: tuple(arm.removeprefix(lead) for arm in of) for gate, of in failed.items()
    }
    mine.attrs = attrs | {"model": model}
    return mine


def _below_one_another(charts: Mapping[str, Chart]) -> Chart:
    """The charts of several models as one."""
    drawings = [ElementTree.fromstring(chart.svg) for chart in charts.values()]
    heights = [float(drawing.attrib["height"]) for drawing in drawings]
    root = ElementTree.Element(drawings[0].tag, dict(drawings[0].attrib))
    total = sum(heights) + _BETWEEN_PX * (len(charts) - 1)
    root.attrib |= {"height": f"{total:g}", "viewBox": f"0 0 {WIDTH_PX} {total:g}"}
    y = 0.0
    for drawing, height in zip(drawings, heights, strict=True):
        for name in _ROOT:
            drawing.attrib.pop(name, None)
        drawing.set("y", f"{y:g}")
        root.append(drawing)
        y += height + _BETWEEN_PX
    captions = {chart.caption: None for chart in charts.values()}
    said = [f"{name}: {chart.caption}" for name, chart in charts.items()]
    return Chart(
        svg=ElementTree.tostring(root, encoding="unicode"),
        alt=_short(" ".join(chart.alt for chart in charts.values())),
        caption=next(iter(captions)) if len(captions) == 1 else " ".join(said),
    )


def draw(
    paint: Callable[[Figure], None],
    *,
    title: str,
    body_px: float,
    alt: str,
    caption: str = "",
    keys: Mapping[str, Key] | None = None,
    shows: Sequence[Kind] = (),
    intervals: bool = True,
    attrs: Mapping[Any, Any] | None = None,
) -> Chart:
    """Draw a figure: `paint` fills the body, `body_px` high; title and key stand above it.

    `shows` names the kinds of number in it, `intervals` says whether any has one.
    `attrs` are those of the frame that is drawn. `simulated` writes that word into the figure, so
    that it cannot pass for a measurement. `failed_gates` writes "rough" or "do not use", and greys
    what must not be used; the caption says which gate failed. One that concerns some arms names
    them, colours their labels and greys nothing.
    """
    attrs = attrs or {}
    if model := attrs.get("model"):  # one of several, see for_each_model
        title, alt = f"{model}: {title}", f"{model}: {alt}"
    failed: Failed = attrs.get("failed_gates", ())
    does, said = _marks(of_the_run(failed), shows, intervals=intervals)
    badges = ["simulated"] if attrs.get("simulated") else []
    badges += {"struck": ["do not use"], "rough": ["rough"]}.get(does.effect, [])
    ink = RED if does.struck else AMBER
    by_gates: dict[str, list[str]] = {}
    struck: list[str] = []
    for arm in dict.fromkeys(arm for arms in touching(failed).values() for arm in arms):
        own, mark = _marks(touching(failed, arms=[arm]), shows, intervals=intervals)
        if own.effect != does.effect and mark:
            by_gates.setdefault(mark, []).append(arm)
            struck += [arm] * own.struck
    said = " ".join([said, *(f"{', '.join(arms)}: {mark}" for mark, arms in by_gates.items())])
    said = said.strip()
    if struck:
        ink = RED
        badges.append(f"do not use {struck[0] if len(struck) == 1 else f'{len(struck)} arms'}")
    with mpl.rc_context(_STYLE):
        figure = _board(
            title, keys or {}, body_px, badge=", ".join(badges), ink=ink, grey=does.struck
        )
        paint(figure)
        for label in figure.findobj(Text):
            lines = label.get_text().splitlines()
            if any(_names(line, arm) for line in lines for arm in struck):
                label.set_color(RED)
        text = io.StringIO()
        metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(text, format="svg", dpi=144, metadata=metadata)
    svg = _page_svg(text.getvalue(), struck=does.struck)
    return Chart(svg=svg, alt=_short(f"{said} {alt}".strip()), caption=f"{caption} {said}".strip())


def _names(line: str, arm: str) -> bool:
    """Whether a line of a label is of an arm: `1p1d`, `vs 1p1d` or `1p1d, cold: decode`."""
    rest = line.removeprefix("vs ")
    return rest.startswith(arm) and rest[len(arm) : len(arm) + 1] in ("", ",", ":")


def _marks(failed: Failed, shows: Sequence[Kind], *, intervals: bool) -> tuple[Spoil, str]:
    """What gates do to a figure, and the sentence of its caption."""
    does = spoil(failed, *(shows or KINDS), interval=intervals)
    kinds = [
        kind for kind in shows if spoil(failed, kind, interval=intervals).effect == does.effect
    ]
    return does, _graded(does, " and ".join(_TOLD[kind] for kind in kinds) or "numbers")


_TOLD: Mapping[Kind, str] = {
    "counts": "token counts",
    "ratios": "ratios",
    "times": "times",
    "tails": "tails",
    "text": "texts",
}


def _graded(does: Spoil, what: str) -> str:
    """`Times are rough (order of magnitude only): client did not keep up.`, or nothing."""
    form = {
        "struck": "{} are not valid (do not use): {}.",
        "rough": "{} are rough (order of magnitude only): {}.",
        "doubt": "Use {} with caution: {} (see doubts).",
        "": "",
    }[does.effect]
    said = form.format(what, does.why)
    return f"{said[:1].upper()}{said[1:]}"


def _board(
    title: str, keys: Mapping[str, Key], body_px: float, *, badge: str, ink: str, grey: bool
) -> Figure:
    """A figure with its title and key at the top, whose layout keeps to the room below them."""
    figure = Figure(figsize=(WIDTH_PX / 72, 1), layout="constrained")
    word = figure.text(
        1 - 3 / WIDTH_PX, 1, badge, size=13, weight="bold", color=ink, ha="right", va="top"
    )
    free_px = WIDTH_PX - 6 - 1.2 * word.get_window_extent().width
    heading = figure.text(
        3 / WIDTH_PX, 1, wrapped(title, free_px, size=15, weight="bold"),
        size=15, weight="bold", va="top", linespacing=1.25, color=GREY if grey else BLACK,
    )  # fmt: skip
    head_px = heading.get_window_extent().height + 10
    tops_px = []
    legends = []
    for names in _key_rows(list(keys)):
        handles = [keys[name].handle() for name in names]
        legends.append(figure.legend(handles, names, ncols=len(names), loc="upper left"))
        tops_px.append(head_px)
        head_px += legends[-1].get_window_extent().height + 2
    height_px = head_px + body_px
    figure.set_figheight(height_px / 72)
    for legend, top_px in zip(legends, tops_px, strict=True):
        legend.set_bbox_to_anchor((0, 1 - top_px / height_px), figure.transFigure)
    engine = figure.get_layout_engine()
    assert engine is not None
    engine.set(rect=(0, 0, 1, body_px / height_px))  # type: ignore[call-arg]
    return figure


def _short(alt: str) -> str:
    """A text that somebody can listen to: its end is left out where it is very long."""
    if len(alt) <= _LONG_ALT:
        return alt
    return f"{alt[:_LONG_ALT].rpartition(' ')[0]} ... The tables of the page have all numbers."


def no_data(title: str, reason: str) -> Chart:
    """A figure that says why there is nothing to see."""
    sentence = f"No data: {reason}"

    def paint(figure: Figure) -> None:
        lines = wrapped(sentence, WIDTH_PX - 6)
        figure.text(3 / WIDTH_PX, 0.32, lines, size=13, color=GREY, va="center")

    return draw(paint, title=title, body_px=56, alt=f"{title}. {sentence}")


def wrapped(text: str, width_px: float, **font: Any) -> str:
    """The text in lines that are at most `width_px` wide."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and text_px(longer, **font) > width_px:
            lines.append(word)
        else:
            lines[-1] = longer
    return "\n".join(lines)


def _key_rows(names: Sequence[str]) -> list[list[str]]:
    """The names of a key, row by row."""
    rows: list[list[str]] = []
    free_px = 0.0
    for name in names:
        width_px = 48 + text_px(name)
        if not rows or width_px > free_px:
            rows.append([])
            free_px = WIDTH_PX + 20  # no gap behind the last
        rows[-1].append(name)
        free_px -= width_px
    return rows


def text_px(text: str, *, size: float = 13, weight: str = "normal") -> float:
    """Width of a text in px, in a font that is wider than most: a safe upper bound."""
    font = get_font(findfont(FontProperties(family="DejaVu Sans", weight=weight)))
    font.set_size(size, 72)
    font.set_text(text, flags=LoadFlags.NO_HINTING)
    return float(font.get_width_height()[0] / 64)


_SVG = "{http://www.w3.org/2000/svg}"
_ROOT = {
    "class": "our-chart",  # page.css turns its lightness round on a dark page
    "stroke-linejoin": "round",
    "font-family": 'system-ui, "Noto Sans", sans-serif',
}
_SAID_ABOVE = ("font-family", "stroke-linejoin", "stroke-opacity: 0")
"""Styles that each drawn thing repeats, and that the root has or nobody sees."""
_RECTANGLE = re.compile(
    r"M (\S+) (\S+) L (\S+) \2 L \3 (\S+) L \1 \4 (?:L \1 \2 )?z"
)  # fmt: skip
_UPRIGHT = re.compile(r"^M (\S+) (\S+) L \1 (\S+)$")
_LEVEL = re.compile(r"^M (\S+) (\S+) L (\S+) \2$")
_KEPT = (f"{_SVG}g", f"{_SVG}text")
"""Groups are not grouped again, and a text keeps its own style."""
_WHOLE = re.compile(r"\.0(?!\d)")
_TENTHS = re.compile(r"(\.\d)\d+")
ElementTree.register_namespace("", _SVG.strip("{}"))
ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")


def _page_svg(text: str, *, struck: bool) -> str:
    """The drawing as a page takes it: in px, in the reader's font, half as long.

    Where it is `struck`, axes and key are pale and grey, so that nobody takes a number from them
    in passing.
    """
    # its names are hashes of ten digits; five tell all drawings of a page apart
    text = re.sub(r"\b([mp][0-9a-f]{5})[0-9a-f]{5}\b", r"\1", text).replace("xlink:href", "href")
    root = ElementTree.fromstring(text)
    # matplotlib's one style rule, `* {stroke-linejoin: round}`, would reach all drawings of a page
    root.remove(root[0])
    root.attrib |= {side: root.attrib[side].removesuffix("pt") for side in ("width", "height")}
    root.attrib |= _ROOT
    used = set(re.findall(r"#([\w-]+)", text))
    axes: set[ElementTree.Element] = set()
    for node in root.iter():
        name = node.attrib.pop("id", "")
        if name.startswith("matplotlib.axis_"):
            axes.add(node)
        drawn = name.startswith(("axes_", "legend_"))
        if drawn or name in used:
            node.set("id", name)
        if drawn and struck:
            node.set("style", "filter:grayscale(1);opacity:.45")
        node.tail = None
        if node.tag != f"{_SVG}text":
            node.text = None
        if node.get("transform", "").startswith("rotate(-0 "):
            del node.attrib["transform"]
        for numbers in node.attrib.keys() & {"d", "x", "y", "transform"}:
            short = _TENTHS.sub(r"\1", " ".join(node.attrib[numbers].split()))
            node.set(numbers, _WHOLE.sub("", short))
        if style := node.get("style"):
            parts = [part for part in style.split("; ") if not part.startswith(_SAID_ABOVE)]
            node.set("style", ";".join(parts).replace(": ", ":"))
        if path := node.get("d"):
            path = _RECTANGLE.sub(_sides, path)
            path = _LEVEL.sub(r"M\1 \2H\3", _UPRIGHT.sub(r"M\1 \2V\3", path))
            node.set("d", path.replace(" L ", "L").replace("M ", "M"))
    _flatten(root, axes)
    return ElementTree.tostring(root, encoding="unicode")


def _sides(corner: re.Match[str]) -> str:
    x, y, right, bottom = corner.groups()
    return f"M{x} {y}H{right}V{bottom}H{x}z"


def _flatten(parent: ElementTree.Element, axes: Collection[ElementTree.Element]) -> None:
    """Take out groups that say nothing, and say once what neighbours have in common.

    Within `axes`, whose things do not overlap, all lines become neighbours, and all ticks.
    """
    flat: list[ElementTree.Element] = []
    for node in list(parent):
        _flatten(node, axes)
        if node.tag == f"{_SVG}g" and not node.attrib:
            flat += sorted(node, key=lambda child: child.tag) if node in axes else list(node)
        else:
            flat.append(node)
    parent[:] = flat
    for name in ("clip-path", "style"):
        _group(parent, name)


def _group(parent: ElementTree.Element, name: str) -> None:
    """Groups of at least 3 neighbours that have the same attribute, which the group takes over."""
    flat = list(parent)
    parent[:] = []
    for value, run in groupby(flat, lambda node: node.get(name)):
        alike = list(run)
        kept = any(node.tag in _KEPT or "transform" in node.attrib for node in alike)
        faded = ";opacity:" in f";{value}"  # a group fades as a whole
        if value is None or len(alike) < 3 or kept or faded:
            parent.extend(alike)
            continue
        for node in alike:
            del node.attrib[name]
        group = ElementTree.SubElement(parent, f"{_SVG}g", {name: value})
        group.extend(alike)
        if name == "clip-path":
            _group(group, "style")
