"""Predicted against measured topologies, as rows of the tables in docs/whatif.md.

    python benchmarks/whatif.py profile outputs             # runs 1p1d; prints its profile.json
    python benchmarks/whatif.py check profile.json outputs  # runs the others, prints the table
    python benchmarks/whatif.py splits profile.json outputs # highest rates, predicted and measured
    python benchmarks/whatif.py real outputs                # both with vLLM, a core per instance
    python benchmarks/whatif.py real outputs profile.json   # the same without the profile
    python benchmarks/whatif.py speed                       # 100,000 requests x 8 topologies

The simulated engine runs 25 times slower than usual, so that the work of clients, proxy and
servers on a few cores is a small part of the times.
"""

import asyncio
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from math import isnan
from typing import Any

import numpy as np

import workbench as wb
from workbench.experiment.plan.plan import ExperimentPlan
from workbench.params.notebooks import check_params
from workbench.serve.simulated import instance, kv_blocks, scheduler
from workbench.topology import Topology
from workbench.whatif.held_out import HeldOut, held_out
from workbench.whatif.highest_rates import highest_rates, verdicts
from workbench.whatif.model.closed_form import closed_form
from workbench.whatif.model.costs import Costs
from workbench.whatif.model.simulation import plain_load, simulate
from workbench.whatif.profile_plan import profile_plan
from workbench.whatif.profiles.measured_profile import profile_of
from workbench.whatif.profiles.profile import Profile
from workbench.whatif.profiles.profile_file import read_profile

LOAD = {
    "engine": "simulated",
    "connector": "nixl",
    "workload": "short",
    "prompt_tokens": 4_000,
    "output_tokens": 32,
}
SPEED = "0.4"
"""Of the simulated engine; its tests use 10."""
LARGEST_BATCH = 32
"""Requests in flight of the profile: 4p1d decodes up to 60,000 KV tokens together."""
HELD_OUT = "1p2d,2p1d,1p4d,2p2d,4p1d,4p4d,2a,4a"
SHARES = (0.3, 0.6)
"""Rates, as fractions of the highest one of a topology, for prompts that are not shared."""
SEED, REQUESTS = 7, 60
SPLIT_GPUS, SPLIT_LIMITS = 3, {"ttft_limit_ms": 800.0, "tpot_limit_ms": 45.0}
SPLIT_REQUESTS = 200
COLUMNS = (
    *("topology", "rate, 1/s", "utilisation", "TTFT, ms", "predicted", "error"),
    *("TPOT, ms", "predicted", "error", "E2E", "throughput"),
)

REAL = LOAD | {
    "engine": "vllm", "prompt_tokens": 6_000, "output_tokens": 64, "cores_per_instance": 1,
}  # fmt: skip
REAL_HELD_OUT = (
    ("2a", 6_000, 1), ("1p1d", 3_000, 1), ("1a", 6_000, 1), ("1p1d", 6_000, 1), ("1p2d", 6_000, 0),
)  # fmt: skip
"""Topology, prompt tokens and cores per instance. 1p1d was profiled in a closed loop, so only its
load is held out; the three instances of 1p2d share two cores."""
REAL_REQUESTS = 24


def slowed(plan: ExperimentPlan) -> ExperimentPlan:
    """The plan with slow simulated engines."""
    arms = []
    for arm in plan.arms:
        assert arm.settings is not None
        settings = replace(arm.settings, extra_args=("--speed", SPEED))
        arms.append(replace(arm, settings=settings))
    return replace(plan, arms=tuple(arms))


def measure_profile(output_dir: str) -> None:
    given = LOAD | {"output_dir": output_dir, "concurrency": LARGEST_BATCH}
    params = check_params("pd_sweep", given)
    result = asyncio.run(wb.run(slowed(profile_plan(params))))
    print(profile_of(result).write(result.folder))


def check(profile_file: str, output_dir: str, workload: str = "short") -> None:
    profile = read_profile(profile_file)
    print(_head())
    for text in (HELD_OUT if workload == "short" else "1p2d,2p1d").split(","):
        given = LOAD | {"workload": workload, "shared_share": 0.5, "output_dir": output_dir}
        plan = slowed(_held_out_plan(profile, given | {"requests": REQUESTS}, text))
        for line in _measured(profile, plan, text):
            print(line, flush=True)


def splits(profile_file: str, output_dir: str) -> None:
    """Search for the highest rate of each topology of SPLIT_GPUS instances, simulated and real."""
    profile = read_profile(profile_file)
    found = highest_rates(profile, SPLIT_LIMITS | {"requests": SPLIT_REQUESTS}, SPLIT_GPUS)
    print(*verdicts(found), sep="\n")
    print("| topology | predicted, 1/s | limit | measured: met, missed | within the limits |")
    print(f"|{'---|' * 5}")
    for row in (one for one in found.served if one.gpus == SPLIT_GPUS):
        given = LOAD | SPLIT_LIMITS | {
            "topology": str(row.topology), "opponents": False, "rounds": 1, "seed": SEED,
            "search": True, "requests": SPLIT_REQUESTS, "output_dir": output_dir,
            "rate_per_s": float(f"{0.7 * row.rate_per_s:.3g}"),
            "connector": LOAD["connector"] if row.topology.disaggregated else "none",
        }  # fmt: skip
        plan = slowed(wb.plan(check_params("pd_sweep", given)))
        result = asyncio.run(wb.run(plan, echo=lambda _: None))
        (got,) = result.run.decisions
        least = "at least " * row.at_least
        print(
            f"| {row.topology} | {least}{row.rate_per_s:.3g} [{row.low:.3g}, {row.high:.3g}]"
            f" | {row.limited_by} | {got.met:.3g}, {got.missed:.3g}"
            f" | {got.share:.0%} [{got.share_low:.0%}, {got.share_high:.0%}] {got.note} |",
            flush=True,
        )
        failed = "; ".join(one.sentence for one in result.run.gates if one.outcome == "FAIL")
        print(f"load average {os.getloadavg()[0]:.1f}; failed gates: {failed or 'none'}")


def real(output_dir: str, profile_file: str = "") -> None:
    """Profile vLLM with a core per instance, or read one, and measure what two cores hold."""
    began_s = time.monotonic()
    given = REAL | {"output_dir": output_dir}
    if profile_file:
        profile = read_profile(profile_file)
    else:
        result = asyncio.run(wb.run(profile_plan(check_params("pd_sweep", given))))
        profile = profile_of(result)
        print(f"{profile.write(result.folder)} ({time.monotonic() - began_s:.0f} s)")
    for name in ("prefill", "decode", "transfer"):
        one = getattr(profile, name)
        found = ", ".join(f"{term} {x:.3g}" for term, x in one.of_resample(0).items())
        print(f"{name}: {found}; off by {one.residual:.1%} in the median")
    print(f"1a of the same run: {profile.aggregated}; load average {os.getloadavg()[0]:.1f}")
    print(_head())
    for text, tokens, cores in REAL_HELD_OUT:
        own = profile.parameters | {"cores_per_instance": cores}
        load = {"prompt_tokens": tokens, "cores_per_instance": cores, "requests": REAL_REQUESTS}
        here = replace(profile, parameters=own)
        what = f"{text}, {tokens:,} tokens" + ", cores shared" * (not cores)
        for line in _measured(here, _held_out_plan(here, given | load, text), what):
            print(line, flush=True)
    print(f"{time.monotonic() - began_s:.0f} s")


def _held_out_plan(profile: Profile, given: dict[str, Any], text: str) -> ExperimentPlan:
    """A run at SHARES of the highest rate that the profile predicts for the topology."""
    topology, costs = Topology.parse(text), profile.costs()
    one = plain_load([given["prompt_tokens"]], [given["output_tokens"]], [0.0])
    bound = closed_form(topology, one, costs, rate_per_s=1.0, poisson=False).bound_per_s
    given |= {
        "topology": text, "opponents": False, "rounds": 1, "seed": SEED,
        "rates_per_s": [float(f"{share * bound:.3g}") for share in SHARES],
        "connector": given["connector"] if topology.disaggregated else "none",
    }  # fmt: skip
    return wb.plan(check_params("pd_sweep", given))


def _head() -> str:
    return f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}"


def _measured(profile: Profile, plan: ExperimentPlan, what: str) -> Iterator[str]:
    """Measure the plan; a row of the table for each of its rates, and what its gates say."""
    result = asyncio.run(wb.run(plan, echo=lambda _: None))
    for row in held_out(profile, result, with_profiled=True):
        yield "| " + " | ".join((what, *_cells(row))) + " |"
    failed = "; ".join(one.sentence for one in result.run.gates if one.outcome == "FAIL")
    yield f"load average {os.getloadavg()[0]:.1f}; failed gates: {failed or 'none'}"


def _cells(row: HeldOut) -> Iterator[str]:
    yield f"{row.rate_per_s:g}"
    yield f"{row.predicted.closed.utilisation:.2f}"
    if row.predicted.refused:
        yield row.predicted.refused
    for name in ("ttft_s", "tpot_s"):
        got = row.predicted.number(name)
        low, value, high = (f"{1000 * one:.3g}" for one in (got.low, got.value, got.high))
        yield f"{1000 * row.measured[name]:.3g}"
        yield f"{value} [{low}, {high}]"
        yield _percent(row.error(name))
    yield _percent(row.error("e2e_s"))
    yield _percent(row.error("system_tps"))


def _percent(error: float) -> str:
    return "-" if isnan(error) else f"{100 * error:+.1f} %"


def speed(requests: int = 100_000) -> None:
    costs = Costs(
        prefill_step_s=instance.STEP_S, token_s=instance.TOKEN_S, pair_s=instance.PAIR_S,
        decode_step_s=instance.STEP_S - instance.NEIGHBOUR_S, sequence_s=instance.NEIGHBOUR_S,
        kv_token_s=instance.PAIR_S, transfer_s=instance.TRANSFER_S,
        byte_s=1 / instance.TRANSFER_BYTES_PER_S, concurrent_s=0.0,
        step_tokens=scheduler.STEP_TOKENS, step_sequences=scheduler.STEP_SEQUENCES,
        block_tokens=kv_blocks.BLOCK_TOKENS, kv_bytes_per_token=kv_blocks.TOKEN_BYTES, holds=True,
        kv_tokens=dict.fromkeys(("prefill", "decode", "aggregated"), 349_525),
    )  # fmt: skip
    rng = np.random.default_rng(0)
    began_s = time.process_time()
    for topology in Topology.parse_list("all"):
        rate = 0.7 * topology.prefill / costs.prefill_s(5_000)
        offsets_s = np.cumsum(rng.exponential(1 / rate, requests))
        prompts = rng.integers(2_000, 8_000, requests)
        simulate(topology, plain_load(prompts, np.full(requests, 32), offsets_s), costs)
        print(f"{topology}: {time.process_time() - began_s:.1f} s so far", flush=True)


if __name__ == "__main__":
    if not sys.argv[1:]:
        raise SystemExit(__doc__)
    act, *rest = sys.argv[1:]
    acts = {
        "profile": measure_profile,
        "check": check,
        "splits": splits,
        "real": real,
        "speed": speed,
    }
    acts[act](*map(str, rest))
