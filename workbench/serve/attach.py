"""Servers that somebody else started, behind the same deployment record."""

from __future__ import annotations

from collections.abc import Sequence

import httpx

from workbench.control import control_client
from workbench.errors import DeploymentError
from workbench.serve.deployment import Deployment, Instance
from workbench.topology import Role

__all__ = ["attach"]


async def attach(
    base_url: str,
    *,
    prefill_urls: Sequence[str] = (),
    decode_urls: Sequence[str] = (),
    lmcache_url: str = "",
) -> Deployment:
    """The deployment behind `base_url`. Nothing of it is started, stopped or changed.

    `decode_urls` without `prefill_urls` are aggregated servers. The model is the first that
    /v1/models lists. Raises DeploymentError when nobody answers there.
    """
    base = base_url.rstrip("/")
    async with control_client() as client:
        try:
            answer = await client.get(f"{base}/v1/models")
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
    return Deployment(
        url=base, model=model, instances=tuple(instances), store_url=lmcache_url.rstrip("/")
    )
