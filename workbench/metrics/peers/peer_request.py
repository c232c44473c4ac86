"""What every reader of another tool's file returns: its requests, and what it lacks."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from http import HTTPStatus
from itertools import pairwise
from math import isfinite, isinf, isnan, nan
from typing import Any

from workbench.records import RequestRecord

UNREADABLE = (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError)
"""Errors of a reader when a file is not as expected."""
_LONGEST_S = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerRequest:
    """One request as another tool measured it, in the names of `RequestRecord`.

    A missing number is -1, a missing time NaN. Raises ValueError for an impossible time.
    """

    request_id: str
    ttft_s: float = nan
    e2e_s: float = nan
    prompt_tokens: int = -1
    output_tokens: int = -1
    cached_tokens: int = -1
    scheduled_s: float = nan
    sent_s: float = nan
    stream_end_s: float = nan
    chunk_s: tuple[float, ...] = ()
    engine_metrics: str = ""
    error: str = ""
    """The class of a failure if the tool gives it; else it follows from the message."""
    error_message: str = ""
    """Why the request failed, in the tool's words; empty for a success."""

    def __post_init__(self) -> None:
        ttft_s, e2e_s, chunk_s = self.ttft_s, self.e2e_s, self.chunk_s
        if any(map(isinf, (ttft_s, e2e_s, self.scheduled_s, self.sent_s, self.stream_end_s))):
            raise ValueError("a time is infinite")
        if not all(map(isfinite, chunk_s)) or any(a > b for a, b in pairwise(chunk_s)):
            raise ValueError("chunk times are not in order")
        lasts_s = chunk_s[-1] - chunk_s[0] if chunk_s else 0.0
        if ttft_s > _LONGEST_S or e2e_s > _LONGEST_S or lasts_s > _LONGEST_S:
            raise ValueError("a response takes over 30 years")
        if not self.failed and (ttft_s < 0 or e2e_s < max(ttft_s, 0) - 1e-9):
            raise ValueError(f"TTFT {ttft_s:g} s with E2E {e2e_s:g} s is impossible")

    @property
    def failed(self) -> bool:
        return bool(self.error or self.error_message)

    def record(self, index: int) -> RequestRecord:
        """The request as a workbench record, which has no latencies."""
        facts = asdict(self) | {"error": self.error or _error_class(self.error_message)}
        del facts["ttft_s"], facts["e2e_s"]
        return RequestRecord(index=index, ideal_reuse_tokens=-1, max_tokens=-1, **facts)


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerFile:
    """The content of another tool's result file."""

    tool: str
    requests: list[PeerRequest]
    version: str = ""
    """Version or form of the file, if known."""
    total: int = -1
    """Number of requests sent, by the file's own count; -1 if it gives none."""
    doubts: tuple[str, ...] = ()
    own: dict[str, float] = field(default_factory=dict)
    """The tool's own percentiles over all requests, in seconds: `TTFT p50` and so on."""
    quantiles: dict[tuple[str, float], float] = field(default_factory=dict)
    """By metric (`ttft_s`) and quantile, in seconds, where the file has no single requests."""
    ordered: bool = False
    """The requests are in the order of the data set, not in the order in which they ended."""


def read_all(
    records: Iterable[Any], read: Callable[[Any], PeerRequest | None]
) -> tuple[list[PeerRequest], int, tuple[str, ...]]:
    """The requests in the records, the number of unreadable ones, and a doubt about them.

    `read` returns None for a record that is not part of the measurement. If no record can be read,
    the first error is raised.
    """
    requests: list[PeerRequest] = []
    reasons: list[Exception] = []
    for record in records:
        try:
            request = read(record)
        except UNREADABLE as error:
            reasons.append(error)
        else:
            requests += [request] if request else []
    if not reasons:
        return requests, 0, ()
    if not requests:
        raise reasons[0]
    why = f"{type(reasons[0]).__name__}: {reasons[0]}"
    total = len(requests) + len(reasons)
    return (
        requests,
        len(reasons),
        (f"{len(reasons)} of {total} records could not be read and are left out ({why}).",),
    )


_PHRASES = {status.phrase.lower(): int(status) for status in HTTPStatus}
_FAILURES = {
    r"streaming response returned an error": "stream_error",
    r"timed? ?out": "timeout",
    r"connect(or|ion)? ?(error|refused)|cannot connect": "connect",
    r"reset by peer|disconnected": "reset",
}
"""Error classes by the last line of a message; the first that fits."""


def _error_class(message: str) -> str:
    """The class of a failure by its message, else `protocol`; empty for no failure."""
    if not message:
        return ""
    last = (message.strip().splitlines() or [""])[-1]
    code = re.search(r"(?:error code|status)\W+([45]\d\d)", message, re.IGNORECASE)
    if status := _PHRASES.get(last.lower()) or (int(code[1]) if code else 0):
        return f"http_{status}"
    fits = (error for said, error in _FAILURES.items() if re.search(said, last, re.IGNORECASE))
    return next(fits, "protocol")


def count(value: Any) -> int:
    """A number of tokens; -1 if it is missing."""
    return -1 if value is None else int(value)


def unstreamed(requests: Iterable[PeerRequest]) -> list[bool]:
    """For each successful request, whether its first-token time is missing."""
    return [isnan(request.ttft_s) for request in requests if not request.failed]
