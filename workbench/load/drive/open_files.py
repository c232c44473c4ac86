"""Raise RLIMIT_NOFILE for the requests in flight, each of which needs an open file."""

from __future__ import annotations

import os
import resource
from bisect import bisect_right

from workbench.errors import ParameterError
from workbench.load.workload.arrivals import Arrivals

_SPARE = 64
"""For logs, event loops and whatever the notebook opens."""
_OF_A_PROXY = 3
"""Connections of a proxy per request; it inherits this process's limit."""


def most_in_flight(arrivals: Arrivals, requests: int | None = None, *, timeout_s: float) -> int:
    """The largest possible number of requests in flight.

    In a closed loop its concurrency. In an open loop the most that start within `timeout_s`, since
    a server that never responds keeps them all open.
    """
    if arrivals.kind == "closed":
        known = arrivals.concurrency if requests is None else requests
        return min(arrivals.concurrency, known)
    offsets_s = arrivals.offsets_s
    return max(
        (bisect_right(offsets_s, at + timeout_s) - n for n, at in enumerate(offsets_s)), default=0
    )


def check_files(in_flight: int) -> None:
    """Refuse more open files than the hard limit. Changes nothing. Raises ParameterError."""
    needed, most = _needed(in_flight), _hard_limit()
    if needed > most:
        raise ParameterError(
            f"{in_flight:,} requests in flight need {needed:,} open files, more than the hard limit"
            f" of {most:,}; lower concurrency, rate_per_s or timeout_s, or raise it (example:"
            f" ulimit -Hn {needed})"
        )


def reserve_files(in_flight: int) -> None:
    """Raise this process's limit of open files if `in_flight` requests need it.

    Processes started later inherit it. Raises ParameterError like `check_files`.
    """
    check_files(in_flight)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(_needed(_OF_A_PROXY * in_flight), _hard_limit())
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _needed(in_flight: int) -> int:
    return in_flight + len(os.listdir("/proc/self/fd")) + _SPARE


def _hard_limit() -> int:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return 2**31 - 1 if hard == resource.RLIM_INFINITY else hard
