"""The most memory that this process held since a moment: of the GPU, or resident on a CPU."""

from __future__ import annotations

from dataclasses import dataclass
from math import nan
from pathlib import Path

__all__ = ["PeakMemory"]


@dataclass(frozen=True, slots=True)
class PeakMemory:
    """Of what the process itself allocates; 1 GB is 10^9 bytes."""

    device: str

    def reset(self) -> None:
        """Count from now on; Linux lets a process clear its own high-water mark (proc(5))."""
        if self.device != "cpu":
            import torch

            torch.cuda.reset_peak_memory_stats()
            return
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            return

    def gb(self) -> float:
        """NaN where the system does not say."""
        if self.device != "cpu":
            import torch

            return float(torch.cuda.max_memory_allocated() / 1e9)
        try:
            lines = Path("/proc/self/status").read_text().splitlines()
        except OSError:
            return nan
        found = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
        return int(found[0]) * 1024 / 1e9 if found else nan
