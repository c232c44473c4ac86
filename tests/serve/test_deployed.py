"""What is asked of running servers: resets, the store, the proxy's legs."""

from collections.abc import AsyncIterator
from math import isnan

import pytest

from tests.odd_server import OddServer, http, odd_server
from workbench.errors import DeploymentError
from workbench.serve import deployed
from workbench.serve.deployed import Deployment, Instance


@pytest.fixture
async def server() -> AsyncIterator[OddServer]:
    async with odd_server({}) as running:
        yield running


def asked(server: OddServer) -> list[str]:
    return [str(request) for request in server.asked]


@pytest.fixture
def deployment(server: OddServer) -> Deployment:
    return Deployment(
        url=server.url,
        instances=(Instance(name="decode-0", role="decode", url=server.url),),
        store_url=server.url,
        proxy_url=server.url,
    )


RESET = "/reset_prefix_cache"


@pytest.mark.parametrize(
    ("answers", "done", "tries"),
    [
        *(
            (said, True, 1)
            for said in ({"success": True}, http("200 OK"), http("200 OK", b"OK"), [], {})
        ),
        # One that holds blocks is asked again.
        (({"success": False}, http("503 No"), {"success": True}), True, 3),
        (http("404 No"), False, 1),
    ],
)
async def test_an_engine_is_reset_unless_it_knows_no_resets(
    answers, done, tries, server, deployment
):
    server.answer = {RESET: answers}
    assert await deployment.reset_engines() is done
    assert asked(server) == [f"POST {RESET}"] * tries


async def test_an_engine_that_never_lets_go_is_an_error(server, deployment, monkeypatch):
    monkeypatch.setattr(deployed, "RESET_TIMEOUT_S", 0.0)
    server.answer = {RESET: {"success": False}}
    with pytest.raises(DeploymentError, match=r"decode-0 refuses .* \(200 .*blocks are still in"):
        await deployment.reset_engines()


async def test_one_engine_that_cannot_be_reset_is_enough(server, deployment):
    server.answer = {RESET: ({"success": True}, http("404 No"))}
    two = (*deployment.instances, Instance(name="decode-1", role="decode", url=server.url))
    assert await Deployment(url=server.url, instances=two).reset_engines() is False


async def test_a_dead_engine_does_not_take_a_reset():
    instance = Instance(name="decode-0", role="decode", url="http://127.0.0.1:9")
    with pytest.raises(DeploymentError, match="did not reset its prefix cache: All connection"):
        await Deployment(url="", instances=(instance,)).reset_engines()


async def test_the_store_is_emptied_or_that_is_an_error(server, deployment):
    server.answer = {"/cache/clear": ({"status": "ok"}, http("500 No"))}
    assert await deployment.reset_store() is True
    assert asked(server) == ["POST /cache/clear"]
    with pytest.raises(DeploymentError, match=f"store at {server.url} did not clear its cache"):
        await deployment.reset_store()


async def test_what_is_not_known_is_not_asked(server):
    unknown = Deployment(url=server.url)
    assert await unknown.reset_engines() is False
    assert await unknown.reset_store() is False
    assert (await unknown.legs(), await unknown.proxy_stats()) == ([], {})
    assert asked(server) == []


async def test_legs_are_records_with_nan_for_null(server, deployment):
    seen = {"request_id": "r-0", "index": 0, "decode_head_s": 1.5, "prefill_sent_s": None}
    server.answer = {"/legs": [seen]}
    (leg,) = await deployment.legs()
    assert leg.decode_head_s == 1.5
    assert isnan(leg.prefill_sent_s)


async def test_what_the_proxy_spent_is_asked_of_it(server, deployment):
    server.answer = {"/stats": {"cpu_s": 0.25}}
    assert await deployment.proxy_stats() == {"cpu_s": 0.25}


async def test_a_dead_proxy_has_nothing_to_say():
    gone = Deployment(url="", proxy_url="http://127.0.0.1:9")
    assert (await gone.legs(), await gone.proxy_stats()) == ([], {})
