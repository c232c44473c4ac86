from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from workbench.errors import DeploymentError
from workbench.serve.attach import attach
from workbench.serve.deployment import Instance


class Models:
    """Somebody's server; `answer` is what it says about its models."""

    def __init__(self) -> None:
        self.answer: Any = {"data": [{"id": "their-70b"}, {"id": "their-adapter"}]}
        self.status = 200
        self.asked: list[str] = []
        self.key = ""
        self.url = ""

    async def handle(self, request: web.Request) -> web.Response:
        self.asked.append(f"{request.method} {request.path}")
        if self.key and request.headers.get("Authorization") != f"Bearer {self.key}":
            raise web.HTTPUnauthorized
        if isinstance(self.answer, str):
            return web.Response(text=self.answer, status=self.status)
        return web.json_response(self.answer, status=self.status)


@pytest.fixture
async def models() -> AsyncIterator[Models]:
    fake = Models()
    app = web.Application()
    app.router.add_route("*", "/{any:.*}", fake.handle)
    async with TestServer(app) as running:
        fake.url = f"http://127.0.0.1:{running.port}"
        yield fake


async def test_a_running_server_is_a_deployment_of_its_first_model(models):
    deployment = await attach(models.url + "/")
    assert (deployment.url, deployment.model) == (models.url, "their-70b")
    assert deployment.instances == ()
    assert (deployment.store_url, deployment.proxy_url, deployment.plan) == ("", "", None)


async def test_attaching_only_asks(models):
    await attach(models.url, decode_urls=["http://127.0.0.1:9"], lmcache_url="http://127.0.0.1:9")
    assert models.asked == ["GET /v1/models"]


async def test_lists_make_instances_that_can_be_counted_and_reset(models):
    deployment = await attach(
        models.url,
        prefill_urls=["http://p:1/"],
        decode_urls=["http://d:1", "http://d:2"],
        lmcache_url="http://s:1/",
    )
    assert deployment.instances == (
        Instance(name="prefill-0", role="prefill", url="http://p:1"),
        Instance(name="decode-0", role="decode", url="http://d:1"),
        Instance(name="decode-1", role="decode", url="http://d:2"),
    )
    assert deployment.store_url == "http://s:1"


async def test_a_list_without_prefill_servers_is_of_aggregated_ones(models):
    deployment = await attach(models.url, decode_urls=["http://a:1"])
    assert deployment.instances == (
        Instance(name="aggregated-0", role="aggregated", url="http://a:1"),
    )


@pytest.mark.parametrize(
    ("status", "answer"),
    [
        (404, {}),
        (500, "oops"),
        (200, "<html>hello</html>"),
        (200, {"data": []}),
        (200, {"models": ["x"]}),
        (200, []),
        (200, None),
    ],
)
async def test_what_is_no_openai_server_is_refused_with_the_address_and_an_example(
    status, answer, models
):
    models.status, models.answer = status, answer
    with pytest.raises(DeploymentError) as refused:
        await attach(models.url)
    assert f"no OpenAI-compatible server answers at {models.url}/v1/models" in str(refused.value)
    assert "e.g. http://127.0.0.1:8000" in str(refused.value)


async def test_a_key_is_taken_from_the_environment_and_not_shown(models, monkeypatch):
    models.key = "sk-secret"
    monkeypatch.setenv("OPENAI_API_KEY", " sk-secret\n")  # as a file of secrets has it
    deployment = await attach(models.url, decode_urls=[models.url])
    assert deployment.headers == {"Authorization": "Bearer sk-secret"}
    assert "secret" not in repr(deployment)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [("", r"\(401\): it wants a key"), ("sk-other", r"\(401\): give another key")],
)
async def test_a_server_that_wants_another_key_says_so(models, monkeypatch, given, sentence):
    models.key = "sk-secret"
    monkeypatch.setenv("OPENAI_API_KEY", given)
    with pytest.raises(DeploymentError, match=sentence) as refused:
        await attach(models.url)
    assert "sk-" not in str(refused.value)


@pytest.mark.parametrize("key", ["sk-one\nsk-two", "sk-\u2019quoted"])
async def test_a_key_that_is_none_is_refused_without_being_shown(models, monkeypatch, key):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(DeploymentError, match="OPENAI_API_KEY in the environment") as refused:
        await attach(models.url)
    assert "sk-" not in str(refused.value)
    assert models.asked == []


async def test_nobody_there_is_refused_likewise():
    with pytest.raises(DeploymentError, match=r"at http://127\.0\.0\.1:9/v1/models \(ConnectError"):
        await attach("http://127.0.0.1:9")
