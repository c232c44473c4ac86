"""LMCache in multi-process mode: one server with a KV store that all instances write and read.

The settings were measured with LMCache 0.5.6; docs/engine.md explains each one.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from workbench.hardware.hosts import THIS_MACHINE, Host
from workbench.hardware.interpreter import Interpreter
from workbench.serve.connectors.connector import Connector, Store, Watched, Wiring
from workbench.serve.connectors.tiers import PLUGINS, Tier
from workbench.serve.processes.launcher import ProcessSpec

CHUNK_TOKENS = 256
"""LMCache's default; the end of a prompt below one chunk is never stored."""

_PROGRAM = ("-m", "lmcache.cli.main", "server")
_ENV = {"LMCACHE_TRACK_USAGE": "false"}


def _transfer_config(wiring: Wiring) -> dict[str, Any]:
    return {
        "kv_connector": "LMCacheMPConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {
            "lmcache.mp.host": f"tcp://{wiring.store_host.address}",
            "lmcache.mp.port": wiring.store_port,
            # With the defaults (300 s, 10 s) an engine hangs for minutes when the store dies.
            "lmcache.mp.mq_timeout": 3,
            "lmcache.mp.heartbeat_interval": 1,
        },
    }


def _server(
    ports: Iterator[int],
    *,
    interpreter: Interpreter,
    host: Host = THIS_MACHINE,
    shm_name: str,
    memory_gb: float,
    chunk_tokens: int = CHUNK_TOKENS,
    tiers: Sequence[Tier] = (),
    cpu: bool = True,
) -> tuple[ProcessSpec, ...]:
    """`lmcache server`; it writes every chunk to each of its tiers."""
    port, http_port = next(ports), next(ports)
    args = [
        "--host", host.address, "--port", str(port),
        "--http-host", host.address, "--http-port", str(http_port),
        # Shared memory instead of pickle for the transfers.
        "--supported-transfer-mode", "auto", "--shm-name", shm_name,
        "--l1-size-gb", f"{memory_gb:g}", "--eviction-policy", "LRU",
    ]  # fmt: skip
    if chunk_tokens != CHUNK_TOKENS:
        args += ["--chunk-size", str(chunk_tokens)]
    for tier in tiers:
        args += ["--l2-adapter", json.dumps(tier.adapter)]
    server = ProcessSpec(
        name="store",
        role="store",
        program=(interpreter.path, *_PROGRAM),
        args=tuple(args),
        forks=f"{__name__}:serve" if cpu else "",
        env=_ENV | {name: text for tier in tiers for name, text in tier.env.items()},
        host=host,
        port=port,
        ready_url=f"http://{host.address}:{http_port}/healthcheck",
        writes=tuple(tier.adapter["base_path"] for tier in tiers if "base_path" in tier.adapter),
    )
    return (server,)


def load() -> None:
    """Import what the server and its vLLM connector need, for forks."""
    import vllm.distributed.kv_transfer.kv_connector.v1.lmcache_mp_connector  # noqa: F401


def serve(arguments: Sequence[str]) -> None:
    """Run `lmcache server` with these arguments, in a fork."""
    from lmcache.cli.main import main

    sys.path.append(str(PLUGINS))  # a fork reads no PYTHONPATH
    sys.argv = ["lmcache", "server", *arguments]
    main()


STORE = Store(
    processes=_server,
    shares_memory=True,
    tier_loads="lmcache_mp_l2_load_completed_requests_total",
    clear_path="/cache/clear",
    held="lmcache_mp_l1_memory_usage_bytes",
    told={
        "bytes held": "lmcache_mp_l1_memory_usage_bytes",
        "put": "lmcache_mp_l1_write_chunks_total",
        "read": "lmcache_mp_l1_read_chunks_total",
        "evicted": "lmcache_mp_l1_evicted_chunks_total",
        "rejected": "lmcache_mp_l1_allocation_failure_chunks_total",
    },
    instance_start_s=0.4,
    counters={
        "requested_tokens": "lmcache_mp_lookup_requested_tokens_total",
        "hit_tokens": "lmcache_mp_lookup_hit_tokens_total",
        "hit_l1_tokens": "lmcache_mp_lookup_hit_l1_tokens_total",
        "hit_l2_tokens": "lmcache_mp_lookup_hit_l2_tokens_total",
        "written_chunks": "lmcache_mp_l1_write_chunks_total",
        "read_chunks": "lmcache_mp_l1_read_chunks_total",
        "evicted_chunks": "lmcache_mp_l1_evicted_chunks_total",
        "dropped_chunks": "lmcache_mp_l1_allocation_failure_chunks_total",
        "tier_sent_chunks": "lmcache_mp_l2_store_submitted_objects_chunks_total",
        "tier_chunks": "lmcache_mp_l2_store_completed_objects_chunks_total",
        "tier_sent_tasks": "lmcache_mp_l2_store_submitted_requests_total",
        "tier_done_tasks": "lmcache_mp_l2_store_completed_requests_total",
        "tier_loaded_chunks": "lmcache_mp_l2_prefetch_load_completed_chunks_total",
    },
)

CONNECTOR = Connector(
    name="lmcache",
    transfers=True,
    store=STORE,
    transfer_config=_transfer_config,
    env=lambda _: dict(_ENV),
    load=f"{__name__}:load",
    watched=Watched(fill=("lmcache_mp_l1_usage_ratio",)),
    packages={"lmcache": "0.5.6"},
    modules=("lmcache",),
    install="run make setup (on ROCm see docs/gpu.md)",
)
