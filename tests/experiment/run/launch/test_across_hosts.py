"""What a launch reads of its hosts: clocks of others, and links from prefill to decode."""

from functools import partial
from typing import Any

import pytest

from workbench.errors import DeploymentError
from workbench.experiment.run.launch import across_hosts
from workbench.experiment.run.launch.across_hosts import clock_rows, measure_links, read_clocks
from workbench.experiment.run.run_log import Log
from workbench.serve.deployed import Deployment, Instance
from workbench.serve.processes.host_probe import HostProbe, link_rates
from workbench.topology import Role


class FakeHost(HostProbe):
    def __init__(self, *, here: bool = False, ahead_s: float = 0.0) -> None:
        super().__init__()
        self.here, self.ahead_s = here, ahead_s
        self.lost = False

    def clock(self) -> tuple[float, float]:
        now_s, day_s = super().clock()
        return now_s + self.ahead_s, day_s + self.ahead_s

    def ask(self, name: str, *arguments: Any) -> Any:
        if self.lost:
            raise DeploymentError("host-2 was lost")
        return getattr(self, name)(*arguments)


def instance(role: Role, address: str) -> Instance:
    return Instance(name=f"{role}-0", role=role, url=f"http://{address}:8000")


@pytest.fixture
def far() -> FakeHost:
    return FakeHost(ahead_s=7.0)


@pytest.fixture
def deployment(far: FakeHost, monkeypatch: pytest.MonkeyPatch) -> Deployment:
    """Prefill on our host, decode on one whose clock is 7 s ahead; two addresses of loopback."""
    monkeypatch.setattr(across_hosts, "link_rates", partial(link_rates, seconds=0.05))
    return Deployment(
        url="http://127.0.0.1:8000",
        instances=(instance("prefill", "127.0.0.1"), instance("decode", "127.0.0.2")),
        probes={"127.0.0.1": FakeHost(here=True), "127.0.0.2": far},
    )


async def test_only_clocks_of_other_hosts_are_read(deployment: Deployment) -> None:
    log = Log()
    before = await read_clocks(deployment, log)
    after = await read_clocks(deployment, log)
    (row,) = clock_rows(before, after, arm="1p1d nixl", number=2, pass_name="cold")
    assert (row.host, row.arm, row.round, row.pass_name) == ("127.0.0.2", "1p1d nixl", 2, "cold")
    assert abs(row.wall_offset_s - 7.0) <= row.bound_s
    assert abs(row.rate - 1.0) <= row.rate_bound and row.factor == 1.0
    assert log.doubts == []


async def test_links_are_measured_from_prefill_to_decode_and_back(deployment: Deployment) -> None:
    log = Log()
    await measure_links(deployment, "1p1d nixl", 0, log)
    ways = [(arm, rate.sender, rate.receiver, forward) for arm, _, rate, forward in log.links]
    assert ways == [
        ("1p1d nixl", "127.0.0.1", "127.0.0.2", True),
        ("1p1d nixl", "127.0.0.2", "127.0.0.1", False),
    ]
    assert all(rate.bit_s > 0 for _, _, rate, _ in log.links)


async def test_a_lost_host_is_a_doubt_and_not_the_end(
    deployment: Deployment, far: FakeHost
) -> None:
    far.lost = True
    log = Log()
    assert await read_clocks(deployment, log) == []
    await measure_links(deployment, "1p1d nixl", 0, log)
    assert log.links == []
    assert log.doubts == [
        "The clock of 127.0.0.2 could not be read: host-2 was lost.",
        "1p1d nixl: the link between hosts was not measured: host-2 was lost.",
    ]


async def test_on_one_machine_nothing_is_read() -> None:
    alone = Deployment(url="http://127.0.0.1:1", instances=(instance("prefill", "127.0.0.1"),))
    log = Log()
    await measure_links(alone, "1p1d nixl", 0, log)
    assert await read_clocks(alone, log) == [] and log.links == [] and log.doubts == []
