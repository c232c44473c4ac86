"""Can this machine run the workbench, and is it quiet enough to time? Two questions, kept apart.

The first is answered by versions, memory, ports and a short run of real servers: ready or not
ready. The second by the CPU of other programs and by timers: quiet or busy. A busy machine is
ready all the same.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from workbench.errors import WorkbenchError
from workbench.experiment.plan.arms import plan
from workbench.experiment.result.result import SCHEMA, Result
from workbench.experiment.result.run_folder import RunFolder
from workbench.experiment.run.quiet import (
    BUSY_MEANS,
    TIMING_GATES,
    quietness,
    timing_gates,
    watch_machine,
)
from workbench.experiment.run.run import run
from workbench.experiment.run.run_log import Echo, echo_line
from workbench.hardware import machine
from workbench.hardware.machine import Machine
from workbench.metrics.gates.answer_gates import Gate
from workbench.params.notebooks import EnvironmentCheck, PdSweep
from workbench.serve import vllm
from workbench.serve.capacity import CPU_INSTANCES_AT_MOST, instance_gb
from workbench.serve.connectors import CONNECTORS, connector
from workbench.serve.processes.ports import free_ports

__all__ = ["Stale", "answers", "check_environment", "stale_servers"]

FITS = vllm.PACKAGES | {name: v for c in CONNECTORS.values() for name, v in c.packages.items()}
"""Versions that were measured."""
DEFAULT_PORTS = {8000: "vLLM", 5555: "LMCache", 8080: "LMCache over HTTP"}
SMALLEST_SHM_GB = 2.0
PORTS = 16
"""As many as the largest deployment on a CPU takes."""


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
        theirs = any(mark in line for mark in vllm.PROCESS_MARKS)
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
    """Look at the machine, run a short real 1p1d, and answer both questions with the next step.

    The result's `facts` has `ready`, `quiet`, `questions` and `platforms` beside what every result
    has.
    """
    here = machine.facts()
    platform = here.platform if params.platform == "auto" else params.platform
    gates = [*_static_gates(here, platform), _ports_gate(), _stale_gate(stale_servers())]
    gates += timing_gates(await watch_machine())
    smoke: Result | None = None
    if params.smoke and not any(g.outcome == "FAIL" for g in _about_running(gates)):
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


SMOKE = "smoke run: "


def _about_running(gates: Iterable[Gate]) -> list[Gate]:
    """The gates of the first question; all others are those of the second."""
    return [gate for gate in gates if gate.name.removeprefix(SMOKE) not in TIMING_GATES]


def _gate(name: str, outcome: Any, sentence: str, next_step: str) -> Gate:
    return Gate(name=name, outcome=outcome, sentence=sentence, next_step=next_step)


def _smoke_gate(row: dict[str, Any]) -> Gate:
    return _gate(f"{SMOKE}{row['name']}", row["outcome"], row["sentence"], row["next_step"])


def _static_gates(here: Machine, platform: str) -> list[Gate]:
    """Versions, memory, shared memory and default ports, without starting anything."""
    wanted = [*vllm.PACKAGES, *connector(PdSweep().connector).packages]
    missing = [name for name in wanted if name not in here.versions]
    other = [
        f"{name} {here.versions[name]} (tested: {version})"
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
                f"versions that were not tested: {'; '.join(other)}",
                "run make setup, or trust the smoke run",
            )
        )
    else:
        names = ", ".join(f"{name} {here.versions[name]}" for name in FITS if name in here.versions)
        gates.append(_gate("packages", "PASS", f"{names} are the tested versions", ""))
    each_gb = instance_gb(vllm.EngineSettings(model=Path(), platform="cpu"))
    free, enough = here.memory_free_gb, 2 * each_gb + 1.5
    fits = min(CPU_INSTANCES_AT_MOST, int((free - 1.5) / each_gb))
    gates.append(
        _gate(
            "memory",
            "PASS" if free >= enough else "FAIL",
            f"{free:.1f} GB free: room for {max(fits, 0)} CPU instances of about"
            f" {each_gb:.1f} GB and a KV store",
            "" if free >= enough else "end other programs",
        )
    )
    shm = here.shm_free_gb
    gates.append(
        _gate(
            "shared memory",
            "PASS" if shm >= SMALLEST_SHM_GB else "FAIL",
            f"{shm:.1f} GB free in /dev/shm, where the KV store lies"
            f" (at least {SMALLEST_SHM_GB:g} GB)",
            "" if shm >= SMALLEST_SHM_GB else "start the container with a larger --shm-size",
        )
    )
    if platform != "cpu" and not here.gpus:
        gates.append(
            _gate(
                "GPUs",
                "FAIL",
                f"no GPU answers, and platform is {platform}",
                "check the driver, or take -p platform cpu",
            )
        )
    return gates


def _ports_gate() -> Gate:
    """Servers take free ports of their own; a default port that is taken does no harm."""
    taken = [f"{p} ({n})" for p, n in DEFAULT_PORTS.items() if _listens(p)]
    others = f"; in use by others: {', '.join(taken)}" if taken else ""
    try:
        free_ports(PORTS)
    except WorkbenchError as error:
        return _gate("ports", "FAIL", str(error), "end what listens there: ss -ltnp lists it")
    return _gate("ports", "PASS", f"{PORTS} free ports were found{others}", "")


def _stale_gate(stale: list[Stale]) -> Gate:
    if not stale:
        return _gate("stale servers", "PASS", "no vLLM or LMCache server runs already", "")
    names = "; ".join(f"pid {s.pid} since {s.since}, {s.memory_gb:.1f} GB" for s in stale[:6])
    return _gate(
        "stale servers",
        "INCONCLUSIVE",
        f"{len(stale)} processes of vLLM, LMCache or the workbench run already: {names}",
        "end them if nobody needs them; they take CPU and memory from every measurement",
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
    answer = answers(gates, platform, smoked=smoke is not None or not params.smoke)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    numbers = [
        # Of the machine itself: whatever fails, they stay.
        _card("cores", here.cores, "", here.cpu) | {"spoilt": ""},
        _card("memory free", here.memory_free_gb, "GB", f"of {here.memory_gb:.0f} GB")
        | {"spoilt": ""},
    ]
    if smoke is not None:
        started_s, note = smoke.facts["launches_s"][0], "one launch, LMCache included"
        card = _card("from nothing to healthy, 1p1d", started_s, "s", note)
        numbers.append(card | {"rests_on": "times"})
    engine = smoke.facts["engine"] if smoke else {}
    folder = RunFolder.open(params.output_dir, "environment_check", "here")
    facts: dict[str, Any] = {
        "schema": SCHEMA,
        "notebook": "environment_check",
        "run_id": "here",
        "status": "success",  # it was carried out, whatever it found
        "simulated": False,
        "started_at": smoke.facts["started_at"] if smoke else now,
        "finished_at": now,
        "duration_s": smoke.facts["duration_s"] if smoke else 0.0,
        "parameters": asdict(params),
        "machine": here.as_dict() | {"platform": platform},
        **answer,
        "numbers": numbers,
        "gates": [asdict(gate) for gate in gates],
        "doubts": [],
        "engine": engine,
        "limits": [
            "Ready says that servers start and KV moves here, not that they are fast.",
            *filter(None, [engine.get("chosen")]),
        ],
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


def _card(label: str, value: float, unit: str, note: str) -> dict[str, Any]:
    return {"label": label, "value": value, "unit": unit, "low": None, "high": None, "note": note}


def answers(gates: list[Gate], platform: str, *, smoked: bool) -> dict[str, Any]:
    """Both questions answered, as the facts of a result: the headline, the outcome, what to do.

    `smoked` says that servers were tried, where that was wanted.
    """
    running = _about_running(gates)
    timing = [gate for gate in gates if gate not in running]
    failed = [gate for gate in running if gate.outcome == "FAIL"]
    ready, quiet = smoked and not failed, quietness(timing)
    reason = next((g for g in timing if g.outcome == "FAIL"), None)
    reason = reason or next((g for g in timing if g.outcome == "INCONCLUSIVE"), None)
    said = _lowered(_first_line(reason)) if reason else f"servers start and KV moves ({platform})"
    if not ready:
        finding = f"Not ready: {_first_line(failed[0]) if failed else 'no server was tried'}"
        word, severity, why = "not ready", "bad", finding
        scope, step = "", failed[0].next_step if failed else ""
    else:
        word = {"quiet": "ready, quiet", "busy": "ready, busy"}.get(quiet, "ready")
        severity = "ok" if quiet == "quiet" else "unsure"
        head = "Ready; quiet is not proven" if quiet == "not known" else word.capitalize()
        finding, why = f"{head}: {said}", "" if quiet == "quiet" else f"{said}."
        scope, step = BUSY_MEANS if quiet == "busy" else "", _NEXT
    rows = [
        {"question": "Can this machine run it?", "answer": "ready" if ready else "not ready",
         "why": _together(running)},
        {"question": "Is it quiet enough to time?", "answer": quiet, "why": _together(timing)},
    ]  # fmt: skip
    return {
        "ready": ready,
        "quiet": quiet,
        "questions": rows,
        "outcome": {"word": word, "severity": severity, "why": why},
        "finding": finding,
        "scope": " ".join(filter(None, (scope, f"Next step: {step}" if step else ""))),
        "next_step": step,
    }


_NEXT = "papermill notebooks/pd_sweep.ipynb out.ipynb -p topology 1p4d"


def _first_line(gate: Gate) -> str:
    return gate.sentence.partition("\n")[0]


def _lowered(sentence: str) -> str:
    """As it is written after a colon; a name in capitals stays as it is."""
    capital = sentence[:1].isupper() and not sentence[1:2].isupper()
    return sentence[0].lower() + sentence[1:] if capital else sentence


def _together(gates: list[Gate]) -> str:
    """What decided: the checks that failed, else those without an answer, else that all hold."""
    for outcome in ("FAIL", "INCONCLUSIVE"):
        if found := [f"{g.name}: {_first_line(g)}" for g in gates if g.outcome == outcome]:
            return "; ".join(found)
    return f"all {len(gates)} checks hold"


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
