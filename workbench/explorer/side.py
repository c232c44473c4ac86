"""One side of the explorer: the rows of a source, and which are chosen, selected and shown."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from workbench.explorer.sampling import Rows, Values, shuffled
from workbench.explorer.sources import Source


@dataclass(slots=True)
class Side:
    """One source, and which of its rows are chosen and drawn."""

    source: Source
    names: list[str]
    """Of the series."""
    series: Rows
    """The number of each row's series."""
    arms: tuple[Rows, list[str]]
    """The number of each row's arm, and the names."""
    passes: tuple[Rows, list[str]]
    x: Values
    share: Values
    ranks: Rows
    brushed: NDArray[np.bool_] | None = None
    """The rows in a selection; None without one."""
    zoomed: tuple[float, float] | None = None
    """The part of the time axis that is shown; None for all of it."""
    chosen: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, bool))
    drawn: Rows = field(default_factory=lambda: np.zeros(0, np.int64))
    """The rows that are drawn, in the order of the traces."""

    @property
    def picked(self) -> NDArray[np.bool_]:
        """The chosen rows, only the selected ones if there are any."""
        return self.chosen if self.brushed is None else self.chosen & self.brushed

    def choose(self, values: Values, arms: Collection[str], passes: Collection[str]) -> None:
        """Choose the rows of these arms and passes that have a value."""
        self.chosen = np.isfinite(values)
        for (codes, names), choice in ((self.arms, arms), (self.passes, passes)):
            self.chosen &= np.array([name in choice for name in names], dtype=bool)[codes]

    def near(self) -> NDArray[np.bool_]:
        """The chosen rows in the part of the time axis that is shown."""
        return self.chosen & _between(self.x, *self.zoomed) if self.zoomed else self.chosen

    def inside(
        self, panel: str, values: Values, x: Sequence[float], y: Sequence[float]
    ) -> NDArray[np.bool_]:
        """The rows whose point in a panel (time, share or spread) is in a box."""
        if panel != "spread":
            across = self.x if panel == "time" else self.share
            return _between(across, *x) & _between(values, *y)
        inside = np.zeros(len(values), bool)
        for series in range(len(self.names)):
            rows = np.flatnonzero(self.picked & (self.series == series))  # those of the curve
            percent = 100 * (np.argsort(np.argsort(values[rows])) + 1) / max(1, len(rows))
            inside[rows] = _between(values[rows], *x) & _between(percent, *y)
        return inside

    def selected(self, values: Values) -> Iterator[tuple[str, Values]]:
        """The values of the selected rows, by series; nothing without a selection."""
        for series, name in enumerate(self.names if self.brushed is not None else ()):
            if len(found := values[self.picked & (self.series == series)]):
                yield name, found

    def largest(self, values: Values, wanted: str, most: int) -> Rows:
        """The picked rows that match `wanted` (id, or number at its end), largest values first."""
        rows = np.flatnonzero(self.picked)
        if wanted:
            ids = self.source.rows["request_id"].iloc[rows].astype(str)
            number_of = ids.str.rsplit("-", n=1).str[-1]
            rows = rows[((ids == wanted) | (number_of == wanted)).to_numpy(bool)]
        return rows[np.argsort(-values[rows], kind="stable")[:most]]


def _between(values: Values, low: float, high: float) -> NDArray[np.bool_]:
    return (values >= low) & (values <= high)


def side_of(source: Source) -> Side:
    """A source with its series: passes, arms, or both where there are several of each."""
    rows = source.rows
    (arms, arm_names), (passes, pass_names) = _codes(rows["arm"]), _codes(rows["pass"])
    both = arms * max(1, len(pass_names)) + passes
    present, series = np.unique(both, return_inverse=True)
    names = []
    for arm, state in zip(*np.divmod(present, max(1, len(pass_names))), strict=True):
        parts = [pass_names[state]] if len(arm_names) <= 1 else [arm_names[arm]]
        parts += [pass_names[state]] if min(len(arm_names), len(pass_names)) > 1 else []
        names.append(", ".join(parts))
    return Side(
        source=source, names=names, series=series,
        arms=(arms, arm_names), passes=(passes, pass_names),
        x=rows["x"].to_numpy(float), share=rows["share"].to_numpy(float),
        ranks=shuffled(len(rows)),
    )  # fmt: skip


def _codes(column: Any) -> tuple[Rows, list[str]]:
    """A number for each value, in the order in which they come, and their names."""
    codes, names = pd.factorize(column)
    return codes, [str(name) for name in names]
