"""Gates on the answers: did requests fail, is the text equal, was the work the same and possible.

What each of them asks, and when it is INCONCLUSIVE, stands in docs/result.md.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from workbench.metrics.gates.gate import Gate, judge
from workbench.metrics.latency import succeeded

if TYPE_CHECKING:
    import pandas as pd

_BATCH_SHARE = 0.05
"""Answers that may differ by the rounding of another batch shape before it looks like damage."""

TIE_NAT = 0.25
"""Two tokens this close are a tie: four steps of a bfloat16 logit between 8 and 16."""


def no_failures(frame: pd.DataFrame, *, limit: float = 0.01) -> Gate:
    """At most `limit` of the requests failed, in each arm and pass of a `requests` frame."""
    problems, failed = [], 0
    for (arm, name), rows in frame.groupby(["arm", "pass"], sort=False):
        errors = rows.loc[~succeeded(rows), "error"]
        failed += len(errors)
        if len(errors) > limit * len(rows):
            kinds = ", ".join(f"{count} {kind}" for kind, count in errors.value_counts().items())
            problems.append(
                f"{arm}, {name}: {len(errors):,} of {len(rows):,} requests failed ({kinds}),"
                f" where {100 * limit:g} % may"
            )
    return judge(
        "no failures",
        holds=f"{failed:,} of {len(frame):,} requests failed",
        problems=problems,
        unknown=[] if len(frame) else ["no request was sent"],
        next_step="read error_message of the failed rows, and the servers' logs",
    )


def same_text(frame: pd.DataFrame, baseline_arm: str, *, batched: bool = False) -> Gate:
    """Greedy text equals the cold text of `baseline_arm` for the same (round, index).

    Answers that part at two tokens of which the model holds one for as good as the other (at most
    TIE_NAT) are no damage: rounding decides there. `batched` says that requests ran side by side:
    a batch of another shape rounds differently, so that a few may part without such proof.
    """
    is_reference = frame["arm"].eq(baseline_arm) & frame["pass"].eq("cold")
    ok = succeeded(frame)
    reference = frame.loc[is_reference & ok, ["round", "index", "text"]]
    both = frame[~is_reference & ok].merge(
        reference, on=["round", "index"], suffixes=("", "_reference"), validate="many_to_one"
    )
    apart = both["text"] != both["text_reference"]
    tied = apart & (both["parting_nat"].le(TIE_NAT) if "parting_nat" in both else False)
    differ = both[apart & ~tied]
    left_out = int((~is_reference).sum()) - len(both)
    found = f"{len(differ):,} of {len(both):,} answers differ from those of {baseline_arm}, cold"
    found = f"{found}; first {_where(differ)}" if len(differ) else found
    excused = batched and len(differ) <= _BATCH_SHARE * len(both)
    unknown = [] if len(both) else [f"no answer has one of {baseline_arm}, cold, beside it"]
    if len(both) and both["text"].eq("").all():
        unknown = ["the servers sent no text that could be compared"]
    if len(differ) and excused:
        unknown.append(f"{found}; requests ran in batches, whose shape alone can do that")
    return judge(
        "same text",
        holds=f"{(~apart).sum():,} of {len(both):,} answers equal those of {baseline_arm}, cold"
        + (_ties(both[tied]) if tied.any() else "")
        + (f"; {left_out:,} left out: a side failed or is missing" if left_out else ""),
        problems=[found] if len(differ) and not excused else [],
        unknown=unknown,
        next_step="compare at temperature 0 and concurrency 1; if they still differ, the KV that"
        " arrived is not the KV that was sent",
        if_unknown="compare at concurrency 1" if len(both) else "run an aggregated arm too",
    )


def cached_as_planned(frame: pd.DataFrame, passes: Collection[str], *, block: int = 256) -> Gate:
    """In partly warm passes each request found the share of its prompt that it was meant to find.

    `cached_tokens` lies at most `block` tokens below the planned prefix and never above it.
    """
    rows = frame[frame["pass"].isin(passes) & succeeded(frame)]
    known = rows[rows["cached_tokens"].ge(0)]
    short = known["ideal_reuse_tokens"] - known["cached_tokens"]
    odd = known[(short < 0) | (short > block)]
    found = f"{len(odd):,} of {len(known):,} requests found another share cached than planned"
    return judge(
        "cached as planned",
        holds=f"{len(known):,} of {len(known):,} requests of partly warm passes found what was"
        f" planned, less than {block} tokens of rounding",
        problems=[f"{found}; first {_where(odd)}"] if len(odd) else [],
        unknown=[] if len(known) else ["no server said how many prompt tokens were cached"],
        next_step="raise kv_cache_mib or send fewer requests: blocks were evicted",
        if_unknown="start vLLM with --enable-prompt-tokens-details",
    )


def output_counts_equal(frame: pd.DataFrame) -> Gate:
    """Every arm and pass generated as many tokens for the same (round, index), as asked for.

    Without that, TPOT, E2E and TPS compare different work.
    """
    keys = ["round", "index"]
    known = frame[succeeded(frame) & frame["output_tokens"].ge(0)]
    different = known.groupby(keys)["output_tokens"].nunique().gt(1)
    odd = known[known.groupby(keys)["output_tokens"].transform("nunique").gt(1)]
    left_out = len(frame) - len(known)
    unasked = known.iloc[:0]
    if "max_tokens" in known:
        unasked = known[known["output_tokens"].ne(known["max_tokens"])]
    unknown = [] if len(known) else ["no request has an output token count"]
    if len(unasked):
        unknown.append(
            f"{len(unasked):,} of {len(known):,} requests got another number of tokens than they"
            f" asked for; one of them {_where(unasked)}"
        )
    problem = f"{different.sum():,} of {len(different):,} requests got unequal numbers of tokens"
    return judge(
        "output counts equal",
        holds=f"all arms and passes generated equal counts for {len(different):,} requests"
        + (f"; {left_out:,} rows left out: failed or without a count" if left_out else ""),
        problems=[f"{problem}; one of them {_where(odd)}"] if len(odd) else [],
        unknown=unknown,
        next_step="send ignore_eos with a fixed max_tokens",
        if_unknown="take a server that keeps to ignore_eos and max_tokens, with room for the answer"
        if len(unasked)
        else "ask the server for usage (stream_options include_usage)",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceilings:
    """Rooflines of one arm's instances, from `workbench.hardware.physics`."""

    prefill_tps: float
    """Prompt tokens per second of the instance that prefills."""
    decode_tps: float
    """Output tokens per second of one request on the instance that answers."""


def below_ceilings(
    requests: pd.DataFrame, ceilings: Mapping[str, Ceilings], unknown: str = ""
) -> Gate:
    """Cold prompts are not computed, and tokens not generated, faster than the roofline allows.

    `ceilings` by arm; `unknown` says why there are none. A rate above a ceiling means that tokens
    were cached, merged or not counted, whatever every other gate says.
    """
    rows = requests[succeeded(requests)]
    problems, nearest = [], 0.0
    for arm, limit in ceilings.items():
        mine = rows[rows["arm"] == arm]
        cold = mine[mine["pass"] == "cold"]
        computed = cold["prompt_tokens"] - cold["ideal_reuse_tokens"]
        for what, rates, ceiling in (
            (
                "prompt tokens per second of a cold prompt",
                computed / cold["ttft_s"],
                limit.prefill_tps,
            ),
            ("output tokens per second of one request", 1 / mine["tpot_s"], limit.decode_tps),
        ):
            fastest = float(rates.max()) if len(rates) else 0.0
            nearest = max(nearest, fastest / ceiling)
            if fastest > ceiling:
                problems.append(
                    f"{arm}: {fastest:,.0f} {what}, where the hardware can do {ceiling:,.0f}"
                )
    return judge(
        "below the ceilings",
        holds=f"no rate of {len(ceilings)} arms is above its roofline; the nearest is at"
        f" {nearest:.0%} of it",
        problems=problems,
        unknown=[unknown] if unknown else [],
        next_step="look for a cache that nobody counted, or for a wrong model, GPU or token count",
        if_unknown="give a local model folder, and a GPU that workbench/hardware/physics.py knows",
    )


def _ties(rows: pd.DataFrame) -> str:
    """What decided where answers part that are no damage."""
    which = f"the other {len(rows):,} part" if len(rows) > 1 else "the other one parts"
    return (
        f"; {which} where the model's best tokens are within"
        f" {rows['parting_nat'].max():.2g} nat, so that rounding decides"
    )


def _where(rows: pd.DataFrame) -> str:
    """The first of some rows in words."""
    row = rows.iloc[0]
    return f"{row['arm']}, round {row['round'] + 1}, {row['pass']}, request {row['index']}"
