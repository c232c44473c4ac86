"""Open files: each request in flight is one, and a process may have only so many."""

from __future__ import annotations

import os
import resource
from bisect import bisect_right

from workbench.errors import ParameterError
from workbench.load.workload.arrivals import Arrivals

_SPARE = 64
"""For logs, loops and whatever the notebook opens meanwhile."""
_OF_A_PROXY = 3
"""Connections of a proxy for one request; started from here, it inherits this process's limit."""


def most_in_flight(arrivals: Arrivals, requests: int | None = None, *, timeout_s: float) -> int:
    """How many requests, of so many if that is known, can be in flight at once.

    In a closed loop its concurrency. In an open loop the most that start within `timeout_s`, the
    longest that one can last: a server that answers nothing has them all open.
    """
    if arrivals.kind == "closed":
        known = arrivals.concurrency if requests is None else requests
        return min(arrivals.concurrency, known)
    offsets_s = arrivals.offsets_s
    return max(
        (bisect_right(offsets_s, at + timeout_s) - n for n, at in enumerate(offsets_s)), default=0
    )


def check_files(in_flight: int) -> None:
    """Refuse what this process could not have open, even with its limit raised; changes nothing.

    Raises ParameterError with the number needed.
    """
    needed, most = _needed(in_flight), _hard_limit()
    if needed > most:
        raise ParameterError(
            f"up to {in_flight:,} requests in flight need {needed:,} open files, and this process"
            f" may have {most:,}: raise the hard limit (ulimit -Hn {needed}, or nofile in"
            " /etc/security/limits.conf), or lower concurrency, rate or timeout_s"
        )


def reserve_files(in_flight: int) -> None:
    """Raise this process's limit of open files to what `in_flight` requests need.

    Processes started afterwards inherit it. A limit that suffices is left as it is. Raises
    ParameterError as `check_files`.
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
