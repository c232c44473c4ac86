"""The proxy's connections to the instances, and how an instance's leg fails."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, Literal

import aiohttp
import orjson

from workbench.errors import DeploymentError

Leg = Literal["prefill", "decode"]

_KEEPALIVE_S = 4.0
"""Below the 5 s after which vLLM's HTTP server (uvicorn) closes an idle connection."""
_CONNECT_S = 10.0
"""For a host that swallows packets; a closed port is refused at once."""
_MESSAGE_CHARS = 2000
_BROKEN = (aiohttp.ClientError, OSError, TimeoutError)


class LegFailed(DeploymentError):
    """An instance refused its leg, broke it off, or answered what cannot be used.

    `status` is the HTTP status that the instance sent, None when none came.
    """

    def __init__(self, leg: Leg, instance: str, what: str, status: int | None = None) -> None:
        super().__init__(f"{leg} instance {instance} {what}")
        self.leg = leg
        self.instance = instance
        self.status = status

    @property
    def http_status(self) -> int:
        """What the client gets: the instance's own 4xx, else 502 Bad Gateway."""
        return self.status if self.status is not None and 400 <= self.status < 500 else 502

    @property
    def payload(self) -> dict[str, Any]:
        """The JSON body, and the error event of a stream that had already begun."""
        return {
            "error": {
                "message": str(self),
                "type": "leg_failed",
                "leg": self.leg,
                "instance": self.instance,
                "status": self.status,
            }
        }


class Upstream:
    """Connections to the instances, kept alive between requests. Needs a running event loop."""

    def __init__(self) -> None:
        self._kept = _session(aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEPALIVE_S))
        self._fresh = _session(aiohttp.TCPConnector(limit=0, force_close=True))

    async def close(self) -> None:
        await self._kept.close()
        await self._fresh.close()

    @asynccontextmanager
    async def answer(
        self, leg: Leg, instance: str, path: str, headers: Mapping[str, str], data: bytes | None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The instance's answer, once its head came with status 200: POST, or GET without `data`.

        Raises LegFailed for any other status, for a connection that cannot be made, and for one
        that breaks while the caller reads. Leaving early closes the connection, by which vLLM
        knows to abort the request.
        """
        response: aiohttp.ClientResponse | None = None
        try:
            response = await self._request(instance + path, headers, data)
            async with response:
                if response.status != 200:
                    said = _sentence(await response.read())
                    raise LegFailed(
                        leg, instance, f"answered {response.status}: {said}", response.status
                    )
                yield response
        except _BROKEN as error:
            what = "broke off" if response else "did not answer"
            raise LegFailed(
                leg, instance, f"{what}: {_reason(error)}", response.status if response else None
            ) from error

    async def _request(
        self, url: str, headers: Mapping[str, str], data: bytes | None
    ) -> aiohttp.ClientResponse:
        """Send once; a second time only if a kept connection turned out to be closed.

        The server may close an idle connection in the moment we write to it. It has then not
        seen the request, so the second try, on a new connection, repeats nothing.
        """
        reused: list[bool] = []
        method = "GET" if data is None else "POST"
        try:
            return await self._kept.request(
                method, url, data=data, headers=headers, trace_request_ctx=reused
            )
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
            if not reused:
                raise
        return await self._fresh.request(method, url, data=data, headers=headers)


def _session(connector: aiohttp.TCPConnector) -> aiohttp.ClientSession:
    trace = aiohttp.TraceConfig()
    trace.on_connection_reuseconn.append(_note_reuse)
    return aiohttp.ClientSession(
        connector=connector,
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S),
        cookie_jar=aiohttp.DummyCookieJar(),
        # Bytes pass as they are: nothing is compressed for us, nothing unpacked.
        skip_auto_headers=("Accept-Encoding", "User-Agent"),
        auto_decompress=False,
        trace_configs=[trace],
    )


async def _note_reuse(
    _session: aiohttp.ClientSession,
    context: SimpleNamespace,
    _params: aiohttp.TraceConnectionReuseconnParams,
) -> None:
    if context.trace_request_ctx is not None:
        context.trace_request_ctx.append(True)


def _reason(error: Exception) -> str:
    """What the network says, without the library's words around it."""
    if isinstance(error, aiohttp.ClientPayloadError):
        return "the connection ended before the answer did"
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return str(error) or type(error).__name__


def _sentence(body: bytes) -> str:
    """The message inside an OpenAI-style error body, else the body itself, shortened."""
    try:
        text = str(orjson.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        text = body.decode(errors="replace").strip()
    return text[:_MESSAGE_CHARS] or "(empty body)"
