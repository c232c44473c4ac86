import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.odd_server import Asked, OddServer, http, odd_server
from workbench.errors import DeploymentError, ParameterError
from workbench.serve.attach import attach
from workbench.serve.deployed import Instance

Server = AsyncIterator[OddServer]


def saying(body: Any, status: int = 200) -> bytes:
    """A whole answer, as it is or as JSON."""
    return http(f"{status} As it was", body, "Connection: close")


def listing(*names: str) -> bytes:
    """The answer of a server that has these models."""
    return saying({"data": [{"id": name} for name in names]})


TWO = listing("their-70b", "their-adapter")


def wanting(key: str) -> Any:
    """Answers only to whoever has that key."""

    async def answer(asked: Asked) -> None:
        right = asked.headers.get("authorization") == f"Bearer {key}"
        await asked.write(TWO if right else saying("401: Unauthorized", 401))

    return answer


@pytest.fixture
async def models() -> Server:
    """Somebody's server, with two models."""
    async with odd_server(TWO) as running:
        yield running


@pytest.fixture
async def other() -> Server:
    """Another server of the same kind."""
    async with odd_server(TWO) as running:
        yield running


@pytest.fixture
async def proxy() -> Server:
    """A front door that knows nothing of /v1/models."""
    async with odd_server({}) as running:
        yield running


@pytest.fixture
async def secure_models(certificate: Path) -> Server:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    async with odd_server(TWO, tls=context) as running:
        yield running


async def test_a_running_server_is_a_deployment_of_its_first_model(models):
    deployment = await attach(models.url + "/")
    assert (deployment.url, deployment.model) == (models.url, "their-70b")
    assert deployment.instances == ()
    assert (deployment.store_url, deployment.proxy_url, deployment.plan) == ("", "", None)
    assert [str(asked) for asked in models.asked] == ["GET /v1/models"]


@pytest.mark.parametrize("behind", ["", "/", "/v1", "/v1/", "/v1/chat/completions", "/metrics"])
async def test_lists_make_instances_that_can_be_counted_and_reset(behind, models):
    """Whatever path stands behind the address of a server."""
    deployment = await attach(
        models.url + behind,
        prefill_urls=[f"http://p:1{behind}"],
        decode_urls=[f"http://d:1{behind}", "http://d:2"],
        lmcache_url="http://s:1/",
    )
    assert (deployment.url, deployment.store_url) == (models.url, "http://s:1")
    assert deployment.instances == (
        Instance(name="prefill-0", role="prefill", url="http://p:1"),
        Instance(name="decode-0", role="decode", url="http://d:1"),
        Instance(name="decode-1", role="decode", url="http://d:2"),
    )
    assert [str(asked) for asked in models.asked] == ["GET /v1/models"]


async def test_a_list_without_prefill_servers_is_of_aggregated_ones(models):
    deployment = await attach(models.url, decode_urls=["http://a:1"])
    assert [(i.name, i.role) for i in deployment.instances] == [("aggregated-0", "aggregated")]


@pytest.mark.parametrize(
    ("status", "answer"),
    [
        (404, {}),
        (500, b"oops"),
        (200, b"<html>hello</html>"),
        (200, {"data": []}),
        (200, {"models": ["x"]}),
        (200, []),
        (200, None),
    ],
)
async def test_what_is_no_openai_server_is_refused_with_the_address_and_an_example(
    status, answer, models
):
    models.answer = saying(answer, status)
    with pytest.raises(DeploymentError) as refused:
        await attach(models.url)
    assert f"OpenAI-compatible server, but {models.url}/v1/models" in str(refused.value)
    assert "(example: -p model Qwen" in str(refused.value)


async def test_a_key_is_taken_from_the_environment_and_not_shown(models, monkeypatch):
    models.answer = wanting("sk-secret")
    monkeypatch.setenv("OPENAI_API_KEY", " sk-secret\n")  # as a file of secrets has it
    deployment = await attach(models.url, decode_urls=[models.url])
    assert deployment.headers == {"Authorization": "Bearer sk-secret"}
    assert "secret" not in repr(deployment)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [("", r"needs an API key \(HTTP 401\)"), ("sk-other", "rejected the API key")],
)
async def test_a_server_that_wants_another_key_says_so(models, monkeypatch, given, sentence):
    models.answer = wanting("sk-secret")
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
    with pytest.raises(
        DeploymentError, match=r"http://127\.0\.0\.1:9/v1/models did not respond \(All connection"
    ):
        await attach("http://127.0.0.1:9")


async def test_a_model_is_named_as_listed_or_by_the_path_of_its_weights(models):
    chosen = await attach(models.url, model="their-adapter")
    assert (chosen.model, chosen.doubts) == ("their-adapter", ())
    listed = [{"id": "base", "root": "/m/base"}, {"id": "sql", "root": "/m/sql"}]
    models.answer = saying({"data": listed})
    assert (await attach(models.url, model="/m/sql")).model == "sql"


async def test_a_model_that_is_not_served_is_refused_with_those_that_are(models):
    with pytest.raises(DeploymentError) as refused:
        await attach(models.url, model="theirs")
    assert "serves: their-70b, their-adapter, got 'theirs'" in str(refused.value)
    assert "(example: -p model their-70b)" in str(refused.value)


async def test_a_folder_given_as_the_model_is_taken_for_a_tokenizers(models, tmp_path):
    with pytest.raises(DeploymentError, match="for a tokenizer folder use -p tokenizer"):
        await attach(models.url, model=str(tmp_path))


async def test_the_first_of_several_models_is_measured_and_that_is_a_doubt(models):
    (doubt,) = (await attach(models.url)).doubts
    assert doubt.startswith("The server lists 2 models; the first one, 'their-70b', was measured")
    models.answer = listing("only")
    assert (await attach(models.url)).doubts == ()


@pytest.mark.parametrize("status", [404, 405, 500])
async def test_a_proxy_without_a_list_has_the_models_of_its_servers(status, models, proxy):
    proxy.answer = saying({"detail": "Not Found"}, status)
    deployment = await attach(proxy.url, decode_urls=[models.url])
    assert (deployment.url, deployment.model) == (proxy.url, "their-70b")
    chosen = await attach(proxy.url, decode_urls=[models.url], model="their-adapter")
    assert chosen.model == "their-adapter"
    with pytest.raises(DeploymentError, match="serves: their-70b, their-adapter"):
        await attach(proxy.url, decode_urls=[models.url], model="theirs")


async def test_servers_behind_a_proxy_must_have_a_model_in_common(models, proxy, other):
    other.answer = listing("their-adapter")
    both = {"prefill_urls": [models.url], "decode_urls": [other.url]}
    assert (await attach(proxy.url, **both)).model == "their-adapter"
    other.answer = listing("another")
    with pytest.raises(DeploymentError, match=r"serve a common model, got another; their-70b"):
        await attach(proxy.url, **both)


async def test_where_no_server_lists_models_the_named_one_is_taken_and_that_is_a_doubt(proxy):
    deployment = await attach(proxy.url, model="theirs", decode_urls=[proxy.url])
    assert deployment.model == "theirs"
    assert deployment.doubts == ("No server lists its models; model 'theirs' was not verified.",)


@pytest.mark.parametrize("status", [502, 503, 504])
async def test_a_server_that_is_not_ready_is_no_proxy_without_a_list(status, models, proxy):
    proxy.answer = saying({"detail": "Not Found"}, status)
    with pytest.raises(
        DeploymentError, match=rf"must be a ready OpenAI-compatible .* responded {status}"
    ):
        await attach(proxy.url, decode_urls=[models.url], model="their-70b")


async def test_certificates_of_the_environment_are_trusted(secure_models, monkeypatch, certificate):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    assert (await attach(secure_models.url)).model == "their-70b"
    with pytest.raises(DeploymentError, match="certificate is not valid for 'localhost'"):
        await attach(secure_models.url.replace("127.0.0.1", "localhost"))


async def test_what_speaks_no_tls_or_shows_no_trusted_certificate_is_called_so(
    models, secure_models, monkeypatch
):
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    with pytest.raises(DeploymentError, match=r"\(self-signed certificate\).* SSL_CERT_FILE="):
        await attach(secure_models.url)
    with pytest.raises(DeploymentError, match=r"TLS handshake failed .* use http://"):
        await attach(models.url.replace("http:", "https:"))


async def test_a_variable_that_names_no_certificates_is_told_where_tls_is_asked_for(
    models, secure_models, monkeypatch
):
    monkeypatch.setenv("SSL_CERT_FILE", "/no/such/file.pem")
    with pytest.raises(ParameterError, match=r"SSL_CERT_FILE .* got '/no/such/file\.pem'"):
        await attach(secure_models.url)
    assert (await attach(models.url)).model == "their-70b"  # plain http needs none


async def test_a_listed_server_out_of_reach_matters_only_where_nobody_else_names_a_model(
    models, proxy
):
    away = "http://127.0.0.1:9"
    both = await attach(proxy.url, prefill_urls=[away], decode_urls=[models.url])
    assert both.model == "their-70b"
    assert (await attach(proxy.url, decode_urls=[away], model="theirs")).model == "theirs"
    with pytest.raises(DeploymentError, match=f"{away}/v1/models did not respond"):
        await attach(proxy.url, decode_urls=[away])


@pytest.mark.parametrize(
    ("said", "doubt"),
    [
        ({"decode": ["http://d:1"], "clock_s": 12.5}, "runs on another machine"),
        ({"decode": ["http://d:1"]}, "does not say what is behind it"),
        ([], "does not say what is behind it"),
    ],
)
async def test_our_proxy_is_of_no_use_with_another_clock_or_without_words(said, doubt, models):
    async def answer(asked: Asked) -> None:
        listed = http("200 OK", {"data": [{"id": "theirs"}]}, "X-Workbench-Proxy: nixl")
        await asked.write(listed if asked.path == "/v1/models" else saying(said))

    models.answer = answer
    found = await attach(models.url)
    assert (found.model, found.proxy_url, found.proxy) == ("theirs", "", None)
    assert [doubt in said for said in found.doubts] == [True]
