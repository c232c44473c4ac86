"""A tier on a disk: a folder with one file for each chunk (LMCache's adapter `fs`)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from workbench.serve.connectors.tiers.tier import Held, Tier


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskTier(Tier):
    """A folder with one file for each chunk."""

    folder: Path

    async def held(self) -> Held:
        return Held(chunks=float(len(self._files())))

    async def empty(self) -> None:
        for file in self._files():
            file.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        return list(self.folder.rglob("*.data"))


def disk_tier(folder: Path) -> Tier:
    """Chunks in this folder, which must exist; its size is not limited."""
    return DiskTier(
        name="disk", shown="the disk", l2_name="fs", state="disk-warm", folder=folder,
        adapter={"type": "fs", "base_path": str(folder)},
    )  # fmt: skip
