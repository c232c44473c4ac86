"""Can this machine run the workbench, and is it idle enough for timing? Two separate questions.

Versions, memory, ports and a short run of real servers answer the first: ready or not ready. The
CPU use of other programs and timers answer the second: idle or busy. A busy machine can be ready.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from math import isnan
from pathlib import Path
from typing import Any, Literal

from workbench.errors import WorkbenchError
from workbench.experiment.findings.sentences import marked
from workbench.experiment.plan.arms import plan
from workbench.experiment.plan.engine_setup import image_of
from workbench.experiment.result.facts import EngineFacts, RunFacts, RunOutcome
from workbench.experiment.result.finding_rows import Card
from workbench.experiment.result.result import Result
from workbench.experiment.result.run_folder import RunFolder
from workbench.experiment.run.run import run
from workbench.experiment.run.run_log import Echo, echo_line
from workbench.hardware import machine
from workbench.hardware.interpreter import interpreter
from workbench.hardware.machine import Machine, ProcessorLoad
from workbench.load.drive.health import Pulse
from workbench.metrics.gates.client_gate import LAG_P99_S, OTHERS_SHARE
from workbench.metrics.gates.gate import Gate, judge
from workbench.metrics.gates.gate_effects import failed_gates
from workbench.metrics.gates.gate_table import failed_name
from workbench.params.notebooks import EnvironmentCheck
from workbench.params.pd_sweep import PdSweep
from workbench.serve import vllm
from workbench.serve.checks.capacity import CPU_INSTANCES_AT_MOST, instance_gb
from workbench.serve.connectors import CONNECTORS, connector
from workbench.serve.processes.ports import free_ports

FITS = vllm.PACKAGES | {name: v for c in CONNECTORS.values() for name, v in c.packages.items()}
"""The versions that the workbench was tested with."""
DEFAULT_PORTS = {8000: "vLLM", 5555: "LMCache", 8080: "LMCache over HTTP"}
SMALLEST_SHM_GB = 2.0
PORTS = 16
"""The largest deployment on a CPU needs this many."""
WATCHED_S = 2.0
SMOKE = "smoke run: "

TIMING_GATES = {
    *("other programs", "loop lag", "client kept up", "clock was not set"),
    *("steady state", "instances alike"),
}
"""Gates on timing, of this check and of its smoke run; all others say what the machine can run."""

BUSY_MEANS = (
    "On a busy machine, absolute times are rough and p99 is withheld. Use ratios with caution;"
    " token counts are not affected."
)
_SHOWN = {"quiet": "yes", "busy": "no", "not known": "not yet known"}
"""The answer to the second question for each value of the fact `quiet`."""
_NEXT = "papermill notebooks/pd_sweep.ipynb out.ipynb -p topology 1p4d"
_FIRST = "End other programs and repeat this check before you use absolute times or p99. Then run: "


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineLoad:
    """The load of the machine while the workbench ran nothing."""

    others_cpu_share: float
    """Fraction of all cores that other programs kept busy; NaN where it could not be read."""
    loop_lag_p99_s: float
    """How late a timer of 10 ms fired."""


async def watch_machine(watched_s: float = WATCHED_S) -> MachineLoad:
    """Watch the CPU use of other programs, and how late timers fire, for a moment."""
    before = ProcessorLoad.now()
    async with Pulse() as pulse:
        await asyncio.sleep(watched_s)
    return MachineLoad(
        others_cpu_share=ProcessorLoad.now().others_since(before),
        loop_lag_p99_s=pulse.health((), open_loop=False).loop_lag_p99_s,
    )


def stale_servers() -> list[str]:
    """vLLM, LMCache and workbench servers that are running now. They are listed, never ended."""
    import psutil

    found = []
    for process in psutil.process_iter(["pid", "cmdline", "memory_info", "create_time"]):
        info = process.info
        words = info["cmdline"] or []
        line = " ".join(words)
        ours = "workbench.serve." in line or ("lmcache" in line and "server" in words)
        theirs = any(mark in line for mark in vllm.PROCESS_MARKS)
        if (ours or theirs) and info["memory_info"] is not None:
            since = datetime.fromtimestamp(info["create_time"]).strftime("%H:%M:%S")
            memory_gb = info["memory_info"].rss / 1e9
            found.append(f"pid {info['pid']} since {since}, {memory_gb:.1f} GB")
    return found


async def check_environment(params: EnvironmentCheck, *, echo: Echo = echo_line) -> Result:
    """Check the machine, run a short real 1p1d, and answer both questions with the next step.

    The result's `facts` have `ready`, `quiet`, `questions` and `platforms` in addition.
    """
    engine = interpreter(params.engine_python, image_of(params))
    here = machine.facts().with_engine(engine)
    platform = here.platform if params.platform == "auto" else params.platform
    gates = [*_static_gates(here, platform), *timing_gates(await watch_machine())]
    smoke: Result | None = None
    if params.smoke and any(g.outcome == "FAIL" for g in about_running(gates)):
        gates.append(
            judge("smoke run", holds="", unknown=["Not started, because a gate above failed"])
        )
    elif params.smoke:
        # One round of two small prompts: enough to see real KV arrive.
        sweep = PdSweep(
            topology="1p1d", prompt_tokens=2000, output_tokens=8, requests=2, rounds=1,
            opponents=False, platform=params.platform, engine_python=params.engine_python,
            place=params.place, image=params.image, container_args=params.container_args,
            output_dir=str(Path(params.output_dir) / ".smoke"),
        )  # fmt: skip
        try:
            smoke = await run(plan(sweep), echo=echo)
        except WorkbenchError as error:
            step = "read the log named above"
            gates.append(judge("smoke run", holds="", problems=[str(error)], next_step=step))
        else:
            gates += [replace(gate, name=SMOKE + gate.name) for gate in smoke.run.gates]
    return _as_result(params, here, platform, gates, smoke)


def about_running(gates: Sequence[Gate]) -> list[Gate]:
    """The gates of the first question; the others belong to the second."""
    return [gate for gate in gates if gate.name.removeprefix(SMOKE) not in TIMING_GATES]


def _static_gates(here: Machine, platform: str) -> list[Gate]:
    """Versions, memory, shared memory, ports and other servers, without starting anything."""
    wanted = [*vllm.PACKAGES, *connector(PdSweep().connector).packages]
    missing = [name for name in wanted if name not in here.versions]
    versions = {name: here.versions[name] for name in FITS if name in here.versions}
    other = [
        f"{name} {version} (tested: {FITS[name]})"
        for name, version in versions.items()
        if version != FITS[name]
    ]
    free, shm = here.memory_free_gb, here.shm_free_gb
    each_gb = instance_gb(vllm.EngineSettings(model=Path(), platform="cpu"))
    fits = max(0, min(CPU_INSTANCES_AT_MOST, int((free - 1.5) / each_gb)))
    # The workbench starts servers on free ports, so a default port in use does no harm.
    taken = [f"{port} ({name})" for port, name in DEFAULT_PORTS.items() if _listens(port)]
    by_others = f"; default ports in use: {', '.join(taken)}" if taken else ""
    no_ports = []
    try:
        free_ports(PORTS)
    except WorkbenchError as error:
        no_ports.append(str(error))
    stale = stale_servers()
    install = (
        f"install them for Python {here.engine_python}" if here.engine_python else "run make setup"
    )
    gates = [
        judge(
            "packages",
            holds=f"{', '.join(map(' '.join, versions.items()))} (tested versions)",
            problems=[f"{' and '.join(missing)} must be installed"] if missing else [],
            unknown=[f"Untested versions: {'; '.join(other)}"] if other else [],
            next_step=f"{install}, or give another environment's interpreter as engine_python",
            if_unknown=f"{install}, or rely on the smoke run",
        ),
        _limit(
            "memory",
            f"{free:.1f} GB, room for {fits} CPU instances ({each_gb:.1f} GB each) and a KV store",
            broken=free < 2 * each_gb + 1.5,
            step="end other programs",
        ),
        _limit(
            "shared memory",
            f"{shm:.1f} GB in /dev/shm (the KV store needs {SMALLEST_SHM_GB:g} GB)",
            broken=not shm >= SMALLEST_SHM_GB,
            step="start the container with a larger --shm-size",
        ),
        judge(
            "ports",
            holds=f"{PORTS} free ports were found{by_others}",
            problems=no_ports,
            next_step="end the programs that listen there (ss -ltnp lists them)",
        ),
        judge(
            "stale servers",
            holds="No vLLM or LMCache server is running",
            unknown=[
                f"{len(stale)} vLLM, LMCache or workbench server{'s' * (len(stale) > 1)} running:"
                f" {'; '.join(stale[:6])}"
            ][: len(stale)],
            if_unknown="end them if nobody needs them; they take CPU and memory from every"
            " measurement",
        ),
    ]
    if platform != "cpu" and not here.gpus:
        no_gpu = f"No GPU was found, but platform is {platform}"
        step = "check the driver, or use -p platform cpu"
        gates.append(_limit("GPUs", no_gpu, broken=True, step=step))
    return gates


def _limit(name: str, sentence: str, *, broken: bool, step: str, unknown: str = "") -> Gate:
    """A gate whose sentence has the number and its limit in both cases."""
    return judge(
        name,
        holds=sentence,
        problems=[sentence] if broken else [],
        unknown=[unknown] if unknown else [],
        next_step=step,
    )


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.2)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def timing_gates(seen: MachineLoad) -> list[Gate]:
    """Whether other programs left the CPU free, and whether timers fired on time."""
    others, lag_s = seen.others_cpu_share, seen.loop_lag_p99_s
    go_on = "end other programs, or use only ratios, with caution"
    return [
        _limit(
            "other programs",
            f"Other programs used {_percent(others)} of the CPU (limit {_percent(OTHERS_SHARE)})",
            broken=others > OTHERS_SHARE,
            unknown="The CPU use of other programs could not be read" if isnan(others) else "",
            step=go_on,
        ),
        _limit(
            "loop lag",
            f"Timers fired {1000 * lag_s:.1f} ms late (p99, limit {1000 * LAG_P99_S:.0f} ms)",
            broken=lag_s > LAG_P99_S,
            unknown="No timer fired during the check" if isnan(lag_s) else "",
            step=go_on,
        ),
    ]


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _deciding(gates: Sequence[Gate]) -> list[Gate]:
    """The gates that failed, or else the undecided ones; none where all passed."""
    failed = [gate for gate in gates if gate.outcome == "FAIL"]
    return failed or [gate for gate in gates if gate.outcome == "INCONCLUSIVE"]


def idleness(gates: Sequence[Gate]) -> Literal["quiet", "busy", "not known"]:
    """What the gates on timing say together; "quiet" is an idle machine."""
    deciding = _deciding(gates)
    if deciding:
        return "busy" if deciding[0].outcome == "FAIL" else "not known"
    return "quiet" if gates else "not known"


def answers(gates: Sequence[Gate], platform: str, *, smoked: bool) -> dict[str, Any]:
    """The answers to both questions, as facts of a result: headline, outcome, next step.

    `smoked` says that servers were started, or were not asked for.
    """
    running = about_running(gates)
    timing = [gate for gate in gates if gate not in running]
    failed = [gate for gate in running if gate.outcome == "FAIL"]
    ready, quiet = smoked and not failed, idleness(timing)
    severity: Literal["ok", "unsure", "bad"] = "ok" if quiet == "quiet" else "unsure"
    scope, step, why = BUSY_MEANS if quiet == "busy" else "", _NEXT, ""
    if not ready:
        word, severity, scope = "not ready", "bad", ""
        step = failed[0].next_step if failed else ""
        finding = f"Not ready: {_named(failed[0]) if failed else 'no server was started'}"
        why = f"{_first_line(failed[0])}." if failed else f"{finding}."
    elif quiet == "quiet":
        word = "ready"
        finding = f"Ready: servers start, KV is transferred, and the machine is idle ({platform})"
    else:
        word, finding = "ready, busy", "Ready to run, but not idle enough for timing"
        if quiet != "busy":
            word = "ready, load unknown"
            finding = "Ready to run; not yet shown to be idle enough for timing"
        why, step = f"{_first_line(_deciding(timing)[0])}.", f"{_FIRST}{_NEXT}"
    said_of = {
        "Can this machine run the workbench?": ("yes" if ready else "no", running),
        "Is it idle enough for timing?": (_SHOWN[quiet], timing),
    }
    return {
        "ready": ready,
        "quiet": quiet,
        "questions": [
            {"question": question, "answer": answer, "why": _together(about)}
            for question, (answer, about) in said_of.items()
        ],
        "outcome": RunOutcome(word=word, severity=severity, why=why),
        "finding": finding,
        "scope": " ".join(filter(None, (scope, f"Next step: {step}" if step else ""))),
        "next_step": step,
    }


def _first_line(gate: Gate) -> str:
    return gate.sentence.partition("\n")[0]


def _named(gate: Gate) -> str:
    """What its failure means, in a few words."""
    name = gate.name.removeprefix(SMOKE)
    return f"{failed_name(name)}{' (smoke run)' * (name != gate.name)}"


def _together(gates: Sequence[Gate]) -> str:
    """The gates that decided the answer."""
    said = "; ".join(f"{gate.name}: {_first_line(gate)}" for gate in _deciding(gates))
    return said or f"all {len(gates)} gates passed"


def _as_result(
    params: EnvironmentCheck,
    here: Machine,
    platform: str,
    gates: Sequence[Gate],
    smoke: Result | None,
) -> Result:
    seen = smoke.run if smoke else None
    now = datetime.now(UTC).isoformat(timespec="seconds")
    of_all = f"of {here.memory_gb:.0f} GB"
    # Cores and memory are facts of the machine: no gate touches them.
    numbers = [
        Card(label="cores", value=here.cores, note=here.cpu),
        Card(label="memory free", value=here.memory_free_gb, unit="GB", note=of_all),
    ]
    if seen is not None:
        label, note = "until a 1p1d with LMCache was healthy", "forked from a preloaded process"
        if platform != "cpu":
            note = "one launch"
        started_s = seen.launches_s[0]
        numbers.append(Card(label=label, value=started_s, unit="s", note=note, rests_on="times"))
    engine = seen.engine if seen else EngineFacts()
    folder = RunFolder.open(params.output_dir, "environment_check", "here")
    facts = RunFacts(
        notebook="environment_check",
        run_id="here",
        status="success",  # the check completed, whatever it found
        started_at=seen.started_at if seen else now,
        finished_at=now,
        duration_s=seen.duration_s if seen else 0.0,
        parameters=asdict(params),
        machine=here.as_dict() | {"platform": platform},
        **answers(gates, platform, smoked=smoke is not None or not params.smoke),
        numbers=marked(numbers, failed_gates(gates)),
        gates=tuple(gates),
        engine=engine,
        limits=(
            "Ready means that servers start and KV is transferred. It says nothing about speed.",
            *filter(None, [engine.chosen]),
        ),
        platforms=tuple(platforms(here)),
        arms=seen.arms if seen else (),
        summary=seen.summary if seen else (),
        repeat="papermill notebooks/environment_check.ipynb out.ipynb",
    )
    folder.write_facts(facts)
    folder.promote()
    return Result(run=facts, folder=folder.home, frames=smoke.frames if smoke else {})


def platforms(here: Machine) -> list[dict[str, str]]:
    """What this machine can run on each platform, one row each."""
    gpus = f"all notebooks, on {', '.join(gpu.name for gpu in here.gpus)}"
    with_vllm = "all notebooks, with a tiny model (vLLM, LMCache and NIXL)"
    can = {
        "cpu": with_vllm if here.versions.get("vllm") else "nothing (vLLM is not installed)",
        "cuda": gpus if here.platform == "cuda" else "nothing (no NVIDIA GPU was found)",
        "rocm": gpus if here.platform == "rocm" else "nothing (no AMD GPU was found)",
    }
    return [{"platform": name, "can run": what} for name, what in can.items()]
