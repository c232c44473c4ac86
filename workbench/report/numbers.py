"""How a number is written for a reader: 3 significant digits and its unit, or "unknown".

Times come in seconds and are shown in milliseconds below 10 s. Counts (int) are shown exactly.
"""

from __future__ import annotations

from datetime import datetime
from math import floor, isfinite, log10

UNKNOWN = "unknown"


def number(value: float | None) -> str:
    """`18.1`, `0.970`, `3280`, `22,700`; an int is a count and stays exact: `679,800`."""
    if value is None or not isfinite(value):
        return UNKNOWN
    if isinstance(value, int) or value == 0:
        return _grouped(float(value), decimals=0)
    rounded = float(f"{value:.3g}")
    magnitude = floor(log10(abs(rounded)))
    if magnitude < -4:
        return f"{rounded:.2e}"
    return _grouped(rounded, decimals=max(0, 2 - magnitude))


def exactly(value: float) -> str:
    """A value without error: a whole number in full, another with the digits that it has."""
    return number(round(value)) if float(value).is_integer() else f"{value:.4g}"


def time_scale(seconds: float | None) -> tuple[float, str]:
    """The factor and unit that a time of this size is shown in: ms below 10 s, s from there."""
    long = seconds is not None and isfinite(seconds) and abs(seconds) >= 10
    return (1.0, "s") if long else (1000.0, "ms")


def quantity(value: float | None, unit: str) -> str:
    """A number with its unit: `284 ms` (from 0.284 s), `18.1x`, `2.60 %`, `12.3 s`."""
    if value is None or not isfinite(value):
        return UNKNOWN
    factor, shown = time_scale(value) if unit == "s" else (1, unit)
    return f"{number(value * factor)}{'' if shown == 'x' else ' '}{shown}".strip()


def times(value: float) -> str:
    """A factor in a title: `1.05x`, `3.5x`, `18x`."""
    return f"{value:.{2 if value < 2 else 1 if value < 10 else 0}f}x"


def interval(low: float | None, high: float | None, unit: str, value: float | None) -> str:
    """`[16.9, 19.4]` in the unit that `quantity(value, unit)` shows; empty where there is none."""
    if low is None or high is None or not (isfinite(low) and isfinite(high)):
        return ""
    factor = time_scale(value)[0] if unit == "s" else 1
    return f"[{number(low * factor)}, {number(high * factor)}]"


def duration(seconds: float | None) -> str:
    """`45 s`, `14 min`, `1 h 12 min`; empty where it is not known."""
    if seconds is None or not isfinite(seconds):
        return ""
    if seconds < 90:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def moment(text: str | None) -> str:
    """An ISO 8601 time as `2026-11-20 11:02 UTC`; text that is no time stays as it is."""
    try:
        when = datetime.fromisoformat(text or "")
    except ValueError:
        return text or ""
    return f"{when:%Y-%m-%d %H:%M} {when.tzname() or ''}".strip()


def _grouped(value: float, decimals: int) -> str:
    comma = "," if abs(value) >= 1_000 else ""
    return f"{value:{comma}.{decimals}f}"
