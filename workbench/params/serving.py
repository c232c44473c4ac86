"""The parameters of `pd_sweep` that say what servers run, for commands that send no load."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from workbench.errors import ParameterError, must_be
from workbench.params.notebooks import check_params
from workbench.params.pd_sweep import ALL_CONNECTORS, CONNECTORS, PdSweep

SERVING = (
    "topology", "connector",
    "engine", "platform", "engine_python",
    "place", "image", "container_args", "ray_address", "spread",
    "model", "dtype", "context_tokens", "kv_cache_mib", "gpu_memory_share", "fork",
    "engine_args", "prefill_args", "decode_args", "aggregated_args", "engine_env", "fault",
    "prefill_tp", "decode_tp", "aggregated_tp", "instances_per_gpu", "cores_per_instance",
    "store_args", "store_gb", "store_tiers", "tier_gb", "mooncake_protocol",
    "output_dir",
)  # fmt: skip
"""What one arm needs; the others are about load, baselines, measuring or attaching."""

_NO_LOAD = {"opponents": False, "workload": "long_context_high_reuse"}
"""One arm. Lengths of that workload follow context_tokens, so any value is accepted."""


def serving_params(command: str, given: Mapping[str, Any]) -> PdSweep:
    """The checked parameters of one deployment, for the command of that name.

    Raises ParameterError as `check_params`, and on a parameter that no server needs.
    """
    if given.get("engine") == "attach":
        allowed = f"vllm or simulated (workbench {command} starts its own servers)"
        raise ParameterError(must_be("engine", allowed, "attach", "vllm"))
    known = {spec.name for spec in fields(PdSweep)}
    if other := next((name for name in given if name in known and name not in SERVING), ""):
        raise ParameterError(
            f"workbench {command} starts servers and sends no load, so it does not take {other!r}."
            f" Leave it out (example: workbench {command} -p topology 1p4d)"
        )
    params: PdSweep = check_params("pd_sweep", _NO_LOAD | dict(given))
    if len(params.topologies) > 1:
        raise ParameterError(must_be("topology", "a single one", params.topology, "1p4d"))
    if params.connector == ALL_CONNECTORS:
        allowed = f"one of {', '.join(CONNECTORS)}"
        raise ParameterError(must_be("connector", allowed, params.connector, "lmcache"))
    return params
