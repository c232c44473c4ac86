"""A plan over several hosts that are not there."""

from itertools import count

import pytest

from tests.clusters import cluster, host
from workbench.experiment.findings.doubts import limits_of
from workbench.experiment.plan import engine_setup
from workbench.experiment.plan.arms import plan
from workbench.params.notebooks import check_params


@pytest.fixture
def planned(monkeypatch):
    def make(*hosts, **given):
        def of(address, spread, *, python, model):
            assert (address, python) == ("10.0.0.1:6379", "")
            return cluster(*hosts, spread=spread)

        monkeypatch.setattr(engine_setup, "cluster_of", of)
        values = {"topology": "1p2d", "connector": "nixl", "place": "ray"}
        values |= {"ray_address": "10.0.0.1:6379", "spread": "spread", "platform": "cpu"}
        return plan(check_params("pd_sweep", values | given))

    return make


def test_baselines_run_on_the_hosts_of_their_arm(planned):
    made = planned()
    places = {arm.label: arm.deployment(count(20_000)).hosts for arm in made.arms}
    assert places == {
        "1p2d nixl": {"prefill-0": "host-1", "decode-0": "host-2", "decode-1": "host-3"},
        "3a": {"aggregated-0": "host-1", "aggregated-1": "host-2", "aggregated-2": "host-3"},
    }
    (left_out,) = (doubt for doubt in made.doubts if "left out" in doubt)
    assert left_out.startswith("The baseline 3a lmcache was left out: its store shares memory")


def test_addresses_that_listen_are_a_doubt(planned):
    (doubt,) = (doubt for doubt in planned(topology="1p1d").doubts if "connections" in doubt)
    assert "at 10.0.0.1, 10.0.0.2, without a password" in doubt  # host 3 runs nothing
    many = planned(*map(host, range(1, 9)), topology="1p7d").doubts
    assert any("at 10.0.0.1 and 7 other addresses" in doubt for doubt in many)
    assert all(len(doubt.split()) <= 25 for doubt in many)


def test_a_difference_between_hosts_is_a_doubt(planned):
    made = planned(host(1), host(2, cores=64))
    assert "Hosts differ in cores: host-1 8, host-2 64." in made.doubts


def test_a_plan_tells_what_each_host_has(planned):
    said = str(planned())
    assert "host-2   10.0.0.2        Ray has 4 CPUs; 8 cores, GPUs: none, 64 GB free" in said


def test_hosts_are_in_the_run_id(planned):
    one, two = planned(), planned(spread="pack")
    assert one.run_id != two.run_id
    assert len(two.doubts) <= len(one.doubts)


def test_what_holds_on_one_machine_only_is_no_limit_of_a_run_over_several(planned):
    said = " ".join(limits_of(planned(), reuse_sent=0.0))
    assert "loopback" not in said and "same cores" not in said
    alone = plan(check_params("pd_sweep", {"topology": "1p1d", "connector": "nixl"}))
    said = " ".join(limits_of(alone, reuse_sent=0.0))
    assert ("loopback" in said) == (alone.platform == "cpu")
