"""vLLM beside transformers: ratios at equal batch, scaling, saturation, memory, checks."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

from workbench.claims.conditions import (
    by_construction,
    curve,
    known,
    left_out,
    limits,
    proven,
    state,
    where,
)
from workbench.claims.decision import Interval, difference
from workbench.claims.engines.generation import TRANSFORMERS, VLLM, VLLM_CACHED
from workbench.claims.intervals import (
    gained_percent,
    mean_of_runs,
    noise,
    of_runs,
    points,
    ratios,
)
from workbench.claims.recipe import Outcome
from workbench.claims.verdict import Measurement

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import pandas as pd

    from workbench.claims.claim import Bound
    from workbench.claims.recipe import Setting
    from workbench.claims.rows import Rows

__all__ = ["of_generation"]

SATURATED = 1.05
"""An engine is saturated where a larger batch gives at most so many times the tokens/s."""
SAME_TEXT = 0.8
"""Share of answers that both engines begin with the same token: their kernels round numbers
differently, and 94 to 97 % were the same here; other weights would share one in thousands."""


def of_generation(
    rows: Rows,
    setting: Setting,
    *,
    output_tokens: int,
    wanted: tuple[int, ...],
    input_tokens: int = 0,
    parameters: float = 0.0,
) -> Outcome:
    """vLLM beside transformers at equal batch, each engine by batch, and its saturation.

    `parameters` are those that a token passes, 0 where that is not known: then no ceiling is.
    """
    table = rows.table
    speeds = {arm: _speeds(table, arm, output_tokens) for arm in (TRANSFORMERS, VLLM, VLLM_CACHED)}
    over = ratios(table, "time", over=TRANSFORMERS, under=VLLM)
    cached = ratios(table, "time", over=VLLM_CACHED, under=VLLM)
    batches = {cell: _batch(cell) for cell in speeds[VLLM].index}
    steps, share = _scaling(speeds[VLLM])
    lines = {
        arm: {str(cell): mean_of_runs(row.to_numpy(float)) for cell, row in speed.iterrows()}
        for arm, speed in speeds.items()
    }
    memory = {arm: _memory(table, arm) for arm in speeds}
    lengths = _lengths_hold(table, output_tokens)
    uncached = bool((table.loc[table["quantity"] == "cached tokens", "value"] == 0).all())
    same = _same_first_tokens(table)
    floor = _launch_noise(speeds.values())
    calls_floor = _call_noise(table)
    peaks = (speeds[VLLM].max() / speeds[TRANSFORMERS].max()).to_numpy(float)
    bounds = _bounds(setting, table, parameters, input_tokens, output_tokens)
    measurements = {
        "OWN-VLLM-HF": Measurement(effects={"throughput": tuple(over.values())}, noise_floor=floor),
        "OWN-BATCHING": Measurement(
            effects={"with each larger batch": steps, "share of a proportional gain": (share,)},
            noise_floor=calls_floor,
        ),
        "VLLM-24X": Measurement(effects={"over transformers": tuple(over.values())}),
        "S003-VLLM-VS-HF-PEAK": Measurement(
            effects={"throughput": (gained_percent(mean_of_runs(peaks)),)}
        ),
        "S003-HF-TPUT": Measurement(
            effects={cell: (line,) for cell, line in lines[TRANSFORMERS].items()}
        ),
        "S003-VLLM-TPUT": Measurement(
            effects={cell: (line,) for cell, line in lines[VLLM].items()}
        ),
    }
    return Outcome(
        measurements={
            claim: replace(measured, bounds=bounds) for claim, measured in measurements.items()
        },
        table=table,
        says=f"Greedy generation of {output_tokens} tokens by vLLM and by transformers, the same"
        f" {setting.dtype} weights and prompts, {where(rows, setting)}. {_best(lines)} First"
        f" tokens are the same in {same:.1%} of answers; launches of one engine differ by"
        f" {difference(floor)}.",
        checks=proven(rows) | by_construction(
            "same_model_and_weights", "one_factor_changed", "same_metric_definition",
            "same_gpu_count_or_per_gpu", "subject_is_measured",
        ) | {
            "same_token_lengths_ignore_eos": state(lengths),
            "cache_state_controlled": state(uncached),
            "output_quality_checked": state(same >= SAME_TEXT),
            "aa_noise_floor": known(floor, calls_floor),
        },
        curves=(
            curve("Output tokens per second", "batch", "tokens/s",
                  [row for arm, line in lines.items() for row in points(arm, line, batches)]),
            curve("vLLM beside the others at equal batch", "batch", "times as long as vLLM",
                  [*points(TRANSFORMERS, over, batches), *points(VLLM_CACHED, cached, batches),
                   *points("the same, prompts repeated", _repeated(table), batches)]),
            curve("Peak memory", "batch", "GB",
                  [row for arm, line in memory.items() for row in points(arm, line, batches)]),
        ),
        doubts=(
            *rows.doubts, *left_out("batches", set(wanted) - set(batches.values())),
            "Eager mode, without compiled graphs." if setting.platform == "cpu" else
            "transformers runs eagerly, without a compiled or static cache.",
        ),
    )  # fmt: skip


def _speeds(table: pd.DataFrame, arm: str, output_tokens: int) -> pd.DataFrame:
    """Output tokens per second: a row for each batch, a column for each run."""
    seconds = of_runs(table, "time", arm)
    tokens = [float(_batch(str(cell)) * output_tokens) for cell in seconds.index]
    return 1 / seconds.div(tokens, axis=0)


def _bounds(
    setting: Setting,
    table: pd.DataFrame,
    parameters: float,
    input_tokens: int,
    output_tokens: int,
) -> tuple[Bound, ...]:
    """The fastest call as operations (2 for each weight and token) and as bytes read.

    Each of `output_tokens` passes reads the weights once, whatever the batch (Pope et al., 2022).
    """
    if not parameters:
        return ()
    calls = table[table["quantity"] == "time"]
    tokens = calls["cell"].map(_batch) * (input_tokens + output_tokens)
    weights_s = 2e-12 * parameters / calls["value"].astype(float)
    return limits(
        setting,
        matrix_rate=float((weights_s * tokens).max()),
        memory_bandwidth=float((weights_s * output_tokens).max()),
    )


def _batch(cell: str) -> int:
    return int(cell.split()[1])


def _scaling(speeds: pd.DataFrame) -> tuple[tuple[Interval, ...], Interval]:
    """Gain from each batch to the next; and at the largest, the share of a proportional gain."""
    cells = list(speeds.index)
    steps = tuple(
        replace(
            mean_of_runs(
                (speeds.loc[after] / speeds.loc[before]).to_numpy(float), cells=len(cells) - 1
            ),
            cell=f"{before} to {_batch(after)}",
        )
        for before, after in pairwise(cells)
    )
    larger = _batch(cells[-1]) / _batch(cells[0])
    share = mean_of_runs((speeds.loc[cells[-1]] / speeds.loc[cells[0]]).to_numpy(float) / larger)
    return steps, share


def _repeated(table: pd.DataFrame) -> dict[str, Interval]:
    """The time of prompts that the prefix cache has, over that without a cache."""
    pairs = of_runs(table, "time when repeated", VLLM_CACHED) / of_runs(table, "time", VLLM)
    return {str(cell): mean_of_runs(row.to_numpy(float)) for cell, row in pairs.iterrows()}


def _memory(table: pd.DataFrame, arm: str) -> dict[str, Interval]:
    peaks = of_runs(table, "peak memory", arm)
    return {str(cell): mean_of_runs(row.to_numpy(float)) for cell, row in peaks.iterrows()}


def _lengths_hold(table: pd.DataFrame, output_tokens: int) -> bool:
    made = table[table["quantity"] == "output tokens"]
    return bool((made["value"] == made["cell"].map(_batch) * output_tokens).all())


def _same_first_tokens(table: pd.DataFrame) -> float:
    """Share of answers that begin with the same token in vLLM and transformers."""
    first = table[table["quantity"] == "first token"].copy()
    first["answer"] = first.groupby(["arm", "cell", "run"]).cumcount()
    wide = first.pivot(index=["cell", "run", "answer"], columns="arm", values="value")
    wide = wide[[VLLM, TRANSFORMERS]].dropna()
    return float((wide[VLLM] == wide[TRANSFORMERS]).mean())


def _launch_noise(speeds: Iterable[pd.DataFrame]) -> float:
    """`noise` of one launch and the next of the same engine: equal arms (A/A)."""
    return noise([
        after / before
        for speed in speeds
        for row in speed.to_numpy(float)
        for before, after in pairwise(row)
        if before > 0 and after > 0
    ])  # fmt: skip


def _call_noise(table: pd.DataFrame) -> float:
    """The same for two calls of equal work in one launch: what batches of one launch differ by."""
    times = table[(table["quantity"] == "time") & (table["arm"] == VLLM)]
    calls = times.groupby(["cell", "run"])["value"]
    # A single call is no pair: it would equal itself, and the noise would be none.
    return noise((calls.first() / calls.last())[calls.count() > 1])


def _best(lines: Mapping[str, Mapping[str, Interval]]) -> str:
    """A sentence for each engine on its best batch, and whether that is its saturation."""
    said = []
    for arm, line in lines.items():
        cells = list(line)
        best = max(cells, key=lambda cell: line[cell].estimate)
        full = best != cells[-1] or (
            len(cells) > 1 and line[cells[-1]].estimate < SATURATED * line[cells[-2]].estimate
        )
        word = "saturated" if full else "not yet saturated"
        said.append(f"{arm}: {line[best].estimate:,.0f} tokens/s at {best} ({word}).")
    return " ".join(said)
