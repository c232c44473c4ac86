"""A run as Benchmark Reports v0.2, the format of llm-d-benchmark and inference-perf.

One file for each arm and pass (and offered rate), since a report describes one stack under one
load. Unknown values are left out, and so are numbers that a failed gate makes not valid.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import NAMESPACE_URL, uuid5

import numpy as np
from numpy.typing import ArrayLike

from workbench.errors import ResultError
from workbench.experiment.result.facts import ArmFacts, RunFacts
from workbench.experiment.result.result import Result
from workbench.metrics.gates.gate_effects import spoil
from workbench.metrics.latency import succeeded, system_tps
from workbench.report.outcome import with_frames
from workbench.report.page import read_executed
from workbench.topology import Topology

if TYPE_CHECKING:
    import pandas as pd

VERSION = "0.2"
FOLDER = "benchmark_report"
_PERCENTILES = {
    "p0p1": 0.1, "p1": 1.0, "p5": 5.0, "p10": 10.0, "p25": 25.0, "p50": 50.0, "p75": 75.0,
    "p90": 90.0, "p95": 95.0, "p99": 99.0, "p99p9": 99.9,
}  # fmt: skip
_TAIL_FROM = 90.0
"""Percentiles from here on are tails, which fewer gates leave standing."""
_SOURCES = {
    "reference": "random", "shared_prefix": "random", "short": "random",
    "trace": "sampled", "prompts": "sampled", "text": "sampled",
}  # fmt: skip
"""How the workload's tokens are made, in the format's words."""
_ROLES = {"prefill": "prefill", "decode": "decode", "aggregated": "replica"}
_ENGINES = {"vllm": "vllm", "attach": "vllm", "simulated": "simulated"}
_ENGINE_LINE = "--max-model-len"
"""An option of every engine's command line, and of no other server's."""


def write_benchmark_reports(path: str | Path) -> list[Path]:
    """Write the reports of an executed notebook or run folder; returns their paths.

    Their folder is `benchmark_report` in the run folder, else beside the notebook.

    Raises ResultError if the run has no requests, or they cannot be found; and as
    `workbench.report.page.read_executed` does.
    """
    found = read_executed(path)
    result = found.result and with_frames(found.result, found.source)
    if result is None or "requests" not in result.frames:
        raise ResultError(
            f"{path} has no requests for a Benchmark Report. Give a run folder with"
            " requests.parquet (example: outputs/pd_sweep/RUN)"
        )
    folder = found.source.with_name(FOLDER)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, report in benchmark_reports(result):
        target = folder / f"{name}.json"
        target.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        written.append(target)
    return written


def benchmark_reports(result: Result) -> Iterator[tuple[str, dict[str, Any]]]:
    """The reports of a run with a name for each, such as `1p4d-lmcache-cold`."""
    requests = result.frames["requests"]
    keys = [name for name in ("arm", "pass", "rate_per_s", "concurrency") if name in requests]
    taken: set[str] = set()
    for values, rows in requests.groupby(keys, sort=False, dropna=False):
        arm, cache_state = map(str, values[:2])
        # neither is in a result of an early version
        load = dict(zip(keys[2:], map(float, map(str, values[2:])), strict=True))
        rate = load.get("rate_per_s", 0.0)
        words = [arm, cache_state, *([f"{rate:g} per s"] if rate > 0 else [])]
        label = " ".join(words)
        name = re.sub(r"[^\w.]+", "-", label).strip("-") or "report"
        # Labels may differ only in what a file name leaves out.
        numbered = (name, *(f"{name}-{number}" for number in range(2, len(taken) + 3)))
        name = next(each for each in numbered if each.casefold() not in taken)
        taken.add(name.casefold())
        yield name, _report(result, rows, arm, cache_state, load, label)


def _report(
    result: Result,
    rows: pd.DataFrame,
    arm: str,
    cache_state: str,
    load: Mapping[str, float],
    label: str,
) -> dict[str, Any]:
    run = result.run
    facts = next((each for each in run.arms if each.label == arm), ArmFacts(label=arm))
    failed = [gate.name for gate in run.gates if gate.outcome == "FAIL"]
    keywords = [
        run.notebook, facts.topology, facts.connector, cache_state,
        "simulated" if run.simulated else "", *(f"gate failed: {gate}" for gate in failed),
    ]  # fmt: skip
    whole: dict[str, Any] = {
        "version": VERSION,
        "run": {
            "uid": str(uuid5(NAMESPACE_URL, f"{run.run_id} {run.started_at} {label}")),
            "eid": f"{run.run_id} {run.started_at}",
            "time": _time(run, arm, cache_state),
            "description": f"workbench {run.notebook}: {arm}, {cache_state} pass",
            "keywords": [word for word in keywords if word],
        },
        "scenario": {
            "stack": [*_engines(run, facts), *_store(run, facts)],
            "load": _load(run, rows, load),
        },
        "results": {
            "request_performance": {"aggregate": _aggregate(run, rows, arm, cache_state)},
            "observability": {"components": _observed(result, arm, cache_state)},
        },
    }
    filled: dict[str, Any] = _without_gaps(whole)
    return filled


def _time(run: RunFacts, arm: str, cache_state: str) -> dict[str, str] | None:
    """From the first to the last request of these passes; of the whole run where it is unknown."""
    passes = [row for row in run.pass_times if (row.arm, row.pass_name) == (arm, cache_state)]
    if passes:
        ends = (min(row.from_s for row in passes), max(row.to_s for row in passes))
        start, end = (datetime.fromtimestamp(at_s, UTC) for at_s in ends)
    elif run.started_at and run.finished_at:
        start, end = map(datetime.fromisoformat, (run.started_at, run.finished_at))
    else:
        return None
    took_s = (end - start).total_seconds()
    return {
        "start": start.isoformat(),
        "end": end.isoformat(),
        "duration": f"PT{took_s:.3f}S",
    }


def _engines(run: RunFacts, arm: ArmFacts) -> Iterator[dict[str, Any]]:
    """The instances of an arm that runs here, by role."""
    engine = _ENGINES.get(str(run.parameters.get("engine", "")), "")
    found = run.machine.get("versions", {}).get(engine, "")
    tool_version = version("workbench") if engine == "simulated" else found
    if not (arm.topology and engine and tool_version):
        return
    lines = iter(line for line in arm.command_lines if _ENGINE_LINE in line)
    gpus = [gpu.get("name", "") for gpu in run.machine.get("gpus", ())]
    named = next((row.name for row in run.models if row.model == arm.short_model), "")
    options, models = dict(run.parameters), run.parameters.get("models")
    if isinstance(models, Mapping):  # what this model has of its own
        options |= models.get(named) or {}
    for role, replicas in Topology.parse(arm.topology).roles:
        own = [line for line in (next(lines, "") for _ in range(replicas)) if line]
        tp = int(options.get(f"{role}_tp") or 1)
        yield {
            "metadata": {"label": role, "cfg_id": _hash(*own, arm.label, role)},
            "standardized": {
                "kind": "inference_engine",
                "tool": engine,
                "tool_version": str(tool_version),
                "role": _ROLES[role],
                "replicas": replicas,
                "model": {"name": named or run.engine.model or arm.model},
                "accelerator": {
                    "model": gpus[0] if gpus else str(run.machine.get("cpu", "unknown")),
                    "count": replicas * tp if gpus else 0,
                    "parallelism": {"tp": tp},
                },
            },
            "native": {"args": _arguments(own[0]) if own else None},
        }


def _store(run: RunFacts, arm: ArmFacts) -> Iterator[dict[str, Any]]:
    """The connector, where the version of its package is known."""
    package = arm.connector.partition("-")[0]
    if found := run.machine.get("versions", {}).get(package):
        yield {
            "metadata": {"label": "connector", "cfg_id": _hash(arm.connector, str(found))},
            "standardized": {"kind": "generic", "tool": arm.connector, "tool_version": str(found)},
            "native": {},
        }


def _arguments(line: str) -> dict[str, Any]:
    """The options of a command line by name; one without a value is true."""
    options: dict[str, Any] = {}
    last = ""
    for word in shlex.split(line):
        if word.startswith("--"):
            last, _, value = word.partition("=")
            options[last] = value or True
        elif last:
            options[last], last = word, ""
    return options


def _load(run: RunFacts, rows: pd.DataFrame, load: Mapping[str, float]) -> dict[str, Any] | None:
    workload, parameters = run.workload, run.parameters
    if workload is None:
        return None
    closed = workload.arrivals.startswith("closed loop")
    rate, concurrency = (
        load.get(name) or parameters.get(name) or 0.0 for name in ("rate_per_s", "concurrency")
    )
    return {
        "metadata": {"cfg_id": workload.hash, "description": workload.arrivals},
        "standardized": {
            "tool": "workbench",
            "tool_version": version("workbench"),
            "source": _SOURCES.get(workload.name, "unknown"),
            "input_seq_len": _lengths(rows["prompt_tokens"]),
            "output_seq_len": _lengths(rows["max_tokens"]),
            "multi_turn": {"enabled": True} if "multi_turn" in workload.name else None,
            "rate_qps": float(rate) if rate > 0 and not closed else None,
            "concurrency": int(concurrency) if concurrency > 0 and closed else None,
        },
        "native": {"config": {k: v for k, v in parameters.items() if v not in (None, "", [])}},
    }


def _lengths(tokens: pd.Series[int]) -> dict[str, Any] | None:
    known = tokens[tokens > 0]
    if known.empty:
        return None
    least, most = int(known.min()), int(known.max())
    if least == most:
        return {"distribution": "fixed", "value": least}
    return {"distribution": "other", "value": float(known.mean()), "min": least, "max": most}


def _aggregate(run: RunFacts, rows: pd.DataFrame, arm: str, cache_state: str) -> dict[str, Any]:
    failed = run.failed_gates
    passes, arms = {cache_state}, {arm}
    times = not spoil(failed, "times", passes=passes, arms=arms).struck
    tails = times and not spoil(failed, "tails", passes=passes, arms=arms).struck
    good = rows[succeeded(rows)]

    def latency(values: pd.Series[float], units: str) -> dict[str, Any] | None:
        return statistics(values, units, tails=tails) if times else None

    tokens = good["output_tokens"].where(good["output_tokens"] > 0)
    return {
        "requests": {
            "total": len(rows),
            "failures": len(rows) - len(good),
            "input_length": statistics(good["prompt_tokens"], "count"),
            "output_length": statistics(tokens, "count"),
        },
        "latency": {
            "time_to_first_token": latency(good["ttft_s"], "s"),
            "time_per_output_token": latency(good["tpot_s"], "s/token"),
            "normalized_time_per_output_token": latency(good["e2e_s"] / tokens, "s/token"),
            "inter_token_latency": latency(_token_gaps(good), "s/token"),
            "request_latency": latency(good["e2e_s"], "s"),
        },
        "throughput": _throughput(rows) if times else None,
    }


def _token_gaps(good: pd.DataFrame) -> Any:
    """The gaps between chunks, where each chunk is one token; else none is known."""
    import pandas as pd

    if "chunk_s" not in good or any(max(n, default=1) > 1 for n in good["chunk_tokens"]):
        return pd.Series(dtype=float)
    gaps = [np.diff(stamps) for stamps in good["chunk_s"]]
    return pd.Series(np.concatenate(gaps) if gaps else [], dtype=float)


def _throughput(rows: pd.DataFrame) -> dict[str, Any] | None:
    """Rates of each round, from its first byte sent to its last token; the mean is over rounds."""
    if "chunk_s" not in rows:
        return None
    rates: dict[str, list[float]] = {}
    for _, one in rows.groupby("round"):
        good, output_tps = one[succeeded(one)], system_tps(one)
        output = float(good["output_tokens"].sum())
        if not (isfinite(output_tps) and output > 0):
            return None
        took_s, sent = output / output_tps, float(good["prompt_tokens"].sum())
        rates.setdefault("input_token_rate", []).append(sent / took_s)
        rates.setdefault("output_token_rate", []).append(output_tps)
        rates.setdefault("total_token_rate", []).append((sent + output) / took_s)
        rates.setdefault("request_rate", []).append(len(good) / took_s)
    units = {"request_rate": "queries/s"}
    return {
        name: statistics(values, units.get(name, "tokens/s"), percentiles=False)
        for name, values in rates.items()
    }


def statistics(
    values: ArrayLike, units: str, *, tails: bool = True, percentiles: bool = True
) -> dict[str, Any] | None:
    """Mean, spread and percentiles of the known values; None without any.

    A percentile needs a value beyond it on average: p99 needs 100 values. Without `tails` those
    from p90 and the maximum are left out.
    """
    known = np.asarray(values, float)
    known = known[np.isfinite(known)]
    n = len(known)
    if not n:
        return None
    shown = {
        name: float(np.percentile(known, percent))
        for name, percent in _PERCENTILES.items()
        if n * min(percent, 100 - percent) >= 100 and (tails or percent < _TAIL_FROM)
    }
    return {
        "units": units,
        "mean": float(known.mean()),
        "stddev": float(known.std(ddof=1)) if n > 1 else None,
        "min": float(known.min()),
        **(shown if percentiles else {}),
        "max": float(known.max()) if tails else None,
    }


def _observed(result: Result, arm: str, cache_state: str) -> list[dict[str, Any]]:
    """By instance: its queue and KV space during these passes; by role: its prefix cache's hits."""
    found: list[dict[str, Any]] = []
    run = result.run
    for role, counts in _by_role(run, arm, cache_state).items():
        sent, hit = (sum(pair[n] for pair in counts) for n in (0, 1))
        if sent > 0 and isfinite(hit):
            rate = {"units": "fraction", "mean": hit / sent}
            found.append({"component_label": role, "aggregate": {"cache_hit_rate": rate}})
    gauges = result.frames.get("gauges")
    if gauges is None or gauges.empty:
        return found
    own = gauges[(gauges["arm"] == arm) & (gauges["pass"] == cache_state)]
    for instance, rows in own.groupby("instance"):
        seen = {
            "kv_cache_usage": statistics(rows["kv_usage"], "fraction"),
            "running_requests": statistics(rows["running"], "count"),
            "waiting_requests": statistics(rows["waiting"], "count"),
        }
        label = str(instance).rpartition("-")[0] or str(instance)
        found.append({"component_label": label, "replica_id": str(instance), "aggregate": seen})
    return found


def _by_role(run: RunFacts, arm: str, cache_state: str) -> dict[str, list[tuple[float, float]]]:
    if spoil(run.failed_gates, "counts", passes={cache_state}, arms={arm}).struck:
        return {}
    roles: dict[str, list[tuple[float, float]]] = {}
    for row in run.token_sources:
        if (row.arm, row.pass_name) == (arm, cache_state):
            roles.setdefault(row.role, []).append((row.sent, row.engine_hit))
    return roles


def _hash(*parts: str) -> str:
    return uuid5(NAMESPACE_URL, "\n".join(parts)).hex[:12]


def _without_gaps(value: Any) -> Any:
    """The same without what is None, and without mappings and lists that are left empty.

    `native` stays: the format demands it, even empty.
    """
    if isinstance(value, Mapping):
        kept = {name: _without_gaps(each) for name, each in value.items()}
        return {
            name: each
            for name, each in kept.items()
            if not _is_gap(each) or (name == "native" and each is not None)
        }
    if isinstance(value, list):
        return [_without_gaps(each) for each in value]
    return value


def _is_gap(value: Any) -> bool:
    return value is None or (isinstance(value, dict | list) and not value)
