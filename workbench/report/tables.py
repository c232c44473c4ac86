"""A frame as a table of a page."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd
    from pandas.io.formats.style import Styler

__all__ = ["table"]


def table(frame: pd.DataFrame, precision: int = 3) -> Styler | None:
    """The rows without their index; None, so that a cell shows nothing, where there are none."""
    if frame.empty:
        return None
    return frame.style.hide(axis="index").format(precision=precision)
