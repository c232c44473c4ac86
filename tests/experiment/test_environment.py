"""Two separate questions: can this machine run it, and is it idle enough for timing?"""

from dataclasses import replace
from math import nan

import pytest

from workbench.errors import DeploymentError, LaunchError
from workbench.experiment import environment
from workbench.experiment.environment import (
    BUSY_MEANS,
    SMOKE,
    MachineLoad,
    check_environment,
    idleness,
    timing_gates,
    watch_machine,
)
from workbench.experiment.result.facts import EngineFacts, RunFacts
from workbench.experiment.result.result import Result
from workbench.hardware import machine
from workbench.metrics.gates.gate import Gate
from workbench.metrics.gates.gate_table import GATES, gate_row
from workbench.params.notebooks import EnvironmentCheck
from workbench.report.outcome import outcome_of

SMOKED = {"KV moved": "PASS", "same text": "PASS", "client kept up": "PASS"}


@pytest.fixture
def check(monkeypatch, tmp_path):
    """Check a described machine; `smoked` are the gates of its smoke run, or what it raises."""
    here = replace(
        machine.facts(), platform="cpu", memory_free_gb=20.0, shm_free_gb=8.0, gpus=(),
        versions=environment.FITS,
    )  # fmt: skip

    async def run(*, others=0.02, lag_s=0.0004, smoked=SMOKED, smoke=True, **changed):
        async def watch():
            return MachineLoad(others_cpu_share=others, loop_lag_p99_s=lag_s)

        async def run_smoke(plan, *, echo):
            if isinstance(smoked, Exception):
                raise smoked
            gates = [Gate(name=n, outcome=o, sentence="as it should be") for n, o in smoked.items()]
            facts = RunFacts(
                notebook="pd_sweep", run_id="smoke", status="success", gates=tuple(gates),
                launches_s=(2.5,), started_at="2026-11-29T07:00:00+00:00", duration_s=12.0,
                engine=EngineFacts(dtype="float32", chosen="KV is float32."),
            )  # fmt: skip
            return Result(run=facts, folder=tmp_path)

        monkeypatch.setattr(machine, "facts", lambda: replace(here, **changed))
        monkeypatch.setattr(environment, "watch_machine", watch)
        monkeypatch.setattr(environment, "stale_servers", list)
        monkeypatch.setattr(environment, "plan", lambda params: params)
        monkeypatch.setattr(environment, "run", run_smoke)
        params = EnvironmentCheck(output_dir=str(tmp_path), smoke=smoke)
        return (await check_environment(params, echo=lambda _: None)).run

    return run


def said(facts):
    assert outcome_of(facts) == facts.outcome
    return facts.ready, facts.quiet, facts.outcome.word


async def test_ready_and_quiet(check):
    facts = await check()
    assert said(facts) == (True, "quiet", "ready")
    assert facts.finding == "Ready: servers start, KV is transferred, and the machine is idle (cpu)"
    assert facts.next_step.startswith("papermill notebooks/pd_sweep.ipynb")
    assert [row["answer"] for row in facts.questions] == ["yes", "yes"]
    assert facts.engine.dtype == "float32"
    assert facts.limits[-1] == "KV is float32."  # what was chosen for this machine


async def test_a_busy_machine_is_ready_all_the_same_and_is_told_what_that_means(check):
    facts = await check(others=0.98, smoked=SMOKED | {"client kept up": "FAIL"})
    assert said(facts) == (True, "busy", "ready, busy")
    assert facts.finding == "Ready to run, but not idle enough for timing"
    assert facts.next_step.startswith("End other programs and repeat this check")
    assert facts.next_step.endswith("papermill notebooks/pd_sweep.ipynb out.ipynb -p topology 1p4d")
    assert facts.scope.startswith(BUSY_MEANS)
    assert facts.status == "success"  # the check completed
    shown = {card.label: card.spoilt for card in facts.numbers}
    # Only the time of a start is rough.
    started = "until a 1p1d with LMCache was healthy"
    assert shown == {"cores": "", "memory free": "", started: "rough"}
    can, quiet = facts.questions
    assert can["why"].startswith("all ") and can["why"].endswith(" gates passed")
    assert "smoke run: client kept up" in quiet["why"]


@pytest.mark.parametrize(
    "name", ["client kept up", "clock was not set", "steady state", "instances alike"]
)
async def test_a_gate_on_timing_never_makes_a_machine_unready(name, check):
    facts = await check(smoked=SMOKED | {name: "FAIL"})
    assert said(facts) == (True, "busy", "ready, busy")


@pytest.mark.parametrize(
    "name",
    sorted(GATES.keys() & {"every pass ran", "no failures", "KV moved", "same text",
                           "cold was cold", "the ledger closes", "caches were emptied"}),
)  # fmt: skip
async def test_any_other_gate_of_the_smoke_run_does(name, check):
    facts = await check(smoked=SMOKED | {name: "FAIL"}, others=0.98)
    assert said(facts) == (False, "busy", "not ready")
    assert facts.finding == f"Not ready: {gate_row(name).failed_name} (smoke run)"
    assert f"{SMOKE}{name}" in facts.questions[0]["why"]
    # Cores and memory are the machine's, whatever its servers do.
    assert [card.spoilt for card in facts.numbers[:2]] == ["", ""]


async def test_servers_that_do_not_start_are_the_reason_with_the_next_step(check):
    facts = await check(smoked=LaunchError("store did not start: no room\n  log: /x/store.log"))
    assert said(facts) == (False, "quiet", "not ready")
    assert facts.finding == "Not ready: smoke run failed"
    assert facts.outcome.why == "store did not start: no room."
    assert facts.next_step == "read the log named above"


@pytest.mark.parametrize(
    ("changed", "finding", "why"),
    [
        ({"versions": {"vllm": "0.32.0"}}, "packages are missing", "lmcache must be installed."),
        ({"memory_free_gb": 1.0}, "too little RAM is free", "1.0 GB, room for 0 CPU"),
        ({"shm_free_gb": 0.06}, "shared memory is too small", "0.1 GB in /dev/shm"),
    ],
)
async def test_what_is_missing_is_said_and_no_server_is_started(changed, finding, why, check):
    facts = await check(**changed, smoked=AssertionError("a server was started"))
    assert said(facts)[0] is False
    assert facts.finding.startswith(f"Not ready: {finding}")
    assert facts.outcome.why.startswith(why)
    assert facts.next_step


async def test_without_a_free_port_it_is_not_ready(check, monkeypatch):
    def none(count):
        raise DeploymentError(f"fewer than {count} free ports between 20000 and 32000")

    monkeypatch.setattr(environment, "free_ports", none)
    facts = await check()
    assert facts.finding == "Not ready: too few ports are free"
    assert facts.outcome.why.startswith("fewer than 16 free ports")


async def test_quiet_that_could_not_be_decided_is_not_claimed(check):
    facts = await check(smoked=SMOKED | {"client kept up": "INCONCLUSIVE"})
    assert said(facts) == (True, "not known", "ready, load unknown")
    assert facts.finding == "Ready to run; not yet shown to be idle enough for timing"
    assert [row["answer"] for row in facts.questions] == ["yes", "not yet known"]
    assert facts.outcome.severity == "unsure"


async def test_without_a_smoke_run_the_rest_is_answered(check):
    facts = await check(smoke=False, smoked=AssertionError("a server was started"))
    assert said(facts) == (True, "quiet", "ready")


@pytest.mark.parametrize(
    ("others", "lag_s", "answer"),
    [
        (0.03, 0.0004, "quiet"),
        (0.25, 0.01, "quiet"),  # as much as is allowed
        (0.51, 0.0004, "busy"),
        (0.03, 0.011, "busy"),
        (nan, 0.0004, "not known"),
        (0.03, nan, "not known"),
        (nan, 0.5, "busy"),
    ],
)
def test_a_load_is_quiet_busy_or_not_known(others, lag_s, answer):
    assert (
        idleness(timing_gates(MachineLoad(others_cpu_share=others, loop_lag_p99_s=lag_s))) == answer
    )


def test_without_a_check_nothing_is_known():
    assert idleness([]) == "not known"


def test_a_busy_machine_is_told_with_its_numbers():
    others, lag = timing_gates(MachineLoad(others_cpu_share=0.51, loop_lag_p99_s=0.0312))
    assert others.sentence == "Other programs used 51 % of the CPU (limit 25 %)"
    assert lag.sentence == "Timers fired 31.2 ms late (p99, limit 10 ms)"


@pytest.mark.parametrize("name", ["other programs", "loop lag"])
def test_it_takes_what_a_late_client_takes_and_no_count(name):
    assert gate_row(name).takes == gate_row("client kept up").takes
    assert "counts" not in gate_row(name).takes


async def test_this_machine_can_be_watched():
    seen = await watch_machine(0.15)
    assert 0 <= seen.others_cpu_share <= 1
    assert seen.loop_lag_p99_s > 0
