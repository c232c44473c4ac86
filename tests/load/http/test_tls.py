"""Over https the same transport dates each read after it was decrypted."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from tests.odd_server import odd_server
from workbench.load.drive.driver import drive_in_thread
from workbench.load.http.client import ask
from workbench.load.http.request import Endpoint
from workbench.load.workload.arrivals import closed
from workbench.load.workload.workload import Request, short

REQUEST = Request(index=0, prompt_ids=[16, 17, 18], max_tokens=3)


@pytest.fixture
async def secure(vllm: Any, certificate: Path) -> AsyncIterator[Any]:
    """The fake server behind TLS."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    async with odd_server(vllm.answer, tls=context) as vllm.server:
        yield vllm


async def test_a_drive_over_tls_keeps_its_connections_and_its_stamps(
    secure: Any, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    secure.plays(first_s=0.02, gap_s=0.05)
    workload = short(requests=6, prompt_tokens=64, output_tokens=3, salt="s")
    run = await drive_in_thread(
        workload, closed(2), base_url=secure.url, model="tiny", kernel_stamps=True
    )
    assert [record.error for record in run.records] == [""] * 6
    assert secure.accepts == 2
    assert run.health.kernel_stamped_share == 0  # a segment is no record of TLS
    for record in run.records:
        assert 0.02 <= record.chunk_s[0] - record.sent_s < 2
        assert record.chunk_s[0] < record.chunk_s[-1]
    assert run.records[-1].chunk_s[-1] <= monotonic()


async def test_a_large_prompt_arrives_whole_over_tls(
    secure: Any, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    long = short(requests=1, prompt_tokens=300_000, output_tokens=1, salt="s")
    await drive_in_thread(long, closed(1), base_url=secure.url, model="tiny")
    assert secure.asked[0].json["prompt"] == long.requests[0].prompt_ids.tolist()


async def test_a_certificate_that_nobody_vouches_for_is_a_connect_failure(secure: Any) -> None:
    workload = short(requests=1, prompt_tokens=64, output_tokens=3, salt="s")
    run = await drive_in_thread(workload, closed(1), base_url=secure.url, model="tiny")
    assert run.records[0].error == "connect"
    message = run.records[0].error_message
    assert "its certificate is not trusted (self-signed certificate)" in message
    assert "export SSL_CERT_FILE=" in message
    assert secure.asked == []


async def test_plain_http_on_a_port_of_tls_is_a_failure_and_no_hang(secure: Any) -> None:
    endpoint = Endpoint(base_url=secure.url.replace("https", "http"), model="tiny")
    assert (await ask(REQUEST, endpoint)).error == "reset"
