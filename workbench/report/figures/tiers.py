"""Figures of who served prompt tokens: request by request, and by tier beside the ideal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from workbench.report.figures.chart import Chart, draw, no_data
from workbench.report.figures.dots import column_at_right, row_axis
from workbench.report.figures.looks import BLACK, BLUE, GREEN, GREY, PURPLE, VERMILION, Look
from workbench.report.numbers import number

__all__ = ["hits_by_tier", "served_over_requests"]

_TIERS = {
    "engine": ("engine's own cache", GREEN, ""),
    "l1": ("LMCache, L1", BLUE, ""),
    "l2": ("LMCache, L2", PURPLE, "////"),
    "computed": ("computed", VERMILION, ""),
}
_BARS = 160
"""Beyond this many requests each bar is the mean of several neighbours."""
_PANEL_PX = 190


def served_over_requests(
    served: pd.DataFrame, *, arms: Sequence[str] = (), title: str = "", caption: str = ""
) -> Chart:
    """Prompt tokens of each request in the order in which they were sent, by who served them.

    Takes `served_tokens`, and draws the first round: a panel for each arm, of those named in `arms`
    that there are, else of all. Passes stand behind one another.
    """
    heading = "Who served each token"
    rows = served[served["round"] == served["round"].min()]
    rows = rows[rows[list(_TIERS)].notna().any(axis=1)]
    if rows.empty:
        return no_data(heading, "no request says who served its tokens.")
    present = list(dict.fromkeys(rows["arm"]))
    chosen = [arm for arm in arms if arm in present] or present
    known = [tier for tier in _TIERS if rows[rows["arm"].isin(chosen)][tier].sum() > 0]

    def paint(figure: Figure) -> None:
        grid = figure.subplots(len(chosen), 1, squeeze=False, sharey=True)
        for axes, arm in zip(grid[:, 0], chosen, strict=True):
            _bars(axes, rows[rows["arm"] == arm], known)
            axes.set_title(arm)
        grid[-1, 0].set_xlabel("request, in order")

    names = _names(rows)
    grouped = any(len(rows[rows["arm"] == arm]) > _BARS for arm in chosen)
    silent = [names[t] for t in ("engine", "computed") if rows[t].isna().any()]
    return draw(
        paint,
        title=title or _served_title(rows[rows["arm"].isin(chosen)], names),
        body_px=_PANEL_PX * len(chosen) + 30,
        alt=f"{heading}, as stacked bars in order. {_spoken(rows, chosen, known, names)}",
        caption=caption
        or ("Each bar is the mean of neighbouring requests. " if grouped else "One bar a request. ")
        + (f"Not known for every request: {', '.join(silent)}." if silent else ""),
        keys=_keys(known, names),
        shows=("counts",),
        marks=served.attrs,
    )


def _bars(axes: Axes, rows: pd.DataFrame, known: Sequence[str]) -> None:
    groups = np.arange(len(rows)) * min(_BARS, len(rows)) // max(len(rows), 1)
    means = rows[[*known]].fillna(0.0).groupby(groups).mean()
    left = np.searchsorted(groups, means.index)
    width = np.diff([*left, len(rows)])
    base = np.zeros(len(means))
    for tier in known:
        _, colour, hatch = _TIERS[tier]
        axes.bar(
            left + 0.5, means[tier], width=width * (0.9 if len(rows) < 90 else 1.0), bottom=base,
            align="edge", color=colour, hatch=hatch, edgecolor="white",
            linewidth=0.3 if len(rows) < 90 else 0,
        )  # fmt: skip
        base += means[tier].to_numpy()
    top = 1.28 * (base.max() or 1.0)
    axes.set(xlim=(0.5, len(rows) + 0.5), ylim=(0, max(top, axes.get_ylim()[1])))
    axes.set_ylabel("tokens")
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(lambda tick, _: number(round(tick)))
    axes.grid(axis="x", visible=False)
    axes.xaxis.set_major_locator(MaxNLocator(9, integer=True, steps=[1, 2, 3, 5, 6, 10]))
    names = rows["pass"].astype(str).to_numpy()
    starts = [0, *(np.flatnonzero(names[1:] != names[:-1]) + 1)]
    if len(starts) > 12:
        return
    for start in starts:
        axes.axvline(start + 0.5, color=GREY, linewidth=1)
        axes.text(
            start + 0.5, 0.97, f" {names[start]}", transform=axes.get_xaxis_transform(),
            va="top", size=12, color=GREY,
        )  # fmt: skip


def _names(rows: pd.DataFrame) -> dict[str, str]:
    """How the tiers are called: the in-process generation does not say which of its own it was."""
    names = {tier: name for tier, (name, _, _) in _TIERS.items()}
    return names | {"l1": "LMCache"} if rows["pass"].eq("in-process").all() else names


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


def _spoken(
    rows: pd.DataFrame, arms: Sequence[str], known: Sequence[str], names: Mapping[str, str]
) -> str:
    said = []
    for arm in arms:
        for name, group in rows[rows["arm"] == arm].groupby("pass", sort=False):
            parts = ", ".join(f"{names[t]} {group[t].sum():,.0f}" for t in known)
            said.append(f"{arm}, {name}: {parts} tokens.")
    return " ".join(said[:20])


def _keys(known: Sequence[str], names: Mapping[str, str]) -> dict[str, Look]:
    return {names[tier]: Look(colour=_TIERS[tier][1], marker="s", dash=" ") for tier in known}


def hits_by_tier(tiers: pd.DataFrame, *, title: str = "", caption: str = "") -> Chart:
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
    known = [tier for tier in _TIERS if rows[tier].sum() > 0]
    has_ideal = rows["ideal_share"].map(isfinite)
    claimed = rows["claimed_share"].map(isfinite).any()  # a log has no counters

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for y, (_, row) in enumerate(rows.iterrows()):
            left = 0.0
            for tier in known:
                share = 100 * float(row[tier]) / float(row["prompt_tokens"])
                _, colour, hatch = _TIERS[tier]
                axes.barh(y, share, left=left, height=0.62, color=colour, hatch=hatch,
                          edgecolor="white", linewidth=0.3)  # fmt: skip
                left += share
            if isfinite(row["ideal_share"]):
                at = 100 * float(row["ideal_share"])
                axes.vlines(at, y - 0.42, y + 0.42, color=BLACK, linewidth=2.5, zorder=4)
        row_axis(axes, [f"{row['arm']}, {row['pass']}" for _, row in rows.iterrows()])
        axes.set(xlim=(0, 101), xlabel="share of the prompt tokens, %")
        heading_at_right = "served; LMCache says" if claimed else "served"
        column_at_right(axes, heading_at_right, [_beside(row) for _, row in rows.iterrows()])

    idle = rows[(rows["idle"] > 0) & (rows["l1"] + rows["l2"] == 0)]
    found = heading
    if len(idle) and isfinite(idle.iloc[0]["claimed_share"]):
        row = idle.iloc[0]
        found = (
            f"{row['pass']}, LMCache calls {row['claimed_share']:.0%} of its lookups hits, and the"
            " engine needed none of them"
        )
        found = found[0].upper() + found[1:]
    spoken = (f"{row['arm']} {row['pass']}: {_beside(row)[0]}" for _, row in rows.iterrows())
    return draw(
        paint,
        title=title or found,
        body_px=34 * len(rows) + 84,
        alt=f"{found}. {'; '.join(spoken)}.",
        caption=caption
        or ("The black mark is what an infinite cache would have served. " * bool(has_ideal.any()))
        + "At the right the share served from any cache"
        + (
            ", and the hit rate that LMCache's own counters give, of the tokens that it was asked"
            " for" * bool(claimed)
        )
        + ".",
        keys=_keys(known, _names(rows)),
        shows=("counts",),
        marks=tiers.attrs,
    )


def _beside(row: pd.Series) -> tuple[str, bool]:
    says = row["claimed_share"]
    text = f"{row['hit_share']:.1%}" + (f"; {says:.1%}" if isfinite(says) else "")
    return text, False
