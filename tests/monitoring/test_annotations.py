"""Annotations as Grafana's documentation gives them: POST /api/annotations with a bearer token.

Grafana itself cannot be had on the machine that this was written on.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.monitoring.pretended import Quiet, pretended
from workbench.errors import ParameterError
from workbench.monitoring.annotations import TOKEN, Grafana
from workbench.monitoring.dashboard import TAG

REQUIRED = {"time", "timeEnd", "tags", "text"}


@contextmanager
def grafana(posted: list[tuple[str, dict[str, Any]]], token: str) -> Iterator[str]:
    """A server that accepts what Grafana's documentation accepts, and keeps it."""

    class Handler(Quiet):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            posted.append((self.path, body))
            known = self.headers["Authorization"] == f"Bearer {token}"
            shaped = body.keys() == REQUIRED and type(body["time"]) is type(body["timeEnd"]) is int
            is_json = self.headers["Content-Type"] == "application/json"
            self.send_response(401 if not known else 200 if shaped and is_json else 400)
            self.end_headers()
            self.wfile.write(b'{"message": "Annotation added", "id": 1}')

    with pretended(Handler) as url:
        yield url


async def test_a_pass_is_a_region_with_our_tag(monkeypatch):
    monkeypatch.setenv(TOKEN, "glsa_1")
    posted: list[tuple[str, dict[str, Any]]] = []
    with grafana(posted, "glsa_1") as url:
        target = Grafana.with_token(f"{url}/")
        why = await target.mark("1p1d, round 1: cold", from_s=10.5, to_s=12.25, tags=("cold",))
    assert why == ""
    assert posted == [
        (
            "/api/annotations",
            {"time": 10500, "timeEnd": 12250, "tags": [TAG, "cold"], "text": "1p1d, round 1: cold"},
        )
    ]
    assert "glsa_1" not in repr(target)


async def test_what_fails_is_said_and_raises_nothing(monkeypatch):
    monkeypatch.setenv(TOKEN, "wrong")
    with grafana([], "glsa_1") as url:
        why = await Grafana.with_token(url).mark("a", from_s=1, to_s=2, tags=())
    assert why == f"{url} responded 401 Unauthorized"
    why = await Grafana.with_token("http://127.0.0.1:9").mark("a", from_s=1, to_s=2, tags=())
    assert why.startswith("http://127.0.0.1:9 did not respond: ")


@pytest.mark.parametrize("token", ["", " ", "a\nb", "é"])
def test_a_grafana_without_a_token_is_refused(monkeypatch, token):
    monkeypatch.setenv(TOKEN, token)
    with pytest.raises(ParameterError, match=f"{TOKEN} in the environment"):
        Grafana.with_token("http://127.0.0.1:3000")
