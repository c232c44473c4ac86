"""What is asked of a server."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from workbench import load
from workbench.errors import ParameterError
from workbench.load.http.request import RETURN_IDS, USUAL_FORM, Endpoint, RequestForm, request_body
from workbench.load.workload.workload import Request

REQUEST = Request(index=5, prompt_ids=[16, 17, 18], max_tokens=3, ideal_reuse_tokens=2)


def test_the_body_asks_for_greedy_tokens_of_exact_number_with_usage() -> None:
    assert body(USUAL_FORM) == {
        "model": "tiny",
        "prompt": [16, 17, 18],
        "max_tokens": 3,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    }


def body(form: RequestForm, request: Request = REQUEST) -> dict[str, Any]:
    found: dict[str, Any] = orjson.loads(request_body(request, model="tiny", form=form))
    return found


def test_what_a_server_refuses_is_left_out() -> None:
    assert "ignore_eos" not in body(RequestForm(left_out=frozenset({"ignore_eos"})))
    plain = body(RequestForm(left_out=frozenset({"continuous_usage_stats"})))
    assert plain["stream_options"] == {"include_usage": True}
    both = frozenset({"continuous_usage_stats", "stream_options"})
    assert "stream_options" not in body(RequestForm(left_out=both))
    turn = replace(REQUEST, return_ids=True)
    assert body(USUAL_FORM, turn)["return_token_ids"] is True
    assert "return_token_ids" not in body(RequestForm(left_out=frozenset({RETURN_IDS})), turn)


def test_fields_of_the_user_stand_beside_ours() -> None:
    form = RequestForm(extra_body='{"top_k": 1, "chat_template_kwargs": {"thinking": false}}')
    more = {"top_k": 1, "chat_template_kwargs": {"thinking": False}}
    assert body(form) == body(USUAL_FORM) | more


def test_a_prompt_may_go_as_text_or_as_messages() -> None:
    written = replace(REQUEST, prompt_text="Read: me")
    assert body(RequestForm(prompts_as_text=True), written)["prompt"] == "Read: me"
    assert body(USUAL_FORM, written)["prompt"] == [16, 17, 18]
    said = [{"role": "user", "content": "hello"}]
    chat = body(USUAL_FORM, replace(REQUEST, messages=tuple(said)))
    assert (chat["messages"], "prompt" in chat) == (said, False)


def head(base_url: str, **options: Any) -> tuple[str, dict[str, str]]:
    """Request line and headers of what is sent; the body behind them is that of the request."""
    endpoint = Endpoint(base_url=base_url, model="tiny", **options)
    said, _, content = endpoint.outgoing(REQUEST, "run-5").message.partition(b"\r\n\r\n")
    assert content == request_body(REQUEST, model="tiny")
    line, *lines = said.decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    assert headers["Content-Length"] == str(len(content))
    return line, headers


def test_what_the_server_is_sent() -> None:
    line, headers = head("http://h:8000/", decode_shift=1, headers={"Authorization": "Bearer key"})
    assert line == "POST /v1/completions HTTP/1.1"
    assert headers["Host"] == "h:8000"
    assert (headers["X-Request-Id"], headers["X-Workbench-Index"]) == ("run-5", "5")
    assert headers["X-Workbench-Decode-Shift"] == "1"
    assert headers["Authorization"] == "Bearer key"
    assert headers["Accept-Encoding"] == "identity"
    line, headers = head("https://u:p%40ss@h/team a")
    assert line == "POST /team%20a/v1/completions HTTP/1.1"
    assert (headers["Host"], headers["Authorization"]) == ("h", "Basic dTpwQHNz")  # u:p@ss
    assert "X-Workbench-Decode-Shift" not in headers


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("http://h", (False, "h", 80)),
        ("https://h/team", (True, "h", 443)),
        ("http://[::1]:9", (False, "::1", 9)),
    ],
)
def test_where_it_connects_to(url: str, origin: tuple[bool, str, int]) -> None:
    assert Endpoint(base_url=url, model="tiny").origin == origin


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://x", "http://", "", "http://h:port"])
def test_a_base_url_without_scheme_or_host_is_refused(url: str) -> None:
    with pytest.raises(ParameterError, match="base_url must be an http:// or https:// URL"):
        Endpoint(base_url=url, model="tiny")


def test_httpx_is_for_control_calls_alone() -> None:
    sources = Path(load.__file__).parent.rglob("*.py")
    assert [file.name for file in sources if "import httpx" in file.read_text()] == []
