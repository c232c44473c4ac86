"""Annotations in Grafana: a region for each pass of a run, on every dashboard with our tag.

POST /api/annotations with a service account's token, as Grafana documents it for versions 8 to 13.
Grafana itself was not run here: tests check form and header with their own server.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

import httpx

from workbench.control import connect_problem, control_client
from workbench.errors import ParameterError
from workbench.monitoring.dashboard import TAG

TOKEN = "GRAFANA_TOKEN"
TIMEOUT_S = 3.0
"""How long a run waits for Grafana."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grafana:
    """A running Grafana that accepts annotations."""

    url: str
    token: str = field(repr=False)

    @classmethod
    def with_token(cls, url: str) -> Grafana:
        """With the token from the environment. Raises ParameterError if there is none."""
        token = os.environ.get(TOKEN, "").strip()
        if not token or not token.isascii() or not token.isprintable():
            allowed = f"grafana_url needs a service account's token as {TOKEN} in the environment"
            raise ParameterError(f"{allowed} (example: export {TOKEN}=glsa_...)")
        return cls(url=url.rstrip("/"), token=token)

    async def mark(self, text: str, *, from_s: float, to_s: float, tags: tuple[str, ...]) -> str:
        """Write a region between two Unix times; returns why it failed, or an empty text."""
        body = {
            "time": round(1000 * from_s),
            "timeEnd": round(1000 * to_s),
            "tags": [TAG, *tags],
            "text": text,
        }
        headers = {"Authorization": f"Bearer {self.token}"}
        try:
            async with control_client(TIMEOUT_S, headers=headers) as client:
                answer = await client.post(f"{self.url}/api/annotations", json=body)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            why = connect_problem(error) or str(error) or type(error).__name__
            return f"{self.url} did not respond: {why.partition(';')[0]}"
        if answer.status_code == 200:
            return ""
        return f"{self.url} responded {answer.status_code} {answer.reason_phrase}".rstrip()
