"""Gates on the client: was the load sent and read on time, and did the time of day stand.

What their failures take away stands in `gate_table`: tails, not counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import inf, isnan, nan

from workbench.metrics.gates.gate import Gate, judge

_CLIENT = {
    "lateness_p99_s": "requests were sent {:.4f} s late (p99)",
    "loop_lag_p99_s": "the client's event loop ran {:.4f} s late (p99)",
    "loop_lag_max_s": "once {:.4f} s late",
    "thread_cpu_share": "its busiest thread used {:.0%} of a core",
    "merged_share": "{:.2%} of token arrivals were merged into one read",
    "others_cpu_share": "other programs used {:.0%} of the CPU",
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
}


def client_kept_up(health: Mapping[str, float], *, most_workers: float = inf) -> Gate:
    """The client sent on time, read on time and had the core that it needed, in its worst pass.

    `health` is that of result.json; a reading that does not apply is absent or NaN. Where this
    gate does not PASS no p99 is printed. `most_workers` processes can share the load.
    """
    value = {name: health.get(name, nan) for name in _CLIENT}
    passed = {
        name: _beside(_CLIENT[name].format(value[name]), _bare(name, limit))
        for name, limit in _LIMITS.items()
        if value[name] > limit
    }
    # A late loop delays no stamp of the kernel, and in a closed loop no request that was due.
    dated = health.get("kernel_stamped_share", 0.0) == 1
    late = passed.pop("loop_lag_p99_s", "") if dated else ""
    known = [text.format(value[name]) for name, text in _CLIENT.items() if not isnan(value[name])]
    found = f"in the worst pass {', '.join(known)}"
    unknown = [f"{late}; the kernel dated every read all the same"] if late else []
    if value["others_cpu_share"] <= MANY_OTHERS_SHARE and "others_cpu_share" in passed:
        # In the worst of many short passes: a tail may be theirs, a median of rounds is not.
        unknown.append(f"{passed.pop('others_cpu_share')}: they may explain the slowest requests")
    if value["loop_lag_max_s"] > LAG_S:  # one late beat touches one request, not a median
        once = _CLIENT["loop_lag_max_s"].format(value["loop_lag_max_s"])
        unknown.append(
            f"the client's event loop was {once} (limit {LAG_S:g} s), which may explain the slowest"
            " requests"
        )
    problems = list(passed.values())
    if value["merged_share"] > MERGED_SHARE:
        merged = _CLIENT["merged_share"].format(value["merged_share"])
        merged = _beside(merged, _bare("merged_share", MERGED_SHARE))
        if value["merged_share"] > MANY_MERGED_SHARE and value["loop_lag_p99_s"] > LAG_P99_S:
            problems.append(f"{merged}, since the client read late")
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
        next_step=f"{more}{end}",
        if_unknown="end other programs on this machine and measure again before a p99 is read",
    )


def clock_not_set(health: Mapping[str, float]) -> Gate | None:
    """Nobody set the time of day during a pass: the kernel dates what it reads by that clock.

    None where nothing was dated by it.
    """
    moved_s = health.get("clock_moved_s", nan)
    moved = moved_s > CLOCK_MOVED_S
    if not moved and not health.get("kernel_stamped_share"):
        return None
    return judge(
        "clock was not set",
        holds="nobody set the time of day during a pass",
        problems=[f"the time of day was set by {moved_s:.4f} s during a pass"] if moved else [],
        next_step="stop what sets the clock, such as a first NTP sync, and measure again",
    )


def _beside(found: str, limit: str) -> str:
    """What was found with its limit: `0.0200 s late (p99, limit 0.01 s)`."""
    if found.endswith(")"):
        return f"{found[:-1]}, limit {limit})"
    return f"{found} (limit {limit})"


def _bare(name: str, limit: float) -> str:
    """A limit without the words around it, in the unit of its reading."""
    return f"{limit:.0%}" if name.endswith("share") else f"{limit:g} s"


def _workers(health: Mapping[str, float]) -> int:
    return int(health.get("workers", 1))
