"""vLLM compared with transformers: greedy, with the same weights, prompts and batches.

Both have the same number format and lengths and ignore the end of sequence; neither detokenises.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import pairwise
from math import nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.claims.engines.engine import (
    ENGINE,
    FIRST_TOKEN_ID,
    VLLM,
    WARM,
    engine_job,
    start_vllm,
)
from workbench.claims.recipes.recipe import Curve, Outcome, Setting, left_out
from workbench.claims.recipes.rounds import launched_recipe
from workbench.claims.recipes.rows import Rows, mean_of_runs, means, row
from workbench.claims.registry.claim import Bound
from workbench.claims.verdict.decision import Interval, difference
from workbench.claims.verdict.verdict import Measurement, by_construction, known, state
from workbench.metrics.statistics import noise_floor
from workbench.serve.tiny_model import model_facts

if TYPE_CHECKING:
    import pandas as pd

VLLM_CACHED, TRANSFORMERS = "vllm, prefix cache on", "transformers"
ENGINES = (TRANSFORMERS, VLLM, VLLM_CACHED)
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
INPUT_TOKENS, OUTPUT_TOKENS = 160, 16
"""160 tokens hold one block of 128, so that a repeated prompt can hit on a CPU as well."""
GROWTH = 2.2
"""A batch twice as large takes at most about this factor longer."""
CALLS_S, MOST_CALLS = 0.8, 7
"""A batch is repeated until it has taken this long; the median of seven calls ignores a spike."""
SATURATED = 1.05
"""An engine is saturated if the next batch raises its tokens/s by at most this factor."""
SAME_TEXT = 0.8
"""Fraction of outputs that must start with the same token in both engines. Their kernels round
differently: 94 % to 97 % were the same here; with other weights it would be one in thousands."""

Generate = Callable[[Sequence[Sequence[int]]], tuple[list[list[int]], int]]
"""Prompts to outputs, with the number of cached prompt tokens."""


def measure(job: Mapping[str, Any]) -> dict[str, Any]:
    """Rows of one launch: seconds, tokens and memory of each call of each batch.

    Every batch is warmed up by one call and called `calls` times, short ones more often. Batches
    grow until `batches` or `budget_s` ends; `done` holds those measured.
    """
    import torch

    started_s = time.monotonic()
    generate = _transformers(job) if job["engine"] == TRANSFORMERS else _vllm(job)
    rows: list[dict[str, Any]] = []
    done: list[int] = []
    needed_s = 0.0
    for batch in job["batches"]:
        if done and time.monotonic() - started_s + GROWTH * needed_s > job["budget_s"]:
            break

        def add(quantity: str, value: float, unit: str, cell: str = f"batch {batch}") -> None:
            rows.append(row(quantity, job["engine"], cell, value, unit, order=len(rows)))

        begin_s = time.monotonic()
        _forget_peak(job["device"])
        for call in range(1 + MOST_CALLS):
            if call > job["calls"] and time.monotonic() - begin_s > CALLS_S:
                break
            prompts = _prompts(job, batch, call)
            call_s = time.perf_counter()
            outputs, cached = generate(prompts)
            lap_s = time.perf_counter() - call_s
            if call == 0:
                continue
            add("time", lap_s, "s")
            add("output tokens", sum(map(len, outputs)), "tokens")
            add("cached tokens", cached, "tokens")
            for output in outputs:
                add("first token", output[0], "id")
        if job["engine"] == VLLM_CACHED:
            call_s = time.perf_counter()
            _, cached = generate(prompts)
            add("time when repeated", time.perf_counter() - call_s, "s")
            add("cached tokens when repeated", cached, "tokens")
        add("peak memory", _peak_gb(job["device"]), "GB")
        done.append(batch)
        needed_s = time.monotonic() - begin_s
    return {"rows": rows, "done": done, "threads": torch.get_num_threads()}


def _prompts(job: Mapping[str, Any], batch: int, call: int) -> list[list[int]]:
    """The same for every engine; new in every call, so that a prefix cache never hits."""
    random_ids = random.Random(f"{job['seed']} {batch} {call}")
    return [
        random_ids.choices(range(FIRST_TOKEN_ID, job["vocab_tokens"]), k=job["input_tokens"])
        for _ in range(batch)
    ]


def _transformers(job: Mapping[str, Any]) -> Generate:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        job["model"], dtype=getattr(torch, job["dtype"]), local_files_only=True
    ).to(job["device"])
    model.eval()
    tokens = job["output_tokens"]

    def generate(prompts: Sequence[Sequence[int]]) -> tuple[list[list[int]], int]:
        ids = torch.tensor(prompts, device=job["device"])
        with torch.inference_mode():
            output = model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False,
                min_new_tokens=tokens, max_new_tokens=tokens, pad_token_id=0,
            )  # fmt: skip
        return output[:, ids.shape[1] :].tolist(), 0

    return generate


def _vllm(job: Mapping[str, Any]) -> Generate:
    from vllm import SamplingParams

    engine = start_vllm(
        job, enable_prefix_caching=job["engine"] == VLLM_CACHED, max_num_seqs=max(job["batches"])
    )
    sampling = SamplingParams(
        temperature=job.get("temperature", 0.0), detokenize=job.get("text", False),
        max_tokens=job["output_tokens"], ignore_eos=True,
    )  # fmt: skip

    def generate(prompts: Sequence[Sequence[int]]) -> tuple[list[list[int]], int]:
        given = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        answers = engine.generate(given, sampling, use_tqdm=False)
        cached = sum(answer.num_cached_tokens or 0 for answer in answers)
        return [list(answer.outputs[0].token_ids) for answer in answers], cached

    return generate


def _forget_peak(device: str) -> None:
    """Reset the peak memory; Linux lets a process clear its own high-water mark (proc(5))."""
    import torch

    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    else:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def _peak_gb(device: str) -> float:
    """The peak memory since then, resident on a CPU; NaN if unknown."""
    import torch

    if device != "cpu":
        return float(torch.cuda.max_memory_allocated() / 1e9)
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e9
    return nan


def read(rows: Rows, setting: Setting) -> Outcome:
    """vLLM compared with transformers at equal batch, and each engine by batch."""
    speeds = {arm: _speeds(rows, arm) for arm in ENGINES}
    lines = {arm: means(speed) for arm, speed in speeds.items()}
    over = rows.ratios("time", over=TRANSFORMERS, under=VLLM)
    repeated = rows.medians("time when repeated", VLLM_CACHED) / rows.medians("time", VLLM)
    steps, share = _scaling(speeds[VLLM])
    made = rows.of("output tokens")
    lengths = bool((made["value"] == made["cell"].map(_batch) * OUTPUT_TOKENS).all())
    uncached = bool((rows.of("cached tokens")["value"] == 0).all())
    same = _same_first_tokens(rows)
    floor, calls_floor = _launch_noise(speeds.values()), _call_noise(rows)
    peaks = mean_of_runs((speeds[VLLM].max() / speeds[TRANSFORMERS].max()).to_numpy(float))
    make = partial(Measurement, bounds=_bounds(rows, setting))
    return rows.outcome(
        {
            "OWN-VLLM-HF": make(effects={"throughput": tuple(over.values())}, noise_floor=floor),
            "OWN-BATCHING": make(
                effects={
                    "with each larger batch": steps, "fraction of a proportional gain": (share,),
                },
                noise_floor=calls_floor,
            ),
            "VLLM-24X": make(effects={"over transformers": tuple(over.values())}),
            "S003-VLLM-VS-HF-PEAK": make(effects={"throughput": (peaks.gained_percent,)}),
            "S003-HF-TPUT": make(effects={c: (line,) for c, line in lines[TRANSFORMERS].items()}),
            "S003-VLLM-TPUT": make(effects={c: (line,) for c, line in lines[VLLM].items()}),
        },
        says=f"Greedy generation of {OUTPUT_TOKENS} tokens by vLLM and by transformers, the same"
        f" {setting.dtype} weights and prompts, {rows.where(setting)}. {_best(lines)} First"
        f" tokens agree in {100 * same:.1f} % of outputs. Launches of one engine differ by"
        f" {difference(floor)}.",
        checks=by_construction(
            "same_model_and_weights", "one_factor_changed", "same_metric_definition",
            "same_gpu_count_or_per_gpu", "subject_is_measured",
        ) | {
            "same_token_lengths_ignore_eos": state(lengths),
            "cache_state_controlled": state(uncached),
            "output_quality_checked": state(same >= SAME_TEXT),
            "aa_noise_floor": known(floor, calls_floor),
        },
        curves=(
            Curve.of("Output tokens per second", "batch", "tokens/s", lines, at=_batch),
            Curve.of(
                "Time at equal batch", "batch", "time, vLLM = 1",
                {
                    TRANSFORMERS: over,
                    VLLM_CACHED: rows.ratios("time", over=VLLM_CACHED, under=VLLM),
                    "vllm, prompts repeated": means(repeated),
                },
                at=_batch,
            ),
            Curve.of(
                "Peak memory", "batch", "GB",
                {arm: means(rows.medians("peak memory", arm)) for arm in ENGINES}, at=_batch,
            ),
        ),
        doubts=(
            *left_out("batches", set(BATCHES) - set(map(_batch, lines[VLLM]))),
            "Eager mode, without compiled graphs." if setting.platform == "cpu" else
            "transformers runs eagerly, without a compiled or static cache.",
        ),
    )  # fmt: skip


def _speeds(rows: Rows, arm: str) -> pd.DataFrame:
    """Output tokens per second: a row for each batch, a column for each run."""
    seconds = rows.medians("time", arm)
    tokens = [float(_batch(str(cell)) * OUTPUT_TOKENS) for cell in seconds.index]
    return 1 / seconds.div(tokens, axis=0)


def _bounds(rows: Rows, setting: Setting) -> tuple[Bound, ...]:
    """The fastest call as FLOPs (2 per weight and token) and as bytes read.

    Each output token reads the weights once, at any batch (Pope et al., 2022). None if the number
    of parameters is unknown.
    """
    if setting.platform == "cpu" or not (parameters := model_facts(setting.model).parameters):
        return ()
    calls = rows.of("time")
    tokens = calls["cell"].map(_batch) * (INPUT_TOKENS + OUTPUT_TOKENS)
    weights_s = 2e-12 * parameters / calls["value"].astype(float)
    return setting.bounds(
        matrix_rate=float((weights_s * tokens).max()),
        memory_bandwidth=float((weights_s * OUTPUT_TOKENS).max()),
    )


def _batch(cell: str) -> int:
    return int(cell.split()[1])


def _scaling(speeds: pd.DataFrame) -> tuple[tuple[Interval, ...], Interval]:
    """Gain from each batch to the next; and the fraction of a proportional gain at the largest."""
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


def _same_first_tokens(rows: Rows) -> float:
    """Fraction of outputs that start with the same token in vLLM and transformers."""
    first = rows.of("first token").copy()
    first["answer"] = first.groupby(["arm", "cell", "run"]).cumcount()
    wide = first.pivot(index=["cell", "run", "answer"], columns="arm", values="value")
    wide = wide[[VLLM, TRANSFORMERS]].dropna()
    return float((wide[VLLM] == wide[TRANSFORMERS]).mean())


def _launch_noise(speeds: Iterable[pd.DataFrame]) -> float:
    """The noise floor of consecutive launches of the same engine (A/A)."""
    return noise_floor([
        after / before
        for speed in speeds
        for line in speed.to_numpy(float)
        for before, after in pairwise(line)
        if before > 0 and after > 0
    ])  # fmt: skip


def _call_noise(rows: Rows) -> float:
    """The same for two equal calls of one launch, since batches are compared within a launch."""
    times = rows.of("time")
    calls = times[times["arm"] == VLLM].groupby(["cell", "run"])["value"]
    # A single call would be compared with itself and show no noise.
    return noise_floor((calls.first() / calls.last())[calls.count() > 1])


def _best(lines: Mapping[str, Mapping[str, Interval]]) -> str:
    """A sentence for each engine: its best batch, and whether it is saturated there."""
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


RECIPE = launched_recipe(
    "generation", "engine",
    ("OWN-VLLM-HF", "OWN-BATCHING", "VLLM-24X", "S003-VLLM-VS-HF-PEAK", "S003-HF-TPUT",
     "S003-VLLM-TPUT"),
    "vLLM, with and without its prefix cache, compared with transformers at equal batch.",
    target=f"{__name__}:measure",
    job=lambda setting: engine_job(
        setting, batches=list(BATCHES), calls=2, input_tokens=INPUT_TOKENS,
        output_tokens=OUTPUT_TOKENS,
    ),
    arms=[{"engine": engine} for engine in ENGINES],
    outcome=read,
    cost=ENGINE,
    each_s=0.5,  # small batches
    most_each_s=16.0,  # all of BATCHES on a CPU of 2 cores
    warm=WARM,
    after_first=lambda result: {"batches": result["done"], "budget_s": 1e6},
)  # fmt: skip
