"""Servers that somebody else started, behind the same deployment record."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

import httpx

from workbench.control import control_client
from workbench.errors import DeploymentError
from workbench.serve.deployment import Deployment, Instance
from workbench.topology import Role

__all__ = ["API_KEY", "attach"]

API_KEY = "OPENAI_API_KEY"


async def attach(
    base_url: str,
    *,
    prefill_urls: Sequence[str] = (),
    decode_urls: Sequence[str] = (),
    lmcache_url: str = "",
) -> Deployment:
    """The deployment behind `base_url`. Nothing of it is started, stopped or changed.

    `decode_urls` without `prefill_urls` are aggregated servers. The model is the first that
    /v1/models lists. A key is taken from the environment, OPENAI_API_KEY, and goes to these servers
    but the store. Raises DeploymentError when nobody answers there, or when they want another key.
    """
    base = base_url.rstrip("/")
    deployment = Deployment(url=base, store_url=lmcache_url.rstrip("/"), api_key=_api_key())
    async with control_client(headers=deployment.headers) as client:
        try:
            answer = await client.get(f"{base}/v1/models")
            if answer.status_code in (401, 403):
                raise DeploymentError(
                    f"the server at {base}/v1/models does not let us in ({answer.status_code}):"
                    f" {'give another' if deployment.api_key else 'it wants a'} key in the"
                    f" environment, e.g. export {API_KEY}=..."
                )
            answer.raise_for_status()
            model = answer.json()["data"][0]["id"]
        except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
            raise DeploymentError(
                f"no OpenAI-compatible server answers at {base}/v1/models ({error!r}); start one,"
                " or give its address as base_url, e.g. http://127.0.0.1:8000"
            ) from error
    answering: Role = "decode" if prefill_urls else "aggregated"
    listed: list[tuple[Role, Sequence[str]]] = [
        ("prefill", prefill_urls),
        (answering, decode_urls),
    ]
    instances = [
        Instance(name=f"{role}-{number}", role=role, url=url.rstrip("/"))
        for role, urls in listed
        for number, url in enumerate(urls)
    ]
    return replace(deployment, model=model, instances=tuple(instances))


def _api_key() -> str:
    """The key, empty for none. One that no header can hold is refused without being shown."""
    key = os.environ.get(API_KEY, "").strip()
    if not key.isascii() or not key.isprintable():
        raise DeploymentError(
            f"{API_KEY} in the environment holds a line break or a letter that no key has: set it"
            f" again, e.g. export {API_KEY}=..."
        )
    return key
