"""How long a run will take: from launches that were measured on this machine before, or by a rule.

Each launch of a real engine leaves its duration in the cache folder. A plan with the same servers,
workload and machine uses it, so one round predicts a sweep of many. A rule exists only for the
tiny model on a CPU and for the simulated engine.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from math import isnan, nan
from pathlib import Path
from statistics import median
from typing import Any

from workbench.experiment.load_unit import RATE
from workbench.experiment.plan.arm import Arm
from workbench.experiment.plan.offered_load.loads import Loads
from workbench.experiment.plan.speed import TYPICAL, Speed
from workbench.hardware.cache import cache_folder
from workbench.load.workload.arrivals import Arrivals
from workbench.load.workload.workload import Request
from workbench.serve.tiny_model import LAYERS, model_facts
from workbench.serve.vllm import Platform

_REMEMBERED = 9
"""The last launches of the same kind whose median is used."""
LAUNCH_S, LAUNCH_INSTANCE_S = 1.6, 1.0
"""Start, warm-up and stop of a launch and of each instance, if the fork server loads in
TYPICAL.fork_server_s (`make report` on an idle machine, 2026-11-29)."""
PASS_S, WARM_SHARE = 0.4, 0.05
"""Resets and counters of every pass, and the cost of a warm prefill as a fraction of a cold one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Duration:
    """The expected duration of a run, by the launches of its arms."""

    rounds: int
    once_s: float
    """Before the first launch."""
    launch_s: Mapping[str, float]
    """Seconds of a launch of each arm; NaN if unknown."""
    gpus: Mapping[str, int]
    """GPUs of each arm; empty on a CPU."""
    basis: str

    @property
    def round_s(self) -> float:
        """A round of all arms; NaN if one is unknown."""
        return sum(self.launch_s.values())

    @property
    def total_s(self) -> float:
        return self.once_s + self.rounds * self.round_s

    @property
    def gpu_hours(self) -> float:
        """Of each arm's own GPUs while its launches run; 0 on a CPU, NaN if unknown."""
        each_s = (self.launch_s[arm] * gpus for arm, gpus in self.gpus.items())
        return self.rounds * sum(each_s) / 3600

    def rounds_within(self, budget_s: float) -> int:
        """Whole rounds that end within a time, at least 0 and at most those planned."""
        if isnan(self.total_s):
            return self.rounds
        return max(0, min(self.rounds, int((budget_s - self.once_s) / self.round_s)))

    def __str__(self) -> str:
        launches = self.rounds * len(self.launch_s)
        if isnan(self.total_s):
            return f"{_count(launches, 'launch', 'es')}, duration unknown {self.basis}"
        found = f"{_count(launches, 'launch', 'es')} in about {spelled(self.total_s)}"
        if self.gpus:
            found += f", {self.gpu_hours:.2g} GPU-hours"
        return f"{found} {self.basis}"


def spelled(seconds: float) -> str:
    """`5.2 hours`, or `16.4 minutes` below 90 minutes."""
    if seconds >= 5400:
        return f"{seconds / 3600:.1f} hours"
    return f"{seconds / 60:.1f} minutes"


def _count(number: int, word: str, ending: str) -> str:
    return f"{number:,} {word}{ending if number != 1 else ''}"


def launch_by_rule_s(
    arm: Arm,
    requests: Sequence[Request],
    arrivals: Arrivals,
    loads: Loads | None,
    *,
    platform: Platform,
    speed: Speed | None,
    forked: bool,
) -> float:
    """Seconds of a launch of this arm by the rule; NaN for a real engine of unknown speed."""
    swept = loads.expected if loads is not None else ()
    at_rates = loads is not None and loads.unit == RATE
    sent_s = sum(len(requests) / rate for rate in swept) if at_rates else 0.0
    if platform == "simulated":
        in_loops = len(arm.passes) + (0 if at_rates else len(swept))
        return 1.2 + 0.5 * in_loops + sent_s
    if speed is None:
        return nan
    layers = model_facts(arm.settings.model).layers if arm.settings else LAYERS
    prefill_s = sum(
        speed.prefill_s(r.prompt_tokens, reused_tokens=r.ideal_reuse_tokens, layers=layers)
        for r in requests
    )
    # Steps of requests in flight are taken together, and cost more for each.
    together = arrivals.concurrency if arrivals.kind == "closed" else 1
    answers = sum(request.max_tokens for request in requests)

    def warm_s(in_flight: float) -> float:
        steps = answers / min(in_flight, len(requests)) ** 0.5
        took_s: float = PASS_S + speed.step_s * steps + WARM_SHARE * prefill_s
        return took_s

    pass_s = warm_s(together)
    instance_s = LAUNCH_INSTANCE_S + (arm.store.instance_start_s if arm.store else 0.0)
    instances = arm.topology.instances if arm.topology else 0
    launch_s = LAUNCH_S + instances * instance_s
    if not forked:
        # The store is ready first; instances then share the cores.
        turns = bool(arm.store) + max(1.0, instances / (os.cpu_count() or 1))
        launch_s += turns * TYPICAL.fork_server_s
    parts = [p.requests / len(requests) if p.requests else 1.0 for p in arm.passes]
    cold = sum(
        part * (1 - p.share if p.state != "cold" else 1.0)
        for p, part in zip(arm.passes, parts, strict=True)
    )
    passes_s = cold * prefill_s + PASS_S * len(parts) + sum(parts) * (pass_s - PASS_S)
    slower = speed.fork_server_s / TYPICAL.fork_server_s
    at_once = [1 if at_rates else load for load in swept]
    swept_s: float = max(sent_s, sum(prefill_s + warm_s(each) for each in at_once))
    total_s: float = slower * launch_s + passes_s + swept_s
    return total_s


def remember_launch(key: str, took_s: float) -> None:
    """Keep how long a launch took; nothing if the cache folder cannot be written."""
    with suppress(OSError):
        file = _file(key)
        file.parent.mkdir(parents=True, exist_ok=True)
        known = [*_remembered(file), {"took_s": round(took_s, 2), "at": _now()}]
        partial = file.with_name(f".{file.name}-{os.getpid()}")
        partial.write_text(json.dumps(known[-_REMEMBERED:]))
        os.replace(partial, file)


def measured_before(key: str) -> tuple[float, str]:
    """The median duration of such launches here, and the day of the last; NaN without any."""
    known = _remembered(_file(key))
    if not known:
        return nan, ""
    return median(float(one["took_s"]) for one in known), str(known[-1]["at"])[:10]


def _remembered(file: Path) -> list[dict[str, Any]]:
    try:
        return list(json.loads(file.read_text()))
    except (OSError, ValueError, TypeError):
        return []


def _file(key: str) -> Path:
    return cache_folder() / "launches" / f"{key}.json"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
