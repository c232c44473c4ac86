"""Servers that somebody else started, behind the same deployment record."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import httpx

from workbench.control import connect_problem, control_client, server_address, tls_context
from workbench.errors import DeploymentError
from workbench.serve.deployment import Deployment, Instance
from workbench.topology import Role

API_KEY = "OPENAI_API_KEY"


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
    listed: list[tuple[Role, Sequence[str]]] = [
        ("prefill", prefill_urls),
        (answering, decode_urls),
    ]
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
    url, key = deployment.url, deployment.api_key
    models = await _models(client, url, key)
    if isinstance(models, str):
        silent, models = models, await _models_of_all(client, deployment, wanted)
        if not models and not wanted:
            raise DeploymentError(
                f"no OpenAI-compatible server answers at {url}/v1/models ({silent}); give the"
                " address of one as base_url, e.g. http://127.0.0.1:8000; of a proxy without a list"
                " name the servers or the model, e.g. -p model Qwen/Qwen2.5-7B-Instruct"
            )
        if not models:
            return wanted, (f"No server lists its models, so {wanted!r} was asked for as given.",)
    found = _named(models, wanted) if wanted else models[0].id
    if not found:
        names = ", ".join(model.id for model in models)
        raise DeploymentError(
            f"model is {wanted!r} and the server at {url} does not serve it: write one of {names},"
            f" e.g. -p model {models[0].id}"
            + "; the folder of its tokenizer is -p tokenizer"
            * Path(wanted).is_dir()
        )
    if wanted or len(models) == 1:
        return found, ()
    return found, (
        f"The server lists {len(models)} models and the first, {found!r}, was measured; choose with"
        " -p model.",
    )


@dataclass(frozen=True, slots=True)
class _Model:
    """An entry of a list of models: its name, and the path or name of its weights."""

    id: str
    root: str


def _named(models: Sequence[_Model], wanted: str) -> str:
    """The name of the model that is meant, by name or by the path of its weights; empty if none."""
    by_name = (model.id for model in models if model.id == wanted)
    by_root = (model.id for model in models if model.root and model.root == wanted)
    return next(by_name, next(by_root, ""))


async def _models(client: httpx.AsyncClient, url: str, key: str) -> list[_Model] | str:
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
    if answer.status_code in (502, 503, 504):
        raise DeploymentError(
            f"no OpenAI-compatible server answers at {url}/v1/models ({answer.status_code}"
            f" {answer.reason_phrase}): it is not ready, or what is behind it does not run; try"
            f" curl {url}/v1/models"
        )
    if answer.status_code != 200:
        return f"it answers {answer.status_code} {answer.reason_phrase}".rstrip()
    try:
        models = [
            _Model(str(row["id"]), str(row.get("root") or "")) for row in answer.json()["data"]
        ]
    except (ValueError, LookupError, TypeError, AttributeError):
        return "its answer is no list of models"
    return models or "its list of models is empty"


async def _models_of_all(
    client: httpx.AsyncClient, deployment: Deployment, wanted: str
) -> list[_Model]:
    """The models that every listed server has which lists any; those of decode come first.

    One that is not reached from here is passed over if another says what it serves, or `wanted`
    does.
    """
    found: list[list[_Model]] = []
    away: DeploymentError | None = None
    for instance in deployment.instances[::-1]:
        try:
            models = await _models(client, instance.url, deployment.api_key)
        except DeploymentError as error:
            away = error
            continue
        if not isinstance(models, str):
            found.append(models)
    if away and not found and not wanted:
        raise away
    common = [m for m in found[0] if all(_named(other, m.id) for other in found)] if found else []
    if found and not common:
        each = "; ".join(", ".join(model.id for model in models) for models in found)
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
