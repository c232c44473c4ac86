"""Questions to other hosts, asked here of probes whose clocks are wrong by a known amount."""

import time
from typing import Any

import pytest

from workbench.errors import DeploymentError
from workbench.metrics.waterfall.clocks import host_clocks
from workbench.serve.processes import host_probe
from workbench.serve.processes.host_probe import HostProbe, link_rates, read_clock


class Skewed(HostProbe):
    """A host whose clock is `ahead_s` and runs `rate` times as fast, behind a slow link."""

    def __init__(self, ahead_s: float = 0.0, rate: float = 1.0, link_s: float = 0.0) -> None:
        super().__init__()
        self.ahead_s, self.rate, self.link_s = ahead_s, rate, link_s

    def clock(self) -> tuple[float, float]:
        now_s, day_s = super().clock()
        return self.ahead_s + self.rate * now_s, self.ahead_s + day_s

    def ask(self, name: str, *arguments: Any) -> Any:
        time.sleep(self.link_s)
        answer = getattr(self, name)(*arguments)
        time.sleep(3 * self.link_s)  # the way back is longer, which no round trip can show
        return answer


def test_the_true_offset_is_within_the_bound() -> None:
    read = read_clock("10.0.0.2", Skewed(ahead_s=12.5, link_s=0.002))
    assert read.bound_s >= 0.004
    assert abs(read.offset_s - 12.5) <= read.bound_s
    assert abs(read.wall_offset_s - 12.5) <= read.bound_s


def test_the_shortest_round_trip_counts() -> None:
    class Jittery(Skewed):
        def __init__(self) -> None:
            super().__init__(ahead_s=-3.0)
            self.took_s: list[float] = []

        def ask(self, name: str, *arguments: Any) -> Any:
            began_s = time.monotonic()
            self.link_s = 0.0 if len(self.took_s) == 3 else 0.005
            answer = super().ask(name, *arguments)
            self.took_s.append(time.monotonic() - began_s)
            return answer

    host = Jittery()
    read = read_clock("10.0.0.2", host)
    assert len(host.took_s) == 10
    assert read.bound_s == pytest.approx(min(host.took_s) / 2, abs=0.002)
    assert abs(read.offset_s + 3.0) <= read.bound_s


def test_a_rate_is_found_within_its_bound() -> None:
    host = Skewed(ahead_s=100.0, rate=1.02)
    before = read_clock("10.0.0.2", host)
    time.sleep(0.2)
    (clock,) = host_clocks([before], [read_clock("10.0.0.2", host)])
    assert abs(clock.rate - 1.02) <= clock.rate_bound
    assert clock.factor == pytest.approx(1 / 1.02, abs=0.01)


def test_a_link_is_measured_in_both_directions() -> None:
    hosts = {"127.0.0.1": Skewed(), "127.0.0.2": Skewed()}
    there, back = link_rates(hosts, [("127.0.0.1", "127.0.0.2")], seconds=0.05)
    assert (there.sender, there.receiver) == (back.receiver, back.sender)
    assert there.bit_s > 1e7 and back.bit_s > 1e7


def test_a_connection_that_never_comes_has_no_rate_of_an_earlier_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    probe = HostProbe()
    probe.send("127.0.0.1", probe.listen("127.0.0.1"), 0.05)
    assert probe.received_bit_s() > 0
    monkeypatch.setattr(host_probe, "_WAIT_S", 0.1)
    probe.listen("127.0.0.1")
    assert probe.received_bit_s() == 0


def test_a_link_that_lets_nothing_through_is_named() -> None:
    class Silent(Skewed):
        def send(self, address: str, port: int, seconds: float) -> None:
            super().send(address, port, 0.0)

    hosts = {"127.0.0.1": Silent(), "127.0.0.2": Silent()}
    with pytest.raises(DeploymentError, match=r"from 127\.0\.0\.1 to 127\.0\.0\.2"):
        link_rates(hosts, [("127.0.0.1", "127.0.0.2")])
