"""What a hit analysis finds, as records: tokens by tier, and paired ratios of TTFT."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isnan, nan
from typing import TYPE_CHECKING, Any, Literal

from workbench.experiment.plan.hit_plan import CACHE_OFF, MAIN, NO_STORE, TIERS
from workbench.metrics.statistics import Ratio, describe, pair, paired_ratio, three_digits

if TYPE_CHECKING:
    import pandas as pd

_TOKENS = ("prompt_tokens", "engine", "l1", "l2", "computed", "held", "idle", "ideal")
_KEYS = ("arm", "round", "pass")


def percent(fraction: float) -> str:
    """`96.8 %` of 0.968, `6.25 %` of 0.0625, as on a card; `unknown` for NaN."""
    return "unknown" if isnan(fraction) else f"{three_digits(100 * fraction)} %"


Tier = Mapping[str, Any]
"""Prompt tokens of one arm and pass by the cache that served them, a row of result.json.

`engine`, `l1`, `l2` and `computed` add up to `prompt_tokens`. `held` is the LMCache hit, `idle` the
part of it that was not needed, because the engine had it too, `ideal` the hit of an infinite cache.
`hit_share` and `ideal_share` are fractions of the prompt tokens, `claimed_share` is LMCache's own
hit rate. `counted_...` are the servers' counters (`served_tokens.pass_counts`), missing for a log.
NaN for what is unknown."""


def tiers(served: pd.DataFrame, counts: pd.DataFrame) -> list[Tier]:
    """The tiers of each arm and pass of a live run, over all rounds."""
    rows = []
    for (arm, name), group in served.groupby(["arm", "pass"], sort=False):
        mine = counts[(counts["arm"] == arm) & (counts["pass"] == name)]
        counted = mine.drop(columns=list(_KEYS)).sum(skipna=False).astype(float)
        rows.append(_tier(group, arm, name, skipna=False, **counted.add_prefix("counted_")))
    return rows


def log_tiers(tokens: pd.DataFrame) -> list[Tier]:
    """The tiers of each generation of a log, from `served_tokens.log_tokens`."""
    groups = tokens.groupby("generation", sort=False)
    return [_tier(group, "log", name, skipna=True) for name, group in groups]


def _tier(group: pd.DataFrame, arm: object, name: object, *, skipna: bool, **counted: Any) -> Tier:
    sums = group[list(_TOKENS)].astype(float).sum(skipna=skipna, min_count=1)
    row = {"arm": str(arm), "pass": str(name), "requests": len(group), **sums, **counted}
    prompts = row["prompt_tokens"] or nan
    return row | {
        "hit_share": (row["engine"] + row["l1"] + row["l2"]) / prompts,
        "ideal_share": row["ideal"] / prompts,
        "claimed_share": counted.get("counted_claimed", nan)
        / (counted.get("counted_requested") or nan),
    }


What = Literal["storing", "loading", "chunk", "engine cache off", "tier"]


@dataclass(frozen=True, slots=True, kw_only=True)
class HitRatio:
    """A speed-up of TTFT, paired by prompt within a round; above 1 is faster than the baseline."""

    what: What
    """`storing` (cold with LMCache / cold without), `loading` (loaded from LMCache / computed
    without it), `chunk` (store-warm / the same with the chunk of the arm `lmcache`), `engine cache
    off` (store-warm / the same with the engine's cache on), `tier` (from L2 / from L1)."""
    arm: str
    pass_name: str
    baseline_arm: str
    baseline_pass: str
    prompt_tokens: int
    """Length of the prompts that are compared; 0 for all prompts."""
    loaded_share: float
    """Fraction of the prompt tokens that was loaded from LMCache."""
    chunk_tokens: int
    ttft_ms: float
    baseline_ttft_ms: float
    ratio: Ratio

    @property
    def resolved(self) -> bool:
        """True when the interval excludes 1: the difference is significant."""
        return self.ratio.verdict in ("faster", "slower")

    @property
    def sentence(self) -> str:
        """The ratio with its interval and sample size."""
        return describe(self.ratio)

    def as_row(self) -> dict[str, Any]:
        """The row of result.json."""
        row = {_COLUMNS.get(name, name): value for name, value in asdict(self).items()}
        ratio = self.ratio
        return row | {"ratio": ratio.value, "low": ratio.low, "high": ratio.high,
                      "n_rounds": ratio.rounds, "n_pairs": ratio.pairs,
                      "sentence": self.sentence}  # fmt: skip


_COLUMNS = {"pass_name": "pass"}


def ratios(
    requests: pd.DataFrame, served: pd.DataFrame, chunks: Mapping[str, int]
) -> list[HitRatio]:
    """The speed-ups of a live run; `chunks` maps each arm with a store to its chunk size."""
    lengths = (0, *sorted(int(n) for n in requests["prompt_tokens"].unique()))
    passes = dict.fromkeys(requests["pass"])
    found = [name for name in passes if name.endswith("in LMCache")] + ["store-warm"]
    below = [(arm, state) for arm in TIERS.values() for state in ("disk-warm", "remote-warm")]
    cold = (NO_STORE, "cold")
    wanted: list[tuple[What, tuple[str, str], tuple[str, str], Sequence[int]]] = [
        ("storing", (MAIN, "cold"), cold, lengths),
        *(("loading", (MAIN, name), cold, lengths) for name in found),
        *(("loading", (arm, state), cold, lengths) for arm, state in below),
        *(
            ("chunk", (arm, "store-warm"), (MAIN, "store-warm"), lengths)
            for arm in chunks
            if arm == MAIN or arm.startswith("chunk ")
        ),
        ("engine cache off", (CACHE_OFF, "store-warm"), (MAIN, "store-warm"), (0,)),
        *(("tier", (arm, state), (arm, "store-warm"), lengths) for arm, state in below),
    ]
    return [
        ratio
        for what, value, baseline, sizes in wanted
        for ratio in _ratios(requests, served, chunks, what, value, baseline, sizes)
    ]


def _ratios(
    requests: pd.DataFrame,
    served: pd.DataFrame,
    chunks: Mapping[str, int],
    what: What,
    value: tuple[str, str],
    baseline: tuple[str, str],
    sizes: Iterable[int],
) -> Iterator[HitRatio]:
    """One ratio per prompt length; none if a side was not measured."""
    sides = [_of(requests, *value), _of(requests, *baseline), _of(served, *value)]
    if sides[0].empty or sides[1].empty:
        return
    for length in sizes:
        one, other, tokens = (
            side[side["prompt_tokens"] == length] if length else side for side in sides
        )
        ours, theirs = (1000 * float(side["ttft_s"].median()) for side in (one, other))
        yield HitRatio(
            what=what,
            arm=value[0],
            pass_name=value[1],
            baseline_arm=baseline[0],
            baseline_pass=baseline[1],
            prompt_tokens=length,
            loaded_share=float((tokens["l1"] + tokens["l2"]).sum() / tokens["prompt_tokens"].sum()),
            chunk_tokens=chunks.get(value[0], 0),
            ttft_ms=ours,
            baseline_ttft_ms=theirs,
            ratio=paired_ratio(pair(other, one, "ttft_s")),
        )


def _of(frame: pd.DataFrame, arm: str, name: str) -> pd.DataFrame:
    return frame[(frame["arm"] == arm) & (frame["pass"] == name)]
