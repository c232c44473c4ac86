"""Figures of who served prompt tokens: by source, by cache tier, and request by request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from workbench.experiment.hits.hit_findings import percent
from workbench.experiment.hits.need_to_load import place
from workbench.experiment.plan.hit_plan import tier_of
from workbench.report.figures import marks
from workbench.report.figures.chart import Chart, draw, for_each_model, no_data

_SOURCES = {
    "computed": ("computed", marks.Area(colour=marks.VERMILION)),
    "engine_hit": ("engine prefix cache", marks.Area(colour=marks.GREEN)),
    "external_hit": ("loaded through the connector", marks.Area(colour=marks.BLUE)),
}
_BELOW = {
    "memory": ("loaded from the store's memory", marks.Area(colour=marks.BLUE)),
    "disk": ("loaded from disk", marks.Area(colour=marks.PURPLE, hatch="////")),
    "redis": ("loaded from Redis", marks.Area(colour=marks.PURPLE, hatch="....")),
    "mooncake": ("loaded from Mooncake", marks.Area(colour=marks.PURPLE, hatch="xxxx")),
}
"""Tiers of the store, where a run knows which of them served what was loaded."""
TIERS = {
    "engine": marks.Area(colour=marks.GREEN),
    "l1": marks.Area(colour=marks.BLUE),
    "l2": marks.Area(colour=marks.PURPLE, hatch="////"),
    "computed": marks.Area(colour=marks.VERMILION),
}
_BARS = 160
"""Beyond this many requests each bar is the mean of several neighbours."""


@for_each_model
def token_sources(sources: pd.DataFrame) -> Chart:
    """Source of the prompt tokens of each role, in % over all rounds, with their number.

    Takes `result.token_sources`. A server without these counters has no bar.
    """
    heading = "Source of prompt tokens"
    if sources.empty:
        return no_data(heading, "no server reported its counters.")
    keys = ["arm", "pass", "role"]
    rows = sources.groupby(keys, sort=False)[["sent", *_SOURCES]].sum(min_count=1).reset_index()
    rows = rows.dropna(subset=list(_SOURCES))
    if rows.empty:
        return no_data(heading, "no server reports the source of its prompt tokens.")
    tokens, known = _split_by_tier(sources, rows, keys)
    shares = tokens.div(tokens.sum(axis=1).clip(lower=1.0), axis=0)

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        names = (rows["arm"] + ", " + rows["pass"] + ": " + rows["role"]).to_list()
        areas = {source: area for source, (_, area) in known.items()}
        texts = [f"{total:,.0f}" for total in tokens.sum(axis=1)]
        marks.stacked_rows(axes, shares, areas, labels=names, texts=texts, heading="tokens")
        axes.set(xlim=(0, 1), xlabel="% of the prompt tokens sent to that role")
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, symbol=""))

    decode = tokens[rows["role"] == "decode"]
    found = heading
    if len(decode):
        share = decode["computed"].sum() / max(1.0, decode.sum().sum())
        found = f"Decode instances recomputed {100 * share:.3g} % of their prompt tokens"
    whose = rows[keys].agg(" ".join, axis=1)
    spoken = [
        f"{who}: {', '.join(f'{known[name][0]} {row[name]:,.0f}' for name in known)}."
        for who, (_, row) in zip(whose, tokens.iterrows(), strict=True)
    ]
    return draw(
        paint,
        title=found,
        body_px=24 * len(rows) + 84,
        alt=f"Prompt tokens by source. {' '.join(spoken)}",
        caption="Read from the counters of the engines"
        + (", and by tier from those of the store" if {*_BELOW} & known.keys() else "")
        + ", summed over all rounds.",
        keys=dict(known.values()),
        shows=("counts",),
        attrs=sources.attrs,
    )


def _split_by_tier(
    sources: pd.DataFrame, rows: pd.DataFrame, keys: list[str]
) -> tuple[pd.DataFrame, dict[str, tuple[str, marks.Area]]]:
    """Tokens of each row by source, with what was loaded by tier of the store where that is known
    in every round; and the name and look of each source."""
    tokens = rows[[*_SOURCES]]
    tiers = [tier for tier in _BELOW if tier in sources]
    if not tiers:
        return tokens, dict(_SOURCES)
    # What one round does not know is unknown for all.
    sums = sources.groupby(keys, sort=False)[tiers]
    by_tier = sums.sum().where(sums.count().eq(sums.size(), axis=0))
    by_tier = by_tier.loc[list(rows[keys].itertuples(index=False, name=None))].set_axis(rows.index)
    left = tokens["external_hit"].where(by_tier.isna().any(axis=1), 0.0)
    split = tokens.assign(external_hit=left).join(by_tier.fillna(0.0))
    looks = _SOURCES | _BELOW
    always = ("computed", "engine_hit")
    seen = {name: look for name, look in looks.items()
            if name in split and (name in always or split[name].sum() > 0)}  # fmt: skip
    return split[[*seen]], seen


def served_over_requests(served: pd.DataFrame, *, arms: Sequence[str] = ()) -> Chart:
    """Prompt tokens of each request in sending order, by who served them.

    Takes `result.served` and draws the first round, pass after pass. One panel per arm: those named
    in `arms`, or all where none of them was measured.
    """
    heading = "Who served each prompt token"
    rows = served[served["round"] == served["round"].min()]
    rows = rows[rows[list(TIERS)].notna().any(axis=1)]
    if rows.empty:
        return no_data(heading, "no request reports who served its tokens.")
    present = list(rows["arm"].unique())
    chosen = [arm for arm in arms if arm in present] or present
    names = _names(rows)
    shown = rows[rows["arm"].isin(chosen)]
    known = [tier for tier in TIERS if shown[tier].sum() > 0]

    def paint(figure: Figure) -> None:
        grid = figure.subplots(len(chosen), 1, squeeze=False, sharey=True)
        for axes, arm in zip(grid[:, 0], chosen, strict=True):
            _bars(axes, rows[rows["arm"] == arm], known)
            axes.set_title(arm)
        grid[-1, 0].set_xlabel("request, in sending order")

    groups = [(arm, state, group) for arm in chosen
              for state, group in rows[rows["arm"] == arm].groupby("pass", sort=False)]  # fmt: skip
    spoken = [
        f"{arm}, {state}: {', '.join(f'{names[t]} {group[t].sum():,.0f}' for t in known)} tokens."
        for arm, state, group in groups[:20]
    ]
    grouped = shown["arm"].value_counts().max() > _BARS
    silent = [names[t] for t in ("engine", "computed") if rows[t].isna().any()]
    return draw(
        paint,
        title=_served_title(shown, names),
        body_px=190 * len(chosen) + 30,
        alt=f"{heading}, as stacked bars in order. {' '.join(spoken)}",
        caption=(
            "Each bar is the mean of neighbouring requests."
            if grouped
            else f"One bar per request{', first round' * (chosen != ['log'])}."
        )
        + (f" Unknown for some requests: {', '.join(silent)}." if silent else ""),
        keys={names[tier]: TIERS[tier] for tier in known},
        shows=("counts",),
        attrs=served.attrs,
    )


def _bars(axes: Axes, rows: pd.DataFrame, known: Sequence[str]) -> None:
    groups = np.arange(len(rows)) * min(_BARS, len(rows)) // max(len(rows), 1)
    means = rows[[*known]].fillna(0.0).groupby(groups).mean()
    left = np.searchsorted(groups, means.index)
    few = len(rows) < 90
    width = np.diff([*left, len(rows)]) * (0.9 if few else 1.0)
    base = np.zeros(len(means))
    for tier in known:
        style = TIERS[tier].style() | ({} if few else {"linewidth": 0})
        axes.bar(left + 0.5, means[tier], width=width, bottom=base, align="edge", **style)
        base += means[tier].to_numpy()
    top = 1.28 * (base.max() or 1.0)
    axes.set(xlim=(0.5, len(rows) + 0.5), ylim=(0, max(top, axes.get_ylim()[1])), ylabel="tokens")
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(marks.NUMBERS)
    axes.grid(axis="x", visible=False)
    axes.xaxis.set_major_locator(MaxNLocator(9, integer=True, steps=[1, 2, 3, 5, 6, 10]))
    names = rows["pass"].astype(str).to_numpy()
    starts = [0, *(np.flatnonzero(names[1:] != names[:-1]) + 1)]
    for start in starts if len(starts) <= 12 else ():
        axes.axvline(start + 0.5, color=marks.GREY, linewidth=1)
        axes.text(
            start + 0.5, 0.97, f" {names[start]}", transform=axes.get_xaxis_transform(),
            va="top", size=12, color=marks.GREY,
        )  # fmt: skip


def _names(rows: pd.DataFrame) -> dict[str, str]:
    """What each tier is called. LMCache inside vLLM does not report which of its tiers it was."""
    in_process = rows["pass"].eq("in-process").all()
    below = sorted(set(filter(None, map(tier_of, rows.loc[rows["l2"] > 0, "arm"].astype(str)))))
    return {
        "engine": "engine prefix cache",
        "l1": "LMCache" if in_process else "LMCache memory (L1)",
        "l2": f"LMCache {below[0]} (L2)" if len(below) == 1 else "LMCache L2",
        "computed": "computed",
    }


def _served_title(rows: pd.DataFrame, names: Mapping[str, str]) -> str:
    total = rows["prompt_tokens"].sum()
    parts = {names[tier]: rows[tier].sum() for tier in TIERS}
    if not total or rows["engine"].isna().any():
        found = {name: tokens for name, tokens in parts.items() if tokens > 0}
        return "Hit tokens: " + ", ".join(f"{n} {t:,.0f}" for n, t in found.items())
    if rows["pass"].nunique() > 1:
        return _served_warm(rows)
    shares = (f"{name} {percent(tokens / total)}" for name, tokens in parts.items() if tokens > 0)
    return f"Who served each prompt token: {', '.join(shares)}"


def _served_warm(rows: pd.DataFrame) -> str:
    """What served the store-warm passes of the first arm that has them."""
    warm = rows[rows["pass"] == "store-warm"]
    warm = warm[warm["arm"] == warm["arm"].iloc[0]] if len(warm) else warm
    if warm.empty:
        return "Who served each prompt token, by pass"
    share = warm[["l1", "l2"]].sum().sum() / warm["prompt_tokens"].sum()
    return f"LMCache served {percent(share)} of store-warm prompt tokens ({warm['arm'].iloc[0]})"


def hits_by_tier(tiers: pd.DataFrame) -> Chart:
    """Hit rate of each cache tier by arm and warm pass, with the ideal as a mark.

    Takes `result.tiers`. The hit rate that LMCache's counters report stands at the right.
    """
    heading = "Hit rate by cache tier"
    if tiers.empty:
        return no_data(heading, "no request reports its cache hits.")
    rows = tiers[(tiers["pass"] != "cold") & tiers["engine"].notna() & tiers["prompt_tokens"].gt(0)]
    if rows.empty:
        why = "the log has no prompt lengths, or no hits of the engine's prefix cache."
        return no_data(heading, why)
    areas = {tier: area for tier, area in TIERS.items() if rows[tier].sum() > 0}
    shares = rows[list(areas)].mul(100.0 / rows["prompt_tokens"], axis=0)
    claims = rows["claimed_share"].notna()  # a log has no counters
    beside = [
        percent(row["hit_share"]) + f"; {percent(row['claimed_share'])}" * claimed
        for (_, row), claimed in zip(rows.iterrows(), claims, strict=True)
    ]

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        names = [place(*row) for row in zip(rows["arm"], rows["pass"], strict=True)]
        heading = "hits; LMCache reports" if claims.any() else "hit rate"
        marks.stacked_rows(axes, shares, areas, labels=names, texts=beside, heading=heading)
        for y, ideal in enumerate(rows["ideal_share"]):
            axes.vlines(
                100.0 * ideal, y - 0.42, y + 0.42, color=marks.BLACK, linewidth=2.5, zorder=4
            )
        axes.set(xlim=(0, 101), xlabel="% of prompt tokens")

    idle = rows[rows["idle"].gt(0) & (rows["l1"] + rows["l2"]).eq(0) & claims]
    found = heading
    if len(idle):
        row = idle.iloc[0]
        found = (
            f"{row['pass'][:1].upper()}{row['pass'][1:]}: LMCache reports"
            f" {percent(row['claimed_share'])} hits, the engine needed none"
        )
    spoken = (f"{row['arm']} {row['pass']}: {text}"
              for (_, row), text in zip(rows.iterrows(), beside, strict=True))  # fmt: skip
    names = _names(rows)
    return draw(
        paint,
        title=found,
        body_px=34 * len(rows) + 84,
        alt=f"{found}. {'; '.join(spoken)}.",
        caption="Black mark: an infinite cache. " * int(rows["ideal_share"].notna().any())
        + "Right: combined hit rate"
        + ", and the hit rate that LMCache reports for the tokens it looked up" * int(claims.any())
        + ".",
        keys={names[tier]: area for tier, area in areas.items()},
        shows=("counts",),
        attrs=tiers.attrs,
    )
