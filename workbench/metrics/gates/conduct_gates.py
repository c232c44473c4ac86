"""Gates on how a run was conducted, and on what answers say of themselves.

One that does not apply to a run is not asked. What each of them asks stands in docs/result.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import isnan, nan
from typing import TYPE_CHECKING

from workbench.metrics.gates.gate import Gate, judge
from workbench.metrics.latency import (
    BUFFERED_SHARE,
    GATHERED_S,
    MANY_TOKENS,
    buffered,
    gathered,
    succeeded,
)
from workbench.metrics.passes import PassCounters

if TYPE_CHECKING:
    import pandas as pd

_ALIKE_RATIO = 2.0
_ALIKE_REQUESTS = 3
_ALIKE_S = 0.001
_BEYOND_NOISE = 3.0
"""So many times as slow is more than other programs make of a process: they take turns with it."""
_OR_OTHERS = "other programs may be the reason"
_END_OTHERS = "end other programs on this machine and measure again"
_BEYOND_CHANCE = 10
"""Answers that no client gathers one after another, however late it is."""
_CACHED_SLACK_SHARE, _CACHED_SLACK_TOKENS = 0.01, 16
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
    problem += f" {number + 1}, {name}"
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
    counted = [(p, p.nixl) for p in passes if p.pulls]
    problems, unknown, transfers = [], [], 0.0
    for p, nixl in counted:
        if p.expired_before:
            problems.append(f"before {p.label}: the KV of {p.expired_before:,.0f} prompts expired")
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


def instances_alike(
    requests: pd.DataFrame, legs: pd.DataFrame, *, busy: bool = False
) -> Gate | None:
    """No answering instance was much slower than the others of its arm and pass.

    Its best TPOT over all rounds against the median of its siblings' requests: one that shared a
    core for a moment is slow by chance, its best request is not. Where other programs kept the
    machine `busy`, more may be theirs. None when too few answers compare nothing.
    """
    both = requests[succeeded(requests)].merge(
        legs[["arm", "round", "pass", "request_id", "decode_instance"]],
        on=["arm", "round", "pass", "request_id"],
    )
    problems, unknown, compared = [], list[str](), 0
    for (arm, name), rows in both.groupby(["arm", "pass"], sort=False):
        # By the place in a launch: ports differ from round to round.
        places = rows.groupby("round")["decode_instance"].rank("dense").astype(int) - 1
        by_instance = rows["tpot_s"].groupby(places)
        enough = by_instance.count() >= _ALIKE_REQUESTS
        best, typical = by_instance.min()[enough], by_instance.median()[enough]
        if len(best) < 2:
            continue
        compared += len(best)
        slowest = best.idxmax()
        worst, others = float(best.max()), float(typical.drop(slowest).median())
        if worst > max(_ALIKE_RATIO * others, others + _ALIKE_S):
            found = (
                f"{arm}, {name}: answering instance {slowest} needed {1000 * worst:.1f} ms per"
                f" token at best, its siblings {1000 * others:.1f} ms in the median"
            )
            if busy and worst <= _BEYOND_NOISE * others:
                unknown.append(f"{found}; {_OR_OTHERS}")
            else:
                problems.append(found)
    if not compared:
        return None
    return judge(
        "instances alike",
        holds=f"the best TPOT of each of {compared} instances is within {_ALIKE_RATIO:g} times"
        " the median of its siblings",
        problems=problems,
        unknown=unknown,
        next_step="see what else runs on that instance's device, and measure again",
        if_unknown=_END_OTHERS,
    )


def steady(requests: pd.DataFrame, *, concurrency: int = 1, busy: bool = False) -> Gate | None:
    """TTFT does not drift within a pass: the last third of its requests is as fast as the first.

    The first `concurrency` requests are left out: a closed loop sends them all at once. Only
    growth counts, as of an overloaded open loop; on a `busy` machine less of it. None when no pass
    has the requests of one length and reuse that it takes to see it.
    """
    rows = requests[succeeded(requests)].sort_values("scheduled_s")
    problems, unknown, judged = [], list[str](), 0
    for (arm, _, name), sent in rows.groupby(["arm", "round", "pass"], sort=False):
        one = sent.iloc[concurrency if concurrency > 1 else 0 :]
        # Where requests differ, their order is the workload's and no drift.
        alike = one[["prompt_tokens", "ideal_reuse_tokens"]].nunique().max() == 1
        if len(one) < _STEADY_REQUESTS or not alike:
            continue
        judged += 1
        third = len(one) // 3
        first, last = one["ttft_s"].iloc[:third], one["ttft_s"].iloc[-third:]
        if last.median() <= _STEADY_RATIO * first.median():
            continue
        from scipy.stats import mannwhitneyu  # half a second, and few runs need it

        if mannwhitneyu(first, last).pvalue >= _STEADY_P:
            continue
        found = (
            f"{arm}, round {one['round'].iloc[0] + 1}, {name}: median TTFT went from"
            f" {1000 * first.median():.0f} ms in the first third to"
            f" {1000 * last.median():.0f} ms in the last"
        )
        if busy and last.median() <= _BEYOND_NOISE * first.median():
            unknown.append(f"{found}; {_OR_OTHERS}")
        else:
            problems.append(found)
    if not judged:
        return None
    return judge(
        "steady state",
        holds=f"TTFT does not drift in {judged} passes",
        problems=problems,
        unknown=unknown,
        next_step="lower the rate until the queue does not grow, or warm up longer",
        if_unknown=_END_OTHERS,
    )


def streamed(requests: pd.DataFrame, *, disturbed: bool = False) -> Gate | None:
    """The tokens of answers came one after another, and not held back by something on their way.

    A gateway that buffers makes TTFT equal E2E and leaves no gap between tokens. It holds back all
    answers; a client that was late or `disturbed` for a moment gathers a few. None when no answer
    is long enough to see, and the short ones did not come in one piece.
    """
    rows = requests[succeeded(requests)]
    rows = rows[rows["max_tokens"].ge(MANY_TOKENS) & rows["chunk_s"].map(len).gt(0)]
    uncounted = rows["output_tokens"].lt(0) & rows["chunk_s"].map(len).eq(1)
    judged = rows[rows["output_tokens"].ge(MANY_TOKENS) | rows["chunk_s"].map(len).gt(1)]
    problems, unknown = list[str](), _too_short(requests)
    if not len(judged) and not uncounted.any() and not unknown:
        return None
    held_back = judged[buffered(judged)]
    for arm, hit in held_back.groupby("arm", sort=False):
        which = f"{len(hit):,} of {judged['arm'].eq(arm).sum():,} answers of {arm}"
        spread_s = hit["chunk_s"].map(lambda stamps: stamps[-1] - stamps[0])
        found = (
            f"the stream was buffered: TTFT equals E2E in {which}, which came in one piece"
            if spread_s.le(0.1 * hit["e2e_s"]).mean() > 0.5
            else f"the stream was buffered: {which} came in bursts, so TTFT is the first one's"
        )
        if disturbed and len(hit) < _BEYOND_CHANCE:
            unknown.append(f"{found}; or the client gathered them, which other programs disturbed")
        else:
            problems.append(found)
    if uncounted.any():
        unknown.append(
            f"{uncounted.sum():,} of {len(rows):,} answers came in one chunk, and the server does"
            " not count its tokens"
        )
    return judge(
        "answers were streamed",
        holds=f"the tokens of {len(judged) - gathered(judged).sum():,} of {len(judged):,} answers"
        " came one after another",
        problems=problems,
        unknown=unknown,
        next_step="turn buffering off in the gateway (nginx: proxy_buffering off), or ask the"
        " server behind it; E2E and counts stay true",
        if_unknown="end other programs and measure again with output_tokens 8 or more, or ask a"
        " server that sends usage",
    )


def _too_short(requests: pd.DataFrame) -> list[str]:
    """A sentence for each arm whose answers all came in one piece and have under 8 tokens."""
    rows = requests[succeeded(requests) & requests["output_tokens"].ne(1)]
    rows = rows[rows["max_tokens"].between(2, MANY_TOKENS - 1) & rows["chunk_s"].map(len).gt(0)]
    together = rows["chunk_s"].map(lambda stamps: stamps[-1] - stamps[0] < GATHERED_S).astype(bool)
    return [
        f"{hit.sum():,} of {len(hit):,} answers of {arm} came in one piece; whether the stream was"
        f" buffered, answers of {MANY_TOKENS} tokens would show"
        for arm, hit in together.groupby(rows["arm"], sort=False)
        if hit.mean() >= BUFFERED_SHARE
    ]


def cached_plausible(requests: pd.DataFrame, passes: Iterable[PassCounters]) -> Gate | None:
    """The cached tokens that answers of cold passes tell of can have been in a cache.

    Not asked of prefill/decode instances that hide their counters: there KV that was fetched is
    called cached too. None when no answer tells.
    """
    told = requests[succeeded(requests) & requests["cached_tokens"].ge(0)]
    problems, cached, asked, judged = [], 0, 0, 0
    for p in passes:
        is_pass = told["arm"].eq(p.arm) & told["round"].eq(p.round) & told["pass"].eq(p.pass_name)
        rows = told[is_pass]
        if not p.is_cold or not len(rows):
            continue
        split = bool({"prefill", "decode"} & p.sources.keys())
        seen = p.sources.get("decode" if split else "aggregated")
        may, whose = nan if seen is None else seen.cached, "the instances count"
        if isnan(may) and not split:
            may, whose = p.ideal_reuse_tokens, "new prompts can find"
        if isnan(may):
            continue
        said, sent = int(rows["cached_tokens"].sum()), int(rows["prompt_tokens"].sum())
        judged, cached, asked = judged + 1, cached + said, asked + sent
        slack = max(_CACHED_SLACK_SHARE * sent, _CACHED_SLACK_TOKENS * len(rows))
        if said > may + slack + p.failed_prompt_tokens:
            problems.append(
                f"{p.label}: answers call {said:,} of {sent:,} prompt tokens cached, where"
                f" {whose} {may:,.0f}"
            )
    if not judged:
        return None
    return judge(
        "cached tokens plausible",
        holds=f"answers of {judged} cold passes call {cached:,} of {asked:,} prompt tokens cached,"
        " which can be",
        problems=problems,
        next_step="do not use cached_tokens of this server: behind a prefill/decode proxy it counts"
        " KV that was fetched",
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
