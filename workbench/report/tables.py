"""A frame as a table of a page."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from html import escape
from math import isnan
from typing import TYPE_CHECKING, Any

from workbench.metrics.gates.gate_effects import Spoil, spoil, touching
from workbench.report.numbers import number

if TYPE_CHECKING:
    import pandas as pd
    from pandas.io.formats.style import Styler

_LABELS = frozenset(
    "arm pass baseline_arm baseline_pass metric prompts what n n_requests n_rounds n_pairs"
    " requests note gate".split()
) | {"arm and state", "part of TTFT (median, ms)"}
"""Columns that say what a row is, and hold no number that a gate could take away."""
_HEADERS = {
    "ttft": "TTFT", "tpot": "TPOT", "e2e": "E2E", "n": "requests", "n_requests": "requests",
    "n_rounds": "rounds", "n_pairs": "pairs", "low": "95 % CI from", "high": "to",
    "request_tps": "decode rate of a request (1/TPOT)",
    "system_tps": "system throughput",
}  # fmt: skip
_STRUCK = "text-decoration: line-through; opacity: .6"


def table(frame: pd.DataFrame) -> Styler | None:
    """The rows without their index; None, so that a cell shows nothing, where there are none.

    `attrs["shows"]` names the kinds of number in it, and `attrs["failed_gates"]` the gates that
    failed: what they strike is struck out row by row, and the caption says why. `attrs["headers"]`
    has headers for columns that `_HEADERS` does not have, `attrs["caption"]` a caption.
    """
    if frame.empty:
        return None
    own = _HEADERS | frame.attrs.get("headers", {})
    headers = [escape(own.get(name, name.replace("_", " "))) for name in map(str, frame.columns)]
    shown = frame.style.hide(axis="index").format(_cell, escape="html")
    shown = shown.relabel_index(headers, axis="columns")
    caption = frame.attrs.get("caption", "")
    if caption:
        shown = shown.set_caption(escape(caption))
    failed, kinds = frame.attrs.get("failed_gates", ()), frame.attrs.get("shows", ())
    if not failed or not kinds:
        return shown
    rows = frame.to_dict("records")
    # A table may have a column for each arm.
    by_column = {arm for arms in touching(failed).values() for arm in arms} & {*frame.columns}

    def does(row: Mapping[Any, Any], column: Hashable) -> Spoil:
        arms = {str(column)} if by_column else _said(row, "arm")
        return spoil(failed, *kinds, passes=_said(row, "pass"), arms=arms)

    numbers: list[Hashable] = [name for name in frame.columns if name not in _LABELS]
    said = dict.fromkeys(does(row, name).said for row in rows for name in numbers)
    if text := "; ".join(filter(None, said)):
        caption = f"{caption} {text[:1].upper()}{text[1:]}.".strip()
        shown = shown.set_caption(escape(caption))
    return shown.apply(
        lambda column: [_STRUCK if does(row, column.name).struck else "" for row in rows],
        subset=numbers,
    )


def _cell(value: Any) -> Any:
    """A measured value with 3 significant digits; `-` where there is none."""
    if not isinstance(value, float):
        return value
    return "-" if isnan(value) else number(value)


def _said(row: Mapping[Any, Any], what: str) -> set[str]:
    """The passes or arms that a row's numbers come from; empty where it does not say."""
    return {str(row[name]) for name in (what, f"baseline_{what}") if name in row}
