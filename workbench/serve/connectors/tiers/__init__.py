"""Tiers of LMCache's store below its memory (its L2): a disk, a Redis server, a Mooncake store.

LMCache cannot empty a tier, reports failed writes as done and does not say what a tier holds. So
each tier here also counts and deletes its chunks at its own end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from workbench.hardware.interpreter import Interpreter
from workbench.params.store_tiers import tier_kind
from workbench.serve.connectors.tiers.on_disk import disk_tier
from workbench.serve.connectors.tiers.on_mooncake import PLUGINS, mooncake_tier
from workbench.serve.connectors.tiers.on_redis import redis_tier
from workbench.serve.connectors.tiers.tier import Held, Tier

__all__ = ["PLUGINS", "Held", "Tier", "tiers_of"]


def tiers_of(
    names: Sequence[str],
    ports: Iterator[int],
    *,
    interpreter: Interpreter,
    size_gb: float,
    folder: Path,
) -> tuple[Tier, ...]:
    """The tiers of `store_tiers` without `memory`, in order; each has `size_gb`, but for a disk."""

    def tier(name: str) -> Tier:
        match tier_kind(name):
            case "disk":
                return disk_tier(folder)
            case "redis":
                return redis_tier(name, ports, size_gb)
            case _:
                return mooncake_tier(ports, interpreter, size_gb)

    return tuple(map(tier, names))
