"""Latency and throughput, recomputed from the raw stamps of the `requests` frame.

Seconds everywhere. A failed request keeps its row and has no latency (NaN). `DEFINITIONS` says
what each name means; `metrics.definitions` has the definitions of other tools.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

GATHERED_S = 0.0001
"""Two chunks this close were merged: no engine makes the tokens of one request so fast."""
GATHERED_SHARE = 0.9
"""Fraction of a response's gaps from which on it counts as merged."""
BUFFERED_SHARE = 0.9
"""Fraction of an arm's responses from which on merging is no accident."""
MANY_TOKENS = 8
"""Fewer tokens may arrive together by chance, or from speculative decoding."""

DEFINITIONS = (
    (
        "ttft_s",
        "from the first byte of the request handed to the socket to the first chunk with a"
        " generated token (content, reasoning or tool call)",
        "the request failed, or has no such chunk",
    ),
    (
        "ttft_scheduled_s",
        "from the time the request was due to the same chunk (avoids coordinated omission)",
        "as ttft_s",
    ),
    (
        "tpot_s",
        "(last token - first token) / (output tokens - tokens of the first chunk)",
        "the request failed, has one token or one chunk, or no token count of its first chunk; or"
        " the stream was buffered",
    ),
    ("icl_s", "gaps between chunks of one request, pooled over requests", "never; may be empty"),
    ("e2e_s", "from the first byte sent to the last chunk with a generated token", "as ttft_s"),
    ("request_tps", "1 / tpot_s: tokens per second of one request while it decodes", "as tpot_s"),
    (
        "system_tps",
        "output tokens of successful requests / (last token - first byte sent) of a pass",
        "no request succeeded, or a token count is unknown",
    ),
)
"""Name, definition, and when it is NaN. E2E ignores finish-only chunks and the end of the stream;
TTFT ignores chunks with a role but no token."""


def succeeded(frame: pd.DataFrame) -> pd.Series[bool]:
    """Which rows of a `requests` frame are successes: those whose `error` is empty."""
    return frame["error"].fillna("").eq("")


def gathered(frame: pd.DataFrame) -> pd.Series[bool]:
    """Which responses arrived in one piece or in bursts, whatever merged their chunks.

    Those of 8 tokens or more with 90 % of the gaps between chunks below 0.1 ms, or with a single
    chunk.
    """
    import pandas as pd

    stamps = frame["chunk_s"].tolist()
    chunks = np.fromiter(map(len, stamps), np.int64, len(stamps))
    together: NDArray[np.int64] = np.zeros(len(stamps), np.int64)
    if chunks.sum() > 1:
        gaps = np.diff(np.concatenate([np.asarray(s, dtype=float) for s in stamps if len(s)]))
        row = np.repeat(np.arange(len(stamps)), chunks)
        within = row[1:] == row[:-1]
        near = within & (gaps < GATHERED_S)
        together = np.bincount(row[1:][near], minlength=len(stamps)).astype(np.int64)
    mostly = (together >= GATHERED_SHARE * (chunks - 1)) & (chunks > 0)
    return pd.Series(mostly & _many(frame), index=frame.index, dtype=bool)


def buffered(frame: pd.DataFrame) -> pd.Series[bool]:
    """Which responses were buffered on their way: at least 90 % of their arm are `gathered`.

    Then TTFT and the gaps between chunks are not the server's. A client or server that was late
    for a moment merges a few responses, never 90 %.
    """
    import pandas as pd

    one_piece, many = gathered(frame), pd.Series(_many(frame), index=frame.index)
    arm = frame["arm"] if "arm" in frame else pd.Series("", index=frame.index)
    share = one_piece[many].groupby(arm[many]).mean()
    return one_piece & arm.map(share).ge(BUFFERED_SHARE)


def comparable(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame of `latencies` without values that must not enter a ratio.

    In an arm whose responses were buffered, TTFT is the gateway's and equals E2E.
    """
    arms = frame.loc[buffered(frame), "arm"].unique()
    return frame.assign(ttft_s=frame["ttft_s"].mask(frame["arm"].isin(arms)))


def _many(frame: pd.DataFrame) -> NDArray[np.bool_]:
    """Which rows are successes of 8 tokens or more, or of as many chunks."""
    chunks = np.fromiter(map(len, frame["chunk_s"]), np.int64, len(frame))
    enough = np.fmax(_floats(frame["output_tokens"]), chunks) >= MANY_TOKENS
    return np.asarray(enough & succeeded(frame).to_numpy(bool), dtype=bool)


def latencies(frame: pd.DataFrame) -> pd.DataFrame:
    """The `requests` frame with ttft_s, ttft_scheduled_s, tpot_s, e2e_s and request_tps added.

    The formulas are those of `DEFINITIONS`. The tokens of the first chunk come from
    `chunk_tokens`; without it, equal numbers of chunks and output tokens mean one token each.
    Otherwise they are unknown and tpot_s is NaN, as for responses that were `buffered`.
    request_tps is NaN, not infinite, where all chunks arrived in one read.
    """
    ok = succeeded(frame).to_numpy(bool)
    first_s, last_s, chunks = _ends(frame["chunk_s"].tolist())
    first_s[~ok] = last_s[~ok] = np.nan
    output_tokens = _floats(frame["output_tokens"])
    first_tokens, _, counted = _ends(frame["chunk_tokens"].tolist())
    one_each = (counted == 0) & (chunks == output_tokens)
    later_tokens = output_tokens - np.where(one_each, 1.0, first_tokens)
    later_tokens[~(later_tokens > 0) | (chunks < 2) | buffered(frame).to_numpy()] = np.nan
    sent_s = _floats(frame["sent_s"])
    tpot_s = (last_s - first_s) / later_tokens
    return frame.assign(
        ttft_s=first_s - sent_s,
        ttft_scheduled_s=first_s - _floats(frame["scheduled_s"]),
        tpot_s=tpot_s,
        e2e_s=last_s - sent_s,
        request_tps=1.0 / np.where(tpot_s > 0, tpot_s, np.nan),
    )


def tpot_unknown(frame: pd.DataFrame) -> list[str]:
    """A sentence for each reason why responses of a frame of `latencies` have no TPOT."""
    rows = frame[succeeded(frame) & frame["tpot_s"].isna()]
    tokens, chunks = rows["output_tokens"], rows["chunk_s"].map(len)
    reasons = {
        "their tokens arrived together (buffered stream or late client)": gathered(rows),
        "the server sent no usage": tokens.lt(0),
        "the server reported 0 tokens": tokens.eq(0) & chunks.gt(0),
        "they have only one token": tokens.le(1),
        "all tokens arrived in one chunk": chunks.lt(2),
        "several tokens share a chunk without a token count": tokens.gt(1),
    }
    sentences, left = [], rows.index
    for reason, applies in reasons.items():
        hit = left[applies.loc[left]]
        left = left.difference(hit)
        if len(hit):
            total = int(succeeded(frame).sum())
            sentences.append(f"TPOT is unknown for {len(hit):,} of {total:,} responses: {reason}.")
    return sentences


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


def own_concurrency(rows: pd.DataFrame) -> int:
    """Requests in flight of a pass that has a number of its own; 0 for others and in old files."""
    known = rows["concurrency"].iloc[:1].dropna() if "concurrency" in rows else ()
    return int(max(known, default=0))


def system_tps(frame: pd.DataFrame) -> float:
    """Output tokens per second of one pass, from its first byte sent to its last token.

    It includes ramp-up and tail, since a closed-loop pass has few requests, and so understates a
    server under steady load. NaN when no request succeeded, or a successful one has no token count
    or 0 for tokens that arrived. Raises ValueError when the frame holds more than one pass.
    """
    keys = [name for name in ("arm", "round", "pass") if name in frame]
    passes = len(frame[keys].drop_duplicates()) if keys else 1
    if passes > 1:
        raise ValueError(f"frame holds {passes} passes: group it by arm, round and pass first")
    answered = frame[succeeded(frame)]
    tokens, least = _floats(answered["output_tokens"]), answered["chunk_s"].map(len).gt(0)
    if not len(tokens) or (tokens < least).any():
        return float("nan")
    _, last_s, _ = _ends(frame["chunk_s"].tolist())
    took_s = np.fmax.reduce(last_s) - np.fmin.reduce(_floats(frame["sent_s"]))
    return float(tokens.sum() / took_s) if took_s > 0 else float("nan")


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
