"""Links of known rates: the transfer that the waterfall shows takes as long as its bytes need."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hosts.hosts import Cluster, hosts
from tests.hosts.sweeps import measured as sweep
from workbench.experiment.result.finding_rows import LinkRow
from workbench.experiment.result.result import load_result

RATES_MBIT = (200, 1000)
PAYLOAD = 0.954
"""Of a link's rate, what is left for TCP's payload with packets of 1,500 bytes."""
TRIES = 2


@pytest.fixture(scope="module")
def two_hosts(machine_makes_hosts: None) -> Iterator[Cluster]:
    for package in ("ray", "vllm", "nixl"):
        pytest.importorskip(package)
    with hosts(2, ray=True) as made:
        yield made


def measured(cluster: Cluster, rate_mbit: int, connector: str, folder: Path) -> LinkRow:
    """What a run with its hosts' links limited to this rate says about them."""
    for host in cluster.hosts:
        cluster.shape(host, rate_bit_s=1e6 * rate_mbit)
    file = sweep(
        cluster, folder, connector=connector, prompt_tokens=8000, requests=8, output_tokens=4
    )
    result = load_result(file.parent)
    (clock,) = {row.host: row for row in result.run.clocks}.values()
    assert clock.host == cluster.host(2).address  # the first is ours
    assert abs(clock.wall_offset_s) <= clock.bound_s and clock.factor == 1.0
    assert result.waterfall()["joined"].eq("").all()
    row = next(row for row in result.run.links if row.metric == "ttft_s")
    print(rate_mbit, connector, row)
    return row


@pytest.mark.timeout(900)
@pytest.mark.parametrize("connector", ["nixl", "mooncake"])
def test_the_transfer_takes_its_bytes_over_the_rate(
    two_hosts: Cluster, connector: str, tmp_path: Path
) -> None:
    if connector == "mooncake":
        pytest.importorskip("mooncake")
    for attempt in range(TRIES):
        slow, fast = (
            measured(two_hosts, rate, connector, tmp_path / f"{attempt}-{rate}")
            for rate in RATES_MBIT
        )
        for row, rate_mbit in zip((slow, fast), RATES_MBIT, strict=True):
            assert row.gbit_s == pytest.approx(PAYLOAD * rate_mbit / 1000, rel=0.05)
            assert row.gbit_low == pytest.approx(row.gbit_high, rel=0.1)
            assert row.kv_bytes >= 8000 * 768
        needed_s = [8e-9 * row.kv_bytes / row.gbit_s for row in (slow, fast)]
        took_s = [row.transfer.value for row in (slow, fast)]
        # At 1 Gbit/s queue and start of the transfer take a few ms of 50.
        near = [took_s[0] - took_s[1] == pytest.approx(needed_s[0] - needed_s[1], rel=0.15)]
        if connector == "nixl":  # with mooncake the part holds both API servers as well
            near += [took_s[n] == pytest.approx(needed_s[n], rel=0.15) for n in range(2)]
        if all(near) or attempt == TRIES - 1:
            break
    assert all(near), (took_s, needed_s)
