"""Gates on responses: did requests fail, is the text equal, was the work equal and possible.

docs/metrics.md says what each of them requires, and when it is INCONCLUSIVE.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from workbench.metrics.gates.gate import Gate, Problem, judge
from workbench.metrics.latency import succeeded
from workbench.metrics.passes import is_cold

if TYPE_CHECKING:
    import pandas as pd

_BATCH_SHARE = 0.05
"""Fraction of responses that may differ because batches of another shape round differently."""

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
                Problem(
                    f"{len(errors):,} of {len(rows):,} requests failed in {arm}, {name} ({kinds};"
                    f" limit {100 * limit:g} %). Latencies cover only the requests that succeeded",
                    (str(arm),),
                )
            )
    return judge(
        "no failures",
        holds=f"{failed:,} of {len(frame):,} requests failed",
        problems=problems,
        unknown=[] if len(frame) else ["No request was sent"],
        next_step="Read error_message of the failed rows and the server logs",
        if_unknown="Read the server logs, then repeat the run",
    )


def same_text(frame: pd.DataFrame, *baseline_arms: str, batched: bool = False) -> Gate:
    """Greedy text equals the cold text of the baseline arm for the same (round, index).

    Of several models each has its own baseline arm, and rows a column `model`.

    A difference that starts at a tie (two tokens whose log-probabilities are at most TIE_NAT apart)
    does not count: rounding decides there. `batched` says that requests ran concurrently: a batch
    of another shape rounds differently, so a few responses may differ without such proof.
    """
    is_reference = frame["arm"].isin(baseline_arms) & frame["pass"].eq("cold")
    ok = succeeded(frame)
    keys = [*(["model"] if len(baseline_arms) > 1 else []), "round", "index"]
    reference = frame.loc[is_reference & ok, [*keys, "text"]]
    both = frame[~is_reference & ok].merge(
        reference, on=keys, suffixes=("", "_reference"), validate="many_to_one"
    )
    apart = both["text"] != both["text_reference"]
    tied = apart & (both["parting_nat"].le(TIE_NAT) if "parting_nat" in both else False)
    differ = both[apart & ~tied]
    left_out = int((~is_reference).sum()) - len(both)
    reference_pass = f"{' or '.join(baseline_arms)}, cold pass"
    found = f"{len(differ):,} of {len(both):,} responses differ from the reference"
    excused = batched and len(differ) <= _BATCH_SHARE * len(both)
    unknown = (
        [] if len(both) else [f"The reference ({reference_pass}) has no response to compare with"]
    )
    if len(both) and both["text"].eq("").all():
        unknown = ["The servers sent no text to compare"]
    if len(differ):
        found = f"{found} ({reference_pass}; first: {_where(differ)})"
        if excused:
            unknown.append(f"{found}. Batching alone can cause this")
    notes = [
        f"{tied.sum():,} differ where two tokens were about equally likely, at most"
        f" {both.loc[tied, 'parting_nat'].max():.2g} nat apart"
        if tied.any()
        else "",
        f"{left_out:,} not compared: failed or without a counterpart" if left_out else "",
    ]
    note = "; ".join(filter(None, (reference_pass, *notes)))
    corrupt = tuple(differ["arm"].unique())
    for _, rows in both.groupby("model") if len(baseline_arms) > 1 else [("", both)]:
        mine = {*rows["arm"]}
        if mine & {*corrupt} and not mine - {*corrupt, *baseline_arms}:
            # No other arm agrees with the reference, which may be the corrupt one.
            own = [arm for arm in baseline_arms if arm in mine]
            corrupt = tuple(dict.fromkeys((*corrupt, *own))) if len(baseline_arms) > 1 else ()
    return judge(
        "same text",
        holds=f"{(~apart).sum():,} of {len(both):,} responses match those of the reference"
        f" ({note})",
        problems=[Problem(f"{found}. The KV cache may be corrupt", corrupt)]
        if len(differ) and not excused
        else [],
        unknown=unknown,
        next_step="Compare at temperature 0 and concurrency 1; if responses still differ, the KV"
        " cache is corrupt",
        if_unknown="Repeat at concurrency 1" if len(both) else "Add an aggregated arm to the run",
    )


def cached_as_planned(frame: pd.DataFrame, passes: Collection[str], *, block: int = 256) -> Gate:
    """In partly warm passes each request hit the planned prefix.

    `cached_tokens` lies at most `block` tokens below the planned prefix and never above it.
    """
    rows = frame[frame["pass"].isin(passes) & succeeded(frame)]
    known = rows[rows["cached_tokens"].ge(0)]
    short = known["ideal_reuse_tokens"] - known["cached_tokens"]
    odd = known[(short < 0) | (short > block)]
    found = f"{len(odd):,} of {len(known):,} requests did not hit the planned prefix"
    return judge(
        "cached as planned",
        holds=f"Cached tokens of all {len(known):,} partly warm requests are within {block} tokens"
        " of the plan",
        problems=[
            Problem(
                f"{found} (first: {_where(odd)}). The pass did not have its cache state",
                tuple(odd["arm"].unique()),
            )
        ]
        if len(odd)
        else [],
        unknown=[] if len(known) else ["No server reports the number of cached prompt tokens"],
        next_step="Raise kv_cache_mib or send fewer requests, to avoid evictions",
        if_unknown="Start vLLM with --enable-prompt-tokens-details",
    )


def output_counts_equal(frame: pd.DataFrame) -> Gate:
    """Every arm and pass generated the requested number of tokens for the same (round, index).

    Otherwise TPOT, E2E and throughput compare unequal work.
    """
    keys = ["round", "index"]
    known = frame[succeeded(frame) & frame["output_tokens"].ge(0)]
    different = known.groupby(keys)["output_tokens"].nunique().gt(1)
    odd = known[known.groupby(keys)["output_tokens"].transform("nunique").gt(1)]
    left_out = len(frame) - len(known)
    unasked = known.iloc[:0]
    if "max_tokens" in known:
        unasked = known[known["output_tokens"].ne(known["max_tokens"])]
    unknown = [] if len(known) else ["No response has an output token count"]
    if len(unasked):
        unknown.append(
            f"{len(unasked):,} of {len(known):,} responses do not have the requested number of"
            f" tokens (first: {_where(unasked)})"
        )
    problem = f"{different.sum():,} of {len(different):,} requests have different output token"
    return judge(
        "output counts equal",
        holds=f"All passes generated the same number of tokens for each of {len(different):,}"
        " requests"
        + (f" ({left_out:,} rows left out: failed or without a count)" if left_out else ""),
        problems=[f"{problem} counts in different passes (first: {_where(odd)}). TPOT and"
                  " throughput compare unequal work"] if len(odd) else [],
        unknown=unknown,
        next_step="Send ignore_eos with a fixed max_tokens",
        if_unknown="Use a server that respects ignore_eos and max_tokens"
        if len(unasked)
        else "Ask the server for usage (stream_options include_usage)",
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceilings:
    """Rooflines of one arm's instances, from `workbench.hardware.physics`."""

    prefill_tps: float
    """Prompt tokens per second of the instance that prefills."""
    decode_tps: float
    """Output tokens per second of one request on the instance that decodes."""


def below_ceilings(
    requests: pd.DataFrame, ceilings: Mapping[str, Ceilings], unknown: str = ""
) -> Gate:
    """Cold prompts are not prefilled, and tokens not generated, faster than the roofline allows.

    `ceilings` by arm; `unknown` says why there are none. A rate above a ceiling means that tokens
    were cached, merged or not counted, whatever the other gates say.
    """
    rows = requests[succeeded(requests)]
    problems, nearest = [], 0.0
    for arm, limit in ceilings.items():
        mine = rows[rows["arm"] == arm]
        cold = mine[mine["pass"].map(is_cold)]
        computed = cold["prompt_tokens"] - cold["ideal_reuse_tokens"]
        for what, rates, ceiling in (
            ("prefilled a cold prompt", computed / cold["ttft_s"], limit.prefill_tps),
            ("decoded a request", 1 / mine["tpot_s"], limit.decode_tps),
        ):
            fastest = float(rates.max()) if len(rates) else 0.0
            nearest = max(nearest, fastest / ceiling)
            if fastest > ceiling:
                problems.append(
                    Problem(
                        f"{arm} {what} at {fastest:,.0f} tokens/s, above the hardware limit of"
                        f" {ceiling:,.0f}. Tokens were cached or miscounted",
                        (arm,),
                    )
                )
    return judge(
        "below the ceilings",
        holds=f"All {len(ceilings)} arms stay below the hardware limit (at most {nearest:.0%} of"
        " it)".replace("%", " %"),
        problems=problems,
        unknown=[unknown] if unknown else [],
        next_step="Look for an uncounted cache, or a wrong model, GPU or token count",
        if_unknown="Use a local model folder and a GPU listed in workbench/hardware/physics.py",
    )


def _where(rows: pd.DataFrame) -> str:
    """The first of some rows in words."""
    row = rows.iloc[0]
    return f"{row['arm']}, round {row['round'] + 1}, {row['pass']}, request {row['index']}"
