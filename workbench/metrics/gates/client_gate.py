"""Gates on the client: did it send and read on time, and was the system clock left alone.

`gate_table` says what their failures affect: latencies, not counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import inf, isnan, nan

from workbench.metrics.gates.gate import Gate, judge

LATE_S = 0.01
LAG_P99_S = 0.01
LAG_S = 0.05
CLIENT_BUSY_SHARE = 0.6
MERGED_SHARE, MANY_MERGED_SHARE = 0.01, 0.1
OTHERS_SHARE, MANY_OTHERS_SHARE = 0.25, 0.5
CLOCK_MOVED_S = 0.001
_READINGS = {
    "others_cpu_share": (
        OTHERS_SHARE, "other programs used {} of the CPU (limit {})", "other programs {} of the CPU"
    ),
    "lateness_p99_s": (
        LATE_S, "requests were sent {} late (p99, limit {})", "send lateness {} p99"
    ),
    "loop_lag_p99_s": (
        LAG_P99_S, "the client's event loop ran {} late (p99, limit {})", "event loop lag {} p99"
    ),
    "thread_cpu_share": (
        CLIENT_BUSY_SHARE, "a client thread used {} of a core (limit {})", "client {} of a core"
    ),
    "merged_share": (
        MERGED_SHARE, "{} of tokens shared a socket read with another token (limit {})",
        "merged reads {}"
    ),
}  # fmt: skip
"""Each reading of the client's health: its limit, its sentence and its short form."""


def client_kept_up(
    health: Mapping[str, float], *, most_workers: float = inf, open_loop: bool = False
) -> Gate:
    """The client sent on time, read on time and had enough CPU, in its worst pass.

    `health` is that of result.json; a reading that does not apply is absent or NaN. Where this
    gate does not PASS no p99 is printed. `most_workers` processes can share the load. An
    `open_loop` has a rate that can be lowered.
    """
    value = {name: health.get(name, nan) for name in (*_READINGS, "loop_lag_max_s")}
    over = {
        name: sentence.format(_quantity(value[name], name), _quantity(limit, name))
        for name, (limit, sentence, _) in _READINGS.items()
        if value[name] > limit
    }
    unknown = []
    # A late loop delays no kernel timestamp and, in a closed loop, no request that was due.
    if "loop_lag_p99_s" in over and health.get("kernel_stamped_share", 0.0) == 1:
        unknown.append(f"{over.pop('loop_lag_p99_s')}, but the kernel timestamped every read")
    if "others_cpu_share" in over and value["others_cpu_share"] <= MANY_OTHERS_SHARE:
        # In the worst of many short passes: a tail may be theirs, a median of rounds is not.
        unknown.append(f"{over.pop('others_cpu_share')}. This may explain the slowest requests")
    if value["loop_lag_max_s"] > LAG_S:  # one late beat touches one request, not a median
        unknown.append(
            f"the client's event loop was once {_quantity(value['loop_lag_max_s'])} late (limit"
            f" {_quantity(LAG_S)}). This may explain the slowest requests"
        )
    read_late = value["loop_lag_p99_s"] > LAG_P99_S
    if "merged_share" in over and not (value["merged_share"] > MANY_MERGED_SHARE and read_late):
        merged = over.pop("merged_share")
        unknown.append(f"{merged}. The client read late, or the server batched them")
    if "merged_share" in over:
        over["merged_share"] += " because the client read late"
    short = {name: form.format(_quantity(value[name], name)) for name, (*_, form) in
             _READINGS.items() if not isnan(value[name])}  # fmt: skip
    further = ", ".join(short[name] for name in [*over][2:])
    workers = int(health.get("workers", 1)) + 1
    crowded = value["others_cpu_share"] > OTHERS_SHARE  # else servers and client fill the machine
    end = "end other programs on this machine" if crowded else "free CPU cores for the client"
    if value["thread_cpu_share"] > CLIENT_BUSY_SHARE and workers <= most_workers:
        end = f"use more client processes (client_workers {workers}), {end}"
    return judge(
        "client kept up",
        holds=f"Requests were sent and responses read on time ({', '.join(short.values())})",
        problems=[_capital("; ".join([*over.values()][:2])) + f" (also {further})" * bool(further)]
        if over
        else [],
        unknown=[_capital(text) for text in unknown]
        if short
        else ["The client's health was not recorded"],
        next_step=_capital(end) + (", or lower the rate" if open_loop else ""),
        if_unknown="End other programs and repeat the run before using p99",
    )


def clock_not_set(health: Mapping[str, float]) -> Gate | None:
    """The system clock was not adjusted during a pass: the kernel timestamps reads by that clock.

    None where no read has a kernel timestamp.
    """
    moved_s = health.get("clock_moved_s", nan)
    moved = moved_s > CLOCK_MOVED_S
    if not moved and not health.get("kernel_stamped_share"):
        return None
    return judge(
        "clock was not set",
        holds=f"The clock never jumped by more than {_quantity(CLOCK_MOVED_S)} during a pass",
        problems=[
            f"The system clock jumped by {_quantity(moved_s)} during a pass (limit"
            f" {_quantity(CLOCK_MOVED_S)}). Kernel timestamps are off by that much"
        ]
        if moved
        else [],
        next_step="Wait for the first NTP sync, or stop what adjusts the clock, and repeat the run",
    )


def _quantity(value: float, name: str = "") -> str:
    """`31 %` of a reading that is a fraction, else seconds as `20 ms`."""
    if name.endswith("share"):
        return f"{100 * value:.{1 if value < 0.1 else 0}f}".removesuffix(".0") + " %"
    return f"{1000 * value:,.{0 if value >= 0.01 else 1}f}".removesuffix(".0") + " ms"


def _capital(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}"
