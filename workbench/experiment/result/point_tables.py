"""Frames and tables of operating points and of the decision, for figures and readers."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan
from typing import TYPE_CHECKING

from workbench.experiment.load_unit import load_text
from workbench.experiment.result.facts import RunFacts
from workbench.experiment.result.finding_rows import DecisionRow, PointRow
from workbench.metrics.gates.gate_effects import spoil, told
from workbench.metrics.statistics import Estimate, three_digits
from workbench.params.price import Price

if TYPE_CHECKING:
    import pandas as pd

_ESTIMATES = ("user_tps", "system_tps", "gpu_tps", "output_cost", "total_cost", "energy",
              "energy_above_idle")  # fmt: skip
_NO_UNIT = ("cpu", "simulated")
"""Platforms on which an instance stands for a GPU."""


def unit_of(run: RunFacts) -> str:
    """What throughput is divided by: `GPU`, or `instance` where there are none."""
    return "instance" if run.machine.get("platform") in _NO_UNIT else "GPU"


def point_frame(points: Sequence[PointRow]) -> pd.DataFrame:
    """One row per arm and cold pass; each estimate has its ends in columns `_low` and `_high`."""
    import pandas as pd

    plain = ("arm", "gpus", "rate_per_s", "users", "n_requests", "n_rounds", "power_w")
    rows = []
    for point in points:
        row = {"pass": point.pass_name} | {name: getattr(point, name) for name in plain}
        for name in _ESTIMATES:
            found: Estimate = getattr(point, name)
            row |= {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
        rows.append(row)
    return pd.DataFrame(rows)


def point_table(run: RunFacts) -> pd.DataFrame:
    """The operating points with units and intervals in their cells.

    Cost and energy have columns where they are known.
    """
    import pandas as pd

    unit = unit_of(run)
    shown = []
    for point in run.points:
        shown.append(
            {
                "arm": point.arm,
                "pass": point.pass_name,
                "requests": f"{point.n_requests} in {point.n_rounds} rounds",
                "tok/s per user": _cell(point.user_tps),
                "tok/s": _cell(point.system_tps),
                f"tok/s per {unit}": _cell(point.gpu_tps),
            }
            | _cost_and_energy(run, point)
        )
    return pd.DataFrame(shown)


def decision_table(run: RunFacts) -> pd.DataFrame:
    """One row for each arm: the highest load within the limits, and what would limit it next."""
    import pandas as pd

    points = {(point.arm, point.pass_name): point for point in run.points}
    shown = []
    for row in run.decisions:
        ends = f" [{100 * row.share_low:.0f}, {100 * row.share_high:.0f}]"
        point = points.get((row.arm, row.pass_name))
        cells = {
            "arm": row.arm,
            f"{unit_of(run)}s": str(row.gpus or "unknown"),
            f"{'req/s' if row.load == 'rate' else 'users'} within limits": _load(row),
            "requests within limits": f"{100 * row.share:.0f} %{ends}",
            "KV headroom": _room(row),
        }
        if point is not None and not isnan(row.met):
            known = _cost_and_energy(run, point)
            cells |= {name: cell for name, cell in known.items() if "output token" in name}
        shown.append(cells | {"gate": row.gate})
    table = pd.DataFrame(shown).fillna("-")
    return table[[*table.columns.drop("gate"), "gate"]] if shown else table


def decision_lines(run: RunFacts) -> list[str]:
    """The decision in sentences: what each arm serves, why it is not known better, and power."""
    notes = [
        told(
            f"{row.arm}: {row.note}.",
            spoil(run.failed_gates, "times", arms=[row.arm], passes=[row.pass_name]),
        )
        for row in run.decisions
        if row.note
    ]
    return [text for text in (run.decision, *notes, run.power) if text]


def _load(row: DecisionRow) -> str:
    """`6.2`, `6.2 or more`, `about 6.2`, `less than 2`."""
    if isnan(row.met):
        return f"less than {load_text(row.missed)}"
    if not row.settled:
        return f"about {load_text(row.met)}"
    return f"{load_text(row.met)}{' or more' * isnan(row.missed)}"


def _room(row: DecisionRow) -> str:
    """`324 hand-offs (at most 4 at once)`, or requests where nothing is handed off."""
    if isnan(row.head_room):
        return "not known"
    split = not isnan(row.hand_offs)
    used = f" ({row.hand_offs:.0f} used)" if split else ""
    return f"{row.head_room:,.0f} {'hand-offs' if split else 'requests'}{used}"


def _cost_and_energy(run: RunFacts, point: PointRow) -> dict[str, str]:
    """Cells that exist only where a price was given, or energy was measured in some pass."""
    cells = {}
    price = Price.parse(str(run.parameters.get("gpu_hour_price") or ""))
    if price:
        cells[f"{price.currency} per M output tokens"] = _cell(point.output_cost)
        cells[f"{price.currency} per M tokens"] = _cell(point.total_cost)
    if run.energy:
        cells["J per output token"] = _cell(point.energy)
        cells["J above idle"] = _cell(point.energy_above_idle)
        cells["mean W"] = three_digits(point.power_w)
    return cells


def _cell(found: Estimate) -> str:
    """`2.70 [2.46, 2.96]`; the reason where it is unknown."""
    if isnan(found.value):
        return f"not known ({found.note})" if found.note else "not known"
    ends = "" if isnan(found.low) else f" [{three_digits(found.low)}, {three_digits(found.high)}]"
    return f"{three_digits(found.value)}{ends}"
