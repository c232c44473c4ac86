"""NIXL: a decode instance pulls the KV from the prefill instance; there is no KV store.

The settings were measured with NIXL 1.5.1; docs/engine.md explains each one.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from workbench.serve.connectors.connector import Connector, Watched, Wiring

_SIDE_PORT = "VLLM_NIXL_SIDE_CHANNEL_PORT"
_POLL_US = 1000


def _transfer_config(wiring: Wiring) -> dict[str, Any]:
    config: dict[str, Any] = {
        "kv_connector": "NixlConnector",
        "kv_role": "kv_producer" if wiring.role == "prefill" else "kv_consumer",
    }
    if wiring.cpu:
        config["kv_buffer_device"] = "cpu"
        config["kv_connector_extra_config"] = {"num_threads": 1}
    return config


def _env(wiring: Wiring) -> dict[str, str]:
    env = {
        "VLLM_NIXL_SIDE_CHANNEL_HOST": wiring.host.address,
        _SIDE_PORT: str(wiring.side_port),
    }
    if wiring.cpu:
        env |= {"UCX_TLS": "tcp", "UCX_NET_DEVICES": wiring.host.interface}
        env |= {"UCX_RCACHE_MAX_UNRELEASED": "1024"}
    return env


def _hand_over(answer: Mapping[str, Any]) -> dict[str, Any]:
    """The unchanged transfer parameters of a prefill response.

    An instance without a connector ignores the request for them and returns null: passing that on
    would prefill twice and look like a slow transfer. Empty block ids are refused even for a short
    prompt: vLLM counts a partly filled block too, so a prompt of one token has one block (v1
    scheduler, `_connector_finished`), and an empty list makes the decode engine fail an assertion
    and exit (`NixlPullConnectorScheduler.update_state_after_alloc`, vLLM 0.32).
    """
    params = answer.get("kv_transfer_params")
    if not isinstance(params, dict) or not params.get("do_remote_prefill"):
        raise ValueError(
            "returned no transfer parameters, so it runs without a KV connector; start it with"
            " NixlConnector, or start the proxy with another --mode"
        )
    groups = params.get("remote_block_ids")
    # One list of ids, or one list per KV cache group.
    if not isinstance(groups, list) or not any(group != [] for group in groups):
        raise ValueError("returned transfer parameters without KV blocks")
    return {"kv_transfer_params": params}


def _patch_cpu() -> None:
    """Set the poll interval of NIXL's progress thread to 1 ms.

    NIXL hard-codes 0: UCX then polls without a pause and each agent takes a whole core.
    """
    if _SIDE_PORT not in os.environ:
        return
    api: Any = import_module(import_module("nixl._api").nixl_agent.__module__)
    bindings = api.nixlBind
    if getattr(bindings, "calm", False):
        return

    class CalmConfig(bindings.nixlAgentConfig):  # type: ignore[misc,name-defined]
        def __setattr__(self, name: str, value: Any) -> None:
            super().__setattr__(name, _POLL_US if name == "pthrDelay" else value)

    class CalmBindings:
        calm = True
        nixlAgentConfig = CalmConfig

        def __getattr__(self, name: str) -> Any:
            return getattr(bindings, name)

    api.nixlBind = CalmBindings()


CONNECTOR = Connector(
    name="nixl",
    transfers=True,
    pulls=True,
    transfer_config=_transfer_config,
    env=_env,
    prefill_asks={
        "kv_transfer_params": {
            "do_remote_decode": True,
            "do_remote_prefill": False,
            "remote_engine_id": None,
            "remote_block_ids": None,
            "remote_host": None,
            "remote_port": None,
        }
    },
    hand_over=_hand_over,
    patch_cpu=_patch_cpu,
    transfer_counters={
        "bytes_moved": "vllm:nixl_bytes_transferred_sum",
        "transfers": "vllm:nixl_bytes_transferred_count",
        "failed": "vllm:nixl_num_failed_transfers_total",
        "expired": "vllm:nixl_num_kv_expired_reqs_total",
    },
    watched=Watched(transfer_s="vllm:nixl_xfer_time_seconds"),
    fatal=("NIXL is not avail",),
    packages={"nixl": "1.5.1"},
    modules=("nixl", "nixl_rocm"),
    install="run make setup, or pip install transfers==1.5.1",
)
