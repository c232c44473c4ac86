"""What runs measured, kept beside the tests, and concluded anew by the code of today.

A recording has what a run gathered (rows, legs, counters), and nothing that is said of it: gates,
ledger, sentences and figures are made from it each time, and are the same each time. Recorded by

    python -m tests.golden.replay pd_sweep     needs an idle machine; simulated servers, seeded
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest import mock

import pandas as pd
from pydantic import ConfigDict, TypeAdapter

from workbench.experiment import environment
from workbench.experiment.hits import hit_analysis
from workbench.experiment.plan.arms import plan as make_plan
from workbench.experiment.plan.plan import ExperimentPlan
from workbench.experiment.result.facts import ArmFacts, SessionFacts
from workbench.experiment.result.result import Result
from workbench.experiment.result.run_folder import RunFolder
from workbench.experiment.run import run as runs
from workbench.experiment.run import run_facts
from workbench.experiment.run.run_log import Log
from workbench.hardware import machine
from workbench.hardware.machine import Machine
from workbench.metrics.passes import PassCounters
from workbench.params.notebooks import check_params

RECORDINGS = Path(__file__).parent / "recordings"
FRAMES = ("requests", "legs", "counters", "gauges")
BEGAN = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)

SIMULATED = {"engine": "simulated", "rounds": 3}
RECORDED: dict[str, dict[str, Any]] = {
    "pd_sweep": SIMULATED | {"topology": "1p1d,1p2d", "requests": 3},
    "single_instance_prefix_cache": SIMULATED | {"requests": 8},
    "environment_check": {
        "engine": "simulated", "topology": "1p1d", "prompt_tokens": 2000, "output_tokens": 8,
        "requests": 2, "rounds": 1, "opponents": False,
    },
}  # fmt: skip
"""The parameters of each recorded run; that of environment_check is its smoke run."""

MACHINE = Machine(
    cpu="AMD EPYC", cores=2, fast_bf16=True, memory_gb=24.0, memory_free_gb=20.0, shm_free_gb=12.0,
    gpus=(), platform="cpu", visible_devices="", os="Debian GNU/Linux 12 (bookworm)",
    kernel="6.1.0", python="3.11.2", git_commit="0123456", git_dirty=False,
    versions={"vllm": "0.32.0", "torch": "2.13.0", "lmcache": "0.5.6", "nixl": "1.5.1"},
)  # fmt: skip

_PASSES = TypeAdapter(list[PassCounters], config=ConfigDict(ser_json_inf_nan="constants"))
_ARMS = TypeAdapter(dict[str, ArmFacts], config=ConfigDict(ser_json_inf_nan="constants"))
_PLAIN = ("doubts", "reasons", "refusals", "workers", "client", "launches_s", "measuring_s")


def recorded_plan(notebook: str, output_dir: str) -> ExperimentPlan:
    """The plan of a recorded run."""
    of = "pd_sweep" if notebook == "environment_check" else notebook
    return make_plan(check_params(of, RECORDED[notebook] | {"output_dir": output_dir}))


def save(log: Log, folder: Path) -> None:
    """Write what a run gathered into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    plain = {name: getattr(log, name) for name in _PLAIN}
    (folder / "log.json").write_text(json.dumps(plain, indent=1) + "\n")
    (folder / "passes.json").write_bytes(_PASSES.dump_json(log.passes))
    arms = _ARMS.dump_json(log.arms).replace(sys.executable.encode(), b"python3")
    (folder / "arms.json").write_bytes(arms)  # the same on every machine
    for name in FRAMES:
        log.frame(name).to_parquet(folder / f"{name}.parquet", compression="zstd")


def load(folder: Path) -> Log:
    """What a run gathered, as `save` wrote it."""
    log = Log(**json.loads((folder / "log.json").read_text()))
    log.passes = _PASSES.validate_json((folder / "passes.json").read_bytes())
    log.arms = _ARMS.validate_json((folder / "arms.json").read_bytes())
    for name in FRAMES:
        setattr(log, name, [pd.read_parquet(folder / f"{name}.parquet")])
    return log


def stand_in() -> None:
    """Let notebooks of this process show recorded runs on a machine that is always the same."""
    quiet = environment.MachineLoad(others_cpu_share=0.02, loop_lag_p99_s=0.001)

    async def watch(*_: Any) -> environment.MachineLoad:
        return quiet

    for module in (runs, environment, hit_analysis):
        mock.patch.object(module, "run", replay).start()
    mock.patch.object(machine, "facts", lambda: MACHINE).start()
    mock.patch.object(environment, "watch_machine", watch).start()
    mock.patch.object(environment, "stale_servers", list).start()
    mock.patch.object(environment, "_listens", lambda _: False).start()


async def replay(made: ExperimentPlan, *_: Any, **__: Any) -> Result:
    """In place of `workbench.experiment.run.run.run`: measures nothing."""
    smoke = Path(made.params.output_dir).name == ".smoke"
    log = load(RECORDINGS / ("environment_check" if smoke else made.notebook))
    folder = RunFolder.open(made.params.output_dir, made.notebook, made.run_id)
    log.sessions = [SessionFacts(number=1, started_at=BEGAN.isoformat())]
    facts = run_facts.facts_of(made, log, "success", 60.0)
    for name in FRAMES:
        folder.write(name, log.frame(name))
    facts = replace(facts, finished_at="2026-01-01T12:01:00+00:00")
    folder.write_facts(facts)
    folder.promote()
    frames = {name: log.frame(name) for name in ("requests", "legs")}
    return Result(run=facts, folder=folder.home, frames=frames)


def record(notebook: str) -> None:
    """Run it, and keep what it gathered."""
    conclude = run_facts.facts_of

    def keep(made: Any, log: Log, status: str, *rest: Any) -> Any:
        if status == "success":
            save(log, RECORDINGS / notebook)
        return conclude(made, log, status, *rest)  # type: ignore[arg-type]

    with (
        mock.patch.object(runs, "facts_of", keep),
        tempfile.TemporaryDirectory() as outputs,
    ):
        asyncio.run(runs.run(recorded_plan(notebook, outputs)))


if __name__ == "__main__":
    for name in sys.argv[1:] or RECORDED:
        record(name)
