"""LMCache inside vLLM: each instance keeps KV in host memory of its own process, on a GPU.

Not run here. The settings are those of LMCache 0.5.6's source; docs/engine.md explains each one.
"""

from __future__ import annotations

from workbench.serve.connectors.connector import Connector, Store, Wiring
from workbench.serve.connectors.lmcache import CHUNK_TOKENS


def _env(wiring: Wiring) -> dict[str, str]:
    return {
        "LMCACHE_CHUNK_SIZE": str(CHUNK_TOKENS),
        "LMCACHE_LOCAL_CPU": "True",
        "LMCACHE_MAX_LOCAL_CPU_SIZE": f"{wiring.store_gb:g}",
        "LMCACHE_TRACK_USAGE": "false",
        # Chunks are hashed by Python's own hash, in the scheduler and in each worker.
        "PYTHONHASHSEED": "0",
    }


STORE = Store(
    processes=None,
    state="offload-warm",
    # vLLM answers that it has done so, but this connector has no reset: a launch begins empty, and
    # no prompt is sent in two of them.
    clear_path="/reset_prefix_cache?reset_external=true",
    cleared_by="instance",
    instance_start_s=0.0,
    counters={
        "requested_tokens": "lmcache:num_lookup_tokens_total",
        "hit_tokens": "lmcache:num_lookup_hits_total",
        "hit_l1_tokens": "lmcache:num_lookup_hits_total",
        "evicted_chunks": "lmcache:local_cpu_evict_keys_count_total",
    },
)

CONNECTOR = Connector(
    name="lmcache-inprocess",
    store=STORE,
    transfer_config=lambda _: {"kv_connector": "LMCacheConnectorV1", "kv_role": "kv_both"},
    env=_env,
    gpu_only="LMCache inside vLLM copies KV with GPU kernels",
    simulated=False,
    packages={"lmcache": "0.5.6"},
    modules=("lmcache",),
    install="run make setup (on ROCm see docs/gpu.md)",
)
