"""Hosts for the tests of this folder; `make test-places` runs them. They need root and iproute2."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hosts.hosts import Cluster, hosts, why_not


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    wanted = "places" in config.getoption("markexpr")
    for item in items:
        if Path(__file__).parent in Path(item.path).parents:
            item.add_marker(pytest.mark.places)
            if not wanted:
                item.add_marker(pytest.mark.skip(reason="run by make test-places"))


@pytest.fixture(scope="session")
def machine_makes_hosts() -> None:
    if reason := why_not():
        pytest.skip(reason)


@pytest.fixture
def cluster(machine_makes_hosts: None) -> Iterator[Cluster]:
    """Three hosts without Ray, of which nothing stays."""
    with hosts(3) as made:
        yield made
