"""Figures of what a KV store costs and gains: storing, loading, and the chunk size.

They take `HitResult.ratios`, one row per comparison and prompt length; length 0 is all prompts.
"""

from __future__ import annotations

from math import isnan

import pandas as pd
from matplotlib.figure import Figure

from workbench.experiment.plan.hit_plan import tier_of
from workbench.report.figures import marks
from workbench.report.figures.chart import Chart, draw, no_data
from workbench.report.numbers import times

_ONLY_LIVE = "a log has no TTFT. Run without log_file to measure it."
_BLUE = marks.Look(colour=marks.BLUE, marker="s")


def cost_of_storing(ratios: pd.DataFrame) -> Chart:
    """How much storing in LMCache changes cold TTFT, in %, for each prompt length and for all."""
    rows = marks.ratio_rows(ratios, what="storing")
    if not rows:
        unpaired = "no cold pass was measured both with and without LMCache."
        return no_data("Cost of storing", _ONLY_LIVE if ratios.empty else unpaired)
    for row in rows:  # a ratio above 1 is faster, so its upper end is the lowest cost
        low, high = row["high"], row["low"]
        row["change"], row["low"], row["high"] = (100 / x - 100 for x in (row["ratio"], low, high))

    lengths, changes = [_length(row) for row in rows], [_change(row) for row in rows]

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        styles = [_BLUE] * len(rows)
        marks.interval_rows(
            axes, rows, "change", styles, labels=lengths, texts=changes, at=0.0, heading="change"
        )
        low, high = (extreme([*marks.ends(rows, "change"), 0.0]) for extreme in (min, max))
        axes.set_xlim(low - 0.06 * (high - low) - 1, high + 0.06 * (high - low) + 1)
        axes.set_xlabel("change of cold TTFT, % (above 0: LMCache is slower)")

    found = f"Storing in LMCache changes cold TTFT by {changes[0]}"
    if marks.undecided(rows[0]):
        found = f"No significant effect of storing on cold TTFT ({changes[0]})"
    return draw(
        paint,
        title=found,
        body_px=40 * len(rows) + 84,
        alt=f"{found}. {'; '.join(map(': '.join, zip(lengths, changes, strict=True)))}.",
        caption="Cold TTFT of the same prompts with LMCache (lookup and store) and without a store."
        f" Paired, with 95 % CI ({marks.span(rows, 'n_rounds', 'round')},"
        f" {marks.span(rows[:1], 'n_pairs', 'request pair')}).",
        shows=("ratios",),
        attrs=ratios.attrs,
    )


def _length(row: marks.Row) -> str:
    return f"{int(row['prompt_tokens']):,} tokens" if row["prompt_tokens"] else "all prompts"


def _change(row: marks.Row) -> str:
    text = f"{row['change']:+.3g} %"
    return text if isnan(row["low"]) else f"{text} [{row['low']:+.3g}, {row['high']:+.3g}]"


def break_even(ratios: pd.DataFrame) -> Chart:
    """TTFT speed-up of loading a prompt over computing it, by prompt length.

    A line for each state: all of the prompt in L1, part of it, all of it in a tier below. Above 1
    loading beats recomputing; the crossing is break-even.
    """
    heading = "Speed-up of loading over recomputing"
    rows = [row for row in marks.ratio_rows(ratios, what="loading") if row["prompt_tokens"] > 0]
    if not rows:
        return no_data(heading, _ONLY_LIVE if ratios.empty else "no prompt was loaded.")
    rows.sort(key=lambda row: row["prompt_tokens"])
    lines: dict[str, list[marks.Row]] = {}
    for row in rows:
        several = len({other["arm"] for other in rows if other["pass"] == row["pass"]}) > 1
        name = f"{row['pass']}, {tier_of(row['arm'])}" if several else str(row["pass"])
        lines.setdefault(name, []).append(row)
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
        axes.set_xlabel("prompt length, tokens (log scale)")
        axes.set_ylabel("TTFT speed-up over recomputing (log scale)")

    spoken = "; ".join(
        f"{name} at {int(row['prompt_tokens']):,} tokens {row['ratio']:.3g}x"
        for name, line in lines.items()
        for row in line
    )
    return draw(
        paint,
        title=_gain(lines.get("store-warm", rows)[-1]),
        body_px=340,
        alt=f"{heading}: {spoken}.",
        caption="Speed-up = TTFT when recomputed without a store / TTFT when loaded from LMCache,"
        f" same prompts, with 95 % CI ({marks.span(rows, 'n_rounds', 'round')})."
        " Hollow marker: no CI (too few rounds).",
        keys=look,
        shows=("ratios",),
        attrs=ratios.attrs,
    )


def _gain(row: marks.Row) -> str:
    """What loading the longest prompt does to its TTFT."""
    tokens, name = f"{int(row['prompt_tokens']):,}", row["pass"]
    if row["verdict"] == "no_interval":
        return f"Loading {tokens} tokens: too few rounds to judge ({name} {row['ratio']:.3g}x)"
    if marks.undecided(row):
        return f"No significant speed-up of loading {tokens} tokens ({name})"
    word, factor = ("faster", row["ratio"]) if row["ratio"] > 1 else ("slower", 1 / row["ratio"])
    return f"Loading {tokens} tokens is {times(factor)} {word} than recomputing ({name})"


def chunk_effect(ratios: pd.DataFrame) -> Chart:
    """What LMCache's chunk size does: the fraction of a prompt that is loaded, and TTFT."""
    heading = "Effect of the chunk size"
    rows = marks.ratio_rows(ratios, what="chunk")
    rows.sort(key=lambda row: (row["chunk_tokens"], row["prompt_tokens"]))
    chunks = list(dict.fromkeys(int(row["chunk_tokens"]) for row in rows))
    if len(chunks) < 2:
        return no_data(heading, _ONLY_LIVE if ratios.empty else "only one chunk size was measured.")
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
        left.set(ylim=(0, 102), ylabel="loaded from LMCache, % of the prompt")
        for row in whole:
            itself = row["arm"] == row["baseline_arm"]  # its ratio is 1 by definition
            bounds = (None, None) if itself else (row["low"], row["high"])
            x = chunks.index(int(row["chunk_tokens"]))
            marks.mark(right, x, row["ratio"], bounds, _BLUE, upright=True)
        right.axhline(1, color=marks.BLACK, linewidth=1.2, zorder=1)
        marks.log_axis(right, [*marks.ends(whole, "ratio"), 0.8, 1.25], axis="y", most=6)
        right.set_ylabel("TTFT speed-up, store-warm (log scale)")
        for axes in (left, right):
            axes.set_xticks(range(len(chunks)), [str(size) for size in chunks])
            axes.set(xlim=(-0.3, len(chunks) - 0.7), xlabel="chunk size, tokens")

    shares = "; ".join(map(_loaded, whole))
    speeds = ", ".join(f"{int(row['chunk_tokens'])} {row['ratio']:.3g}x" for row in whole)
    beside = f" over {main[0]}-token chunks" if main else ""
    return draw(
        paint,
        title=f"Prompt tokens loaded: {_loaded(whole[0])}, {_loaded(whole[-1])}",
        body_px=310,
        alt=f"{heading}: LMCache loads {shares}. TTFT speed-up{beside}: {speeds}.",
        caption="Left: fraction of each prompt that LMCache loads (a count, so without CI). Right:"
        f" store-warm TTFT speed-up of all prompts{beside}, paired, with 95 % CI"
        f" ({marks.span(whole, 'n_rounds', 'round')}). Hollow marker: no CI.",
        keys=look,
        shows=("counts", "ratios"),
        attrs=ratios.attrs,
    )


def _loaded(row: marks.Row) -> str:
    return f"{100 * row['loaded_share']:.3g} % with chunk {int(row['chunk_tokens'])}"
