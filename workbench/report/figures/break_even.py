"""Figures of what a KV store costs and gains: storing, loading, and the chunk."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import cycle
from math import isfinite, isnan

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from workbench.report.figures.chart import Chart, draw, log_ticks, no_data
from workbench.report.figures.dots import Row, column_at_right, dot, row_axis, span
from workbench.report.figures.looks import BLACK, BLUE, GREEN, GREY, PURPLE, VERMILION, Look
from workbench.report.numbers import number

__all__ = ["break_even", "chunk_effect", "cost_of_storing"]

_LENGTHS = (
    Look(colour=VERMILION, marker="o"), Look(colour=GREEN, marker="D"),
    Look(colour=PURPLE, marker="^"), Look(colour=BLUE, marker="s"), Look(colour=BLACK, marker="v"),
)  # fmt: skip
_ONLY_LIVE = "a log has no TTFT; a live run measures it."


def _picked(ratios: pd.DataFrame, what: str) -> pd.DataFrame:
    if ratios.empty:
        return ratios
    return ratios[(ratios["what"] == what) & ratios["ratio"].gt(0)]


def cost_of_storing(ratios: pd.DataFrame, *, title: str = "", caption: str = "") -> Chart:
    """Change of cold TTFT by storing in LMCache, in %, for each prompt length and for all."""
    heading = "The cost of storing"
    frame = _picked(ratios, "storing")
    if frame.empty:
        return no_data(heading, _ONLY_LIVE if ratios.empty else "cold passes have no pairs.")
    rows: list[Row] = []
    for row in frame.to_dict("records"):
        turned = (("change", "ratio"), ("low", "high"), ("high", "low"))
        change = {key: 100 * (1 / row[of] - 1) for key, of in turned}
        rows.append({"n_rounds": row["n_rounds"], "n_pairs": row["n_pairs"],
                     "length": int(row["prompt_tokens"]), **change})  # fmt: skip

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for y, row in enumerate(rows):
            dot(axes, row, Look(colour=BLUE, marker="s"), y=y, key="change")
        row_axis(axes, [_length(row) for row in rows])
        ends = [row[key] for row in rows for key in ("low", "change", "high") if isfinite(row[key])]
        low, high = min(*ends, 0.0), max(*ends, 0.0)
        axes.set_xlim(low - 0.06 * (high - low) - 1, high + 0.06 * (high - low) + 1)
        axes.axvline(0, color=BLACK, linewidth=1.2, zorder=1)
        axes.set_xlabel("change of cold TTFT, %: above 0 LMCache costs")
        column_at_right(axes, "change", [(_change(row), _open(row)) for row in rows])

    whole = rows[0]
    found = f"LMCache changes cold TTFT by {_change(whole)}"
    if _open(whole):
        found = f"What LMCache costs a cold prompt is not told from noise: {_change(whole)}"
    return draw(
        paint,
        title=title or found,
        body_px=40 * len(rows) + 84,
        alt=f"{found}. " + "; ".join(f"{_length(r)}: {_change(r)}" for r in rows) + ".",
        caption=caption
        or f"Cold TTFT of the same prompts with LMCache (a lookup that finds nothing, and storing)"
        f" against none, paired; 95 % interval"
        f" over {span(rows, 'n_rounds', 'round')}, {span(rows[:1], 'n_pairs', 'pair')}.",
        shows=("ratios",),
        marks=ratios.attrs,
    )


def _length(row: Row) -> str:
    return f"{row['length']:,} tokens" if row["length"] else "all prompts"


def _change(row: Row) -> str:
    text = f"{row['change']:+.1f} %"
    return text if isnan(row["low"]) else f"{text} [{row['low']:+.1f}, {row['high']:+.1f}]"


def _open(row: Row) -> bool:
    return not (row["low"] > 0 or row["high"] < 0)


def break_even(ratios: pd.DataFrame, *, title: str = "", caption: str = "") -> Chart:
    """How many times sooner a prompt answers when it is loaded, against its length.

    A line for each state: all of the prompt in L1, a share of it, all of it on the disk. Above 1
    loading beats recomputing; the crossing is break-even.
    """
    heading = "Break-even of loading and recomputing"
    frame = _picked(ratios, "loading")
    frame = frame[frame["prompt_tokens"].gt(0)] if len(frame) else frame
    if frame.empty:
        return no_data(heading, _ONLY_LIVE if ratios.empty else "no prompt was loaded.")
    groups = {str(name): rows.sort_values("prompt_tokens")
              for name, rows in frame.groupby("pass", sort=False)}  # fmt: skip
    look = _looks(groups)

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for nth, (name, rows) in enumerate(groups.items()):
            _line(axes, rows, look[name], shift=1.02 ** (nth - len(groups) / 2))
        ends = [v for key in ("low", "ratio", "high") for v in frame[key] if isfinite(v)]
        log_ticks(axes, min(*ends, 0.8), max(*ends, 1.25), axis="y", most=8)
        lengths = sorted(set(frame["prompt_tokens"].astype(int)))
        log_ticks(axes, lengths[0] / 1.1, lengths[-1] * 1.1)
        axes.xaxis.set_major_locator(FixedLocator([float(n) for n in lengths]))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(lambda tick, _: number(round(tick)))
        axes.axhline(1, color=BLACK, linewidth=1.2, zorder=1)
        axes.annotate(
            "as fast as recomputing", (lengths[-1] * 1.1, 1), xytext=(0, -6),
            textcoords="offset points", ha="right", va="top", size=12, color=GREY,
        )  # fmt: skip
        axes.set(xlabel="prompt, tokens (log scale)",
                 ylabel="TTFT computed / TTFT loaded (log scale)")  # fmt: skip

    spoken = "; ".join(
        f"{name} at {int(row['prompt_tokens']):,} tokens {row['ratio']:.2f}x"
        for name, rows in groups.items()
        for _, row in rows.iterrows()
    )
    rows_ = [dict(row) for _, row in frame.iterrows()]
    return draw(
        paint,
        title=title or _break_even_title(groups),
        body_px=340,
        alt=f"{heading}: {spoken}.",
        caption=caption
        or "Ratio of paired TTFT: computed without a store, against found in LMCache. 95 % interval"
        f" over {span(rows_, 'n_rounds', 'round')}; hollow marks have none.",
        keys=look,
        shows=("ratios",),
        marks=ratios.attrs,
    )


def _looks(names: Iterable[str]) -> dict[str, Look]:
    """L1 and L2 in the colours of their tier, shares of a prompt in others."""
    partly = cycle((Look(colour=GREEN, marker="D"), Look(colour=BLACK, marker="v")))
    known = {
        "store-warm": Look(colour=BLUE, marker="s"),
        "disk-warm": Look(colour=PURPLE, marker="^"),
    }
    return {name: known[name] if name in known else next(partly) for name in names}


def _line(axes: Axes, rows: pd.DataFrame, look: Look, *, shift: float) -> None:
    x = rows["prompt_tokens"].to_numpy(float) * shift
    axes.plot(x, rows["ratio"], color=look.colour, linewidth=1.5, zorder=2)
    for at, (_, row) in zip(x, rows.iterrows(), strict=True):
        known = isfinite(row["low"]) and isfinite(row["high"])
        if known:
            axes.vlines(at, row["low"], row["high"], color=look.colour, linewidth=3)
        axes.plot(at, row["ratio"], marker=look.marker, markersize=8.5, color=look.colour,
                  markerfacecolor=look.colour if known else "white",
                  markeredgewidth=0 if known else 2, zorder=3)  # fmt: skip


def _break_even_title(groups: dict[str, pd.DataFrame]) -> str:
    """What the longest prompt gains in each state, and whether the interval carries it."""
    parts = []
    for name, rows in groups.items():
        row = rows.iloc[-1]
        sure = "" if row["low"] > 1 or row["high"] < 1 else " (not told from 1)"
        sure = " (no interval)" if isnan(row["low"]) else sure
        parts.append(f"{name} {row['ratio']:.3g}x{sure}")
    length = int(max(rows["prompt_tokens"].max() for rows in groups.values()))
    return f"Loading against recomputing {length:,} tokens: {', '.join(parts)}"


def chunk_effect(ratios: pd.DataFrame, *, title: str = "", caption: str = "") -> Chart:
    """What LMCache's chunk does: the share of a prompt that it brings, and TTFT."""
    heading = "The effect of the chunk"
    frame = _picked(ratios, "chunk")
    if frame.empty or frame["chunk_tokens"].nunique() < 2:
        return no_data(heading, _ONLY_LIVE if ratios.empty else "one chunk alone was measured.")
    frame = frame.sort_values(["chunk_tokens", "prompt_tokens"])
    chunks = [int(size) for size in dict.fromkeys(frame["chunk_tokens"])]
    by_length = frame[frame["prompt_tokens"].gt(0)]
    names = {int(n): f"{int(n):,} tokens" for n in sorted(set(by_length["prompt_tokens"]))}
    look = dict(zip(names.values(), cycle(_LENGTHS), strict=False))
    whole = frame[frame["prompt_tokens"].eq(0)]
    main = whole[whole["arm"] == whole["baseline_arm"]]["chunk_tokens"]

    def paint(figure: Figure) -> None:
        left, right = figure.subplots(1, 2)
        for length, rows in by_length.groupby("prompt_tokens"):
            mine = look[names[int(length)]]  # type: ignore[arg-type]
            at = [chunks.index(int(size)) for size in rows["chunk_tokens"]]
            left.plot(at, 100 * rows["loaded_share"], color=mine.colour, marker=mine.marker,
                      markersize=7, linewidth=1.5, clip_on=False, zorder=3)  # fmt: skip
        left.set(
            ylim=(0, 102), xlabel="chunk, tokens", ylabel="brought by LMCache, % of the prompt"
        )
        for _, row in whole.iterrows():
            at_x = chunks.index(int(row["chunk_tokens"]))
            known = isfinite(row["low"]) and row["arm"] != row["baseline_arm"]
            if known:
                right.vlines(at_x, row["low"], row["high"], color=BLUE, linewidth=3)
            right.plot(at_x, row["ratio"], marker="s", markersize=8.5, color=BLUE,
                       markerfacecolor=BLUE if known else "white",
                       markeredgewidth=0 if known else 2, zorder=3)  # fmt: skip
        right.axhline(1, color=BLACK, linewidth=1.2, zorder=1)
        ends = [v for key in ("low", "ratio", "high") for v in whole[key] if isfinite(v)]
        log_ticks(right, min(*ends, 0.8), max(*ends, 1.25), axis="y", most=6)
        right.set(xlabel="chunk, tokens", ylabel="TTFT speed-up, store-warm (log scale)")
        for axes in (left, right):
            axes.set_xticks(range(len(chunks)), [str(size) for size in chunks])
            axes.set_xlim(-0.3, len(chunks) - 0.7)

    shares = ", ".join(
        f"{row['loaded_share']:.1%} with {int(row['chunk_tokens'])}" for _, row in whole.iterrows()
    )
    beside = f" against chunk {int(main.iloc[0])}" if len(main) else ""
    rows_ = [dict(row) for _, row in whole.iterrows()]
    return draw(
        paint,
        title=title or f"Of the same prompts LMCache brings {shares}",
        body_px=310,
        alt=f"{heading}: LMCache brings {shares} tokens a chunk. TTFT speed-up{beside}: "
        + ", ".join(f"chunk {int(r['chunk_tokens'])} {r['ratio']:.2f}x" for r in rows_)
        + ".",
        caption=caption
        or f"Left: exact, for each prompt length. Right: TTFT of all prompts, store-warm{beside},"
        f" paired, with 95 % interval over {span(rows_, 'n_rounds', 'round')}; hollow marks have"
        " none.",
        keys=look,
        shows=("counts", "ratios"),
        marks=ratios.attrs,
    )
