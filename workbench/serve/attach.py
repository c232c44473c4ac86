"""Attach to running servers, behind the same deployment record."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from time import monotonic
from typing import Any

import httpx

from workbench.control import connect_problem, control_client, server_address, tls_context
from workbench.errors import DeploymentError, must_be
from workbench.records import PROXY_HEADER, ProxyFacts
from workbench.serve.connectors import CONNECTORS, lmcache
from workbench.serve.deployed import Deployment, Instance
from workbench.topology import Role

API_KEY = "OPENAI_API_KEY"

Models = dict[str, str]
"""Models of a server: the name of each, and the path or name of its weights."""


async def attach(
    base_url: str,
    *,
    model: str = "",
    prefill_urls: Sequence[str] = (),
    decode_urls: Sequence[str] = (),
    lmcache_url: str = "",
) -> Deployment:
    """The deployment behind `base_url`. Nothing is started, stopped or changed.

    `decode_urls` without `prefill_urls` are aggregated servers. The model is `model`, by the name
    or path in /v1/models, or the first one listed. A proxy may have no such list: then the models
    are those of the listed servers, or `model` is used as given. The API key is OPENAI_API_KEY of
    the environment; the store does not get it. Raises DeploymentError if no server responds, the
    key is rejected, no server lists `model`, or instances behind our proxy are not listed.

    Behind the workbench's own proxy on this machine, its records of legs are read, and it says
    which connector and instances it has.
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
        tls_context()  # raises if the trusted certificates cannot be read
    async with control_client(headers=deployment.headers) as client:
        answer = await _model_list(client, base, deployment.api_key)
        chosen, doubts = await _choose_model(client, deployment, _models(answer), model)
        if PROXY_HEADER in answer.headers:
            deployment = await _behind_our_proxy(client, deployment)
    return replace(deployment, model=chosen, doubts=(*doubts, *deployment.doubts))


def parameters_for(deployment: Deployment) -> dict[str, Any]:
    """The parameters that attach to this deployment, with every counter and reset it has."""
    urls: dict[str, list[str]] = {"prefill_urls": [], "decode_urls": []}
    for instance in deployment.instances:
        urls["prefill_urls" if instance.role == "prefill" else "decode_urls"].append(instance.url)
    store = deployment.store_url if deployment.store is lmcache.STORE else ""
    given = {"engine": "attach", "base_url": deployment.url, **urls, "lmcache_url": store}
    return {name: value for name, value in given.items() if value}


async def _behind_our_proxy(client: httpx.AsyncClient, deployment: Deployment) -> Deployment:
    """With what our proxy at its URL knows; with a doubt instead if that is of no use."""
    url = deployment.url
    try:
        asked_s = monotonic()
        said = (await client.get(f"{url}/servers")).json()
        same_clock = asked_s <= said.pop("clock_s") <= monotonic()
        known = {one.name for one in fields(ProxyFacts)}
        found = {name: value for name, value in said.items() if name in known}
        proxy = ProxyFacts(**{name: value for name, value in found.items() if value is not None})
    except (httpx.HTTPError, ValueError, LookupError, TypeError, AttributeError):
        return replace(deployment, doubts=(f"The proxy at {url} does not say what is behind it.",))
    if not same_clock:
        doubt = (
            f"The proxy at {url} runs on another machine, so its timestamps cannot be used: there"
            " is no waterfall. Run the workbench on that machine."
        )
        return replace(deployment, doubts=(doubt,))
    listed = {instance.url for instance in deployment.instances}
    behind = {*proxy.prefill, *proxy.decode}
    doubts: tuple[str, ...] = ()
    if listed and (unlisted := sorted(behind - listed)):
        if len(listed) < len(behind):
            raise DeploymentError(
                f"prefill_urls and decode_urls must be all {len(behind)} instances behind the proxy"
                f" at {url}, or none of them, got {len(listed)} (missing: {', '.join(unlisted)})"
            )
        doubts = (
            "It is unknown which instance got which prompt, because the proxy knows instances by"
            f" other URLs ({', '.join(unlisted)}). List these.",
        )
    store = CONNECTORS[proxy.connector].store if proxy.connector in CONNECTORS else None
    return replace(
        deployment,
        proxy_url=url,
        proxy=proxy,
        store=store or deployment.store,
        # Who lists the instances wants them counted and reset.
        store_url=deployment.store_url or (proxy.store_url if listed else ""),
        doubts=doubts,
    )


async def _choose_model(
    client: httpx.AsyncClient, deployment: Deployment, models: Models | str, wanted: str
) -> tuple[str, tuple[str, ...]]:
    """The model name for requests, from those that the URL lists, and doubts about it."""
    url = deployment.url
    if isinstance(models, str):
        silent, models = models, await _models_in_common(client, deployment, wanted)
        if not models and not wanted:
            raise DeploymentError(
                f"base_url must be an OpenAI-compatible server, but {url}/v1/models {silent}. If it"
                " is a proxy without a model list, name the model (example: -p model"
                " Qwen/Qwen2.5-7B-Instruct)"
            )
        if not models:
            return wanted, (f"No server lists its models; model {wanted!r} was not verified.",)
    first, *others = models
    if wanted:
        found = _named(models, wanted)
        if not found:
            folder = " (for a tokenizer folder use -p tokenizer)" * Path(wanted).is_dir()
            allowed = f"one that {url} serves: {', '.join(models)}{folder}"
            raise DeploymentError(must_be("model", allowed, wanted, first))
        return found, ()
    doubt = (
        f"The server lists {len(models)} models; the first one, {first!r}, was measured. Choose"
        " another with -p model."
    )
    return first, (doubt,) * bool(others)


def _named(models: Models, wanted: str) -> str:
    """The listed name of a model given by name or path of its weights; empty if none."""
    by_root = (name for name, root in models.items() if root and root == wanted)
    return wanted if wanted in models else next(by_root, "")


async def _model_list(client: httpx.AsyncClient, url: str, key: str) -> httpx.Response:
    """The response of a server to the question for its models.

    Raises DeploymentError if the server does not respond or rejects the API key.
    """
    try:
        answer = await client.get(f"{url}/v1/models")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        if reason := connect_problem(error):
            raise DeploymentError(f"no connection to {url}: {reason}") from error
        raise DeploymentError(
            f"base_url must be a running OpenAI-compatible server, but {url}/v1/models did not"
            f" respond ({str(error) or type(error).__name__}). Start it, or correct the URL"
            " (example: -p base_url http://127.0.0.1:8000)"
        ) from error
    if answer.status_code in (401, 403):
        raise DeploymentError(
            f"{url}/v1/models {'rejected the' if key else 'needs an'} API key (HTTP"
            f" {answer.status_code}). Set {API_KEY} in the environment (example: export"
            f" {API_KEY}=...)"
        )
    if answer.status_code in (502, 503, 504):
        raise DeploymentError(
            f"base_url must be a ready OpenAI-compatible server, but {url}/v1/models responded"
            f" {_status(answer)}. Wait for it, or start its backend (example: curl {url}/v1/models)"
        )
    return answer


def _status(answer: httpx.Response) -> str:
    return f"{answer.status_code} {answer.reason_phrase}".rstrip()


def _models(answer: httpx.Response) -> Models | str:
    """The models that a server lists, at least one, or what it responded instead."""
    if answer.status_code != 200:
        return f"responded {_status(answer)}"
    try:
        models = {str(row["id"]): str(row.get("root") or "") for row in answer.json()["data"]}
    except (ValueError, LookupError, TypeError, AttributeError):
        return "did not respond with a list of models"
    return models or "lists no models"


async def _models_in_common(
    client: httpx.AsyncClient, deployment: Deployment, wanted: str
) -> Models:
    """The models that all listed servers have in common, in the order of decode.

    A server that cannot be reached is ignored if another lists its models, or if `wanted` is given.
    """
    found: list[Models] = []
    away: DeploymentError | None = None
    for instance in deployment.instances[::-1]:
        try:
            models = _models(await _model_list(client, instance.url, deployment.api_key))
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
            f"decode_urls and prefill_urls must serve a common model, got {each}. List the servers"
            " of one deployment (example: --served-model-name llama on all)"
        )
    return common


def _api_key() -> str:
    """The API key, empty for none. An invalid one is refused and not shown."""
    key = os.environ.get(API_KEY, "").strip()
    if not key.isascii() or not key.isprintable():
        raise DeploymentError(
            f"{API_KEY} in the environment must be printable ASCII in one line, got other"
            f" characters (example: export {API_KEY}=...)"
        )
    return key
