"""Every fault of the simulated engine through the whole pipeline: docs/faults.md says what it does.

The gate on the client is fed a quiet clock, since a shared machine rightly trips it.
"""

import secrets
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import pytest_asyncio

from tests.conftest import TOKEN, left_running, marked_processes
from tests.runs import causes, lend, not_passed
from tests.wording import check_words
from workbench.errors import LaunchError
from workbench.experiment.plan.arms import plan
from workbench.experiment.result.result import Result
from workbench.experiment.run.launch import isolation, measure
from workbench.experiment.run.run import run
from workbench.experiment.run.run_log import Log
from workbench.hardware.machine import repository_root
from workbench.metrics.gates.gate_effects import spoil
from workbench.metrics.gates.gate_table import KINDS
from workbench.params.pd_sweep import PdSweep
from workbench.report.figures import requests_over_time, token_sources
from workbench.report.outcome import outcome_of
from workbench.serve import deployed
from workbench.serve.processes.local import LocalLauncher
from workbench.serve.simulated.faults import FAULTS, applies
from workbench.serve.simulated.substitution import LOADS
from workbench.topology import Topology

pytestmark = pytest.mark.servers
in_one_loop = pytest.mark.asyncio(loop_scope="module")

RULES = {"block rounding", "chunk rounding", "last token", "engine had it too"}
"""Causes that every clean ledger has."""
DEPLOYMENTS = (
    "2a none", "2a lmcache", "1p2d lmcache", "1p2d nixl", "1p2d mooncake", "1p2d mooncake-store",
)  # fmt: skip


class Row(NamedTuple):
    fault: str
    deployment: str
    gates: dict[str, str]
    """Those that are not PASS, with their outcome."""
    spoils: dict[str, str]
    """Kinds of number, with what is done to each."""
    causes: set[str]

    def __str__(self) -> str:
        return f"{self.fault} {self.deployment}"


def matrix() -> list[Row]:
    """The rows of docs/faults.md, one for each deployment."""
    rows = []
    for line in (repository_root() / "docs" / "faults.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0] in FAULTS:
            fault, deployments, gates, spoils, causes, _ = map(listed, cells)
            outcomes = {
                gate.removesuffix(" INCONCLUSIVE"): "INCONCLUSIVE" if "INC" in gate else "FAIL"
                for gate in gates
            }
            effects = {kind.split()[0]: kind.partition(" ")[2] or "struck" for kind in spoils}
            rows += [Row(fault[0], d, outcomes, effects, set(causes)) for d in deployments]
    return rows


def listed(cell: str) -> list[str]:
    return [] if cell == "-" else cell.split(", ")


Loaded = tuple[LocalLauncher, str]


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def loaded(
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[Loaded]:
    """One fork server for all tests, and the mark that everything it starts has."""
    token = secrets.token_hex(8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(TOKEN, token)
        folder = tmp_path_factory.mktemp("launcher")
        async with LocalLauncher(folder, loads=LOADS) as launcher:
            assert await launcher.loaded()
            yield launcher, token


@pytest.fixture
def one_launcher(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Runs start their servers by it, and leave nothing beside it."""
    launcher, token = loaded
    lend(launcher, monkeypatch)
    before = marked_processes(token)
    yield
    assert left_running(token, within_s=10, besides=before) == {}


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that nothing disturbs, and little patience with an instance that refuses a reset."""
    monkeypatch.setattr(deployed, "RESET_TIMEOUT_S", 0.5)
    monkeypatch.setattr(isolation, "STORE_RESET_S", 0.5)

    def watch(load: Any, others_share: float, log: Log, **_: Any) -> None:
        log.client |= {"loop_lag_max_s": 0.0, "thread_cpu_share": 0.0}

    monkeypatch.setattr(measure, "watch_client", watch)


async def simulate(folder: Path, deployment: str, **values: Any) -> Result:
    topology, connector = deployment.split()
    small = PdSweep(
        engine="simulated",
        topology=topology,
        connector=connector,
        rounds=1,
        requests=6,
        prompt_tokens=1500,
        output_tokens=12,
        timeout_s=2.0,
        opponents=False,
        output_dir=str(folder),
    )
    return await run(plan(replace(small, **values)), echo=lambda _: None)


def spoilt(result: Result) -> dict[str, str]:
    """What became of each kind of number where a reader finds it; text is in its gate alone."""
    failed = result.run.failed_gates
    tails = result.percentiles.query("quantile >= 0.99")
    withheld = tails["note"].str.startswith("withheld")
    assert withheld.any() == (spoil(failed, "tails").effect == "struck")
    assert bool(result.run.unproven) == (spoil(failed, "ratios").effect == "struck")
    for shown, kind in (
        (token_sources(result.token_sources), "counts"),
        (requests_over_time(result.requests), "times"),
    ):
        assert ("grayscale" in shown.svg) == (spoil(failed, kind).effect == "struck")
    for card in result.run.numbers:
        does = spoil(failed, card.rests_on, passes=card.passes, interval=isfinite(card.low))
        assert card.spoilt == does.effect
    return {kind: does.effect for kind in KINDS if (does := spoil(failed, kind)).effect}


def test_the_table_has_every_fault_wherever_it_can_happen():
    def can_happen(fault: str, text: str) -> bool:
        topology, connector = text.split()
        return applies(fault, connector, Topology.parse(topology))

    found = {(row.fault, row.deployment) for row in matrix()}
    everywhere = {(fault, text) for fault in FAULTS for text in DEPLOYMENTS}
    assert found & everywhere == {row for row in everywhere if can_happen(*row)}
    assert all(can_happen(*row) for row in found)  # some rows are of a deployment beyond these


@in_one_loop
@pytest.mark.parametrize("row", matrix(), ids=str)
async def test_a_fault_does_what_the_table_says_and_nothing_else(
    row: Row, quiet: None, tmp_path: Path, one_launcher: None
):
    if row.gates == {"the start fails": "FAIL"}:
        began_s = time.monotonic()
        with pytest.raises(LaunchError, match=r"store ended while .* started: injected fault"):
            await simulate(tmp_path, row.deployment, fault=row.fault)
        assert time.monotonic() - began_s < 5
        return
    split = row.deployment.startswith("1p")
    baseline = row.fault == "wrong_kv" and split  # a whole arm, whose text is right
    result = await simulate(tmp_path, row.deployment, fault=row.fault, opponents=baseline)
    assert not_passed(result.facts) == row.gates
    for gate in result.run.gates:
        check_words(gate)
    assert spoilt(result) == row.spoils
    assert causes(result.facts) - RULES == row.causes
    assert result.facts["simulated"]
    assert any("injected on purpose" in doubt for doubt in result.doubts)


@in_one_loop
@pytest.mark.parametrize("launches", [5, pytest.param(20, marks=pytest.mark.long)])
@pytest.mark.parametrize("text", DEPLOYMENTS)
async def test_clean_launches_trip_nothing(
    text: str, launches: int, quiet: None, tmp_path: Path, one_launcher: None
):
    result = await simulate(tmp_path, text, rounds=launches, requests=3)
    assert not_passed(result.facts) == spoilt(result) == {}
    assert causes(result.facts) <= RULES
    assert len(result.facts["launches_s"]) == launches
    assert all(account["unexplained"] == 0 for account in result.facts["ledger"])


@in_one_loop
async def test_a_late_client_takes_tails_and_no_count_and_leaves_a_clear_headline(
    quiet: None, tmp_path: Path, one_launcher: None, monkeypatch: pytest.MonkeyPatch
):
    def late(load: Any, others_share: float, log: Log, **_: Any) -> None:
        log.client |= {"loop_lag_p99_s": 0.2, "others_cpu_share": 0.9}

    monkeypatch.setattr(measure, "watch_client", late)
    result = await simulate(tmp_path, "2a lmcache", rounds=5, requests=3, prompt_tokens=12_000)
    failed = [name for name, outcome in not_passed(result.facts).items() if outcome == "FAIL"]
    assert failed == ["client kept up"]  # another may be undecided where this machine is busy
    assert spoilt(result) == {"ratios": "doubt", "times": "rough", "tails": "struck"}
    assert result.facts["finding"].startswith("Warm KV store: TTFT")
    assert outcome_of(result.run).word == "gates failed"
    ratio = result.run.numbers[0]
    assert ratio.low > 1 and ratio.spoilt == "doubt"
    assert any("use ratios with caution" in doubt for doubt in result.doubts)


@in_one_loop
async def test_faults_of_the_stream_change_no_latency(
    quiet: None, tmp_path: Path, one_launcher: None
):
    clean, empty, bulk, late = [
        (await simulate(tmp_path, "2a none", fault=fault, prompt_tokens=12_000)).requests
        for fault in ("", "role_chunk_first", "tokens_in_bulk", "late_finish")
    ]
    # Taken wrong, TTFT would fall to the first chunk's time and TPOT rise fourfold.
    cold = empty["pass"] == "cold"
    assert (empty["head_s"] - empty["sent_s"])[cold].median() < 0.5 * empty["ttft_s"][cold].median()
    assert empty["ttft_s"][cold].median() > 0.6 * clean["ttft_s"][cold].median()
    assert bulk["tpot_s"].median() < 2 * clean["tpot_s"].median()
    assert bulk["output_tokens"].eq(clean["output_tokens"]).all()
    last_s = late["chunk_s"].map(lambda stamps: stamps[-1])
    assert (late["stream_end_s"] - last_s > 0.04).all()
    assert (late["e2e_s"] - (last_s - late["sent_s"])).abs().max() < 1e-9
