import asyncio
from collections import Counter
from dataclasses import replace
from math import isnan

import pytest

from workbench.errors import PlanError
from workbench.experiment.plan import arms
from workbench.params.notebooks import PrefixCache, check_params
from workbench.params.pd_sweep import PdSweep
from workbench.params.run_id import run_id

ATTACH = {"engine": "attach", "base_url": "http://127.0.0.1:1"}


@pytest.mark.parametrize(
    ("params", "slug"),
    [
        (PdSweep(topology="1p1d,1p4d", requests=2), "1p1d-1p4d-lmcache-22660t-n2-r3"),
        (PrefixCache(), "2048t-n24-r3"),
        # A label may be any text, and this is the name of one folder.
        (PdSweep(**ATTACH, topology="../../rack 7/old"), "rack-7-old-attach-22660t-n3-r3"),
    ],
)
def test_a_run_id_is_a_slug_that_can_be_read_and_a_hash(params, slug):
    said, _, digest = run_id(params).rpartition("-")
    assert said == slug
    assert len(digest) == 6


def test_a_parameter_that_is_not_set_leaves_the_run_id_of_earlier_versions():
    """A new parameter with a value in the hash would make every earlier run unfindable."""
    assert run_id(PdSweep()) == "1p4d-lmcache-22660t-n3-r3-8a6bfe"


def test_few_arrivals_of_an_open_loop_are_a_doubt():
    def few(**given):
        made = arms.plan(check_params("pd_sweep", {"engine": "simulated", **given}))
        return [doubt for doubt in made.doubts if "of an open loop" in doubt]

    assert few(rate_per_s=4) == few(rates_per_s="2,4") != []
    assert few() == few(rate_per_s=4, requests=20) == []


def test_passes_too_small_to_check_a_prediction_are_a_doubt():
    def small(**given):
        fixed = {"engine": "simulated", "connector": "nixl", "predict": True, "measure": "1p2d",
                 "topology": "1p1d,1p2d"}  # fmt: skip
        made = arms.plan(check_params("pd_sweep", fixed | given))
        return [doubt for doubt in made.doubts if "too few to check a prediction" in doubt]

    assert "(at least 10: -p requests 10)" in small()[0]
    assert "(at least 20: -p requests 20)" in small(rate_per_s=4, requests=12)[0]
    assert small(requests=24) == []


def test_a_list_of_measured_topologies_is_hashed_as_it_is_meant():
    predicted = {"predict": True, "topology": "all", "connector": "nixl"}
    written = [run_id(PdSweep(**predicted, measure=text)) for text in ("1p2d,2p1d", "1P2D, 2p1d")]
    assert written[0] == written[1] != run_id(PdSweep(**predicted, measure="1p2d"))


def test_a_search_from_a_slow_rate_is_planned_to_take_its_time():
    searched = {"engine": "simulated", "topology": "1a", "connector": "none", "search": True}
    asked = {"requests": 40, "rate_per_s": 1.0, "ttft_limit_ms": 500.0, "rounds": 3}
    assert arms.plan(PdSweep(**searched, **asked)).estimate_s > 3 * 40


def test_a_run_id_is_the_same_before_and_after_the_run(sweep):
    plan = sweep(topology="1p4d")
    assert plan.run_id == run_id(check_params("pd_sweep", plan.parameters)) == run_id(plan.params)
    assert replace(plan, rounds=1).run_id == plan.run_id  # it is made of the parameters alone


@pytest.mark.parametrize(
    "changed",
    [{"topology": "1p1d"}, {"connector": "nixl"}, {"seed": 1}, {"opponents": False},
     {"shared_share": 0.5}, {"timeout_s": 60.0}, {"prefill_tp": 2}],
)  # fmt: skip
def test_every_parameter_makes_another_run(changed):
    assert run_id(PdSweep(**changed)) != run_id(PdSweep())


@pytest.mark.parametrize("same", [{"output_dir": "/elsewhere"}, {"topology": " 1P4D"}])
def test_where_the_output_goes_and_how_a_topology_is_spelt_do_not(same):
    assert run_id(PdSweep(**same)) == run_id(PdSweep(topology="1p4d")) == run_id(PdSweep())


@pytest.mark.parametrize("topology", ["1a", "1p1d", "1p1d,2p1d"])  # 2, 3 and 5 arms
def test_over_rounds_every_arm_is_first_as_often_and_has_every_place(topology, sweep):
    plan = sweep(topology=topology, connector="lmcache")
    n = len(plan.arms)
    rounds = [plan.order(number) for number in range(2 * n)]
    for order in rounds:
        assert sorted(arm.label for arm in order) == sorted(arm.label for arm in plan.arms)
    for place in range(n):
        assert set(Counter(order[place].label for order in rounds).values()) == {2}


def test_every_second_round_mirrors_the_one_before(sweep):
    plan = sweep(topology="1p1d")
    assert plan.order(1) == plan.order(0)[::-1]
    assert plan.order(3) == plan.order(2)[::-1]
    assert plan.order(0) == plan.arms


def test_the_estimate_grows_with_what_is_asked(sweep):
    least = {"topology": "1p1d", "rounds": 1, "requests": 1, "opponents": False}
    least_s = sweep(**least).estimate_s
    assert 10 < least_s < 30  # the fork server, one launch, one cold prompt of 4 s
    for more in ({"rounds": 2}, {"requests": 4}, {"opponents": True}, {"fork": False}):
        assert sweep(**least | more).estimate_s > least_s


def test_what_was_never_measured_has_no_estimate(sweep, machine_has, model):
    assert isnan(sweep(model=str(model)).estimate_s)
    machine_has("cuda", gpus=8)
    assert isnan(sweep().estimate_s)


def test_a_plan_shows_every_process_it_would_start(sweep):
    text = str(sweep(topology="1p1d", rounds=2))
    assert text.startswith("pd_sweep 1p1d-lmcache-22660t-n3-r2-")
    assert "3 arms x 2 rounds" in text
    assert "arm 1p1d lmcache (subject): cold, engine-warm, store-warm" in text
    for name in ("store", "prefill-0", "decode-0", "aggregated-1", "proxy"):
        assert f"\n  {name} " in text
    assert "--max-model-len 24576" in text
    assert "minutes on an idle machine" in text.splitlines()[-1]


def test_an_attached_arm_has_no_processes_to_show(sweep):
    plan = sweep(**ATTACH)
    assert str(plan).endswith("duration: 3 launches, duration unknown (the servers are attached)")
    with pytest.raises(PlanError, match="its servers run already"):
        plan.arms[0].deployment(range(9))


def test_the_same_prompts_come_back_for_the_same_salt_only(sweep):
    spec = sweep(prompt_tokens=500).workload
    one, same, other = spec.build("a"), spec.build("a"), spec.build("b")
    for first, second in zip(one.requests, same.requests, strict=True):
        assert first.prompt_ids.tolist() == second.prompt_ids.tolist()
    assert one.requests[0].prompt_ids[0] != other.requests[0].prompt_ids[0]
    assert one.hash == other.hash


def test_planning_starts_nothing(sweep, monkeypatch):
    monkeypatch.setattr(asyncio, "create_subprocess_exec", None)
    monkeypatch.setattr("subprocess.Popen", None)
    plan = sweep(topology="all")
    assert len({arm.label for arm in plan.arms}) == len(plan.arms)


def test_a_plan_needs_an_experiment():
    with pytest.raises(PlanError, match="no experiment for"):
        arms.plan(None)
