"""A profile: what a measured 1p1d takes per step, token and byte."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.errors import PlanError, ResultError, must_be
from workbench.experiment.result.facts import ArmFacts
from workbench.experiment.result.result import Result
from workbench.experiment.result.result_file import jsonable
from workbench.hardware import machine
from workbench.hardware.interpreter import versions_of
from workbench.metrics.gates.gate_effects import spoil
from workbench.metrics.latency import succeeded
from workbench.params.engine_args import value_of
from workbench.params.notebooks import PdSweep, check_params
from workbench.serve.connectors import connector
from workbench.topology import Topology
from workbench.whatif.costs import Costs
from workbench.whatif.fits import Fit, fit
from workbench.whatif.simulation import Load, simulate

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

SCHEMA = 1
LEAST_LENGTHS, LEAST_BATCHES = 3, 3
"""Fewest different prompt lengths and decode batches for a fit."""
FREE = frozenset(
    (
        *("topology", "workload", "prompt_tokens", "output_tokens", "requests", "shared_share"),
        *("target_reuse", "trace_file", "trace_block_tokens", "trace_speed", "arrivals"),
        *("concurrency", "rate_per_s", "burstiness", "end_rate_per_s", "seed", "ttft_limit_ms"),
        *("tpot_limit_ms", "limits_share", "rounds", "opponents", "output_dir", "client_workers"),
        *("gpu_hour_price", "time_budget_s", "targets", "prompts_file", "text"),
    )
)
"""Parameters that a prediction may set; all others are those of the profile."""
_LOAD = ("workload", "prompt_tokens", "output_tokens", "requests", "shared_share", "seed")
"""Parameters of the load that are the profile's unless a prediction sets them."""
LARGEST_TRANSFER_RESIDUAL = 0.5
"""The same of the transfer, whose few milliseconds are a small part of TTFT."""
LARGEST_RESIDUAL = 0.3
"""Median of |measured / fitted - 1| of prefill and decode above which there is no profile."""
LEAST_OVERLAPS = 5
"""Fewest overlapping transfers for which their slope is fitted."""
_STEP_TOKENS, _STEP_SEQUENCES = 2048, 256
"""vLLM's defaults on a CPU, used if neither an argument nor the log has a value."""
_KV_LINE = re.compile(r"KV cache size: ([\d,]+) tokens")
_BUDGET_LINE = re.compile(r"max_num_batched_tokens=(\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """The content of profile.json."""

    schema: int = SCHEMA
    run_id: str
    """Of the run that it comes from."""
    simulated: bool
    machine: Mapping[str, Any]
    """CPU, cores, GPUs and platform: a prediction is refused for another machine."""
    versions: Mapping[str, str]
    command_lines: tuple[str, ...]
    parameters: Mapping[str, Any]
    connector: str
    prefill: Fit
    """Over prompt tokens: steps, tokens, pairs of tokens."""
    decode: Fit
    """A step, over the batch and its KV tokens."""
    transfer: Fit
    """Over bytes and the number of other transfers at the time."""
    overheads_s: tuple[tuple[float, float, float, float, float], ...]
    """Prompt tokens and `simulation.OVERHEADS` of each request that was alone."""
    lone_ttft_s: tuple[float, float]
    """Median TTFT of the shortest prompts, alone, and of the longest."""
    kv_tokens: Mapping[str, int]
    """KV space of an instance, by role."""
    kv_bytes_per_token: float
    step_tokens: int
    step_sequences: int
    block_tokens: int

    rough: str = ""
    """What failed gates do to the times of its run."""
    aggregated: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Of each cold pass of the same run's 1a, which no fit has seen: predicted / measured - 1 of
    the median TTFT and TPOT. Its steps have prompts and decoding requests, as no step of 1p1d."""

    def costs(self, resample: int = 0) -> Costs:
        """What the simulation needs: of all points for 0, else of a bootstrap resample."""
        prefill, decode, transfer = (
            one.of_resample(resample) for one in (self.prefill, self.decode, self.transfer)
        )
        return Costs(
            prefill_step_s=prefill["steps"],
            token_s=prefill["tokens"],
            pair_s=prefill["pairs"],
            decode_step_s=decode["steps"],
            sequence_s=decode["sequences"],
            kv_token_s=decode["kv_tokens"],
            transfer_s=transfer["transfers"],
            byte_s=transfer["bytes"],
            concurrent_s=transfer["others"],
            step_tokens=self.step_tokens,
            step_sequences=self.step_sequences,
            block_tokens=self.block_tokens,
            kv_tokens=dict(self.kv_tokens),
            kv_bytes_per_token=self.kv_bytes_per_token,
            holds=connector(self.connector).store is None,
            profiled_kv_tokens=self.decode.ranges["kv_tokens"][1],
        )

    def overheads_of(self, prompts: NDArray[np.int64], seed: int) -> NDArray[np.float64]:
        """A row of `simulation.OVERHEADS` for each prompt, drawn from those that were measured."""
        seen = np.asarray(self.overheads_s, float)
        rows = np.random.default_rng(seed).integers(0, len(seen), len(prompts))
        # JSON of longer prompts takes longer: each part is adjusted by its slope.
        slopes = np.polyfit(seen[:, 0], seen[:, 1:], 1)[0]
        moved: NDArray[np.float64] = seen[rows, 1:] + (prompts - seen[rows, 0])[:, None] * slopes
        return np.maximum(moved, 0.0)

    @property
    def doubts(self) -> tuple[str, ...]:
        """What is wrong with every prediction from it."""
        found = [f"The profile's run is {self.rough}."] if self.rough else []
        if others := self.changed_versions:
            found.append(f"Measured with {'; '.join(others)}. Profile again.")
        return tuple(found)

    @property
    def changed_versions(self) -> list[str]:
        """Versions of the engine or connector that differ here: `vllm 0.31, here 0.32`."""
        here = versions_of(self.versions)
        return [
            f"{name} {had}, here {here.get(name, 'none')}"
            for name, had in self.versions.items()
            if (name in ("vllm", "torch") or name in self.connector) and had != here.get(name)
        ]

    def write(self, folder: Path) -> Path:
        """Write profile.json into a folder."""
        path = folder / "profile.json"
        path.write_text(json.dumps(jsonable(self), indent=1) + "\n", encoding="utf-8")
        return path

    def params(self, given: Mapping[str, Any]) -> PdSweep:
        """The parameters of a prediction: the profile's, with `given` over them.

        Raises PlanError on another machine, and for another model or engine arguments;
        ParameterError for what pd_sweep would refuse.
        """
        here = _machine_of(machine.facts().as_dict() | {"platform": self.machine["platform"]})
        for name, value in self.machine.items():
            if here[name] != value:
                raise PlanError(
                    f"this profile was measured on another machine ({name} {value!r}, here"
                    f" {here[name]!r}); measure one here (example: workbench profile -p connector"
                    " nixl)"
                )
        given = {name: v for name, v in given.items() if name not in ("predict", "measure")}
        kept = {name: v for name, v in self.parameters.items() if name not in FREE}
        kept |= {name: self.parameters[name] for name in _LOAD}
        if given.get("trace_file"):
            del kept["requests"]  # a trace has its own number
        # Values given as text become those of their type.
        asked: PdSweep = check_params("pd_sweep", kept | dict(given))
        usual = PdSweep()  # of parameters that are newer than the profile
        for name in given:
            wanted, had = getattr(asked, name), self.parameters.get(name, getattr(usual, name))
            if name not in FREE and wanted != had:
                raise PlanError(must_be(name, f"the profile's {had!r}", wanted, had))
        load = {name: value for name, value in given.items() if name in FREE}
        made: PdSweep = check_params("pd_sweep", kept | load)
        return made


def read_profile(path: Path | str) -> Profile:
    """Read profile.json. Raises ResultError for what is missing or not a profile."""
    from pydantic import TypeAdapter, ValidationError

    path = Path(path)
    try:
        found = TypeAdapter(Profile).validate_json(path.read_bytes())
    except OSError as error:
        raise ResultError(
            f"{path} cannot be read: {error.strerror}; give the file of workbench profile (example:"
            " workbench predict profile.json)"
        ) from error
    except ValidationError as error:
        raise ResultError(
            f"{path} is not a profile ({error.error_count()} mistakes); workbench profile writes"
            " one (example: workbench profile -p connector nixl)"
        ) from error
    if found.schema != SCHEMA:
        raise ResultError(
            f"{path} must be a profile of schema {SCHEMA}, got {found.schema}; profile again"
            " (example: workbench profile -p connector nixl)"
        )
    if missing := _missing(found):
        raise ResultError(
            f"{path} is a damaged profile: {missing}; profile again (example: workbench profile -p"
            " connector nixl)"
        )
    return found


def _missing(profile: Profile) -> str:
    """What a prediction needs and this profile has not; empty if it has all."""
    roles = ("prefill", "decode", "aggregated")
    for what, has, wants in (
        ("parameters", profile.parameters, ("engine", "connector", *_LOAD)),
        ("machine", profile.machine, ("cpu", "cores", "gpus", "platform")),
        ("kv_tokens", profile.kv_tokens, roles),
    ):
        if absent := [name for name in wants if name not in has]:
            return f"{what} has no {absent[0]}"
    if unknown := profile.machine.keys() - {"cpu", "cores", "gpus", "platform"}:
        return f"machine has an unknown {min(unknown)}"
    for what, one, terms, inputs in (
        ("prefill", profile.prefill, ("steps", "tokens", "pairs"), ("tokens",)),
        ("decode", profile.decode, ("steps", "sequences", "kv_tokens"), ("batch", "kv_tokens")),
        ("transfer", profile.transfer, ("transfers", "bytes", "others"), ("bytes", "others")),
    ):
        sizes = {len(one.terms), len(one.coefficients), *map(len, one.resamples)}
        points = {len(one.measured_s), len(one.fitted_s)}
        if not {*terms} <= {*one.terms} or not {*inputs} <= one.ranges.keys():
            return f"its fit of {what} lacks a term or a range"
        if len(sizes) > 1 or not one.resamples or len(points) > 1 or 0 in points:
            return f"its fit of {what} lacks coefficients or points"
    if not profile.overheads_s:
        return "overheads_s is empty"
    sizes = {profile.step_tokens, profile.step_sequences, profile.block_tokens}
    return "a step or a block has no tokens" if min(sizes) < 1 else ""


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
    cold = rows[rows["pass"].str.startswith("cold") & rows["ideal_reuse_tokens"].eq(0)]
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
                f" {one.residual:.0%} in the median, limit {limit:.0%}; measure again on"
                " an idle machine (example: workbench profile -p requests 48)"
            )
    made = Profile(
        run_id=run.run_id,
        simulated=run.simulated,
        machine=_machine_of(run.machine),
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
    cold = rows[rows["topology"].eq(str(one)) & rows["pass"].str.startswith("cold")]
    for name, group in cold[succeeded(cold)].groupby("pass", sort=False):
        sent = group.sort_values("sent_s")
        begins = sent["sent_s"].to_numpy(float)
        ends = begins + sent["e2e_s"].to_numpy(float) - 1e-6  # the next one begins when one ends
        flying = (begins[None, :] <= begins[:, None]) & (ends[None, :] > begins[:, None])
        prompts = sent["prompt_tokens"].to_numpy(np.int64)
        load = Load(
            prompt_tokens=prompts,
            cached_tokens=np.zeros_like(prompts),
            moved_tokens=prompts,
            output_tokens=sent["output_tokens"].to_numpy(np.int64),
            offsets_s=None,
            concurrency=int(flying.sum(axis=1).max()),
            overheads_s=profile.overheads_of(prompts, seed=0),
        )
        got = simulate(one, load, profile.costs()).requests
        ttft, tpot = (float(got[x].median() / sent[x].median() - 1) for x in ("ttft_s", "tpot_s"))
        found[str(name)] = (round(ttft, 4), round(tpot, 4))
    return found


def _machine_of(facts: Mapping[str, Any]) -> dict[str, Any]:
    gpus = [gpu["name"] for gpu in facts["gpus"]]
    return {"cpu": facts["cpu"], "cores": facts["cores"], "gpus": gpus,
            "platform": facts["platform"]}  # fmt: skip


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
