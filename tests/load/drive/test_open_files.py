from __future__ import annotations

import resource
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from workbench.errors import ParameterError
from workbench.load.drive.driver import drive
from workbench.load.drive.open_files import check_files, most_in_flight, reserve_files
from workbench.load.workload.arrivals import at_times, closed, constant
from workbench.load.workload.workload import short


@pytest.fixture
def few_files(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """200 open files now, and at most 400: the true limit of this process comes back after."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, before[1]))
    monkeypatch.setattr("workbench.load.drive.open_files._hard_limit", lambda: 400)
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def soft_limit() -> int:
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


@pytest.mark.parametrize(
    ("arrivals", "requests", "most"),
    [
        (closed(8), 100, 8),
        (closed(8), 3, 3),
        (constant(10.0, 100), 100, 21),  # within 2 s, both ends
        (at_times([0.0, 0.0, 0.0, 5.0, 6.0]), 5, 3),
        (at_times([0.0, 5.0, 6.0, 6.5]), 4, 3),
    ],
)
def test_requests_in_flight(arrivals: Any, requests: int, most: int) -> None:
    assert most_in_flight(arrivals, requests, timeout_s=2.0) == most


def test_nothing_is_in_flight_without_requests() -> None:
    assert most_in_flight(closed(4), 0, timeout_s=1.0) == 0
    assert most_in_flight(replace(constant(1.0, 1), offsets_s=()), 0, timeout_s=1.0) == 0


def test_a_limit_that_suffices_stays(few_files: None) -> None:
    reserve_files(2)
    assert soft_limit() == 200


def test_a_limit_is_raised_for_the_client_and_for_the_proxies_it_starts(few_files: None) -> None:
    reserve_files(70)
    assert 3 * 70 < soft_limit() <= 400


def test_more_than_can_be_is_refused_with_the_number(few_files: None) -> None:
    with pytest.raises(ParameterError, match=r"1,000 requests in flight need 1,\d+ open files"):
        check_files(1000)
    assert soft_limit() == 200


async def test_a_drive_is_refused_before_its_first_request(few_files: None, vllm: Any) -> None:
    workload = short(requests=500, prompt_tokens=17, output_tokens=1, salt="run")
    with pytest.raises(ParameterError, match="more than the hard limit of 400"):
        await drive(workload, closed(500), base_url=vllm.url, model="tiny")
    assert vllm.accepts == 0


async def test_a_drive_raises_the_limit_to_its_need(few_files: None, vllm: Any) -> None:
    vllm.plays(first_s=0.05)
    workload = short(requests=150, prompt_tokens=17, output_tokens=1, salt="run")
    run = await drive(workload, closed(150), base_url=vllm.url, model="tiny")
    # The server's sockets are files of this process too, 300 of 400 in all.
    assert [record.error for record in run.records] == [""] * 150
