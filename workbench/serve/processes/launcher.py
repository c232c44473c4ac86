"""The seam between a deployment and the place where its processes run.

Four verbs: a launcher can `start` and `stop`, a process is `alive` and has a `log`.
"""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from workbench.topology import Role


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessSpec:
    """One process: `role` is an instance's role, `store` or `proxy`."""

    name: str
    role: Role | Literal["store", "proxy"]
    program: tuple[str, ...]
    """How a plain start begins; `args` follow."""
    args: tuple[str, ...]
    port: int
    ready_url: str
    env: dict[str, str] = field(default_factory=dict)
    env_files: dict[str, str] = field(default_factory=dict)
    """Variables that name a file, with its text; the launcher writes it beside the log."""
    forks: str = ""
    """`module:function` that serves `args` in a fork of a warm process; empty where none can."""
    fatal: tuple[str, ...] = ()
    """Texts in its log after which it will not get ready, though it may live on."""

    @property
    def argv(self) -> tuple[str, ...]:
        return (*self.program, *self.args)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def command_line(self) -> str:
        return shlex.join(self.argv)


@dataclass(slots=True)
class Process:
    """A process that was started; its launcher resolves `exited` with its status."""

    spec: ProcessSpec
    log: Path
    """The file that gets all it prints."""
    exited: asyncio.Future[int]
    pid: int = 0
    """Its id on this machine; 0 where it runs elsewhere."""

    @property
    def alive(self) -> bool:
        return not self.exited.done()


class Launcher(Protocol):
    """A place where processes run. Whoever opens one leaves nothing behind when it is closed."""

    notes: list[str]
    """What went otherwise than planned, for the doubts of a run."""

    async def start(self, spec: ProcessSpec, log_dir: Path) -> Process:
        """Start one process, whose log lies in `log_dir`; it need not be ready yet."""
        ...

    async def stop(self, processes: Iterable[Process]) -> None:
        """End processes with everything that they started."""
        ...
