"""Files as other load generators write them, for tests."""

from __future__ import annotations

from typing import Any


def guidellm_report(version: int = 2, **change: Any) -> dict[str, Any]:
    timings = {
        "targeted_start": 99.9, "request_start": 100.0, "first_token_iteration": 100.5,
        "last_token_iteration": 100.9, "request_end": 101.0,
    }  # fmt: skip
    good = {
        "request_id": "g", "info": {"timings": timings, "error": None}, "prompt_tokens": 100,
        "output_tokens": 5, "time_to_first_token_ms": 500.0,
    } | change  # fmt: skip
    late = {"timings": timings | {"request_start": 99.0}, "error": "ReadTimeout: timed out"}
    bad = good | {"info": late, "time_to_first_token_ms": None}
    requests = {"successful": [good], "errored": [bad], "incomplete": []}
    return {"metadata": {"version": version}, "benchmarks": [{"requests": requests}]}
