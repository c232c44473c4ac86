"""Figures of who served prompt tokens: by source, by tier beside the ideal, request by request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from workbench.report.figures import marks
from workbench.report.figures.chart import Chart, draw, no_data

_SOURCES = {
    "computed": ("computed", marks.Area(colour=marks.VERMILION)),
    "engine_hit": ("the engine's own prefix cache", marks.Area(colour=marks.GREEN)),
    "external_hit": ("loaded through the connector", marks.Area(colour=marks.BLUE)),
}
_TIERS = {
    "engine": marks.Area(colour=marks.GREEN),
    "l1": marks.Area(colour=marks.BLUE),
    "l2": marks.Area(colour=marks.PURPLE, hatch="////"),
    "computed": marks.Area(colour=marks.VERMILION),
}
_BARS = 160
"""Beyond this many requests each bar is the mean of several neighbours."""


def token_sources(sources: pd.DataFrame) -> Chart:
    """Share of the prompt tokens of each role by source, over all rounds, beside their number.

    Takes `result.token_sources`. Servers that do not say have no bar.
    """
    heading = "Where prompt tokens came from"
    if sources.empty:
        return no_data(heading, "no server showed its counters.")
    keys = ["arm", "pass", "role"]
    rows = sources.groupby(keys, sort=False)[["sent", *_SOURCES]].sum(min_count=1).reset_index()
    rows = rows.dropna(subset=list(_SOURCES))
    if rows.empty:
        return no_data(heading, "no server says where they came from.")
    tokens = rows[[*_SOURCES]]
    shares = tokens.div(tokens.sum(axis=1).clip(lower=1.0), axis=0)

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        names = (rows["arm"] + ", " + rows["pass"] + ": " + rows["role"]).to_list()
        areas = {source: area for source, (_, area) in _SOURCES.items()}
        texts = [f"{total:,.0f}" for total in tokens.sum(axis=1)]
        marks.stacked_rows(axes, shares, areas, labels=names, texts=texts, heading="tokens")
        axes.set(xlim=(0, 1), xlabel="share of the prompt tokens sent to that role")
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))

    decode = tokens[rows["role"] == "decode"]
    found = "Where every prompt token came from"
    if len(decode):
        share = decode["computed"].sum() / max(1.0, decode.sum().sum())
        found = f"Decode instances computed {share:.1%} of their prompt tokens themselves"
    spoken = [
        f"{r['arm']} {r['pass']} {r['role']}: {r['computed']:,.0f} computed,"
        f" {r['engine_hit']:,.0f} engine, {r['external_hit']:,.0f} connector."
        for _, r in rows.iterrows()
    ]
    return draw(
        paint,
        title=found,
        body_px=24 * len(rows) + 84,
        alt=f"Prompt tokens by source. {' '.join(spoken)}",
        caption="From the engines' counters, all rounds together.",
        keys=dict(_SOURCES.values()),
        shows=("counts",),
        attrs=sources.attrs,
    )


def served_over_requests(served: pd.DataFrame, *, arms: Sequence[str] = ()) -> Chart:
    """Prompt tokens of each request in the order in which they were sent, by who served them.

    Takes `served_tokens`, and draws the first round: a panel for each arm, of those named in `arms`
    that there are, else of all. Passes stand behind one another.
    """
    heading = "Who served each token"
    rows = served[served["round"] == served["round"].min()]
    rows = rows[rows[list(_TIERS)].notna().any(axis=1)]
    if rows.empty:
        return no_data(heading, "no request says who served its tokens.")
    present = list(rows["arm"].unique())
    chosen = [arm for arm in arms if arm in present] or present
    names = _names(rows)
    shown = rows[rows["arm"].isin(chosen)]
    known = [tier for tier in _TIERS if shown[tier].sum() > 0]

    def paint(figure: Figure) -> None:
        grid = figure.subplots(len(chosen), 1, squeeze=False, sharey=True)
        for axes, arm in zip(grid[:, 0], chosen, strict=True):
            _bars(axes, rows[rows["arm"] == arm], known)
            axes.set_title(arm)
        grid[-1, 0].set_xlabel("request, in order")

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
            "Each bar is the mean of neighbouring requests. " if grouped else "One bar a request. "
        )
        + (f"Not known for every request: {', '.join(silent)}." if silent else ""),
        keys={names[tier]: _TIERS[tier] for tier in known},
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
        style = _TIERS[tier].style() | ({} if few else {"linewidth": 0})
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
    """How the tiers are called: the in-process generation does not say which of its own it was."""
    in_process = rows["pass"].eq("in-process").all()
    return {
        "engine": "engine's own cache",
        "l1": "LMCache" if in_process else "LMCache, L1",
        "l2": "LMCache, L2",
        "computed": "computed",
    }


def _served_title(rows: pd.DataFrame, names: Mapping[str, str]) -> str:
    total = rows["prompt_tokens"].sum()
    parts = {names[tier]: rows[tier].sum() for tier in _TIERS}
    if not total or rows["engine"].isna().any():
        found = {name: tokens for name, tokens in parts.items() if tokens > 0}
        return "Tokens found: " + ", ".join(f"{n} {t:,.0f}" for n, t in found.items())
    if rows["pass"].nunique() > 1:
        return f"Who served each token of {len(rows):,} requests"
    shares = (f"{name} {tokens / total:.0%}" for name, tokens in parts.items() if tokens > 0)
    return f"Who served each token: {', '.join(shares)}"


def hits_by_tier(tiers: pd.DataFrame) -> Chart:
    """Share of the prompt tokens by who served them, for each arm and pass; a mark at the ideal.

    Takes `result.tiers`. Cold passes are left out. LMCache's own hit rate stands beside.
    """
    heading = "Hit rate by tier"
    if tiers.empty:
        return no_data(heading, "no request says what it found in a cache.")
    rows = tiers[(tiers["pass"] != "cold") & tiers["engine"].notna() & tiers["prompt_tokens"].gt(0)]
    if rows.empty:
        return no_data(
            heading, "the log does not say how long prompts were, or what the engine held."
        )
    areas = {tier: area for tier, area in _TIERS.items() if rows[tier].sum() > 0}
    shares = rows[list(areas)].mul(100.0 / rows["prompt_tokens"], axis=0)
    claims = rows["claimed_share"].notna()  # a log has no counters
    beside = [
        f"{row['hit_share']:.1%}" + f"; {row['claimed_share']:.1%}" * claimed
        for (_, row), claimed in zip(rows.iterrows(), claims, strict=True)
    ]

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        names = (rows["arm"] + ", " + rows["pass"]).to_list()
        heading = "served; LMCache says" if claims.any() else "served"
        marks.stacked_rows(axes, shares, areas, labels=names, texts=beside, heading=heading)
        for y, ideal in enumerate(rows["ideal_share"]):
            axes.vlines(
                100.0 * ideal, y - 0.42, y + 0.42, color=marks.BLACK, linewidth=2.5, zorder=4
            )
        axes.set(xlim=(0, 101), xlabel="share of the prompt tokens, %")

    idle = rows[rows["idle"].gt(0) & (rows["l1"] + rows["l2"]).eq(0) & claims]
    found = heading
    if len(idle):
        row = idle.iloc[0]
        found = (
            f"{row['pass'][:1].upper()}{row['pass'][1:]}, LMCache calls {row['claimed_share']:.0%}"
            " of its lookups hits, and the engine needed none of them"
        )
    spoken = (f"{row['arm']} {row['pass']}: {text}"
              for (_, row), text in zip(rows.iterrows(), beside, strict=True))  # fmt: skip
    names = _names(rows)
    return draw(
        paint,
        title=found,
        body_px=34 * len(rows) + 84,
        alt=f"{found}. {'; '.join(spoken)}.",
        caption="The upright mark is what an infinite cache would have served. "
        * int(rows["ideal_share"].notna().any())
        + "At the right the share served from any cache"
        + ", and the hit rate that LMCache's own counters give, of the tokens that it was asked for"
        * int(claims.any())
        + ".",
        keys={names[tier]: area for tier, area in areas.items()},
        shows=("counts",),
        attrs=tiers.attrs,
    )
