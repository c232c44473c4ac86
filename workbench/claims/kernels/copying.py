"""Copy bandwidth of the device: bytes read and written per second."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from workbench.claims.kernels.timing import TORCH, Arm, Clock, compare
from workbench.claims.recipes.recipe import Curve, Outcome, Setting
from workbench.claims.recipes.rounds import launched_recipe
from workbench.claims.recipes.rows import Rows, means
from workbench.claims.verdict.verdict import Measurement


def measure(job: Mapping[str, Any]) -> dict[str, Any]:
    """Rows of one run: the bandwidth of each copy, for each size in MiB.

    McCalpin's STREAM (1995) counts copies this way. Small sizes show caches, not memory.
    """
    import torch

    clock = Clock(device=job["device"])
    rows: list[dict[str, Any]] = []
    for mib in job["mib"]:
        source = torch.ones(mib * 2**20, dtype=torch.uint8, device=job["device"])
        target = torch.empty_like(source)
        arms = {"copy": Arm(call=partial(target.copy_, source))}
        moved_gb = 2 * mib * 2**20 / 1e9
        for timed in compare(clock, arms, quantity="bandwidth", cell=f"{mib} MiB"):
            rows.append({**timed, "value": moved_gb / timed["value"], "unit": "GB/s"})
    return {"rows": rows, "threads": torch.get_num_threads()}


def read(rows: Rows, setting: Setting) -> Outcome:
    """The bandwidth of a copy by its size."""
    cells = means(rows.medians("bandwidth", "copy"))
    name, largest = list(cells.items())[-1]
    return rows.outcome(
        {
            "S003-MEMBW": Measurement(
                effects={"bandwidth": (largest.scaled(1e-3),)},
                bounds=setting.bounds(memory_bandwidth=1e-3 * largest.estimate),
            ),
        },
        says=f"Bytes read and written by a copy, {rows.where(setting)}: {largest.estimate:.3g}"
        f" GB/s at {name}; smaller sizes show the caches.",
        curves=(
            Curve.of(
                "Copy bandwidth", "MiB copied", "GB/s, read and written", {"copy": cells},
                at=lambda cell: float(cell.split()[0]),
            ),
        ),
    )  # fmt: skip


def _sizes(setting: Setting) -> dict[str, Any]:
    """The largest shows the memory: a GPU's last cache holds up to 256 MiB."""
    return {"mib": [1, 16, 128] if setting.platform == "cpu" else [1, 16, 128, 2048]}


RECIPE = launched_recipe(
    "copying", "kernel", ("S003-MEMBW",), "Copy bandwidth of the device by size.",
    target=f"{__name__}:measure", job=_sizes, outcome=read, cost=TORCH, each_s=0.7,
)  # fmt: skip
