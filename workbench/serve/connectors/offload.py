"""vLLM's own offloading: each instance keeps evicted KV in host memory of its own process.

With a GPU it is vLLM's OffloadingConnector as it is, the same as `--kv-offloading-size` (not run
here). On a CPU, which vLLM refuses, `inside_vllm.workbench_host_memory` copies the KV.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from workbench.serve.connectors.connector import Connector, Store, Wiring

_FOLDER = str(Path(__file__).parents[1] / "inside_vllm")
_SPEC = {"spec_name": "HostMemorySpec", "spec_module_path": "workbench_host_memory"}


def _transfer_config(wiring: Wiring) -> dict[str, Any]:
    return {
        "kv_connector": "OffloadingConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {
            "cpu_bytes_to_use": int(wiring.store_gb * 2**30),
            **(_SPEC if wiring.cpu else {}),
        },
    }


def _env(wiring: Wiring) -> dict[str, str]:
    """Where an instance finds the spec; a fork finds it by `load`."""
    if not wiring.cpu:
        return {}
    return {"PYTHONPATH": os.pathsep.join(filter(None, [_FOLDER, os.environ.get("PYTHONPATH")]))}


def load() -> None:
    """Import what the connector needs, for forks."""
    sys.path.append(_FOLDER)
    import_module(_SPEC["spec_module_path"])


STORE = Store(
    processes=None,
    state="offload-warm",
    clear_path="/reset_prefix_cache?reset_external=true",
    cleared_by="instance",
    keeps_blocks=True,
    counts_lookups=False,
    instance_start_s=0.1,
    counters={
        "hit_tokens": "vllm:kv_offload_load_bytes_total",
        "hit_l1_tokens": "vllm:kv_offload_load_bytes_total",
        "read_chunks": "vllm:kv_offload_load_bytes_total",
        "written_chunks": "vllm:kv_offload_store_bytes_total",
        "dropped_chunks": "vllm:kv_offload_allocation_failure_total",
    },
)

CONNECTOR = Connector(
    name="offload",
    store=STORE,
    transfer_config=_transfer_config,
    env=_env,
    load=f"{__name__}:load",
    cpu_doubt=(
        "On a CPU, engine steps wait until offloaded KV is copied. On a GPU copies run beside them,"
        " so offloading costs less there."
    ),
)
