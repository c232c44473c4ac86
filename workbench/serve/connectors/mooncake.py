"""Mooncake, peer to peer: prefill sends KV straight to decode, which waits for it; no KV store.

Measured with vLLM 0.32.0 and Mooncake 0.3.13; docs/engine.md says what each setting cures. Prefill
and decode get a request at once, with a transfer id in common.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from workbench.serve.connectors.connector import Connector, LegsAtOnce, Wiring

LOG_PERIOD_S = 0.5
"""vLLM's default is 10 s, longer than a pass: its log is all that counts transfers."""


def _transfer_config(wiring: Wiring) -> dict[str, Any]:
    return {
        "kv_connector": "MooncakeConnector",
        "kv_role": "kv_producer" if wiring.role == "prefill" else "kv_consumer",
        "kv_connector_extra_config": {"mooncake_protocol": wiring.mooncake_protocol},
    }


def _env(wiring: Wiring) -> dict[str, str]:
    env = {
        "VLLM_HOST_IP": wiring.host.address,
        "VLLM_LOG_STATS_INTERVAL": f"{LOG_PERIOD_S:g}",
        # A transfer waits this long for its prompt. If prefill dies, it waits 60 s more.
        "VLLM_MOONCAKE_ABORT_REQUEST_TIMEOUT": str(wiring.transfer_timeout_s),
    }
    if wiring.role == "prefill":
        env["VLLM_MOONCAKE_BOOTSTRAP_PORT"] = str(wiring.side_port)
    return env


def _prefill(transfer_id: str) -> dict[str, Any]:
    return {
        "kv_transfer_params": {
            "do_remote_decode": True,
            "do_remote_prefill": False,
            "transfer_id": transfer_id,
        }
    }


def _decode(transfer_id: str, bootstrap_url: str, engines: Mapping[str, Any]) -> dict[str, Any]:
    """Raises ValueError if the bootstrap server does not name exactly one engine."""
    if len(engines) != 1:
        raise ValueError(f"names {len(engines)} engines; each prefill instance must be one engine")
    (engine,) = engines.values()
    if not isinstance(engine, dict) or not engine.get("engine_id"):
        raise ValueError("names no engine; start the instance with MooncakeConnector")
    return {
        "kv_transfer_params": {
            "do_remote_decode": False,
            "do_remote_prefill": True,
            "remote_bootstrap_addr": bootstrap_url,
            "remote_engine_id": engine["engine_id"],
            "transfer_id": transfer_id,
        }
    }


def _patch_cpu() -> None:
    """Say that the current device is the first: without a GPU torch raises."""
    import torch

    torch.accelerator.current_device_index = lambda: 0


CONNECTOR = Connector(
    name="mooncake",
    transfers=True,
    pulls=True,
    transfer_config=_transfer_config,
    env=_env,
    at_once=LegsAtOnce(lookup_path="/query", prefill=_prefill, decode=_decode),
    transfer_log_s=LOG_PERIOD_S,
    rdma=True,
    doubt=(
        "Mooncake's bootstrap and transfer ports accept connections on all addresses of this"
        " machine; it has no setting for loopback only."
    ),
    patch_cpu=_patch_cpu,
    packages={"mooncake": "0.3.13.post1"},
    modules=("mooncake",),
    fatal=("Mooncake is not available", "Mooncake Transfer Engine initialization failed"),
    install="run make setup MOONCAKE=1 (docs/engine.md)",
)
