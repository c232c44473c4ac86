"""Figures of what a KV store costs and gains: storing, loading, and the chunk.

They take `HitResult.ratios`, one row per comparison and prompt length; length 0 is all prompts.
"""

from __future__ import annotations

from math import isnan

import pandas as pd
from matplotlib.figure import Figure

from workbench.report.figures import marks
from workbench.report.figures.chart import Chart, draw, no_data

_ONLY_LIVE = "a log has no TTFT; a live run measures it."
_BLUE = marks.Look(colour=marks.BLUE, marker="s")


def cost_of_storing(ratios: pd.DataFrame) -> Chart:
    """Change of cold TTFT by storing in LMCache, in %, for each prompt length and for all."""
    rows = marks.ratio_rows(ratios, what="storing")
    if not rows:
        why = _ONLY_LIVE if ratios.empty else "cold passes have no pairs."
        return no_data("The cost of storing", why)
    for row in rows:  # a ratio above 1 is sooner, so its upper end is the least that it costs
        low, high = row["high"], row["low"]
        row["change"], row["low"], row["high"] = (100 / x - 100 for x in (row["ratio"], low, high))

    lengths, changes = [_length(row) for row in rows], [_change(row) for row in rows]

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        styles = [_BLUE] * len(rows)
        marks.interval_rows(axes, rows, "change", styles, labels=lengths, texts=changes, at=0.0)
        low, high = (extreme([*marks.ends(rows, "change"), 0.0]) for extreme in (min, max))
        axes.set_xlim(low - 0.06 * (high - low) - 1, high + 0.06 * (high - low) + 1)
        axes.set_xlabel("change of cold TTFT, %: above 0 LMCache costs")

    found = f"LMCache changes cold TTFT by {changes[0]}"
    if marks.undecided(rows[0]):
        found = f"What LMCache costs a cold prompt is not told from noise: {changes[0]}"
    return draw(
        paint,
        title=found,
        body_px=40 * len(rows) + 84,
        alt=f"{found}. {'; '.join(map(': '.join, zip(lengths, changes, strict=True)))}.",
        caption="Cold TTFT of the same prompts with LMCache (a lookup that finds nothing, and"
        " storing) against none, paired; 95 % interval over"
        f" {marks.span(rows, 'n_rounds', 'round')}, {marks.span(rows[:1], 'n_pairs', 'pair')}.",
        shows=("ratios",),
        attrs=ratios.attrs,
    )


def _length(row: marks.Row) -> str:
    return f"{int(row['prompt_tokens']):,} tokens" if row["prompt_tokens"] else "all prompts"


def _change(row: marks.Row) -> str:
    text = f"{row['change']:+.1f} %"
    return text if isnan(row["low"]) else f"{text} [{row['low']:+.1f}, {row['high']:+.1f}]"


def break_even(ratios: pd.DataFrame) -> Chart:
    """How many times sooner a prompt answers when it is loaded, against its length.

    A line for each state: all of the prompt in L1, a share of it, all of it on the disk. Above 1
    loading beats recomputing; the crossing is break-even.
    """
    heading = "Break-even of loading and recomputing"
    rows = [row for row in marks.ratio_rows(ratios, what="loading") if row["prompt_tokens"] > 0]
    if not rows:
        return no_data(heading, _ONLY_LIVE if ratios.empty else "no prompt was loaded.")
    rows.sort(key=lambda row: row["prompt_tokens"])
    lines: dict[str, list[marks.Row]] = {}
    for row in rows:
        lines.setdefault(str(row["pass"]), []).append(row)
    look = marks.looks(list(lines))
    lengths = sorted({float(row["prompt_tokens"]) for row in rows})

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for nth, (name, line) in enumerate(lines.items()):
            shift = 1.02 ** (nth - len(lines) / 2)
            xs = [row["prompt_tokens"] * shift for row in line]
            axes.plot(xs, [row["ratio"] for row in line], color=look[name].colour, linewidth=1.5)
            for x, row in zip(xs, line, strict=True):
                marks.mark(
                    axes, x, row["ratio"], (row["low"], row["high"]), look[name], upright=True
                )
        marks.log_axis(axes, [*marks.ends(rows, "ratio"), 0.8, 1.25], axis="y", most=8)
        marks.log_axis(axes, (lengths[0] / 1.1, lengths[-1] * 1.1), ticks=lengths)
        axes.axhline(1, color=marks.BLACK, linewidth=1.2, zorder=1)
        axes.annotate(
            "as fast as recomputing", (lengths[-1] * 1.1, 1), xytext=(0, -6),
            textcoords="offset points", ha="right", va="top", size=12, color=marks.GREY,
        )  # fmt: skip
        axes.set_xlabel("prompt, tokens (log scale)")
        axes.set_ylabel("TTFT computed / TTFT loaded (log scale)")

    longest = f"{int(lengths[-1]):,}"
    gains = [f"{name} {line[-1]['ratio']:.3g}x{_unsure(line[-1])}" for name, line in lines.items()]
    spoken = "; ".join(
        f"{name} at {int(row['prompt_tokens']):,} tokens {row['ratio']:.2f}x"
        for name, line in lines.items()
        for row in line
    )
    return draw(
        paint,
        title=f"Loading against recomputing {longest} tokens: {', '.join(gains)}",
        body_px=340,
        alt=f"{heading}: {spoken}.",
        caption="Ratio of paired TTFT: computed without a store, against found in LMCache. 95 %"
        f" interval over {marks.span(rows, 'n_rounds', 'round')}; hollow marks have none.",
        keys=look,
        shows=("ratios",),
        attrs=ratios.attrs,
    )


def _unsure(row: marks.Row) -> str:
    return {"no_interval": " (no interval)", "undecided": " (not told from 1)"}.get(
        row["verdict"], ""
    )


def chunk_effect(ratios: pd.DataFrame) -> Chart:
    """What LMCache's chunk does: the share of a prompt that it brings, and TTFT."""
    heading = "The effect of the chunk"
    rows = marks.ratio_rows(ratios, what="chunk")
    rows.sort(key=lambda row: (row["chunk_tokens"], row["prompt_tokens"]))
    chunks = list(dict.fromkeys(int(row["chunk_tokens"]) for row in rows))
    if len(chunks) < 2:
        return no_data(heading, _ONLY_LIVE if ratios.empty else "one chunk alone was measured.")
    whole = [row for row in rows if not row["prompt_tokens"]]
    lines: dict[str, list[marks.Row]] = {}
    for row in sorted(rows, key=lambda row: row["prompt_tokens"]):
        if row["prompt_tokens"]:
            lines.setdefault(_length(row), []).append(row)
    look = marks.looks(list(lines))
    main = [int(row["chunk_tokens"]) for row in whole if row["arm"] == row["baseline_arm"]]

    def paint(figure: Figure) -> None:
        left, right = figure.subplots(1, 2)
        for name, line in lines.items():
            xs = [chunks.index(int(row["chunk_tokens"])) for row in line]
            left.plot(
                xs, [100 * row["loaded_share"] for row in line], color=look[name].colour,
                marker=look[name].marker, markersize=7, linewidth=1.5, clip_on=False, zorder=3,
            )  # fmt: skip
        left.set(ylim=(0, 102), ylabel="brought by LMCache, % of the prompt")
        for row in whole:
            itself = row["arm"] == row["baseline_arm"]  # its ratio is 1, without an interval
            bounds = (None, None) if itself else (row["low"], row["high"])
            x = chunks.index(int(row["chunk_tokens"]))
            marks.mark(right, x, row["ratio"], bounds, _BLUE, upright=True)
        right.axhline(1, color=marks.BLACK, linewidth=1.2, zorder=1)
        marks.log_axis(right, [*marks.ends(whole, "ratio"), 0.8, 1.25], axis="y", most=6)
        right.set_ylabel("TTFT speed-up, store-warm (log scale)")
        for axes in (left, right):
            axes.set_xticks(range(len(chunks)), [str(size) for size in chunks])
            axes.set(xlim=(-0.3, len(chunks) - 0.7), xlabel="chunk, tokens")

    shares = ", ".join(
        f"{row['loaded_share']:.1%} with {int(row['chunk_tokens'])}" for row in whole
    )
    speeds = ", ".join(f"chunk {int(row['chunk_tokens'])} {row['ratio']:.2f}x" for row in whole)
    beside = f" against chunk {main[0]}" if main else ""
    return draw(
        paint,
        title=f"Of the same prompts LMCache brings {shares}",
        body_px=310,
        alt=f"{heading}: LMCache brings {shares} tokens a chunk. TTFT speed-up{beside}: {speeds}.",
        caption="Left: exact, for each prompt length. Right: TTFT of all prompts,"
        f" store-warm{beside}, paired, with 95 % interval over"
        f" {marks.span(whole, 'n_rounds', 'round')}; hollow marks have none.",
        keys=look,
        shows=("counts", "ratios"),
        attrs=ratios.attrs,
    )
