"""Exact counts of a serving run: hit tokens, equal texts, tokens counted twice, earned credit."""

from __future__ import annotations

from itertools import pairwise
from math import nan
from typing import TYPE_CHECKING

from workbench.claims.decision import Interval
from workbench.claims.readings import counted, latency_ratio, rows_of
from workbench.claims.recipe import Curve
from workbench.experiment.result.result import Result
from workbench.hardware.kv import chunk_hit_tokens, engine_hit_tokens
from workbench.metrics.gates.answer_gates import TIE_NAT
from workbench.metrics.latency import succeeded
from workbench.metrics.statistics import quantile

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["block_tokens", "credit", "hit_curve", "hits", "same_text", "tokens_twice", "ttft_steps"]

CHUNK_TOKENS = 256
WARM, STORE_WARM = "engine-warm", "store-warm"
_TOKENS = ("vllm:prompt_tokens_total", "vllm:generation_tokens_total")


def block_tokens(result: Result) -> int:
    """The KV block as the engines report it; 0 where they do not."""
    for labels in _counters(result).query("series == 'vllm:cache_config_info'")["labels"]:
        said = dict(part.partition("=")[::2] for part in labels.split(","))
        if said.get("block_size", "").isdecimal():
            return int(said["block_size"])
    return 0


def hits(requests: pd.DataFrame, arm: str, block: int) -> Interval:
    """Cached tokens of each warm request less floor((L - 1) / block) * block."""
    rows = rows_of(requests, (arm, WARM))
    rows = rows[succeeded(rows)]
    if not block or rows["cached_tokens"].lt(0).any():
        return counted([])
    expected = [engine_hit_tokens(n, block_tokens=block) for n in rows["prompt_tokens"]]
    return counted(rows["cached_tokens"] - expected)


def hit_curve(requests: pd.DataFrame, arm: str, block: int) -> Curve:
    """Cached tokens of warm requests beside the formula, by the length of the prompt."""
    import pandas as pd

    rows = rows_of(requests, (arm, WARM))
    points = []
    for tokens, group in rows[rows["cached_tokens"].ge(0)].groupby("prompt_tokens"):
        seen = group["cached_tokens"]
        points.append({"series": "cached, as the engine says", "x": tokens, "value": seen.median(),
                       "low": seen.min(), "high": seen.max()})  # fmt: skip
        if block:
            formula = engine_hit_tokens(int(str(tokens)), block_tokens=block)
            points.append({"series": f"formula, blocks of {block}", "x": tokens, "value": formula,
                           "low": nan, "high": nan})  # fmt: skip
    return Curve(
        title="Cached tokens of a prompt asked again",
        x="prompt tokens", y="cached tokens", claims=("OWN-HIT-TOKENS",),
        points=pd.DataFrame(points, columns=["series", "x", "value", "low", "high"]),
    )  # fmt: skip


def same_text(requests: pd.DataFrame, reference: str) -> Interval:
    """In how many of its answers each arm and whole pass differs from `reference`, cold.

    Answers that part at a tie of the model's best tokens are alike: rounding decides there.
    """
    keys = ["round", "index"]
    whole = requests[requests["pass"].isin(["cold", WARM]) & succeeded(requests)]
    wanted = rows_of(whole, (reference, "cold"))[[*keys, "text"]]
    both = whole[whole["arm"] != reference].merge(wanted, on=keys, suffixes=("", "_wanted"))
    if both.empty or both["text"].eq("").all():
        return counted([])
    apart = both["text"] != both["text_wanted"]
    both["differs"] = apart & ~both["parting_nat"].le(TIE_NAT) if "parting_nat" in both else apart
    return counted(both.groupby(["arm", "pass"])["differs"].sum())


def tokens_twice(result: Result) -> Interval:
    """Tokens in and out as the engine counted them in each pass, less what the client counted.

    Both over one time, so that total tokens/s = requests/s x (in + out) is held to the engine.
    """
    keys = ["arm", "round", "pass"]
    counters = _counters(result)
    tokens = counters[counters["series"].isin(_TOKENS)]
    totals = tokens.groupby([*keys, "when"])["value"].sum().unstack("when")
    if totals.empty:
        return counted([])
    rows = result.requests
    both = rows.groupby(keys)[["prompt_tokens", "output_tokens"]].sum().sum(axis=1)
    return counted((totals["after"] - totals["before"]).sub(both).dropna())


def credit(result: Result, arm: str, block: int) -> dict[str, Interval]:
    """Tokens that the store was credited with, less what it has to offer, in each round.

    It offers its whole chunks, of a prompt of whole chunks all but the last token, and earns only
    what lies beyond the engine's own hit.
    """
    loaded = result.token_sources.set_index(["arm", "round", "pass"])["external_hit"]
    rows = rows_of(result.requests, (arm, STORE_WARM))
    off: dict[str, list[float]] = {"warm in the engine": [], "warm in the store": []}
    for number, group in rows.groupby("round"):
        lengths = [int(n) for n in group["prompt_tokens"]]
        offered = [min(chunk_hit_tokens(n, chunk_tokens=CHUNK_TOKENS), n - 1) for n in lengths]
        held = [engine_hit_tokens(n, block_tokens=block) if block else n for n in lengths]
        beyond = sum(max(0, o - h) for o, h in zip(offered, held, strict=True))
        for name, state, tokens in (
            ("warm in the engine", WARM, beyond), ("warm in the store", STORE_WARM, sum(offered)),
        ):  # fmt: skip
            off[name].append(float(loaded.get((arm, number, state), nan)) - tokens)
    return {name: counted(values) for name, values in off.items()}


def ttft_steps(requests: pd.DataFrame, arm: str) -> tuple[tuple[Interval, ...], Curve]:
    """TTFT with more of the prompt cached over that with less, a cell for each step; and a curve.

    Only prompts of which more blocks were cached count in a step; intervals are at 95 % for all
    steps together (Bonferroni).
    """
    import pandas as pd

    rows = requests[(requests["arm"] == arm) & succeeded(requests)]
    names = list(dict.fromkeys(rows["pass"]))
    steps = list(pairwise(names))
    confidence = 1 - 0.05 / max(1, len(steps))
    cached = rows.groupby(["pass", "index"])["cached_tokens"].median().unstack("pass")
    cells = []
    for less, more in steps:
        grew = cached.index[cached[more] > cached[less]]
        part = rows[rows["index"].isin(grew)]
        cells.append(latency_ratio(part, (arm, more), (arm, less), "ttft_s", confidence=confidence))
    points = []
    known = rows[rows["cached_tokens"].ge(0)]
    for (tokens, _), group in known.groupby(["prompt_tokens", "pass"]):
        seen = quantile(1000 * group["ttft_s"], 0.5)
        uncached = float((group["prompt_tokens"] - group["cached_tokens"]).median())
        points.append({"series": f"{tokens:,} tokens", "x": uncached, "value": seen.value,
                       "low": seen.low, "high": seen.high})  # fmt: skip
    frame = pd.DataFrame(points, columns=["series", "x", "value", "low", "high"])
    return tuple(cells), Curve(
        title="TTFT by tokens that no cache had", x="prompt tokens computed", y="TTFT, ms",
        points=frame,
        claims=("VLLM-APC", "OWN-TTFT-MONOTONE"),
    )  # fmt: skip


def _counters(result: Result) -> pd.DataFrame:
    import pandas as pd

    return pd.read_parquet(result.folder / "counters.parquet")
