"""Servers that somebody else started, behind the same deployment record."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import httpx

from workbench.control import connect_problem, control_client, server_address, tls_context
from workbench.errors import DeploymentError
from workbench.serve.deployment import Deployment, Instance
from workbench.topology import Role

API_KEY = "OPENAI_API_KEY"

Models = dict[str, str]
"""What a server lists: the name of each model, and the path or name of its weights."""


async def attach(
    base_url: str,
    *,
    model: str = "",
    prefill_urls: Sequence[str] = (),
    decode_urls: Sequence[str] = (),
    lmcache_url: str = "",
) -> Deployment:
    """The deployment behind `base_url`. Nothing of it is started, stopped or changed.

    `decode_urls` without `prefill_urls` are aggregated servers. The model is `model`, by the name
    or the path that /v1/models lists, or the first listed one. A proxy may have no such list: then
    the listed servers say what they serve, or `model` is taken as it stands. A key is taken from
    the environment, OPENAI_API_KEY, and goes to these servers but the store. Raises DeploymentError
    when nobody answers there, when they want another key, or when no server lists `model`.
    """
    base = server_address(base_url)
    answering: Role = "decode" if prefill_urls else "aggregated"
    listed: list[tuple[Role, Sequence[str]]] = [("prefill", prefill_urls), (answering, decode_urls)]
    deployment = Deployment(
        url=base,
        store_url=server_address(lmcache_url),
        api_key=_api_key(),
        instances=tuple(
            Instance(name=f"{role}-{number}", role=role, url=server_address(url))
            for role, urls in listed
            for number, url in enumerate(urls)
        ),
    )
    if base.startswith("https://"):
        tls_context()  # says what is wrong with the certificates that we are to trust
    async with control_client(headers=deployment.headers) as client:
        chosen, doubts = await _choose_model(client, deployment, model)
    return replace(deployment, model=chosen, doubts=doubts)


async def _choose_model(
    client: httpx.AsyncClient, deployment: Deployment, wanted: str
) -> tuple[str, tuple[str, ...]]:
    """The name under which requests ask for the model, and what is doubtful about it."""
    url = deployment.url
    models = await _models(client, url, deployment.api_key)
    if isinstance(models, str):
        silent, models = models, await _models_in_common(client, deployment, wanted)
        if not models and not wanted:
            raise DeploymentError(
                f"no OpenAI-compatible server answers at {url}/v1/models ({silent}); give the"
                " address of one as base_url, e.g. http://127.0.0.1:8000; of a proxy without a list"
                " name the servers or the model, e.g. -p model Qwen/Qwen2.5-7B-Instruct"
            )
        if not models:
            return wanted, (f"No server lists its models, so {wanted!r} was asked for as given.",)
    first, *others = models
    if wanted:
        found = _named(models, wanted)
        if not found:
            folder = "; the folder of its tokenizer is -p tokenizer" * Path(wanted).is_dir()
            raise DeploymentError(
                f"model is {wanted!r} and the server at {url} does not serve it: write one of"
                f" {', '.join(models)}, e.g. -p model {first}{folder}"
            )
        return found, ()
    doubt = (
        f"The server lists {len(models)} models and the first, {first!r}, was measured; choose with"
        " -p model."
    )
    return first, (doubt,) * bool(others)


def _named(models: Models, wanted: str) -> str:
    """The name of the model that is meant, by name or by the path of its weights; empty if none."""
    by_root = (name for name, root in models.items() if root and root == wanted)
    return wanted if wanted in models else next(by_root, "")


async def _models(client: httpx.AsyncClient, url: str, key: str) -> Models | str:
    """The models that a server lists, at least one; or what it answered instead.

    Raises DeploymentError where nobody answers, or does not let us in.
    """
    try:
        answer = await client.get(f"{url}/v1/models")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        if reason := connect_problem(error):
            raise DeploymentError(f"no connection to {url}: {reason}") from error
        raise DeploymentError(
            f"no OpenAI-compatible server answers at {url}/v1/models ({error!r}); start one,"
            " or give its address as base_url, e.g. http://127.0.0.1:8000"
        ) from error
    if answer.status_code in (401, 403):
        raise DeploymentError(
            f"the server at {url}/v1/models does not let us in ({answer.status_code}):"
            f" {'give another' if key else 'it wants a'} key in the"
            f" environment, e.g. export {API_KEY}=..."
        )
    said = f"{answer.status_code} {answer.reason_phrase}".rstrip()
    if answer.status_code in (502, 503, 504):
        raise DeploymentError(
            f"no OpenAI-compatible server answers at {url}/v1/models ({said}): it is not ready, or"
            f" what is behind it does not run; try curl {url}/v1/models"
        )
    if answer.status_code != 200:
        return f"it answers {said}"
    try:
        models = {str(row["id"]): str(row.get("root") or "") for row in answer.json()["data"]}
    except (ValueError, LookupError, TypeError, AttributeError):
        return "its answer is no list of models"
    return models or "its list of models is empty"


async def _models_in_common(
    client: httpx.AsyncClient, deployment: Deployment, wanted: str
) -> Models:
    """The models of the listed servers, of those that list any; in the order of decode.

    One that is not reached from here is passed over if another says what it serves, or `wanted`
    does.
    """
    found: list[Models] = []
    away: DeploymentError | None = None
    for instance in deployment.instances[::-1]:
        try:
            models = await _models(client, instance.url, deployment.api_key)
        except DeploymentError as error:
            away = error
            continue
        if not isinstance(models, str):
            found.append(models)
    if not found:
        if away and not wanted:
            raise away
        return {}
    first, *others = found
    common = {
        name: root for name, root in first.items() if all(_named(other, name) for other in others)
    }
    if not common:
        each = "; ".join(", ".join(models) for models in found)
        raise DeploymentError(
            f"the listed servers serve no model in common ({each}): start all with one"
            " --served-model-name, or list the servers of one deployment"
        )
    return common


def _api_key() -> str:
    """The key, empty for none. One that no header can hold is refused without being shown."""
    key = os.environ.get(API_KEY, "").strip()
    if not key.isascii() or not key.isprintable():
        raise DeploymentError(
            f"{API_KEY} in the environment holds a line break or a letter that no key has: set it"
            f" again, e.g. export {API_KEY}=..."
        )
    return key
