"""The profile of a measured run: fits of its prefill, decode steps and transfers."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace
from math import ceil
from typing import TYPE_CHECKING

import numpy as np

from workbench.errors import ResultError
from workbench.experiment.findings.sentences import percent
from workbench.experiment.result.facts import ArmFacts
from workbench.experiment.result.result import Result
from workbench.metrics.gates.gate_effects import spoil
from workbench.metrics.latency import own_concurrency, succeeded
from workbench.metrics.passes import is_cold
from workbench.params.engine_args import value_of
from workbench.serve.connectors import connector
from workbench.topology import Topology
from workbench.whatif.model.simulation import Load, simulate
from workbench.whatif.profiles.fits import Fit, fit
from workbench.whatif.profiles.profile import Profile, machine_of

if TYPE_CHECKING:
    import pandas as pd

LEAST_LENGTHS, LEAST_BATCHES = 3, 3
"""Fewest different prompt lengths and decode batches for a fit."""
LARGEST_RESIDUAL = 0.3
"""Median of |measured / fitted - 1| of prefill and decode above which there is no profile."""
LARGEST_TRANSFER_RESIDUAL = 0.5
"""The same of the transfer, whose few milliseconds are a small part of TTFT."""
LEAST_OVERLAPS = 5
"""Fewest overlapping transfers for which their slope is fitted."""
_STEP_TOKENS, _STEP_SEQUENCES = 2048, 256
"""vLLM's defaults on a CPU, used if neither an argument nor the log has a value."""
_KV_LINE = re.compile(r"KV cache size: ([\d,]+) tokens")
_BUDGET_LINE = re.compile(r"max_num_batched_tokens=(\d+)")


def profile_of(result: Result) -> Profile:
    """The profile of a run whose arms include a 1p1d with passes at several concurrencies.

    Raises ResultError where the run is too small or its engine sends no times.
    """
    run = result.run
    arm = _arm(result)
    spoiled = spoil(run.failed_gates, "times", arms={arm.label})
    if spoiled.struck:
        raise ResultError(
            f"{run.run_id} gives no profile: its times are {spoiled.said}; measure again (example:"
            " workbench profile -p connector nixl)"
        )
    bytes_per_token = run.engine.kv_bytes_per_token
    if not bytes_per_token:
        raise ResultError(f"{run.run_id} has no KV bytes per token of its model")
    rows = _timed(result, arm)
    cold = rows[rows["pass"].map(is_cold) & rows["ideal_reuse_tokens"].eq(0)]
    alone = cold[cold["in_flight"] == 1]
    budget = _argument(arm, "--max-num-batched-tokens", 0) or _logged(result, _BUDGET_LINE)
    step_tokens = budget or _STEP_TOKENS
    prefill = _prefill(alone, step_tokens)
    lengths = np.sort(alone["prompt_tokens"].unique())
    if len(lengths) < LEAST_LENGTHS:
        raise ResultError(_too_small(run.run_id, "prompt lengths", len(lengths), LEAST_LENGTHS))
    ends = [float(alone.loc[alone["prompt_tokens"] == n, "ttft_s"].median())
            for n in (lengths[0], lengths[-1])]  # fmt: skip
    front_s = alone[["proxy_s", "prefill_server_s", "residual_s"]].sum(axis=1)
    parts = alone.assign(front_s=front_s)[
        ["prompt_tokens", "front_s", "handoff_s", "decode_server_s", "stream_s"]
    ]
    decode = _decode(rows, run.run_id)
    transfer = _transfer(cold, decode, bytes_per_token)
    for what, one, limit in (
        ("prefill", prefill, LARGEST_RESIDUAL),
        ("decode", decode, LARGEST_RESIDUAL),
        ("transfer", transfer, LARGEST_TRANSFER_RESIDUAL),
    ):
        if one.residual > limit:
            raise ResultError(
                f"{run.run_id} gives no profile: its {what} times differ from the fit by"
                f" {percent(one.residual)} in the median, limit {percent(limit)}; measure again on"
                " an idle machine (example: workbench profile -p requests 48)"
            )
    made = Profile(
        run_id=run.run_id,
        simulated=run.simulated,
        machine=machine_of(run.machine),
        versions=run.machine["versions"],
        command_lines=tuple(line for one in run.arms for line in one.command_lines),
        parameters=run.parameters,
        connector=arm.connector,
        prefill=prefill,
        decode=decode,
        transfer=transfer,
        overheads_s=tuple(map(tuple, parts.round(6).to_numpy(float).tolist())),
        lone_ttft_s=(ends[0], ends[1]),
        kv_tokens=_kv_tokens(result, bytes_per_token),
        kv_bytes_per_token=bytes_per_token,
        step_tokens=step_tokens,
        step_sequences=_argument(arm, "--max-num-seqs", _STEP_SEQUENCES),
        block_tokens=_argument(arm, "--block-size", 16 if run.machine["gpus"] else 128),
        rough=spoiled.said,
    )
    return replace(made, aggregated=_aggregated_errors(made, result))


def _aggregated_errors(profile: Profile, result: Result) -> dict[str, tuple[float, float]]:
    """Simulate the cold passes of 1a with the profile's costs: see `Profile.aggregated`."""
    rows, found = result.requests, {}
    one = Topology(aggregated=1)
    cold = rows[rows["topology"].eq(str(one)) & rows["pass"].map(is_cold)]
    for name, group in cold[succeeded(cold)].groupby("pass", sort=False):
        if not (in_flight := own_concurrency(group)):
            continue  # an old run, whose passes have no concurrency of their own
        sent = group.sort_values("sent_s")
        prompts = sent["prompt_tokens"].to_numpy(np.int64)
        load = Load(
            prompt_tokens=prompts,
            cached_tokens=np.zeros_like(prompts),
            moved_tokens=prompts,
            output_tokens=sent["output_tokens"].to_numpy(np.int64),
            offsets_s=None,
            concurrency=in_flight,
            overheads_s=profile.overheads_of(prompts, seed=0),
        )
        got = simulate(one, load, profile.costs()).requests
        ttft, tpot = (float(got[x].median() / sent[x].median() - 1) for x in ("ttft_s", "tpot_s"))
        found[str(name)] = (round(ttft, 4), round(tpot, 4))
    return found


def _arm(result: Result) -> ArmFacts:
    for arm in result.run.arms:
        if arm.topology == "1p1d" and arm.role == "subject":
            if connector(arm.connector).at_once:
                break
            return arm
    raise ResultError(
        f"{result.run.run_id} has no 1p1d whose decode leg follows prefill; measure one (example:"
        " workbench profile -p connector nixl)"
    )


def _timed(result: Result, arm: ArmFacts) -> pd.DataFrame:
    """Requests of the 1p1d with their waterfall, their legs, and how many were in flight."""
    keys = ["arm", "round", "pass", "request_id"]
    parts = result.waterfall().drop(columns=["index", "ttft_s"])
    legs = result.legs[[*keys, "prefill_done_s", "decode_sent_s", "decode_first_byte_s"]]
    rows = result.requests.merge(parts, on=keys).merge(legs, on=keys)
    rows = rows[succeeded(rows) & rows["arm"].eq(arm.label)]
    whole = rows[rows["residual_s"].notna()]
    if not len(whole):
        reasons = result.waterfall().query("arm == @arm.label")["note"]
        why = next(filter(None, reasons), "no request has a waterfall")
        raise ResultError(f"{result.run.run_id} cannot give a profile: {why}")
    whole = whole.assign(end_s=whole["chunk_s"].map(lambda stamps: stamps[-1]))
    groups = [_overlaps(group, "sent_s", "end_s") for _, group in whole.groupby(["round", "pass"])]
    import pandas as pd

    return whole.assign(in_flight=pd.concat(groups) + 1)


def _overlaps(rows: pd.DataFrame, start: str, end: str) -> pd.Series[int]:
    """How many other rows overlap each one in time."""
    import pandas as pd

    begins, ends = rows[start].to_numpy(float), rows[end].to_numpy(float)
    both = (begins[:, None] < ends[None, :]) & (ends[:, None] > begins[None, :])
    return pd.Series(both.sum(axis=1) - 1, index=rows.index)


def _prefill(alone: pd.DataFrame, step_tokens: int) -> Fit:
    tokens = alone["prompt_tokens"].to_numpy(float)
    steps = np.array([ceil(n / step_tokens) for n in tokens], float)
    return fit(
        {"steps": steps, "tokens": tokens, "pairs": tokens**2 / 2},
        alone["prefill_compute_s"].to_numpy(float),
        ranges={"tokens": tokens},
    )


def _decode(rows: pd.DataFrame, run_id: str) -> Fit:
    """A step from the engine's mean gap of each request, its mean batch and the KV in it.

    The engine's, because a client that is busy reads several tokens at once.
    """
    batches, tokens, took_s = [], [], []
    for _, group in rows.groupby(["round", "pass"]):
        first = group["chunk_s"].map(lambda stamps: stamps[0]).to_numpy(float)
        metrics = [json.loads(text) for text in group["engine_metrics"]]
        gap_s = np.array([one.get("mean_itl_ms") or np.nan for one in metrics]) / 1000
        later = group["output_tokens"].to_numpy(float) - 1
        last = first + np.where(later > 0, later * np.nan_to_num(gap_s), 0.0)
        prompts = group["prompt_tokens"].to_numpy(float)
        for own, steps, step_s in zip(first, later, gap_s, strict=True):
            if not step_s > 0:
                continue
            # In the step that ends at a time are those whose first token is not later.
            ends = own + step_s * np.arange(1, steps + 1)[:, None]
            inside = (first[None, :] <= ends + step_s / 2) & (last[None, :] >= ends - step_s / 2)
            made = np.clip((ends - first[None, :]) / step_s, 0, None)
            batches.append(inside.sum(axis=1).mean())
            tokens.append((inside * (prompts[None, :] + made)).sum(axis=1).mean())
            took_s.append(step_s)
    batch, kv = np.array(batches), np.array(tokens)
    if (sizes := len(np.unique(batch.round()))) < LEAST_BATCHES:
        raise ResultError(_too_small(run_id, "decode batches", sizes, LEAST_BATCHES))
    return fit(
        {"steps": np.ones_like(batch), "sequences": batch, "kv_tokens": kv},
        np.array(took_s),
        ranges={"batch": batch, "kv_tokens": kv},
    )


def _transfer(cold: pd.DataFrame, decode: Fit, bytes_per_token: float) -> Fit:
    """From the wait between both decode events, with the steps that it waits for as a term.

    A request is admitted between two steps, and joins between two steps: the simulation waits for
    both, so that term is no part of the transfer.
    """
    ended_s = cold["decode_first_byte_s"] - cold["decode_step_s"]
    spans = cold.assign(from_s=ended_s - cold["transfer_queue_s"], until_s=ended_s)
    others, decoding = np.zeros(len(cold)), np.zeros(len(cold))
    for _, group in spans.groupby(["round", "pass"]):
        at = spans.index.get_indexer(group.index)
        others[at] = _overlaps(group, "from_s", "until_s")
        begins = group["from_s"].to_numpy(float)[:, None]
        first = group["decode_first_byte_s"].to_numpy(float)[None, :]
        decoding[at] = ((first < begins) & (group["end_s"].to_numpy()[None, :] > begins)).sum(1)
    moved = cold["prompt_tokens"].to_numpy(float) * bytes_per_token
    step = decode.of_resample(0)
    waits_s = np.where(decoding > 0, step["steps"] + decoding * step["sequences"], 0.0)
    if (others > 0).sum() < LEAST_OVERLAPS:
        others[:] = 0.0  # one delayed request would be the slope
    return fit(
        {"transfers": np.ones_like(moved), "bytes": moved, "others": others, "waits": waits_s},
        cold["transfer_queue_s"].to_numpy(float),
        ranges={"bytes": moved, "others": others},
    )


def _kv_tokens(result: Result, bytes_per_token: float) -> dict[str, int]:
    """KV space by role: vLLM's log line, else the bytes of its command line."""
    found: dict[str, int] = {}
    for arm in result.run.arms:
        for role in ("prefill", "decode", "aggregated"):
            tokens = _logged(result, _KV_LINE, role)
            lines = [line for line in arm.command_lines if f"{role}-0" in line]
            given = (
                value_of(tuple(shlex.split(lines[0])), "--kv-cache-memory-bytes") if lines else ""
            )
            if tokens or given:
                found.setdefault(role, tokens or int(int(given) // bytes_per_token))
    missing = {"prefill", "decode"} - found.keys()
    if missing:
        raise ResultError(
            f"{result.run.run_id} has no KV space of {' and '.join(missing)} in its logs"
        )
    # An aggregated instance has the arguments of both roles; without one it has decode's space.
    return {"aggregated": found["decode"]} | found


def _logged(result: Result, pattern: re.Pattern[str], name: str = "decode") -> int:
    """A number in the first log of a role; 0 if there is none."""
    for log in sorted((result.folder / "logs").glob(f"*/*/{name}-*.log")):
        if match := pattern.search(log.read_text("utf-8", errors="replace")):
            return int(match[1].replace(",", ""))
    return 0


def _argument(arm: ArmFacts, name: str, usual: int) -> int:
    for line in arm.command_lines:
        given = value_of(tuple(shlex.split(line)), name)
        if given.isdecimal():
            return int(given)
    return usual


def _too_small(run_id: str, what: str, got: int, least: int) -> str:
    return (
        f"{run_id} is too small for a profile: it needs at least {least} {what}, got {got}"
        " (example: workbench profile -p connector nixl)"
    )
