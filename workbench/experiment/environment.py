"""What this machine can run: versions, stale servers, free ports and memory, and a short proof."""

from __future__ import annotations

import socket
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from workbench import machine
from workbench.errors import WorkbenchError
from workbench.experiment.arms import plan
from workbench.experiment.result import SCHEMA, Result
from workbench.experiment.run import run
from workbench.experiment.run_folder import RunFolder
from workbench.experiment.run_log import Echo, echo_line
from workbench.machine import Machine
from workbench.metrics.gates import Gate
from workbench.params import EnvironmentCheck, PdSweep
from workbench.serve.capacity import CPU_INSTANCE_GB, CPU_INSTANCES_AT_MOST

__all__ = ["Stale", "check_environment", "stale_servers"]

FITS = {"vllm": "0.32.0", "lmcache": "0.5.6", "nixl": "1.5.1"}
"""Versions whose private parts the fork server and the patches lean on, and that were measured."""
DEFAULT_PORTS = {8000: "vLLM", 5555: "LMCache", 8080: "LMCache over HTTP"}
SMALLEST_SHM_GB = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Stale:
    """A server that runs on this machine and does not belong to this notebook."""

    pid: int
    program: str
    memory_gb: float
    since: str


def stale_servers() -> list[Stale]:
    """vLLM, LMCache and workbench servers that run now. They are listed, never ended."""
    import psutil

    found = []
    for process in psutil.process_iter(["pid", "cmdline", "memory_info", "create_time"]):
        info = process.info
        words = info["cmdline"] or []
        line = " ".join(words)
        ours = "workbench.serve." in line or ("lmcache" in line and "server" in words)
        theirs = "VLLM::" in line or "vllm.entrypoints" in line or "vllm serve" in line
        if (ours or theirs) and info["memory_info"] is not None:
            found.append(
                Stale(
                    pid=info["pid"],
                    program=line[:80],
                    memory_gb=info["memory_info"].rss / 1e9,
                    since=datetime.fromtimestamp(info["create_time"]).strftime("%H:%M:%S"),
                )
            )
    return found


async def check_environment(params: EnvironmentCheck, *, echo: Echo = echo_line) -> Result:
    """Look at the machine, run a short real 1p1d, and say ready or not ready with the next step.

    The result's `facts` has `platforms` and `stale` beside what every result has.
    """
    here = machine.facts()
    platform = here.platform if params.platform == "auto" else params.platform
    gates = [*_static_gates(here, platform), _stale_gate(stale_servers())]
    smoke: Result | None = None
    if params.smoke and not any(g.outcome == "FAIL" for g in gates):
        # One round of two small prompts: enough to see real KV arrive.
        sweep = PdSweep(
            topology="1p1d", prompt_tokens=2000, output_tokens=8, requests=2, rounds=1,
            opponents=False, platform=params.platform,
            output_dir=str(Path(params.output_dir) / ".smoke"),
        )  # fmt: skip
        try:
            smoke = await run(plan(sweep), echo=echo)
        except WorkbenchError as error:
            gates.append(_gate("smoke run", "FAIL", str(error), "read the log that it names"))
        else:
            gates += [_smoke_gate(row) for row in smoke.facts["gates"]]
    elif params.smoke:
        gates.append(
            _gate("smoke run", "INCONCLUSIVE", "not started, since a check above failed", "")
        )
    return _as_result(params, here, platform, gates, smoke)


def _gate(name: str, outcome: Any, sentence: str, next_step: str) -> Gate:
    return Gate(name=name, outcome=outcome, sentence=sentence, next_step=next_step)


def _smoke_gate(row: dict[str, Any]) -> Gate:
    return _gate(f"smoke run: {row['name']}", row["outcome"], row["sentence"], row["next_step"])


def _static_gates(here: Machine, platform: str) -> list[Gate]:
    """Versions, memory, shared memory and default ports, without starting anything."""
    missing = [name for name in ("vllm", "lmcache") if name not in here.versions]
    other = [
        f"{name} {here.versions[name]} (measured with {version})"
        for name, version in FITS.items()
        if here.versions.get(name, version) != version
    ]
    gates = []
    if missing:
        gates.append(
            _gate("packages", "FAIL", f"{' and '.join(missing)} not installed", "run make setup")
        )
    elif other:
        gates.append(
            _gate(
                "packages",
                "INCONCLUSIVE",
                f"other versions than measured: {'; '.join(other)}",
                "run make setup, or watch the smoke run",
            )
        )
    else:
        names = ", ".join(f"{name} {here.versions[name]}" for name in FITS if name in here.versions)
        gates.append(_gate("packages", "PASS", f"{names} fit together", ""))
    free, enough = here.memory_free_gb, 2 * CPU_INSTANCE_GB + 1.5
    fits = min(CPU_INSTANCES_AT_MOST, int((free - 1.5) / CPU_INSTANCE_GB))
    gates.append(
        _gate(
            "memory",
            "PASS" if free >= enough else "FAIL",
            f"{free:.1f} GB free, enough for {max(fits, 0)} CPU instances"
            f" of about {CPU_INSTANCE_GB} GB beside a KV store",
            "" if free >= enough else "end other programs",
        )
    )
    shm = here.shm_free_gb
    gates.append(
        _gate(
            "shared memory",
            "PASS" if shm >= SMALLEST_SHM_GB else "FAIL",
            f"{shm:.1f} GB free in /dev/shm; the KV store needs its size there",
            "" if shm >= SMALLEST_SHM_GB else "start the container with a larger --shm-size",
        )
    )
    if platform != "cpu" and not here.gpus:
        gates.append(
            _gate("GPUs", "FAIL", f"platform {platform} and no GPU answers", "check the driver")
        )
    return gates


def _stale_gate(stale: list[Stale]) -> Gate:
    if not stale:
        taken = [f"{p} ({n})" for p, n in DEFAULT_PORTS.items() if _listens(p)]
        ports = f"; taken all the same: port {', '.join(taken)}" if taken else ""
        return _gate("stale servers", "PASS", f"no vLLM or LMCache server runs{ports}", "")
    names = "; ".join(f"pid {s.pid} since {s.since}, {s.memory_gb:.1f} GB" for s in stale[:6])
    return _gate(
        "stale servers",
        "INCONCLUSIVE",
        f"{len(stale)} processes of vLLM, LMCache or the workbench run already: {names}",
        "end them if nobody needs them; they take cores and memory from every measurement",
    )


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.2)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _as_result(
    params: EnvironmentCheck,
    here: Machine,
    platform: str,
    gates: list[Gate],
    smoke: Result | None,
) -> Result:
    failed = [gate for gate in gates if gate.outcome == "FAIL"]
    ready = not failed and (smoke is not None or not params.smoke)
    if ready:
        finding = f"Ready: real prefill and decode servers run on this machine ({platform})"
        step = "papermill notebooks/pd_sweep.ipynb out.ipynb -p topology 1p4d"
    else:
        finding = f"Not ready: {failed[0].sentence.splitlines()[0]}" if failed else "Not ready"
        step = failed[0].next_step if failed else ""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    numbers = [
        {"label": "cores", "value": here.cores, "unit": "", "low": None, "high": None,
         "note": here.cpu},
        {"label": "memory free", "value": here.memory_free_gb, "unit": "GB", "low": None,
         "high": None, "note": f"of {here.memory_gb:.0f} GB"},
    ]  # fmt: skip
    if smoke is not None:
        numbers.append(
            {"label": "from nothing to healthy, 1p1d", "value": smoke.facts["launches_s"][0],
             "unit": "s", "low": None, "high": None, "note": "one launch, LMCache included"}
        )  # fmt: skip
    folder = RunFolder.open(params.output_dir, "environment_check", "here")
    facts: dict[str, Any] = {
        "schema": SCHEMA,
        "notebook": "environment_check",
        "run_id": "here",
        "status": "success" if ready else "failed",
        "simulated": False,
        "started_at": smoke.facts["started_at"] if smoke else now,
        "finished_at": now,
        "duration_s": smoke.facts["duration_s"] if smoke else 0.0,
        "parameters": asdict(params),
        "machine": here.as_dict() | {"platform": platform},
        "finding": finding,
        "scope": f"Next step: {step}" if step else "",
        "numbers": numbers,
        "gates": [asdict(gate) for gate in gates],
        "doubts": [],
        "limits": ["Ready says that servers start and KV moves here, not that they are fast."],
        "platforms": platforms(here),
        "arms": smoke.facts["arms"] if smoke else [],
        "summary": smoke.facts["summary"] if smoke else [],
        "comparisons": [],
        "repeat": "papermill notebooks/environment_check.ipynb out.ipynb",
        "files": {},
    }
    folder.write_facts(facts)
    folder.promote()
    return Result(facts=facts, folder=folder.home)


def platforms(here: Machine) -> list[dict[str, str]]:
    """What each platform can run on this machine, one row each."""
    vllm = here.versions.get("vllm", "")
    gpus = ", ".join(gpu.name for gpu in here.gpus)
    rows = [
        (
            "cpu",
            "pd_sweep, prefix cache, LMCache, NIXL with a tiny model" if vllm else "nothing yet",
        ),
        (
            "cuda",
            f"every notebook on {gpus}" if here.platform == "cuda" else "no NVIDIA GPU answers",
        ),
        ("rocm", f"every notebook on {gpus}" if here.platform == "rocm" else "no AMD GPU answers"),
    ]
    return [{"platform": name, "can run": what} for name, what in rows]
