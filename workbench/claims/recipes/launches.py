"""Runs each measurement in a fresh process, one at a time.

A function (`module:function`) takes a job, a dictionary, and returns one. It runs in a child, so
that torch and vLLM never enter the notebook's kernel and launches do not affect each other. On a
CPU, a fork server has imported what children need, since imports are most of a launch.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from workbench.errors import DeploymentError, LaunchError
from workbench.serve.processes import logs
from workbench.serve.processes.forkserver import named
from workbench.serve.processes.parent import die_with_parent

READY_S = 300.0
"""Imports from a cold disk took up to 40 s here, and more on a busy machine; the time limit of
workbench.experiment.run.time_limit stops earlier."""
_HERE = "workbench.claims.recipes.launches"


@dataclass(slots=True, kw_only=True)
class Launches:
    """Runs one function repeatedly, each time in a fresh process.

    Use as `async with Launches(...) as launches: await launches.run({...}, timeout_s=60)`. Leaving
    it ends the child, also after an interrupt, and no child outlives this process.
    """

    target: str
    """`module:function`, from a job to a dictionary that JSON can hold."""
    output_dir: Path
    """Gets `<name>-<n>.json` with the result of each launch, and `<name>.log` with its output."""
    name: str
    warm: Sequence[str] = ()
    """Modules to import, and functions (`module:function`) to call, before the first fork."""
    fork: bool = True
    python: str = sys.executable
    """The interpreter that runs it."""
    env: Mapping[str, str] = field(default_factory=dict)
    launched: int = 0
    _process: asyncio.subprocess.Process | None = None

    @property
    def log(self) -> Path:
        return self.output_dir / f"{self.name}.log"

    async def __aenter__(self) -> Self:
        self.output_dir.mkdir(parents=True, exist_ok=True)
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.shield(self._end())

    async def run(self, job: Mapping[str, Any], *, timeout_s: float) -> dict[str, Any]:
        """What the function returns for `job`; LaunchError or DeploymentError with the log."""
        result = self.output_dir / f"{self.name}-{self.launched}.json"
        result.unlink(missing_ok=True)
        self.launched += 1
        words = [self.target, json.dumps({**job, "result": str(result)})]
        launch = self._forked if self.fork else self._alone
        try:
            if self.fork and self._process is None:
                await self._start_fork_server()
            status = await asyncio.wait_for(launch(words), timeout_s)
        except TimeoutError:
            await asyncio.shield(self._end())
            raise DeploymentError(
                self._failure(f"did not finish within {timeout_s:.0f} s")
            ) from None
        except BaseException:
            await asyncio.shield(self._end())
            raise
        if status != 0 or not result.is_file():
            raise DeploymentError(self._failure(f"launch {self.launched} failed"))
        return dict(json.loads(result.read_text("utf-8")))

    async def _alone(self, words: Sequence[str]) -> int:
        process = self._process = await self._started(_HERE, *words)
        status = await process.wait()
        self._process = None
        return status

    async def _forked(self, words: Sequence[str]) -> int:
        assert self._process is not None and self._process.stdin is not None
        order = {
            "fork": f"{_HERE}:work", "name": self.name, "args": words, "env": {},
            "log": str(self.log),
        }  # fmt: skip
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        while "exited" not in (event := await self._event()):
            pass
        return int(event["status"])

    async def _start_fork_server(self) -> None:
        # Only the module: the fork server would call the function, which is for its children.
        modules = (*self.warm, self.target.partition(":")[0])
        self._process = await self._started("workbench.serve.processes.forkserver", *modules)
        try:
            await asyncio.wait_for(self._event(), READY_S)
        except (DeploymentError, TimeoutError):
            raise LaunchError(self._failure("could not import what it needs")) from None

    async def _started(self, module: str, *words: str) -> asyncio.subprocess.Process:
        with self.log.open("ab") as log:
            return await asyncio.create_subprocess_exec(
                self.python, "-m", module, *words, stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE if self.fork else log, stderr=log,
                env={**os.environ, **self.env}, start_new_session=True, preexec_fn=die_with_parent,
            )  # fmt: skip

    async def _event(self) -> dict[str, Any]:
        assert self._process is not None and self._process.stdout is not None
        # Skip what a library prints while it is imported.
        while line := await self._process.stdout.readline():
            with suppress(ValueError, TypeError):
                return dict(json.loads(line))
        raise DeploymentError(self._failure("ended unexpectedly"))

    def _failure(self, what: str) -> str:
        reason = logs.reason(logs.lines(self.log))
        return f"the measurement {self.name!r} {what}: {reason}; log: {self.log}"

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


def work(words: Sequence[str]) -> None:
    """Called in the child with `[target, job]`; writes the result to the job's file."""
    target, text = words
    job = json.loads(text)
    Path(job["result"]).write_text(json.dumps(named(target)(job)), "utf-8")


if __name__ == "__main__":
    work(sys.argv[1:])
