"""What-if predictions of the simulated engine beside measured topologies: docs/whatif.md.

    python benchmarks/whatif.py profile outputs           # runs 1p1d; prints its profile.json
    python benchmarks/whatif.py check profile.json outputs  # runs the others, prints the table
    python benchmarks/whatif.py speed                     # 100,000 requests x 8 topologies

The simulated engine runs 25 times slower than usual, so that the work of clients, proxy and
servers on a few cores is a small part of the times.
"""

import asyncio
import sys
import time
from dataclasses import replace

import numpy as np

import workbench as wb
from workbench.experiment.plan.plan import ExperimentPlan
from workbench.params.notebooks import check_params
from workbench.serve.simulated import instance, kv_blocks, scheduler
from workbench.topology import Topology
from workbench.whatif.costs import Costs
from workbench.whatif.held_out import CHECKED, held_out
from workbench.whatif.profile import profile_of, read_profile
from workbench.whatif.profile_plan import profile_plan
from workbench.whatif.simulation import plain_load, simulate

LOAD = {
    "engine": "simulated",
    "connector": "nixl",
    "workload": "short",
    "prompt_tokens": 4_000,
    "output_tokens": 32,
}
SPEED = "0.4"
"""Of the simulated engine; its tests use 10."""
HELD_OUT = "1p2d,2p1d,1p4d,2p2d,4p1d,4p4d,2a,4a"
SHARES = (0.3, 0.6)
"""Rates, as fractions of what the prefill instances of a topology can do."""
SEED, REQUESTS = 7, 60


def slowed(plan: ExperimentPlan) -> ExperimentPlan:
    """The plan with slow simulated engines."""
    arms = []
    for arm in plan.arms:
        assert arm.settings is not None
        settings = replace(arm.settings, extra_args=("--speed", SPEED))
        arms.append(replace(arm, settings=settings))
    return replace(plan, arms=tuple(arms))


def measure_profile(output_dir: str) -> None:
    params = check_params("pd_sweep", LOAD | {"output_dir": output_dir})
    result = asyncio.run(wb.run(slowed(profile_plan(params))))
    print(profile_of(result).write(result.folder))


def check(profile_file: str, output_dir: str, workload: str = "short") -> None:
    profile = read_profile(profile_file)
    prefill_s = profile.costs().prefill_s(LOAD["prompt_tokens"])
    print("| topology | rate | requests | " + " | ".join(CHECKED) + " |")
    for text in (HELD_OUT if workload == "short" else "1p2d,2p1d").split(","):
        topology = Topology.parse(text)
        servers = topology.prefill or topology.aggregated / 2
        rates = [round(share * servers / prefill_s, 2) for share in SHARES]
        given = LOAD | {
            "workload": workload, "shared_share": 0.5, "topology": text, "opponents": False,
            "rounds": 1, "requests": REQUESTS, "rates_per_s": rates, "seed": SEED,
            "output_dir": output_dir,
            "connector": LOAD["connector"] if topology.disaggregated else "none",
        }  # fmt: skip
        plan = slowed(wb.plan(check_params("pd_sweep", given)))
        result = asyncio.run(wb.run(plan, echo=lambda _: None))
        for row in held_out(profile, result):
            cells = [f"{row.arm.split()[0]} | {row.rate_per_s:g}/s | {row.requests}"]
            for name in CHECKED:
                unit = 1 if name == "system_tps" else 1000
                got, wanted = row.predicted.number(name), row.measured[name]
                cells.append(
                    f"{unit * wanted:.4g} / {unit * got.value:.4g} [{unit * got.low:.4g},"
                    f" {unit * got.high:.4g}], {100 * row.error(name):+.1f} %"
                )
            failed = [g.name for g in result.run.gates if g.outcome == "FAIL"]
            print("| " + " | ".join(cells), "|", row.predicted.refused, failed, flush=True)


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
    act, *rest = sys.argv[1:]
    {"profile": measure_profile, "check": check, "speed": speed}[act](*map(str, rest))
