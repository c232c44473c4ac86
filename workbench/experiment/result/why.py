"""Why one arm's first token comes sooner or later than another's, part by part of the waterfall.

Requests are paired by round and index. A part's difference is the mean over rounds of each round's
mean, with a 95 % t interval over rounds: as for ratios, a launch is the unit of replication. Means
of parts add up to the mean of TTFT, which medians would not. Every interval stands for itself: of
twenty parts that differ in nothing, one is expected to stand out.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import floor, isnan, log10, nan
from typing import TYPE_CHECKING, Any

from workbench.metrics.waterfall import PARTS, summarise

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["differences", "table", "why"]

_PIECES = PARTS | {"residual_s": "the way to the proxy"}
_ROUNDS_FOR_INTERVAL = 3
_NAMED = 3
"""Parts that a sentence names at most."""
_SMALL = 0.05
"""A part is not named below this share of the largest one, however sure it is."""
_KEYS = ["arm", "pass", "baseline_arm"]
Row = dict[str, Any]


def why(waterfall: pd.DataFrame, comparisons: pd.DataFrame) -> list[str]:
    """One sentence for each pair of arms and cache state; only what its interval supports.

    `waterfall` is `metrics.waterfall.waterfall` of the run, `comparisons` the frame of the result.
    The pairs are those of subjects and their opponents; in a run without opponents every other
    arm is set beside the first one.
    """
    said = []
    for (arm, name, baseline), rows in differences(waterfall, comparisons).groupby(
        _KEYS, sort=False
    ):
        pieces = [{str(key): cell for key, cell in row.items()} for row in rows.to_dict("records")]
        said.append(f"{arm} beside {baseline}, {name}: {_explained(pieces)}.")
    return said


def differences(waterfall: pd.DataFrame, comparisons: pd.DataFrame) -> pd.DataFrame:
    """Mean difference of each part (arm - baseline_arm) per pair of arms and cache state. Seconds.

    Columns arm, pass, baseline_arm, part, mean, low, high, n_rounds, n_pairs, n_left_out; `part`
    is a column of the waterfall, ttft_s and residual_s among them. `low` and `high` are NaN under 3
    rounds. Pairs of which a side has no whole waterfall are left out and counted.
    """
    import pandas as pd

    rows = []
    for arm, name, baseline in _pairs(waterfall, comparisons):
        sides = [
            waterfall[(waterfall["arm"] == label) & (waterfall["pass"] == name)].set_index(
                ["round", "index"]
            )
            for label in (arm, baseline)
        ]
        pieces = ["ttft_s", *_PIECES]
        apart = sides[0][pieces] - sides[1][pieces]
        whole = apart.dropna()
        per_round = whole.groupby(level="round").mean()
        for part in pieces:
            rows.append(
                {
                    **dict(zip(_KEYS, (arm, name, baseline), strict=True)),
                    "part": part,
                    **_mean(per_round[part].to_list()),
                    "n_rounds": len(per_round),
                    "n_pairs": len(whole),
                    "n_left_out": len(apart) - len(whole),
                }
            )
    columns = [*_KEYS, "part", "mean", "low", "high", "n_rounds", "n_pairs", "n_left_out"]
    return pd.DataFrame(rows, columns=columns)


def table(waterfall: pd.DataFrame) -> pd.DataFrame:
    """Median of every part in milliseconds, a row per cache state and part, a column per arm.

    Cells read `28.8 [25.1, 32.4]`, without an interval where the sample is too small for one,
    and are empty where an arm has no such pass. Parts that no arm of a pass has are left out.
    """
    import pandas as pd

    names = {**PARTS, "residual_s": "residual", "ttft_s": "TTFT"}
    medians = summarise(waterfall)
    medians["median, ms"] = medians["part"].map(names)
    medians["cell"] = [
        _cell(*row) for row in medians[["median", "low", "high"]].itertuples(index=False, name=None)
    ]
    wide = medians.pivot_table(
        index=["pass", "median, ms"], columns="arm", values="cell", aggfunc="first", sort=False
    )
    wide = wide[(wide.fillna("0") != "0").any(axis=1)].fillna("")
    return pd.DataFrame(wide.reset_index()).rename_axis(columns=None)


def _cell(median: float, low: float, high: float) -> str:
    if isnan(median):
        return "not known"
    plain = isnan(low) or low == high == 0  # an arm without the part has exactly none of it
    return _ms(median) if plain else f"{_ms(median)} [{_ms(low)}, {_ms(high)}]"


def _pairs(waterfall: pd.DataFrame, comparisons: pd.DataFrame) -> list[tuple[str, str, str]]:
    """(arm, cache state, baseline arm) of everything that is to be explained."""
    if len(comparisons):
        rivals = comparisons[
            (comparisons["kind"] == "opponent") & (comparisons["metric"] == "ttft_s")
        ]
        if len(rivals):
            return list(rivals[_KEYS].itertuples(index=False, name=None))
    measured = waterfall[["arm", "pass"]].drop_duplicates()
    first = measured[measured["arm"] == measured["arm"].iloc[0]] if len(measured) else measured
    shared = measured[measured["pass"].isin(first["pass"])]
    others = shared[~shared["arm"].isin(first["arm"])]
    return [(arm, name, first["arm"].iloc[0]) for arm, name in others.itertuples(index=False)]


def _mean(per_round: list[float]) -> dict[str, float]:
    """The mean with its t interval; NaN where there are too few rounds."""
    n = len(per_round)
    mean = sum(per_round) / n if n else nan
    if n < _ROUNDS_FOR_INTERVAL:
        return {"mean": mean, "low": nan, "high": nan}
    from scipy.special import stdtrit

    variance = sum((value - mean) ** 2 for value in per_round) / (n - 1)
    reach = float(stdtrit(n - 1, 0.975)) * (variance / n) ** 0.5
    return {"mean": mean, "low": mean - reach, "high": mean + reach}


def _explained(rows: Sequence[Row]) -> str:
    total, *parts = rows
    if not total["n_pairs"]:
        return "not explained, since no request of both has a whole waterfall"
    if isnan(total["low"]):
        n = total["n_rounds"]
        rounds = "1 round gives" if n == 1 else f"{n} rounds give"
        return f"not explained, since {rounds} no interval (it takes {_ROUNDS_FOR_INTERVAL})"
    least = _SMALL * max(abs(part["mean"]) for part in parts)
    sure = [part for part in parts if _resolved(part) and abs(part["mean"]) >= least]
    sure.sort(key=lambda part: -abs(part["mean"]))
    text = _said(total, sure)
    return f"{text} ({total['n_left_out']} pairs left out)" if total["n_left_out"] else text


def _said(total: Row, sure: Sequence[Row]) -> str:
    """What TTFT does, and the parts that the intervals vouch for, those that drive it first."""
    if not _resolved(total):
        head = f"no difference of TTFT detectable at this n ({_signed(total)})"
        return f"{head}, yet {_listed(sure)}" if sure else f"{head}, and no part stands out"
    later = total["mean"] > 0
    head = f"first token {_size(total)} {'later' if later else 'sooner'}"
    driving = [part for part in sure if (part["mean"] > 0) == later]
    against = [part for part in sure if (part["mean"] > 0) != later]
    text = (
        f"{head}: {_listed(driving)}" if driving else f"{head}, but no part explains it at this n"
    )
    return f"{text}; against it {_listed(against)}" if against else text


def _resolved(row: Row) -> bool:
    """True when the interval leaves 0 out."""
    return bool(row["low"] > 0 or row["high"] < 0)


def _listed(parts: Sequence[Row]) -> str:
    text = ", ".join(f"{_PIECES[part['part']]} {_signed(part)}" for part in parts[:_NAMED])
    more = len(parts) - _NAMED
    return f"{text} and {more} smaller part{'s' * (more > 1)}" if more > 0 else text


def _size(row: Row) -> str:
    """`28.8 ms [25.1, 32.4]`, whatever its sign."""
    ends = (row["low"], row["high"]) if row["mean"] > 0 else (-row["high"], -row["low"])
    return f"{_ms(abs(row['mean']))} ms [{_ms(ends[0])}, {_ms(ends[1])}]"


def _signed(row: Row) -> str:
    """`+28.8 ms [25.1, 32.4]`"""
    sign = "+" if row["mean"] > 0 else ""
    return f"{sign}{_ms(row['mean'])} ms [{_ms(row['low'])}, {_ms(row['high'])}]"


def _ms(seconds: float) -> str:
    """Three significant digits, at most two decimals: 0.35, 28.8, 2,360."""
    value = 1000 * seconds
    decimals = 2 - floor(log10(abs(value))) if value else 0
    return f"{value:,.{min(2, max(0, decimals))}f}"
