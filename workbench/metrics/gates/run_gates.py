"""Gates on the run itself: was it complete, steady and streamed, and are its rows possible.

A gate that does not apply to a run is left out. docs/metrics.md says what each of them requires.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import inf, isnan, nan
from typing import TYPE_CHECKING

from workbench.metrics.gates.client_gate import MANY_OTHERS_SHARE, OTHERS_SHARE
from workbench.metrics.gates.gate import Gate, Problem, judge
from workbench.metrics.latency import (
    BUFFERED_SHARE,
    GATHERED_S,
    MANY_TOKENS,
    buffered,
    gathered,
    own_concurrency,
    succeeded,
)
from workbench.metrics.passes import PassCounters

if TYPE_CHECKING:
    import pandas as pd

_ALIKE_RATIO = 2.0
_ALIKE_REQUESTS = 3
_ALIKE_S = 0.001
_BEYOND_NOISE = 3.0
"""Other programs can make a process this many times as slow while they use at most
MANY_OTHERS_SHARE of the CPU, and any number of times beyond."""
_BEYOND_CHANCE = 10
"""More buffered responses than a late client makes."""
_CACHED_SLACK_SHARE, _CACHED_SLACK_TOKENS = 0.01, 16
_STEADY_REQUESTS = 20
_STEADY_RATIO = 1.3
_STEADY_P = 0.001


def every_pass_ran(
    planned: Iterable[tuple[str, int, str]],
    measured: Iterable[tuple[str, int, str]],
    reasons: Sequence[str] = (),
    *,
    under_way: bool = False,
) -> Gate:
    """Each (arm, round, pass) of the plan was measured; `reasons` say why one was not.

    While a run is under way only launches that have begun are judged, and the gate is undecided.
    """
    wanted, done = list(planned), set(measured)
    if under_way:
        begun = {(arm, number) for arm, number, _ in done}
        wanted = [one for one in wanted if one[:2] in begun]
    missing = [one for one in wanted if one not in done]
    arm, number, name = missing[0] if missing else ("", 0, "")
    problem = f"{len(missing):,} of {len(wanted):,} passes were not measured. First: {arm}, round"
    problem += f" {number + 1}, {name}"
    return judge(
        "every pass ran",
        holds=f"All {len(wanted):,} passes were measured",
        problems=[
            Problem(
                f"{problem} ({reasons[0]})" if reasons else problem, tuple(a for a, _, _ in missing)
            )
        ]
        if missing
        else [],
        unknown=["The run is not finished; further passes will follow"] if under_way else [],
        next_step="Read the log of the server that the reason names",
        if_unknown="Wait for the run, or resume it with the same command",
    )


def caches_emptied(refusals: Sequence[str]) -> Gate:
    """Every reset that a cache state needed succeeded; `refusals` are those that did not.

    vLLM answers a reset with HTTP 200 and `{"success": false}` while blocks are in use.
    """
    return judge(
        "caches were emptied",
        holds="Every cache reset between passes succeeded",
        problems=refusals,
        next_step="Find what still uses KV blocks, such as an unfinished request or KV that was"
        " never fetched",
    )


def no_failed_transfers(passes: Iterable[PassCounters]) -> Gate:
    """No KV transfer between instances failed, and no KV expired before it was fetched.

    vLLM counts a prompt as transferred when it admits it, so only these counters show that a part
    of it was recomputed.
    """
    counted = [(p, p.transfers) for p in passes if p.pulls]
    problems, unknown, transfers = [], [], 0.0
    for p, seen in counted:
        if p.expired_before:
            problems.append(
                Problem(
                    f"The KV of {p.expired_before:,.0f} prompts expired before {p.label}", (p.arm,)
                )
            )
        failed, expired = (seen.failed, seen.expired) if seen else (nan, nan)
        if isnan(failed + expired):
            what = "failed transfers" if isnan(failed) else "expired KV"
            unknown.append(f"The instances do not count {what} ({p.label})")
        transfers += 0 if seen is None or isnan(seen.transfers) else seen.transfers
        failed, expired = (0.0 if isnan(count) else count for count in (failed, expired))
        if failed or expired:
            problems.append(
                Problem(
                    f"{failed:,.0f} KV transfers failed, and the KV of {expired:,.0f} prompts"
                    f" expired ({p.requests_sent:,} requests; {p.label})"
                    + (f": {seen.reason}" if seen and seen.reason else ""),
                    (p.arm,),
                )
            )
    return judge(
        "no failed transfers",
        holds=f"All {transfers:,.0f} transfers succeeded and no KV expired ({len(counted)} passes)",
        problems=problems,
        unknown=unknown or ([] if counted else ["No pass with KV transfers was measured"]),
        next_step="Look for transfer errors in the decode logs; affected TTFTs may include a second"
        " prefill",
        if_unknown="Expose /metrics of every instance, or keep vLLM's log level at INFO",
    )


def instances_alike(
    requests: pd.DataFrame, legs: pd.DataFrame, *, others_share: float = 0.0
) -> Gate | None:
    """No instance that decodes was much slower than the others of its arm and pass.

    Compares the best TPOT of an instance over all rounds with the median of its siblings'
    requests: an instance that shared a core for a moment still has one fast request.
    `others_share` is the fraction of the CPU that other programs used: they can explain a slow
    instance. None when there are too few responses to compare.
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
                f"Instance {slowest} took {1000 * worst:.1f} ms per token at best, its"
                f" siblings {1000 * others:.1f} ms (median; {arm}, {name})"
            )
            if worst <= _may_be_theirs(others_share) * others:
                unknown.append(f"{found}. {_or_others(others_share)}")
            else:
                problems.append(Problem(f"{found}. The arm mixes unequal instances", (str(arm),)))
    if not compared:
        return None
    return judge(
        "instances alike",
        holds=f"Every instance had a TPOT within {_ALIKE_RATIO:g}x the median of its arm"
        f" ({compared} instances, by their fastest request)",
        problems=problems,
        unknown=unknown,
        next_step="Check what else runs on that instance's device, and repeat the run",
        if_unknown=_END_OTHERS,
    )


_END_OTHERS = "End other programs on this machine and repeat the run"


def _may_be_theirs(others_share: float) -> float:
    """How many times as slow other programs can make a process; 0 where there are few."""
    if others_share > MANY_OTHERS_SHARE:
        return inf
    return _BEYOND_NOISE if others_share > OTHERS_SHARE else 0.0


def _or_others(others_share: float) -> str:
    return f"Other programs may be the reason ({100 * others_share:.0f} % of the CPU)"


def steady(
    requests: pd.DataFrame, *, concurrency: int = 1, others_share: float = 0.0
) -> Gate | None:
    """TTFT does not grow within a pass: the last third of its requests is as fast as the first.

    The first `concurrency` requests are left out: a closed loop sends them all at once. If a column
    `concurrency` is above 0, it replaces the argument for its pass. Growth is what an overloaded
    open loop shows; `others_share` as for `instances_alike`. None when no pass has enough requests
    of equal length and reuse.
    """
    rows = requests[succeeded(requests)].sort_values("scheduled_s")
    problems, unknown, judged = [], list[str](), 0
    for (arm, _, name), sent in rows.groupby(["arm", "round", "pass"], sort=False):
        at_once = own_concurrency(sent) or concurrency
        one = sent.iloc[at_once if at_once > 1 else 0 :]
        # Requests that differ in length are no drift: their order is the workload's.
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
            f"Median TTFT grew from {1000 * first.median():,.0f} to {1000 * last.median():,.0f} ms"
            f" (first and last third of {arm}, round {one['round'].iloc[0] + 1}, {name})"
        )
        if last.median() <= _may_be_theirs(others_share) * first.median():
            unknown.append(f"{found}. {_or_others(others_share)}")
        else:
            problems.append(Problem(f"{found}. The pass never reached a steady state", (str(arm),)))
    if not judged:
        return None
    return judge(
        "steady state",
        holds=f"TTFT does not grow within a pass ({judged} passes)",
        problems=problems,
        unknown=unknown,
        next_step="Lower the rate until the queue stops growing",
        if_unknown=_END_OTHERS,
    )


def streamed(requests: pd.DataFrame, *, disturbed: bool = False) -> Gate | None:
    """Tokens arrived one after another and were not buffered on their way.

    A gateway that buffers makes TTFT equal E2E and leaves no gap between tokens. It buffers all
    responses; a client that was late or `disturbed` for a moment merges a few. None when every
    response is too short to tell, and the short ones did not arrive in one piece.
    """
    rows = requests[succeeded(requests)]
    rows = rows[rows["max_tokens"].ge(MANY_TOKENS) & rows["chunk_s"].map(len).gt(0)]
    uncounted = rows["output_tokens"].lt(0) & rows["chunk_s"].map(len).eq(1)
    judged = rows[rows["output_tokens"].ge(MANY_TOKENS) | rows["chunk_s"].map(len).gt(1)]
    problems, unknown = list[Problem](), _too_short(requests)
    if not len(judged) and not uncounted.any() and not unknown:
        return None
    held_back = judged[buffered(judged)]
    for arm, hit in held_back.groupby("arm", sort=False):
        which = f"{len(hit):,} of {judged['arm'].eq(arm).sum():,} responses of {arm} arrived in"
        spread_s = hit["chunk_s"].map(lambda stamps: stamps[-1] - stamps[0])
        whole = spread_s.le(0.1 * hit["e2e_s"]).mean() > 0.5
        found = f"{which} {'one piece' if whole else 'bursts'}"
        if disturbed and len(hit) < _BEYOND_CHANCE:
            unknown.append(f"{found}. The stream was buffered, or the busy client read late")
        else:
            problems.append(
                Problem(
                    f"{found}. The stream was buffered, so TTFT"
                    f" {'equals E2E' if whole else 'is that of the first burst'}",
                    (str(arm),),
                )
            )
    if uncounted.any():
        unknown.append(
            f"{uncounted.sum():,} of {len(rows):,} responses arrived in one chunk without a token"
            " count"
        )
    return judge(
        "answers were streamed",
        holds=f"{len(judged) - gathered(judged).sum():,} of {len(judged):,} responses arrived token"
        " by token",
        problems=problems,
        unknown=unknown,
        next_step="Turn buffering off in the gateway (nginx: proxy_buffering off), or bypass it",
        if_unknown="Repeat on an idle machine with output_tokens 8 or more and a server that sends"
        " usage",
    )


def _too_short(requests: pd.DataFrame) -> list[str]:
    """A sentence for each arm whose responses have under 8 tokens and all arrived in one piece."""
    rows = requests[succeeded(requests) & requests["output_tokens"].ne(1)]
    rows = rows[rows["max_tokens"].between(2, MANY_TOKENS - 1) & rows["chunk_s"].map(len).gt(0)]
    together = rows["chunk_s"].map(lambda stamps: stamps[-1] - stamps[0] < GATHERED_S).astype(bool)
    return [
        f"{hit.sum():,} of {len(hit):,} responses of {arm} arrived in one piece. Detecting a"
        f" buffered stream takes responses of {MANY_TOKENS} tokens"
        for arm, hit in together.groupby(rows["arm"], sort=False)
        if hit.mean() >= BUFFERED_SHARE
    ]


def cached_plausible(requests: pd.DataFrame, passes: Iterable[PassCounters]) -> Gate | None:
    """The cached_tokens of responses in cold passes are possible.

    Not checked for prefill/decode instances without counters: there cached_tokens includes fetched
    KV. None when no response reports cached_tokens.
    """
    told = requests[succeeded(requests) & requests["cached_tokens"].ge(0)]
    problems, cached, judged, received = [], 0, 0, False
    for p in passes:
        is_pass = told["arm"].eq(p.arm) & told["round"].eq(p.round) & told["pass"].eq(p.pass_name)
        rows = told[is_pass]
        if not p.is_cold or not len(rows):
            continue
        split = bool({"prefill", "decode"} & p.sources.keys())
        seen = p.sources.get("decode" if split else "aggregated")
        may, whose = nan if seen is None else seen.cached, "the instances counted"
        if isnan(may) and not split:
            may, whose = p.ideal_reuse_tokens, "new prompts can hit"
        if isnan(may):
            continue
        said, sent = int(rows["cached_tokens"].sum()), int(rows["prompt_tokens"].sum())
        judged, cached, received = judged + 1, cached + said, received or (split and said > 0)
        slack = max(_CACHED_SLACK_SHARE * sent, _CACHED_SLACK_TOKENS * len(rows))
        if said > may + slack + p.failed_prompt_tokens:
            problems.append(
                Problem(
                    f"Responses report {said:,} of {sent:,} cold prompt tokens as cached, but"
                    f" {whose} {may:,.0f} ({p.label})",
                    (p.arm,),
                )
            )
    if not judged:
        return None
    return judge(
        "cached tokens plausible",
        holds=f"Responses report {cached:,} cached tokens in {judged} cold"
        f" {'pass' if judged == 1 else 'passes'}"
        + (" (KV from prefill counts as cached here)" if received else ", as expected"),
        problems=problems,
        next_step="Ignore cached_tokens of this server; behind a PD proxy it includes fetched KV",
    )


def possible(requests: pd.DataFrame) -> Gate:
    """No row has a token before its request, more output than requested, more cached tokens than
    its prompt, or another prompt length than was sent."""
    rows = requests[succeeded(requests)]
    counted, said = rows["usage_prompt_tokens"].ge(0), rows["output_tokens"].ge(0)
    checks = {
        "a first token before they were sent": rows["ttft_s"].le(0),
        "a last token before the first": rows["e2e_s"].lt(rows["ttft_s"]),
        "another prompt length than was sent": counted
        & rows["usage_prompt_tokens"].ne(rows["prompt_tokens"]),
        "more cached tokens than the prompt has": rows["cached_tokens"].gt(rows["prompt_tokens"]),
        "more output tokens than requested": said & rows["output_tokens"].gt(rows["max_tokens"]),
    }
    return judge(
        "nothing impossible",
        holds=f"Timestamps and token counts of {len(rows):,} successful requests are consistent",
        problems=[
            Problem(
                f"{hit.sum():,} of {len(rows):,} requests have {what}. A counter or clock is wrong",
                tuple(rows.loc[hit, "arm"].unique()),
            )
            for what, hit in checks.items()
            if hit.any()
        ],
        unknown=[] if len(rows) else ["No request succeeded"],
        next_step="Inspect those rows of requests.parquet",
        if_unknown="Find out first why all requests failed",
    )
