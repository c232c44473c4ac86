"""What is asked of a server."""

from __future__ import annotations

import orjson

from workbench.load.outgoing import request_body
from workbench.load.workload import Request

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
