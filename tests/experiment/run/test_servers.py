from dataclasses import replace

import pytest

import workbench as wb
from workbench.errors import LaunchError, PlanError
from workbench.params.pd_sweep import PdSweep
from workbench.serve.connectors import CONNECTORS


def arm(**given):
    return wb.plan(PdSweep(engine="simulated", topology="1a", connector="lmcache", **given)).arms[0]


async def test_an_arm_started_by_hand_leaves_no_process_and_no_disk(
    tmp_path, monkeypatch, nothing_left
):
    monkeypatch.chdir(tmp_path)
    logs = tmp_path / "logs"
    async with wb.deploy(replace(arm(), tiers=("disk",)), log_dir=logs) as running:
        assert [i.role for i in running.instances] == ["aggregated"]
        assert await running.reset_store()
        assert (logs / "disk").is_dir()
    assert {path.name for path in logs.iterdir()} == {
        "fork-server.log", "store.log", "aggregated-0.log"
    }  # fmt: skip
    assert list(tmp_path.iterdir()) == [logs]


async def test_attached_servers_are_not_started(attached):
    with pytest.raises(PlanError, match="its servers run already"):
        async with wb.deploy(attached().arms[0]):
            pass


async def test_what_a_connector_lacks_here_is_said_before_anything_starts(
    sweep, tmp_path, monkeypatch
):
    lacking = replace(CONNECTORS["nixl"], modules=("no_such_package",))
    monkeypatch.setitem(CONNECTORS, "nixl", lacking)
    plan = sweep(topology="1p1d", connector="nixl", output_dir=str(tmp_path))
    with pytest.raises(LaunchError, match="needs the package no_such_package"):
        await wb.run(plan, echo=lambda _: None)
    assert list(tmp_path.rglob("*.log")) == []
    with pytest.raises(LaunchError, match="needs the package no_such_package"):
        async with wb.deploy(plan.arms[0], log_dir=tmp_path):
            pass
