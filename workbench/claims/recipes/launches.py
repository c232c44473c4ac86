"""Measurements in processes of their own: each launch is a fresh one, and only one is alive.

A function of the workbench (`module:function`) takes a job, a dictionary, and returns one. It runs
in a child, so that torch and vLLM never enter the notebook's kernel and one launch leaves nothing
behind for the next. On a CPU the children are forked from one process that has imported what they
need and has computed nothing; importing is most of a launch. On a GPU each starts anew.

`python -m workbench.claims.recipes.launches [--once] MODULE:FUNCTION WARM...` is the other side: it
reads a job a line, `{"result": path, ...}`, and answers `{"status": n}` when that file is written.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Self

from workbench.errors import DeploymentError, LaunchError
from workbench.serve.processes import logs
from workbench.serve.processes.forkserver import named
from workbench.serve.processes.parent import die_with_parent

READY_S = 300.0
"""Imports from a cold disk took up to 40 s here; a busy machine may take many times as long, and a
limit of time (workbench.experiment.run.time_limit) breaks off earlier."""


@dataclass(slots=True, kw_only=True)
class Launches:
    """Runs one function again and again, each time in a fresh process.

    Use as `async with Launches(...) as launches: await launches.run({...}, timeout_s=60)`;
    leaving it ends the child, also by an interrupt, and no child outlives this process.
    """

    target: str
    """`module:function`; a job goes in, a dictionary that JSON can hold comes out."""
    output_dir: Path
    """Gets `<name>-<n>.json`, what each launch returned, and `<name>.log`, what it printed."""
    name: str
    warm: Sequence[str] = ()
    """Modules to import, and functions (`module:function`) to call, before the first launch."""
    fork: bool = True
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
        if self._process is None:
            await self._start()
        assert self._process is not None and self._process.stdin is not None
        result = self.output_dir / f"{self.name}-{self.launched}.json"
        result.unlink(missing_ok=True)
        self.launched += 1
        try:
            self._process.stdin.write(json.dumps({**job, "result": str(result)}).encode() + b"\n")
            answer = await self._answer(timeout_s)
        except BaseException:
            await asyncio.shield(self._end())
            raise
        if not self.fork:
            await asyncio.shield(self._end())
        if answer.get("status") != 0 or not result.is_file():
            raise DeploymentError(self._failure(f"launch {self.launched} failed"))
        return dict(json.loads(result.read_text("utf-8")))

    async def _start(self) -> None:
        once = () if self.fork else ("--once",)
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "workbench.claims.recipes.launches", *once, self.target,
                *self.warm,
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=log,
                env={**os.environ, **self.env}, start_new_session=True, preexec_fn=die_with_parent,
            )  # fmt: skip
        try:
            await self._answer(READY_S)
        except DeploymentError as error:
            await asyncio.shield(self._end())
            raise LaunchError(str(error)) from None

    async def _answer(self, timeout_s: float) -> dict[str, Any]:
        assert self._process is not None and self._process.stdout is not None
        try:
            line = await asyncio.wait_for(self._process.stdout.readline(), timeout_s)
        except TimeoutError:
            raise DeploymentError(self._failure(f"was not done after {timeout_s:.0f} s")) from None
        if not line:
            raise DeploymentError(self._failure("ended by itself"))
        return dict(json.loads(line))

    def _failure(self, what: str) -> str:
        reason = logs.reason(logs.lines(self.log))
        return f"the measurement {self.name!r} {what}: {reason}; log: {self.log}"

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


def main(arguments: Sequence[str]) -> None:
    """The side that measures: import, then one job a line, each in a fork unless `--once`."""
    once = "--once" in arguments
    target, *warm = (word for word in arguments if word != "--once")
    # What a library prints goes to the log; the answers have the real stdout for themselves.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for name in warm:
        loaded = named(name)
        if callable(loaded):
            loaded()
    measure = named(target)
    os.register_at_fork(after_in_child=die_with_parent)
    _say(answers, ready=True)
    for line in sys.stdin:
        job = json.loads(line)
        _say(answers, status=_work(measure, job) if once else _forked(measure, job))


def _forked(measure: Any, job: dict[str, Any]) -> int:
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    status = 1
    try:
        status = _work(measure, job)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _work(measure: Any, job: dict[str, Any]) -> int:
    try:
        result = measure(job)
        Path(job["result"]).write_text(json.dumps(result), "utf-8")
    except Exception:
        traceback.print_exc()
        return 1
    return 0


def _say(answers: IO[str], **event: Any) -> None:
    answers.write(json.dumps(event) + "\n")
    answers.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
