import pytest

from tests.serve.simulated.pair import SETTINGS
from workbench.errors import PlanError
from workbench.experiment.plan.arms import plan
from workbench.params.pd_sweep import PdSweep
from workbench.params.shared import FAULTS as CHOICES
from workbench.serve.connectors import connector
from workbench.serve.deployment import plan_deployment
from workbench.serve.simulated.faults import FAULTS, applies, check_fault
from workbench.serve.vllm import EngineSettings
from workbench.topology import Topology

PD, ONE = Topology.parse("1p2d"), Topology.parse("1a")


def test_the_parameter_offers_every_fault_and_no_other():
    assert list(CHOICES) == list(FAULTS)
    places = {"answering", "last answering", "every engine", "prefill", "store", "proxy"}
    for fault in FAULTS.values():
        assert fault.acts_on in places and fault.shows and fault.copies


@pytest.mark.parametrize(
    ("fault", "fits"),
    [
        ("truncated_stream", {"none 1a", "lmcache 1a", "lmcache 1p2d", "nixl 1p2d"}),
        ("wrong_kv", {"lmcache 1a", "lmcache 1p2d", "nixl 1p2d"}),
        ("prefilled_again", {"lmcache 1p2d", "nixl 1p2d"}),
        ("store_dead", {"lmcache 1a", "lmcache 1p2d"}),
        ("failed_transfer", {"nixl 1p2d"}),
    ],
)
def test_where_a_fault_can_happen(fault: str, fits: set[str]):
    cases = [("none", ONE), ("lmcache", ONE), ("lmcache", PD), ("nixl", PD)]
    assert {f"{name} {where}" for name, where in cases if applies(fault, name, where)} == fits


def test_a_fault_that_cannot_happen_is_refused_with_what_it_needs():
    with pytest.raises(PlanError, match="fault expired_blocks -p connector nixl -p topology 1p1d"):
        check_fault("expired_blocks", "lmcache", ONE)
    check_fault("", "none", ONE)


@pytest.mark.parametrize(
    ("fault", "processes"),
    [
        ("wrong_kv", {"decode-0", "decode-1"}),
        ("slow_instance", {"decode-1"}),
        ("hash_seed_mismatch", {"prefill-0", "decode-0", "decode-1"}),
        ("eviction", {"store"}),
        ("failed_transfer", set()),  # this deployment has no NIXL
    ],
)
def test_each_process_gets_its_own_faults_only(fault: str, processes: set[str]):
    settings = EngineSettings(**SETTINGS, fault=fault)
    made = plan_deployment(PD, connector("lmcache"), settings, ports=range(20_000, 20_100))
    assert {p.name for p in made.processes if f"--fault {fault}" in p.command_line} == processes


def test_a_plan_puts_the_fault_where_it_belongs_and_leaves_opponents_whole():
    made = plan(
        PdSweep(engine="simulated", topology="1p1d", connector="nixl", fault="failed_transfer")
    )
    lines = {
        f"{arm.label} {p.name}": "--fault failed_transfer" in p.command_line
        for arm in made.arms
        for p in arm.deployment(range(20_000, 20_100)).processes
    }
    assert [name for name, has in lines.items() if has] == ["1p1d nixl decode-0"]
    assert "failed_transfer" in made.run_id and "simulated" in made.run_id
    assert made.doubts[0].startswith("Fault failed_transfer is injected on purpose")


@pytest.mark.parametrize("given", [{"fault": "failed_transfer"}, {"decode_tp": 2}])
def test_what_a_simulated_run_refuses(given):
    with pytest.raises(PlanError, match=r"nixl|decode_tp"):
        plan(PdSweep(engine="simulated", **given))


def test_eviction_leaves_kv_space_for_a_prompt_and_a_half():
    made = plan(PdSweep(engine="simulated", topology="1p1d", prompt_tokens=2000, fault="eviction"))
    assert all(arm.settings.kv_cache_mib == 3 for arm in made.arms)  # 1.5 x 16 blocks of 96 KiB
    assert any("Raise kv_cache_mib" in doubt for doubt in made.doubts)


def test_a_simulated_plan_needs_nothing_of_this_machine():
    made = plan(PdSweep(engine="simulated", topology="16p32d", store_gb=100_000))
    assert made.platform == "simulated"
    line = str(made.arms[0].deployment(range(20_000, 20_400)))
    assert "vllm" not in line and "--shm-name" not in line
    assert made.estimate_s < 120
