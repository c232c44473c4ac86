"""The gate on the client: was the load sent and read on time, by a process that had its core."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf, isnan, nan

from workbench.metrics.gate import Gate, judge

__all__ = ["CLIENT_BUSY_SHARE", "client_kept_up"]

_CLIENT = {
    "lateness_p99_s": "requests were sent {:.4f} s late (p99)",
    "loop_lag_p99_s": "the client's loop came {:.4f} s late (p99)",
    "loop_lag_max_s": "{:.4f} s at most",
    "thread_cpu_share": "its busiest thread took {:.0%} of a core",
    "merged_share": "{:.2%} of the gaps between chunks are nothing, since one read brought both",
    "others_cpu_share": "other programs took {:.0%} of the machine's cores",
    "clock_moved_s": "the time of day was set by {:.4f} s",
}
LATE_S = 0.01
LAG_P99_S = 0.01
LAG_S = 0.05
CLIENT_BUSY_SHARE = 0.6
MERGED_SHARE, MANY_MERGED_SHARE = 0.01, 0.1
OTHERS_SHARE, MANY_OTHERS_SHARE = 0.25, 0.5
CLOCK_MOVED_S = 0.001
_LIMITS = {
    "lateness_p99_s": LATE_S,
    "loop_lag_p99_s": LAG_P99_S,
    "thread_cpu_share": CLIENT_BUSY_SHARE,
    "others_cpu_share": OTHERS_SHARE,
    "clock_moved_s": CLOCK_MOVED_S,
}


def client_kept_up(health: Mapping[str, float], *, most_workers: float = inf) -> Gate:
    """The client sent on time, read on time and had the core that it needed, in its worst pass.

    `health` holds the worst of each reading of ClientHealth over all passes, as result.json does,
    with the share of all cores that others took; a reading that does not apply is absent or NaN.
    Where this gate does not PASS no p99 is printed. `most_workers` processes can share the load.
    """
    value = {name: health.get(name, nan) for name in _CLIENT}
    passed = {
        name: f"{_CLIENT[name].format(value[name])}, where {_bare(name, limit)} is allowed"
        for name, limit in _LIMITS.items()
        if value[name] > limit
    }
    # A late loop delays no stamp of the kernel, and in a closed loop no request that was due.
    dated = health.get("kernel_stamped_share", 0.0) == 1
    late = passed.pop("loop_lag_p99_s", "") if dated else ""
    known = [
        text.format(value[name])
        for name, text in _CLIENT.items()
        if not isnan(value[name]) and (name != "clock_moved_s" or value[name] > CLOCK_MOVED_S)
    ]
    found = f"in its worst pass {', '.join(known)}"
    unknown = [f"{late}: reads were dated by the kernel all the same"] if late else []
    if value["others_cpu_share"] <= MANY_OTHERS_SHARE and "others_cpu_share" in passed:
        # In the worst of many short passes: a tail may be theirs, a median of rounds is not.
        unknown.append(f"{passed.pop('others_cpu_share')}: the slowest requests may be theirs")
    if value["loop_lag_max_s"] > LAG_S:  # one late beat touches one request, not a median
        unknown.append(
            f"{found}: its loop was kept waiting for more than {LAG_S:g} s once, so the slowest"
            " requests may be the client's"
        )
    problems = list(passed.values())
    if value["merged_share"] > MERGED_SHARE:
        merged = _CLIENT["merged_share"].format(value["merged_share"])
        merged += f", where {_bare('merged_share', MERGED_SHARE)} is allowed"
        if value["merged_share"] > MANY_MERGED_SHARE and value["loop_lag_p99_s"] > LAG_P99_S:
            problems.append(f"{merged}, and its loop was late")
        else:
            unknown.append(
                f"{merged}: the client read late, or the server or its proxy sent them together"
            )
    busy = value["thread_cpu_share"] > CLIENT_BUSY_SHARE
    workers = _workers(health) + 1
    more = f"send it from more processes (client_workers {workers}), "
    more = more if busy and workers <= most_workers else ""
    ours = value["others_cpu_share"] <= OTHERS_SHARE  # then servers and client fill the machine
    end = "lower the rate, or give the client cores that the servers leave free"
    end = end if ours else "end other programs on this machine, or lower the rate"
    return judge(
        "client kept up",
        holds=found,
        problems=["; ".join(problems)] if problems else [],
        unknown=unknown if known else ["the client's health was not read"],
        next_step=f"{more}{end}: single milliseconds and p99 are not to be trusted",
        if_unknown="end other programs on this machine and measure again before a p99 is read",
    )


def _bare(name: str, limit: float) -> str:
    """A limit without the words around it, in the unit of its reading."""
    return f"{limit:.0%}" if name.endswith("share") else f"{limit:g} s"


def _workers(health: Mapping[str, float]) -> int:
    return int(health.get("workers", 1))
