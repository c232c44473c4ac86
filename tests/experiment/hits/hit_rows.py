"""Rows of a live hit analysis, for tests."""

from __future__ import annotations

import pandas as pd


def requests(arm: str, name: str, rows: list[tuple[str, int, int]], *, ttft_s: float = 0.1,
             round: int = 0) -> pd.DataFrame:  # fmt: skip
    """Rows of (request id, prompt tokens, cached tokens), one after the other."""
    return pd.DataFrame(
        [
            {"arm": arm, "round": round, "pass": name, "index": i, "request_id": request,
             "prompt_tokens": prompt, "cached_tokens": cached, "error": "",
             "ideal_reuse_tokens": 0 if name == "cold" else prompt - 1, "sent_s": float(i),
             "ttft_s": ttft_s * (1 + i)}
            for i, (request, prompt, cached) in enumerate(rows)
        ]
    )  # fmt: skip
