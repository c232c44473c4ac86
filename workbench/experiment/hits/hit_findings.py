"""Numbers of a live hit analysis: tokens by tier, and paired ratios of TTFT."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from workbench.experiment.plan.hit_plan import CACHE_OFF, DISK, MAIN, NO_STORE
from workbench.metrics.statistics import Ratio, describe, pair, paired_ratio

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ratios", "tiers"]

Row = dict[str, Any]

_TOKENS = ("prompt_tokens", "engine", "l1", "l2", "computed", "held", "idle", "ideal")


def tiers(served: pd.DataFrame, counts: pd.DataFrame) -> list[Row]:
    """Tokens by who served them, per arm and pass over all rounds, with LMCache's own counters.

    `hit_share` and `ideal_share` are of the prompt tokens; `claimed_share` is LMCache's own hit
    rate, of the tokens that it was asked for.
    """
    rows = []
    for (arm, name), group in served.groupby(["arm", "pass"], sort=False):
        row: Row = {"arm": arm, "pass": name, "requests": len(group)}
        row |= {column: float(group[column].sum(skipna=False)) for column in _TOKENS}
        counted = counts[(counts["arm"] == arm) & (counts["pass"] == name)]
        for column in counts.columns[3:]:
            row[f"counted_{column}"] = float(counted[column].sum(skipna=False))
        row["hit_share"] = (row["engine"] + row["l1"] + row["l2"]) / row["prompt_tokens"]
        row["ideal_share"] = row["ideal"] / row["prompt_tokens"]
        asked = row["counted_requested"]
        row["claimed_share"] = row["counted_claimed"] / asked if asked else float("nan")
        rows.append(row)
    return rows


def ratios(requests: pd.DataFrame, served: pd.DataFrame, chunks: Mapping[str, int]) -> list[Row]:
    """Speed-ups of TTFT, paired by prompt within a round; above 1 is faster than the baseline.

    `what` is one of: `storing` (cold with LMCache beside cold without), `loading` (found in LMCache
    beside computed without it), `chunk` (store-warm beside the chunk of `lmcache`), `engine cache
    off` (store-warm beside the same with it), `disk` (from L2 beside from L1). `prompt_tokens` is
    a length, 0 for all. `loaded_share` is what LMCache brought of the prompt. `chunks` maps the
    arms with a store to their chunk.
    """
    lengths = (0, *sorted(int(n) for n in requests["prompt_tokens"].unique()))
    rows: list[Row] = []

    def add(what: str, value: tuple[str, str], baseline: tuple[str, str], sizes: Iterable[int]):  # type: ignore[no-untyped-def]
        sides = [_of(requests, *side) for side in (value, baseline)]
        if sides[0].empty or sides[1].empty:
            return
        mine = _of(served, *value)
        for length in sizes:
            one, other, tokens = (
                side[side["prompt_tokens"] == length] if length else side for side in (*sides, mine)
            )
            ratio = paired_ratio(pair(other, one, "ttft_s"))
            loaded = float((tokens["l1"] + tokens["l2"]).sum() / tokens["prompt_tokens"].sum())
            ours, theirs = (1000 * float(side["ttft_s"].median()) for side in (one, other))
            rows.append(
                {"what": what, "arm": value[0], "pass": value[1], "baseline_arm": baseline[0],
                 "baseline_pass": baseline[1], "prompt_tokens": length, "loaded_share": loaded,
                 "chunk_tokens": chunks.get(value[0], 0), "ttft_ms": ours,
                 "baseline_ttft_ms": theirs, **_columns(ratio)}
            )  # fmt: skip

    add("storing", (MAIN, "cold"), (NO_STORE, "cold"), lengths)
    partly = [n for n in dict.fromkeys(requests["pass"]) if n.endswith("in LMCache")]
    for name in (*partly, "store-warm"):
        add("loading", (MAIN, name), (NO_STORE, "cold"), lengths)
    add("loading", (DISK, "disk-warm"), (NO_STORE, "cold"), lengths)
    for arm in chunks:
        if arm == MAIN or arm.startswith("chunk "):
            add("chunk", (arm, "store-warm"), (MAIN, "store-warm"), lengths)
    add("engine cache off", (CACHE_OFF, "store-warm"), (MAIN, "store-warm"), (0,))
    add("disk", (DISK, "disk-warm"), (DISK, "store-warm"), lengths)
    return rows


def _of(frame: pd.DataFrame, arm: str, name: str) -> pd.DataFrame:
    return frame[(frame["arm"] == arm) & (frame["pass"] == name)]


def _columns(ratio: Ratio) -> Row:
    return {
        "ratio": ratio.value,
        "low": ratio.low,
        "high": ratio.high,
        "n_rounds": ratio.rounds,
        "n_pairs": ratio.pairs,
        "sentence": describe(ratio),
    }
