"""Copy bandwidth of the device: bytes read plus bytes written, per second. A run is a process."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from workbench.claims.kernels.timing import Arm, Clock, compare

__all__ = ["measure"]


def measure(job: Mapping[str, Any]) -> dict[str, Any]:
    """Rows of one run: the bandwidth of each copy, for each size in MiB.

    McCalpin's STREAM (1995) counts a copy like that too. Small sizes show caches and not memory.
    """
    import torch

    clock = Clock(device=job["device"])
    rows: list[dict[str, Any]] = []
    for mib in job["mib"]:
        source = torch.ones(mib * 2**20, dtype=torch.uint8, device=job["device"])
        target = torch.empty_like(source)
        arms = {"copy": Arm(call=partial(target.copy_, source))}
        moved = 2 * mib * 2**20
        for row in compare(clock, arms):
            row["value"] = moved / row["value"] / 1e9
            rows.append({"quantity": "bandwidth", "cell": f"{mib} MiB", "unit": "GB/s", **row})
    return {"rows": rows, "notes": [], "threads": torch.get_num_threads()}
