"""What every figure draws alike: the colours, and the second cue of each cache state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from matplotlib.artist import Artist
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

__all__ = ["AMBER", "BLACK", "GREY", "NAMES", "RED", "RULE", "Dash", "Look", "handle", "looks"]

BLACK, GREY, RULE = "#1b2430", "#5c6773", "#e6ebf0"
RED, AMBER = "#b3261e", "#8a5a00"
BLUE, VERMILION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"

NAMES = {
    "ttft_s": "TTFT",
    "ttft_scheduled_s": "TTFT from the scheduled time",
    "tpot_s": "TPOT",
    "e2e_s": "E2E",
    "request_tps": "TPS per request",
    "system_tps": "TPS of the system",
}
"""How each metric is called in a figure."""

Dash = Literal["-", " "] | tuple[float, Sequence[float]]
"""A line style as matplotlib reads it: solid, none, or (offset, on and off lengths)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """Colour, and the marker and dash that say the same to a reader who cannot tell colours."""

    colour: str
    marker: str
    dash: Dash = "-"
    hatch: str = ""
    """Of a hatched area, whose key is a piece of it."""


_KNOWN = {
    "cold": Look(colour=VERMILION, marker="o"),
    "store-warm": Look(colour=BLUE, marker="s", dash=(0, (5, 2))),
    "engine-warm": Look(colour=GREEN, marker="D", dash=(0, (2, 2))),
    "warm": Look(colour=GREEN, marker="D", dash=(0, (2, 2))),
    "cross-instance": Look(colour=PURPLE, marker="^", dash=(0, (6, 2, 1, 2))),
    "off": Look(colour=BLACK, marker="v", dash=(0, (1, 1))),
}
_SPARE_CUES: list[tuple[str, Dash]] = [("P", "-"), ("X", (0, (4, 2))), ("*", (0, (1, 2)))]
_SPARE = [
    Look(colour=colour, marker=marker, dash=dash)
    for marker, dash in _SPARE_CUES
    for colour in (BLUE, VERMILION, GREEN, PURPLE, BLACK, "#7f8c99")
]


def looks(
    names: Sequence[str], shape: Literal["interval", "line", "point"] = "interval"
) -> dict[str, Look]:
    """The look of each name: cache states keep theirs in every figure, others take spare ones.

    `shape` drops the cue that a figure does not draw: an interval is a marker on a solid line, a
    line has no marker, a point no line.
    """
    spare = iter(_SPARE * (1 + len(names) // len(_SPARE)))
    found = {name: _KNOWN[name] if name in _KNOWN else next(spare) for name in names}
    changes: dict[str, Any] = {
        "interval": {"dash": "-"},
        "line": {"marker": ""},
        "point": {"dash": " "},
    }[shape]
    return {name: replace(look, **changes) for name, look in found.items()}


def handle(look: Look, x: float, y: float, *, px: tuple[float, float]) -> Artist:
    """What stands before a name in the key, its left end at `x`, its middle at `y`, 18 `px` wide.

    Its id begins with `axes_`, so that it goes grey with the axes.
    """
    across, up = px
    drawn: Artist
    if look.hatch:
        drawn = Rectangle(
            (x + 3 * across, y - 6 * up), 12 * across, 12 * up,
            facecolor="white", edgecolor=look.colour, hatch=look.hatch, linewidth=0,
        )  # fmt: skip
    else:
        drawn = Line2D(
            [x, x + 9 * across, x + 18 * across], [y] * 3, color=look.colour,
            linestyle=look.dash, marker=look.marker, markevery=[1], markersize=7,
        )  # fmt: skip
    drawn.set_gid(f"axes_key_{x:.4f}_{y:.4f}")
    return drawn
