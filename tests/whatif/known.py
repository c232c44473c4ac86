"""A profile whose costs are known, and the frames of a run that has exactly these costs."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import orjson
import pandas as pd

from workbench.experiment.result.facts import ArmFacts, EngineFacts, RunFacts
from workbench.experiment.result.result import Result
from workbench.hardware import machine
from workbench.metrics.latency import latencies
from workbench.params.pd_sweep import PdSweep
from workbench.topology import Topology
from workbench.whatif.model.costs import Costs
from workbench.whatif.model.simulation import Load, Simulated, simulate
from workbench.whatif.profiles.fits import Fit
from workbench.whatif.profiles.profile import Profile

COSTS = Costs(
    prefill_step_s=0.01,
    token_s=2e-5,
    pair_s=1e-9,
    decode_step_s=0.009,
    sequence_s=0.0005,
    kv_token_s=1e-8,
    transfer_s=0.002,
    byte_s=1e-9,
    concurrent_s=0.0,
    step_tokens=2048,
    step_sequences=256,
    block_tokens=128,
    kv_tokens={"prefill": 349_525, "decode": 349_525, "aggregated": 349_525},
    kv_bytes_per_token=768.0,
    holds=True,
)
FRONT_S = 0.001
PARAMETERS = asdict(
    PdSweep(engine="simulated", connector="nixl", workload="short", topology="1p1d")
)
COMMANDS = tuple(
    f"python -m workbench.serve.simulated engine --name {role}-0 --kv-cache-memory-bytes 268435456"
    for role in ("prefill", "decode")
)


def here() -> dict[str, object]:
    return machine.facts().as_dict() | {"platform": "simulated"}


def known_fit(
    costs: dict[str, float], ranges: dict[str, tuple[float, float]], points: int = 10
) -> Fit:
    """A fit without residuals."""
    found = tuple(costs.values())
    return Fit(
        terms=tuple(costs), coefficients=found, resamples=(found,), points=points,
        measured_s=(1.0,) * points, fitted_s=(1.0,) * points, ranges=ranges,
    )  # fmt: skip


def known_profile(largest_batch: float = 16.0) -> Profile:
    """The profile of COSTS, for prompts of 1,000 to 8,000 tokens."""
    c, facts = COSTS, here()
    steps = {"steps": c.prefill_step_s, "tokens": c.token_s, "pairs": c.pair_s}
    decode = {"steps": c.decode_step_s, "sequences": c.sequence_s, "kv_tokens": c.kv_token_s}
    transfer = {"transfers": c.transfer_s, "bytes": c.byte_s, "others": 0.0}
    return Profile(
        run_id="known",
        simulated=True,
        machine={
            "cpu": facts["cpu"], "cores": facts["cores"], "platform": "simulated",
            "gpus": [gpu["name"] for gpu in facts["gpus"]],  # type: ignore[attr-defined]
        },
        versions={},
        command_lines=COMMANDS,
        parameters=PARAMETERS,
        connector="nixl",
        prefill=known_fit(steps, {"tokens": (1_000.0, 8_000.0)}),
        decode=known_fit(decode, {"batch": (1.0, largest_batch), "kv_tokens": (1e3, 1e5)}),
        transfer=known_fit(transfer, {"bytes": (1e6, 1e7), "others": (0.0, 0.0)}),
        overheads_s=((1_000.0, FRONT_S, 0.0, 0.0, 0.0), (8_000.0, FRONT_S, 0.0, 0.0, 0.0)),
        lone_ttft_s=(0.05, 0.2),
        kv_tokens=c.kv_tokens,
        kv_bytes_per_token=c.kv_bytes_per_token,
        step_tokens=c.step_tokens,
        step_sequences=c.step_sequences,
        block_tokens=c.block_tokens,
    )  # fmt: skip


def known_run(
    topology: str = "1p1d",
    *,
    folder: Path = Path("none"),
    shortest: int = 1_000,
    longest: int = 8_000,
    requests_each: int = 4,
) -> Result:
    """A run of six lengths at 1 and 4 in flight and warm at 8, simulated with COSTS."""
    requests, legs = [], []
    for name, concurrency, cached in (
        ("cold, 1", 1, 0.0),
        ("cold, 4", 4, 0.0),
        ("warm, 8", 8, 1.0),
    ):
        prompts = np.tile(np.linspace(shortest, longest, 6).astype(np.int64), requests_each)
        load = Load(
            prompt_tokens=prompts,
            cached_tokens=(cached * (prompts - 1)).astype(np.int64),
            moved_tokens=prompts,
            output_tokens=np.full(len(prompts), 32),
            offsets_s=None,
            concurrency=concurrency,
            overheads_s=np.tile([FRONT_S, 0.0, 0.0, 0.0], (len(prompts), 1)),
        )
        made, sent = _as_rows(simulate(Topology.parse(topology), load, COSTS), topology, name)
        requests.append(made.assign(concurrency=concurrency))
        legs.append(sent)
    frames = {"requests": latencies(pd.concat(requests)), "legs": pd.concat(legs)}
    arm = ArmFacts(
        label=topology, topology=topology, connector="nixl", instances=2, command_lines=COMMANDS
    )
    run = RunFacts(
        notebook="pd_sweep", run_id="known-run", status="success", simulated=True,
        parameters=PARAMETERS | {"topology": topology, "concurrency": 4, "requests": 24},
        machine=here(), arms=(arm,), engine=EngineFacts(kv_bytes_per_token=768.0),
    )  # fmt: skip
    return Result(run=run, folder=folder, frames=frames)


def _as_rows(found: Simulated, arm: str, name: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The frames that client and proxy would have written."""
    requests, legs = [], []
    for row in found.requests.to_dict("records"):
        key = {"arm": arm, "topology": arm, "round": 0, "pass": name,
               "request_id": f"{name}-{row['index']}", "index": row["index"]}  # fmt: skip
        first = row["sent_s"] + row["ttft_s"]
        received = row["sent_s"] + row["front_s"]
        done = received + row["prefill_queue_s"] + row["prefill_compute_s"]
        out = row["output_tokens"]
        requests.append({
            **key, "prompt_tokens": row["prompt_tokens"], "max_tokens": out, "rate_per_s": 0.0,
            "ideal_reuse_tokens": 0, "output_tokens": out, "error": "",
            "scheduled_s": row["sent_s"], "sent_s": row["sent_s"],
            "chunk_s": first + row["tpot_s"] * np.arange(out), "chunk_tokens": [1] * out,
            "engine_metrics": _metrics(
                row["transfer_queue_s"], row["decode_step_s"], row["tpot_s"]
            ),
        })  # fmt: skip
        legs.append({
            **key, "prefill_instance": "http://p", "decode_instance": "http://d", "at_once": False,
            "received_s": received, "prefill_sent_s": received, "prefill_done_s": done,
            "decode_sent_s": done, "decode_first_byte_s": first, "decode_done_s": first,
            "prefill_engine_metrics": _metrics(row["prefill_queue_s"], row["prefill_compute_s"]),
        })  # fmt: skip
    return pd.DataFrame(requests), pd.DataFrame(legs)


def _metrics(queue_s: float, first_s: float, itl_s: float | None = None) -> str:
    said = {"queue_time_ms": 1000 * queue_s, "time_to_first_token_ms": 1000 * first_s}
    if itl_s is not None:
        said["mean_itl_ms"] = 1000 * itl_s
    return orjson.dumps(said).decode()
