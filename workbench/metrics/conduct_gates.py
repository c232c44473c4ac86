"""Gates on how a run was conducted: did every pass run, did transfers arrive, was the client quiet.

Pure functions that return a Gate. One that does not apply to a run is not asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import inf, isnan, nan
from typing import TYPE_CHECKING

from workbench.metrics.gate import Gate, judge
from workbench.metrics.latency import succeeded
from workbench.metrics.passes import PassCounters

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "caches_emptied",
    "client_kept_up",
    "every_pass_ran",
    "instances_alike",
    "no_failed_transfers",
    "possible",
    "steady",
]

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
_ALIKE_RATIO = 2.0
_ALIKE_REQUESTS = 3
_ALIKE_S = 0.001
_STEADY_REQUESTS = 20
_STEADY_RATIO = 1.3
_STEADY_P = 0.001


def every_pass_ran(
    planned: Iterable[tuple[str, int, str]],
    measured: Iterable[tuple[str, int, str]],
    reasons: Sequence[str] = (),
) -> Gate:
    """Each (arm, round, pass) of the plan was measured; `reasons` say why one was not."""
    wanted, done = list(planned), set(measured)
    missing = [one for one in wanted if one not in done]
    arm, number, name = missing[0] if missing else ("", 0, "")
    problem = f"{len(missing):,} of {len(wanted):,} passes were not measured, first {arm}, round"
    problem += f" {number}, {name}"
    return judge(
        "every pass ran",
        holds=f"{len(wanted):,} of {len(wanted):,} passes were measured",
        problems=[f"{problem}: {reasons[0]}" if reasons else problem] if missing else [],
        next_step="read the log of the server that the reason names",
    )


def caches_emptied(refusals: Sequence[str]) -> Gate:
    """Every reset that a cache state needed was carried out; `refusals` are those that were not.

    vLLM answers a reset with HTTP 200 and `{"success": false}` while blocks are in use.
    """
    return judge(
        "caches were emptied",
        holds="every reset between passes was carried out",
        problems=refusals,
        next_step="find what holds the blocks: a request that never ended, or KV that nobody"
        " fetched",
    )


def no_failed_transfers(passes: Iterable[PassCounters]) -> Gate:
    """NIXL lost no transfer, and no KV expired before it was fetched.

    vLLM counts a prompt as transferred when it admits it, so that only this shows that a part of
    it was computed again.
    """
    counted = [(p, p.nixl) for p in passes if p.connector == "nixl"]
    problems, unknown, transfers = [], [], 0.0
    for p, nixl in counted:
        if nixl is None or isnan(nixl.failed + nixl.expired):
            unknown.append(f"{p.label}: the instances do not count failed transfers")
            continue
        transfers += 0 if isnan(nixl.transfers) else nixl.transfers
        if nixl.failed or nixl.expired:
            problems.append(
                f"{p.label}: {nixl.failed:,.0f} transfers failed and the KV of"
                f" {nixl.expired:,.0f} prompts expired, of {p.requests_sent:,} requests"
            )
    return judge(
        "no failed transfers",
        holds=f"{transfers:,.0f} transfers in {len(counted)} passes, none failed, none expired",
        problems=problems,
        unknown=unknown or ([] if counted else ["no NIXL pass was measured"]),
        next_step="look for NIXL errors in the decode instances' logs; the TTFT of these requests"
        " holds a second prefill",
        if_unknown="let every instance show its /metrics",
    )


def instances_alike(requests: pd.DataFrame, legs: pd.DataFrame) -> Gate | None:
    """No answering instance was much slower than the others of its arm and pass.

    Its best TPOT over all rounds against twice the median of its siblings' requests: one that
    shared a core for a moment is slow by chance, its best request is not. None when no two
    instances answered 3 requests each. One slow instance makes a whole topology look bad.
    """
    both = requests[succeeded(requests)].merge(
        legs[["arm", "round", "pass", "request_id", "decode_instance"]],
        on=["arm", "round", "pass", "request_id"],
    )
    problems, compared = [], 0
    for (arm, name), rows in both.groupby(["arm", "pass"], sort=False):
        by_instance = rows["tpot_s"].groupby(_places(rows))
        enough = by_instance.count() >= _ALIKE_REQUESTS
        best, typical = by_instance.min()[enough], by_instance.median()[enough]
        if len(best) < 2:
            continue
        compared += len(best)
        slowest = best.idxmax()
        worst, others = float(best.max()), float(typical.drop(slowest).median())
        if worst > max(_ALIKE_RATIO * others, others + _ALIKE_S):
            problems.append(
                f"{arm}, {name}: answering instance {slowest} needed {1000 * worst:.1f} ms per"
                f" token at best, its siblings {1000 * others:.1f} ms in the median"
            )
    if not compared:
        return None
    return judge(
        "instances alike",
        holds=f"the best TPOT of each of {compared} instances is within {_ALIKE_RATIO:g} times"
        " the median of its siblings",
        problems=problems,
        next_step="see what else runs on that instance's device, and measure again",
    )


def _places(rows: pd.DataFrame) -> list[int]:
    """Each row's instance by its place in its launch: ports differ from round to round."""
    place: dict[str, int] = {}
    for _, launch in rows.groupby("round", sort=False):
        urls = sorted(launch["decode_instance"].unique())
        place |= {url: number for number, url in enumerate(urls)}
    return [place[url] for url in rows["decode_instance"]]


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


def _rank_test(first: pd.Series[float], last: pd.Series[float]) -> float:
    from scipy.stats import mannwhitneyu  # half a second, and few runs need it

    return float(mannwhitneyu(first, last).pvalue)


def steady(requests: pd.DataFrame, *, concurrency: int = 1) -> Gate | None:
    """TTFT does not drift within a pass: the last third of its requests is as fast as the first.

    The first `concurrency` requests are left out: a closed loop sends them all at once. Only
    growth counts. Mann-Whitney's rank test at 0.1 %, and a factor of 1.3 between medians. None
    when no pass has the 20 requests of one length and reuse that it takes to see it; an
    overloaded open loop is what it finds.
    """
    rows = requests[succeeded(requests)].sort_values("scheduled_s")
    problems, judged = [], 0
    for (arm, number, name), sent in rows.groupby(["arm", "round", "pass"], sort=False):
        one = sent.iloc[concurrency if concurrency > 1 else 0 :]
        # Where requests differ, their order is the workload's and no drift.
        alike = one[["prompt_tokens", "ideal_reuse_tokens"]].nunique().max() == 1
        if len(one) < _STEADY_REQUESTS or not alike:
            continue
        judged += 1
        third = len(one) // 3
        first, last = one["ttft_s"].iloc[:third], one["ttft_s"].iloc[-third:]
        grown = last.median() > _STEADY_RATIO * first.median()
        if grown and _rank_test(first, last) < _STEADY_P:
            problems.append(
                f"{arm}, round {number}, {name}: median TTFT went from {1000 * first.median():.0f}"
                f" ms in the first third to {1000 * last.median():.0f} ms in the last"
            )
    if not judged:
        return None
    return judge(
        "steady state",
        holds=f"TTFT does not drift in {judged} passes",
        problems=problems,
        next_step="lower the rate until the queue does not grow, or warm up longer",
    )


def possible(requests: pd.DataFrame) -> Gate:
    """No row says what cannot be: a token before its request, more tokens than were asked for,
    more of a prompt cached than it has, another prompt length than was sent."""
    rows = requests[succeeded(requests)]
    counted, said = rows["usage_prompt_tokens"].ge(0), rows["output_tokens"].ge(0)
    checks = {
        "a first token before the request was sent": rows["ttft_s"].le(0),
        "a last token before the first": rows["e2e_s"].lt(rows["ttft_s"]),
        "another prompt length than was sent": counted
        & rows["usage_prompt_tokens"].ne(rows["prompt_tokens"]),
        "more cached tokens than the prompt has": rows["cached_tokens"].gt(rows["prompt_tokens"]),
        "more output tokens than were asked for": said
        & rows["output_tokens"].gt(rows["max_tokens"]),
    }
    problems = [f"{hit.sum():,} of {len(rows):,} requests have {what}" for what, hit in
                checks.items() if hit.any()]  # fmt: skip
    return judge(
        "nothing impossible",
        holds=f"{len(rows):,} answered requests hold no value that cannot be",
        problems=problems,
        unknown=[] if len(rows) else ["no request succeeded"],
        next_step="read those rows of requests.parquet: a counter or a clock is wrong",
        if_unknown="see the gate on failures",
    )
