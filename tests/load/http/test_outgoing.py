"""What is asked of a server."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import orjson

from workbench.load.http.outgoing import request_body
from workbench.load.http.request_form import RETURN_IDS, USUAL_FORM, RequestForm
from workbench.load.workload.workload import Request

REQUEST = Request(index=5, prompt_ids=[16, 17, 18], max_tokens=3, ideal_reuse_tokens=2)


def test_the_body_asks_for_greedy_tokens_of_exact_number_with_usage() -> None:
    assert orjson.loads(request_body(REQUEST, model="tiny")) == {
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


def test_a_prompt_may_go_as_text() -> None:
    written = replace(REQUEST, prompt_text="Read: me")
    assert body(RequestForm(prompts_as_text=True), written)["prompt"] == "Read: me"
    assert body(USUAL_FORM, written)["prompt"] == [16, 17, 18]
