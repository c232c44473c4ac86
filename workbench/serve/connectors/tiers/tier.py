"""What every tier of LMCache's store can do: be checked, say what it holds, be emptied."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from workbench.serve.processes.launcher import ProcessSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Tier:
    """One tier of a deployment."""

    name: str
    """`disk`, `redis` or `mooncake`."""
    shown: str
    """For sentences, such as `Redis`."""
    l2_name: str
    """LMCache's name for its kind: the label of its counters."""
    state: Literal["disk-warm", "remote-warm"]
    """The cache state in which it alone has the KV."""
    adapter: Mapping[str, Any]
    """The value of LMCache's `--l2-adapter`."""
    processes: tuple[ProcessSpec, ...] = ()
    """Servers that are started for it, before LMCache's own."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Environment variables of LMCache's server."""

    async def check(self) -> None:
        """Raises LaunchError if it cannot be used here and now."""

    async def held(self) -> Held:
        """What it holds now, asked at its own end. Raises DeploymentError if it cannot say."""
        raise NotImplementedError

    async def empty(self) -> None:
        """Delete its chunks. Raises DeploymentError if it cannot."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """Chunks that a tier holds, and how many it has evicted so far (NaN if it does not say)."""

    chunks: float
    evicted: float = 0.0
