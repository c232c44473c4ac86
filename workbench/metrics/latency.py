"""Latency and throughput, recomputed from the raw stamps of the `requests` frame.

Seconds everywhere. A failed request has no latency (NaN), but keeps its row. `definitions` prints
what each name means; the definitions of other tools are not here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

__all__ = ["definitions", "icl", "latencies", "steady_window", "succeeded", "system_tps"]

_DEFINITIONS = (
    (
        "ttft_s",
        "first chunk with a generated token (content, reasoning or tool call)"
        " - first byte of the request handed to the socket",
        "failed; no such chunk",
    ),
    (
        "ttft_scheduled_s",
        "the same chunk - the time at which the request was due (no coordinated omission)",
        "failed; no such chunk",
    ),
    (
        "tpot_s",
        "(last token - first token) / (output tokens - tokens of the first chunk)",
        "failed; one token or one chunk only; tokens of the first chunk not known",
    ),
    ("icl_s", "gap between two chunks of one request, pooled over requests", "failed; one chunk"),
    ("e2e_s", "last chunk with a generated token - first byte sent", "failed; no such chunk"),
    ("request_tps", "1 / tpot_s: tokens per second of one request while it decodes", "as tpot_s"),
    (
        "system_tps",
        "output tokens of the requests that succeeded / (last token - first byte sent), of a pass",
        "nothing succeeded; a token count not known",
    ),
)


def definitions() -> pd.DataFrame:
    """The definition card: one row per metric, with the cases in which it is NaN.

    Source: the workbench's own choice (design, section 6); E2E leaves out finish-only chunks and
    the end of the stream, TTFT leaves out chunks that carry a role but no token.
    """
    import pandas as pd

    return pd.DataFrame(_DEFINITIONS, columns=["metric", "definition", "NaN when"])


def succeeded(frame: pd.DataFrame) -> pd.Series[bool]:
    """Which rows of a `requests` frame are successes: those whose `error` is empty."""
    return frame["error"].fillna("").eq("")


def latencies(frame: pd.DataFrame) -> pd.DataFrame:
    """The `requests` frame with ttft_s, ttft_scheduled_s, tpot_s, e2e_s and request_tps added.

    The formulas are those of `definitions`. The tokens of the first chunk come from
    `chunk_tokens`; without it, as many chunks as output tokens means one token each; otherwise
    they are not known, and tpot_s is NaN rather than wrong. request_tps is NaN, not infinite,
    where all chunks arrived in one read.
    """
    ok = succeeded(frame).to_numpy(bool)
    first_s, last_s, chunks = _ends(frame["chunk_s"].tolist())
    first_s[~ok] = last_s[~ok] = np.nan
    output_tokens = _floats(frame["output_tokens"])
    first_tokens, _, counted = _ends(frame["chunk_tokens"].tolist())
    one_each = (counted == 0) & (chunks == output_tokens)
    later_tokens = output_tokens - np.where(one_each, 1.0, first_tokens)
    later_tokens[~(later_tokens > 0) | (chunks < 2)] = np.nan
    sent_s = _floats(frame["sent_s"])
    tpot_s = (last_s - first_s) / later_tokens
    return frame.assign(
        ttft_s=first_s - sent_s,
        ttft_scheduled_s=first_s - _floats(frame["scheduled_s"]),
        tpot_s=tpot_s,
        e2e_s=last_s - sent_s,
        request_tps=1.0 / np.where(tpot_s > 0, tpot_s, np.nan),
    )


def icl(frame: pd.DataFrame) -> NDArray[np.float64]:
    """Gaps between chunks in seconds, pooled over the requests that succeeded; may be empty.

    A gap belongs to a chunk, not to a token: a chunk of five tokens counts once.
    """
    stamps = [s for s in frame.loc[succeeded(frame), "chunk_s"].tolist() if len(s)]
    if not stamps:
        return np.empty(0)
    gaps = np.diff(np.concatenate([np.asarray(s, dtype=float) for s in stamps]))
    between_requests = np.cumsum([len(s) for s in stamps])[:-1] - 1
    return np.delete(gaps, between_requests)


def steady_window(frame: pd.DataFrame) -> tuple[float, float]:
    """Start and end (monotonic seconds) of the time over which a pass's throughput is taken.

    Here it is the whole pass, from the first byte sent to the last token of any request: with
    the few requests of a closed-loop pass, cutting ramp-up and tail would leave nothing to count.
    So system_tps includes both, and understates a server that would run longer.
    Raises ValueError when the frame holds more than one pass.
    """
    keys = [name for name in ("arm", "round", "pass") if name in frame]
    passes = len(frame[keys].drop_duplicates()) if keys else 1
    if passes > 1:
        raise ValueError(
            f"frame holds {passes} passes, whose wall times cannot be added;"
            " group it by arm, round and pass first"
        )
    _, last_s, _ = _ends(frame["chunk_s"].tolist())
    return _extreme(np.fmin, _floats(frame["sent_s"])), _extreme(np.fmax, last_s)


def system_tps(frame: pd.DataFrame) -> float:
    """Output tokens per second of one pass: tokens of the successes over `steady_window`.

    NaN when nothing succeeded, or when a success has no token count.
    Raises ValueError when the frame holds more than one pass.
    """
    start_s, end_s = steady_window(frame)
    tokens = _floats(frame.loc[succeeded(frame), "output_tokens"])
    if not len(tokens) or (tokens < 0).any() or not end_s > start_s:
        return float("nan")
    return float(tokens.sum() / (end_s - start_s))


def _floats(column: pd.Series[Any]) -> NDArray[np.float64]:
    return column.to_numpy(dtype=float, na_value=np.nan)


def _ends(
    rows: Sequence[Sequence[float]],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """First value, last value and length of each row; NaN for the values of an empty row."""
    n = len(rows)
    first = np.fromiter((row[0] if len(row) else np.nan for row in rows), float, n)
    last = np.fromiter((row[-1] if len(row) else np.nan for row in rows), float, n)
    return first, last, np.fromiter(map(len, rows), np.int64, n)


def _extreme(pick: np.ufunc, values: NDArray[np.float64]) -> float:
    """Smallest or largest value, NaN skipped; NaN when there is none."""
    return float(pick.reduce(values, initial=np.nan))
