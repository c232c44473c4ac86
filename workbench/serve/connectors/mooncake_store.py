"""Mooncake's store: a master that knows where KV blocks lie, and instances that lend it memory.

Measured with Mooncake 0.3.13; docs/engine.md says what each setting cures. The store's protocol is
TCP, and each instance's transfer engine listens on all addresses: Mooncake has no setting for that.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from workbench.hardware.hosts import THIS_MACHINE, Host
from workbench.hardware.interpreter import Interpreter
from workbench.serve.connectors.connector import Connector, Store, Watched, Wiring
from workbench.serve.processes.launcher import ProcessSpec

_SMALLEST_SEGMENT = 2**24
"""Bytes; Mooncake refuses less."""
_LOCAL_BUFFER = "64MB"
"""Of each instance, beside what it lends the store."""


def master(
    ports: Iterator[int], interpreter: Interpreter, host: Host = THIS_MACHINE
) -> ProcessSpec:
    """The master. It must be ready first: an instance that finds none waits for 90 s.

    The program is inside the package: its command line tool would be one process more.
    """
    port, http_port = next(ports), next(ports)
    return ProcessSpec(
        name="store",
        role="store",
        program=(str(Path(interpreter.find("mooncake")) / "mooncake_master"),),
        args=(
            *("-rpc_address", host.address, "-rpc_port", str(port)),
            *("-metrics_host", host.address, "-metrics_port", str(http_port)),
            *("-enable_metric_reporting=false", "-logtostderr"),
        ),
        host=host,
        port=port,
        ready_url=f"http://{host.address}:{http_port}/health",
    )


def _config(wiring: Wiring) -> dict[str, str]:
    """What vLLM's connector reads (`vllm.distributed.mooncake_store.MooncakeStoreConfig`)."""
    config = {
        "mode": "embedded",
        "metadata_server": "P2PHANDSHAKE",
        "master_server_address": f"{wiring.store_host.address}:{wiring.store_port}",
        "global_segment_size": max(_SMALLEST_SEGMENT, int(wiring.store_gb * 2**30)),
        "local_buffer_size": _LOCAL_BUFFER,
        "protocol": wiring.mooncake_protocol,
        "device_name": "",
    }
    return {"MOONCAKE_CONFIG_PATH": json.dumps(config)}


def _transfer_config(wiring: Wiring) -> dict[str, Any]:
    return {
        "kv_connector": "MooncakeStoreConnector",
        "kv_role": "kv_both",
        # Names the socket of its lookups. By default all instances of a machine have one name, and
        # the one that starts last looks up, and counts, for the others.
        "kv_connector_extra_config": {"lookup_rpc_port": wiring.side_port},
    }


def _patch_cpu() -> None:
    """Give torch an event that does nothing: there is no stream to wait for without a GPU."""
    import torch

    class Event:
        def __init__(self, *_: Any, **__: Any) -> None: ...

        def record(self, *_: Any) -> None: ...

        def wait(self, *_: Any) -> None: ...

        def synchronize(self) -> None: ...

        def query(self) -> bool:
            return True

    torch.cuda.Event = Event


STORE = Store(
    processes=lambda ports, *, interpreter, host, **_: (master(ports, interpreter, host),),
    clear_path="/reset_prefix_cache?reset_external=true",
    cleared_by="instance",
    held="master_key_count",
    told={
        "held": "master_key_count",
        "bytes held": "master_allocated_bytes",
        "put": "master_batch_put_end_items_total",
        "read": "mem_cache_hit_nums_",
        "evicted": "master_evicted_key_count",
        "rejected": "master_put_start_alloc_failures_total",
    },
    read_bytes="vllm:mooncake_store_operation_bytes_total",
    keeps_blocks=True,
    stores_late=True,
    counts_lookups=False,
    stalls_when_dead=True,
    instance_start_s=0.5,
    counters={
        "requested_tokens": "master_batch_exist_key_items_total",
        "hit_tokens": "mem_cache_hit_nums_",
        "hit_l1_tokens": "mem_cache_hit_nums_",
        "hit_l2_tokens": "file_cache_hit_nums_",
        "written_chunks": "master_batch_put_end_items_total",
        "read_chunks": "mem_cache_hit_nums_",
        "evicted_chunks": "master_evicted_key_count",
        "dropped_chunks": "master_put_start_alloc_failures_total",
    },
)

CONNECTOR = Connector(
    name="mooncake-store",
    transfers=True,
    store=STORE,
    transfer_config=_transfer_config,
    env=lambda wiring: {"VLLM_HOST_IP": wiring.host.address},
    env_files=_config,
    watched=Watched(
        fill=("master_allocated_bytes", "master_total_capacity_bytes"),
        gets=("valid_get_nums_", "total_get_nums_"),
        failures={"keys": "vllm:mooncake_store_operation_failed_keys_total"},
    ),
    rdma=True,
    doubt=(
        "Mooncake's transfer ports accept connections on all addresses of this machine; it has no"
        " setting for loopback only."
    ),
    patch_cpu=_patch_cpu,
    packages={"mooncake": "0.3.13.post1"},
    modules=("mooncake",),
    fatal=("Initialize MooncakeDistributedStore failed",),
    install="run make setup MOONCAKE=1 (docs/engine.md)",
)
