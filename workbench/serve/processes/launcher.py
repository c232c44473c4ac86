"""The interface between a deployment and the place where its processes run.

A launcher can `start` and `stop`, and knows free ports; a process is `alive` and has a `log`.
"""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from workbench.hardware.hosts import THIS_MACHINE, Host
from workbench.topology import Role


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessSpec:
    """One process: `role` is an instance's role, `store`, `tier` (of a store) or `proxy`."""

    name: str
    role: Role | Literal["store", "tier", "proxy"]
    program: tuple[str, ...]
    """The command, without `args`."""
    args: tuple[str, ...]
    port: int
    ready_url: str
    """It is ready when this URL responds, or with `tcp://` when its port accepts connections."""
    env: dict[str, str] = field(default_factory=dict)
    env_files: dict[str, str] = field(default_factory=dict)
    """Variables that name a file, with its text; the launcher writes it beside the log."""
    forks: str = ""
    """`module:function` that serves `args` in a fork; empty if it cannot be forked."""
    fatal: tuple[str, ...] = ()
    """Log texts after which it never becomes ready, though it may keep running."""
    devices: tuple[str, ...] = ()
    """The GPUs that it has to see."""
    cores: tuple[int, ...] = ()
    """The only cores that it may use; empty for all."""
    reads: tuple[str, ...] = ()
    """Files and folders that it reads, beside those of its program."""
    writes: tuple[str, ...] = ()
    """Folders that it writes."""
    here: bool = False
    """It is a program of this machine, wherever engines run."""
    host: Host = THIS_MACHINE
    """Where it runs, and listens."""

    def write_files(self, log_dir: Path) -> dict[str, str]:
        """Write `env_files` beside the log; the variables that name them."""
        paths = {}
        for variable, text in self.env_files.items():
            file = log_dir / f"{self.name}.{variable.lower()}"
            file.write_text(text, encoding="utf-8")
            paths[variable] = str(file.resolve())
        return paths

    @property
    def argv(self) -> tuple[str, ...]:
        own = ("taskset", "--cpu-list", ",".join(map(str, self.cores))) if self.cores else ()
        return (*own, *self.program, *self.args)

    @property
    def url(self) -> str:
        return f"http://{self.host.address}:{self.port}"

    @property
    def command_line(self) -> str:
        return shlex.join(self.argv)


@dataclass(slots=True)
class Process:
    """A started process; its launcher resolves `exited` with the exit status."""

    spec: ProcessSpec
    log: Path
    """The file with all its output."""
    exited: asyncio.Future[int]
    pid: int = 0
    """Its id on this machine; 0 if it is not known."""
    end: str = ""
    """What its place knows about its end, in one sentence."""

    @property
    def alive(self) -> bool:
        return not self.exited.done()


class Launcher(Protocol):
    """A place where processes run. Closing it ends all of them."""

    notes: list[str]
    """Deviations from the plan, for the doubts of a run."""

    async def unused_ports(self) -> Iterator[int]:
        """Ports that are free wherever processes may run."""
        ...

    async def start(self, spec: ProcessSpec, log_dir: Path) -> Process:
        """Start one process with its log in `log_dir`, without waiting until it is ready."""
        ...

    async def stop(self, processes: Iterable[Process]) -> None:
        """End processes with everything that they started."""
        ...
