"""Which connectors `connector all` measures, and what each is compared with."""

from dataclasses import replace

import pytest

from workbench.errors import PlanError
from workbench.experiment.plan.compared import rivals
from workbench.serve.connectors import CONNECTORS, Connector

ALL = {"engine": "simulated", "connector": "all"}


def labels(plan, role):
    return [arm.label for arm in plan.arms if arm.role == role]


def test_every_connector_that_serves_a_topology_is_measured_on_it(sweep):
    plan = sweep(**ALL, topology="1p2d")
    pairs = ["1p2d lmcache", "1p2d nixl", "1p2d mooncake", "1p2d mooncake-store"]
    assert labels(plan, "subject") == pairs
    aggregated = ["3a", "3a lmcache", "3a mooncake-store", "3a offload"]
    assert labels(plan, "opponent") == aggregated
    # NIXL has no store, and no prefill instance to receive KV from.
    one = sweep(**ALL, topology="2a")
    assert labels(one, "subject") == [arm.replace("3a", "2a") for arm in aggregated]


def test_a_connector_that_is_left_out_is_named_with_the_reason(sweep, monkeypatch):
    lost = replace(CONNECTORS["nixl"], simulated=False)
    monkeypatch.setitem(CONNECTORS, "nixl", lost)
    plan = sweep(**ALL, topology="1p2d")
    assert "1p2d nixl" not in labels(plan, "subject")
    why = "Connector nixl was left out: engine=simulated does not model it."
    assert why in plan.doubts


def test_one_that_is_not_installed_says_how_to_install_it(sweep, monkeypatch):
    lost = replace(CONNECTORS["nixl"], modules=("no_such_module",))
    monkeypatch.setitem(CONNECTORS, "nixl", lost)
    (said,) = [doubt for doubt in sweep(connector="all", topology="1p2d").doubts if "nixl" in doubt]
    assert said == f"Connector nixl was left out: it is not installed ({lost.install})."


def test_one_that_serves_aggregated_instances_only_is_among_the_opponents(sweep, monkeypatch):
    config = {"kv_connector": "OffloadingConnector", "kv_role": "kv_both"}
    host = Connector(name="host", transfer_config=lambda _: config)
    monkeypatch.setitem(CONNECTORS, "host", host)
    plan = sweep(**ALL, topology="1p2d")
    assert "3a host" in labels(plan, "opponent")
    without = sweep(**ALL, topology="1p2d", opponents=False)
    assert labels(without, "opponent") == []
    assert "Connector host was left out: it serves aggregated topologies only." in without.doubts


def test_a_pd_arm_is_compared_with_its_own_store_and_with_none(sweep):
    found = [(a.label, b.label) for a, b in rivals(sweep(**ALL, topology="1p2d").arms)]
    assert found == [
        ("1p2d lmcache", "3a"),
        ("1p2d lmcache", "3a lmcache"),
        ("1p2d nixl", "3a"),
        ("1p2d nixl", "3a lmcache"),
        ("1p2d mooncake", "3a"),
        ("1p2d mooncake", "3a lmcache"),
        ("1p2d mooncake-store", "3a"),
        ("1p2d mooncake-store", "3a mooncake-store"),
    ]


def test_without_any_connector_the_plan_is_refused(sweep, monkeypatch):
    for name, known in CONNECTORS.items():
        if name != "none":
            monkeypatch.setitem(CONNECTORS, name, replace(known, simulated=False))
    with pytest.raises(PlanError, match="at least one that is installed and serves"):
        sweep(**ALL, topology="1p2d", opponents=False)
