"""Clients for what is asked beside the load: health, counters, resets, the proxy's legs."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from functools import cache

import httpx

__all__ = ["control_client"]


def control_client(
    timeout_s: float = 10.0, *, headers: Mapping[str, str] | None = None
) -> httpx.AsyncClient:
    """An httpx client that heeds no proxy variables; use it as a context manager.

    `headers` go with every request: a key, to the servers that it is for and to no others.

    The certificates are read once for all of them: 50 ms of CPU each time, in which the loop of
    the caller stands still, and a launch of four passes opens 35 clients.
    """
    return httpx.AsyncClient(
        timeout=timeout_s, trust_env=False, verify=_certificates(), headers=headers
    )


@cache
def _certificates() -> ssl.SSLContext:
    return httpx.create_ssl_context(trust_env=False)
