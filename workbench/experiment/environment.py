"""Can this machine run the workbench, and is it quiet enough to time? Two questions, kept apart.

The first is answered by versions, memory, ports and a short run of real servers: ready or not
ready. The second by the CPU of other programs and by timers: quiet or busy. A busy machine is
ready all the same.
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
from workbench.experiment.result.facts import Card, EngineFacts, RunFacts, RunOutcome
from workbench.experiment.result.result import Result
from workbench.experiment.result.run_folder import RunFolder
from workbench.experiment.run.run import run
from workbench.experiment.run.run_log import Echo, echo_line
from workbench.hardware import machine
from workbench.hardware.machine import Machine, ProcessorLoad
from workbench.load.drive.health import Pulse
from workbench.metrics.gates.client_gate import LAG_P99_S, OTHERS_SHARE
from workbench.metrics.gates.gate import Gate, judge
from workbench.metrics.gates.gate_table import failed_names
from workbench.params.notebooks import EnvironmentCheck, PdSweep
from workbench.serve import vllm
from workbench.serve.capacity import CPU_INSTANCES_AT_MOST, instance_gb
from workbench.serve.connectors import CONNECTORS, connector
from workbench.serve.processes.ports import free_ports

FITS = vllm.PACKAGES | {name: v for c in CONNECTORS.values() for name, v in c.packages.items()}
"""Versions that were measured."""
DEFAULT_PORTS = {8000: "vLLM", 5555: "LMCache", 8080: "LMCache over HTTP"}
SMALLEST_SHM_GB = 2.0
PORTS = 16
"""As many as the largest deployment on a CPU takes."""
WATCHED_S = 2.0
SMOKE = "smoke run: "

TIMING_GATES = {
    *("other programs", "loop lag", "client kept up", "clock was not set"),
    *("steady state", "instances alike"),
}
"""Gates that say how well a machine can time, not what it can run; those of a smoke run too."""

BUSY_MEANS = (
    "Busy means: absolute times are rough and p99 is withheld. Token counts hold, and so do ratios"
    " whose interval excludes 1."
)
_NEXT = "papermill notebooks/pd_sweep.ipynb out.ipynb -p topology 1p4d"


@dataclass(frozen=True, slots=True, kw_only=True)
class Quiet:
    """What was seen while nothing of ours ran."""

    others_cpu_share: float
    """Of all cores, kept busy by other programs; NaN where it was not read."""
    loop_lag_p99_s: float
    """By how much a timer of 10 ms came late."""


async def watch_machine(watched_s: float = WATCHED_S) -> Quiet:
    """Watch the CPU of other programs, and how late our own timers come, for a moment."""
    before = ProcessorLoad.now()
    async with Pulse() as pulse:
        await asyncio.sleep(watched_s)
    return Quiet(
        others_cpu_share=ProcessorLoad.now().others_since(before),
        loop_lag_p99_s=pulse.health((), open_loop=False).loop_lag_p99_s,
    )


def stale_servers() -> list[str]:
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
            since = datetime.fromtimestamp(info["create_time"]).strftime("%H:%M:%S")
            memory_gb = info["memory_info"].rss / 1e9
            found.append(f"pid {info['pid']} since {since}, {memory_gb:.1f} GB")
    return found


async def check_environment(params: EnvironmentCheck, *, echo: Echo = echo_line) -> Result:
    """Look at the machine, run a short real 1p1d, and answer both questions with the next step.

    The result's `facts` has `ready`, `quiet`, `questions` and `platforms` beside what every result
    has.
    """
    here = machine.facts()
    platform = here.platform if params.platform == "auto" else params.platform
    gates = [*_static_gates(here, platform), *timing_gates(await watch_machine())]
    smoke: Result | None = None
    if params.smoke and any(g.outcome == "FAIL" for g in _about_running(gates)):
        gates.append(judge("smoke run", holds="", unknown=["not started: a check above failed"]))
    elif params.smoke:
        # One round of two small prompts: enough to see real KV arrive.
        sweep = PdSweep(
            topology="1p1d", prompt_tokens=2000, output_tokens=8, requests=2, rounds=1,
            opponents=False, platform=params.platform,
            output_dir=str(Path(params.output_dir) / ".smoke"),
        )  # fmt: skip
        try:
            smoke = await run(plan(sweep), echo=echo)
        except WorkbenchError as error:
            step = "read the log that it names"
            gates.append(judge("smoke run", holds="", problems=[str(error)], next_step=step))
        else:
            gates += [replace(gate, name=SMOKE + gate.name) for gate in smoke.run.gates]
    return _as_result(params, here, platform, gates, smoke)


def _about_running(gates: Sequence[Gate]) -> list[Gate]:
    """The gates of the first question; all others are those of the second."""
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
    # Servers take free ports of their own; a default port that is taken does no harm.
    taken = [f"{port} ({name})" for port, name in DEFAULT_PORTS.items() if _listens(port)]
    by_others = f"; in use by others: {', '.join(taken)}" if taken else ""
    no_ports = []
    try:
        free_ports(PORTS)
    except WorkbenchError as error:
        no_ports.append(str(error))
    stale = stale_servers()
    gates = [
        judge(
            "packages",
            holds=f"{', '.join(map(' '.join, versions.items()))} are the tested versions",
            problems=[f"{' and '.join(missing)} not installed"] if missing else [],
            unknown=[f"versions that were not tested: {'; '.join(other)}"] if other else [],
            next_step="run make setup",
            if_unknown="run make setup, or trust the smoke run",
        ),
        _limit(
            "memory",
            f"{free:.1f} GB free: room for {fits} CPU instances of about {each_gb:.1f} GB and a"
            " KV store",
            broken=free < 2 * each_gb + 1.5,
            step="end other programs",
        ),
        _limit(
            "shared memory",
            f"{shm:.1f} GB free in /dev/shm, where the KV store lies (at least"
            f" {SMALLEST_SHM_GB:g} GB)",
            broken=not shm >= SMALLEST_SHM_GB,
            step="start the container with a larger --shm-size",
        ),
        judge(
            "ports",
            holds=f"{PORTS} free ports were found{by_others}",
            problems=no_ports,
            next_step="end what listens there: ss -ltnp lists it",
        ),
        judge(
            "stale servers",
            holds="no vLLM or LMCache server runs already",
            unknown=[
                f"{len(stale)} processes of vLLM, LMCache or the workbench run already:"
                f" {'; '.join(stale[:6])}"
            ][: len(stale)],
            if_unknown="end them if nobody needs them; they take CPU and memory from every"
            " measurement",
        ),
    ]
    if platform != "cpu" and not here.gpus:
        no_gpu = f"no GPU answers, and platform is {platform}"
        step = "check the driver, or take -p platform cpu"
        gates.append(_limit("GPUs", no_gpu, broken=True, step=step))
    return gates


def _limit(name: str, sentence: str, *, broken: bool, step: str, unknown: str = "") -> Gate:
    """A check whose sentence has the number and its limit, whether it holds or not."""
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


def timing_gates(seen: Quiet) -> list[Gate]:
    """Whether other programs left the CPU to us, and whether our timers were on time."""
    others, lag_s = seen.others_cpu_share, seen.loop_lag_p99_s
    go_on = "end other programs, or go on with the ratios"
    return [
        _limit(
            "other programs",
            f"Other programs use {others:.0%} of the CPU (limit {OTHERS_SHARE:.0%})",
            broken=others > OTHERS_SHARE,
            unknown="The CPU of other programs could not be read" if isnan(others) else "",
            step=go_on,
        ),
        _limit(
            "loop lag",
            f"A timer fires {1000 * lag_s:.1f} ms late (p99, limit {1000 * LAG_P99_S:.0f} ms)",
            broken=lag_s > LAG_P99_S,
            unknown="No timer fired while it was watched" if isnan(lag_s) else "",
            step=go_on,
        ),
    ]


def _deciding(gates: Sequence[Gate]) -> list[Gate]:
    """Those that failed, else those without an answer; none where all hold."""
    failed = [gate for gate in gates if gate.outcome == "FAIL"]
    return failed or [gate for gate in gates if gate.outcome == "INCONCLUSIVE"]


def quietness(gates: Sequence[Gate]) -> Literal["quiet", "busy", "not known"]:
    """What gates on timing say together."""
    deciding = _deciding(gates)
    if deciding:
        return "busy" if deciding[0].outcome == "FAIL" else "not known"
    return "quiet" if gates else "not known"


def answers(gates: Sequence[Gate], platform: str, *, smoked: bool) -> dict[str, Any]:
    """Both questions answered, as the facts of a result: the headline, the outcome, what to do.

    `smoked` says that servers were tried, where that was wanted.
    """
    running = _about_running(gates)
    timing = [gate for gate in gates if gate not in running]
    failed = [gate for gate in running if gate.outcome == "FAIL"]
    ready, quiet = smoked and not failed, quietness(timing)
    severity: Literal["ok", "unsure", "bad"] = "ok" if quiet == "quiet" else "unsure"
    scope, step, why = BUSY_MEANS if quiet == "busy" else "", _NEXT, ""
    if not ready:
        word, severity, scope = "not ready", "bad", ""
        step = failed[0].next_step if failed else ""
        finding = f"Not ready: {_first_line(failed[0]) if failed else 'no server was tried'}"
        why = finding
    elif quiet == "quiet":
        word = "ready, quiet"
        finding = f"Ready, quiet: servers start and KV moves ({platform})"
    else:
        said = _lowered(_first_line(_deciding(timing)[0]))
        word = "ready, busy" if quiet == "busy" else "ready"
        finding = f"{'Ready, busy' if quiet == 'busy' else 'Ready; quiet is not proven'}: {said}"
        why = f"{said}."
    said_of = {
        "Can this machine run it?": ("ready" if ready else "not ready", running),
        "Is it quiet enough to time?": (quiet, timing),
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


def _lowered(sentence: str) -> str:
    """As it is written after a colon; a name in capitals stays as it is."""
    capital = sentence[:1].isupper() and not sentence[1:2].isupper()
    return sentence[0].lower() + sentence[1:] if capital else sentence


def _together(gates: Sequence[Gate]) -> str:
    """What decided, check by check."""
    said = "; ".join(f"{gate.name}: {_first_line(gate)}" for gate in _deciding(gates))
    return said or f"all {len(gates)} checks hold"


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
    # Cores and memory are of the machine itself: whatever fails, they stay.
    numbers = [
        Card(label="cores", value=here.cores, note=here.cpu),
        Card(label="memory free", value=here.memory_free_gb, unit="GB", note=of_all),
    ]
    if seen is not None:
        label, note = "from nothing to healthy, 1p1d", "one launch, LMCache included"
        started_s = seen.launches_s[0]
        numbers.append(Card(label=label, value=started_s, unit="s", note=note, rests_on="times"))
    engine = seen.engine if seen else EngineFacts()
    folder = RunFolder.open(params.output_dir, "environment_check", "here")
    facts = RunFacts(
        notebook="environment_check",
        run_id="here",
        status="success",  # it was carried out, whatever it found
        started_at=seen.started_at if seen else now,
        finished_at=now,
        duration_s=seen.duration_s if seen else 0.0,
        parameters=asdict(params),
        machine=here.as_dict() | {"platform": platform},
        **answers(gates, platform, smoked=smoke is not None or not params.smoke),
        numbers=marked(numbers, failed_names(gates)),
        gates=tuple(gates),
        engine=engine,
        limits=(
            "Ready says that servers start and KV moves here, not that they are fast.",
            *filter(None, [engine.chosen]),
        ),
        platforms=tuple(platforms(here)),
        arms=seen.arms if seen else (),
        summary=seen.summary if seen else (),
        repeat="papermill notebooks/environment_check.ipynb out.ipynb",
    )
    folder.write_facts(facts)
    folder.promote()
    return Result(run=facts, folder=folder.home)


def platforms(here: Machine) -> list[dict[str, str]]:
    """What each platform can run on this machine, one row each."""
    gpus = f"every notebook on {', '.join(gpu.name for gpu in here.gpus)}"
    with_vllm = "pd_sweep, prefix cache, LMCache, NIXL with a tiny model"
    can = {
        "cpu": with_vllm if here.versions.get("vllm") else "nothing yet",
        "cuda": gpus if here.platform == "cuda" else "no NVIDIA GPU answers",
        "rocm": gpus if here.platform == "rocm" else "no AMD GPU answers",
    }
    return [{"platform": name, "can run": what} for name, what in can.items()]
