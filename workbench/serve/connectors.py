"""Connectors: how KV moves between instances, and what each needs of the engine.

The settings were measured with vLLM 0.32.0, LMCache 0.5.6 and NIXL 1.5.1; see docs/engine.md for
what each one cures.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import Any, Literal

from workbench.errors import ParameterError, PlanError, nearest
from workbench.topology import Role, Topology

__all__ = ["CONNECTORS", "Connector", "connector", "lmcache_server_args"]

ConnectorName = Literal["none", "lmcache", "nixl"]

LMCACHE_PROGRAM = (sys.executable, "-m", "lmcache.cli.main", "server")

LMCACHE_CHUNK_TOKENS = 256
"""LMCache's default chunk; a prompt's tail below one chunk is never stored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Connector:
    """One way to move KV. `store` outlives the engines' caches; `transfers` allows PD."""

    name: ConnectorName
    store: bool
    transfers: bool
    chunk_tokens: int = 0
    """Granule of the store, 0 where there is none."""

    def check(self, topology: Topology) -> None:
        """Refuse a topology that this connector cannot serve. Raises PlanError."""
        if topology.disaggregated and not self.transfers:
            raise PlanError(
                f"connector 'none' cannot serve {topology}: no KV would move and both roles would"
                " prefill; take connector lmcache or nixl, or an aggregated topology such as"
                f" {topology.instances}a"
            )
        if not topology.disaggregated and self.transfers and not self.store:
            raise PlanError(
                f"connector {self.name!r} moves KV from prefill to decode and {topology} has"
                " neither; take connector none or lmcache, or a topology such as 1p4d"
            )

    def passes(self, topology: Topology) -> tuple[str, ...]:
        """The cache states that this connector and topology can have, in measuring order."""
        states = ["cold", "engine-warm"]
        answering = topology.decode or topology.aggregated
        if self.transfers and answering > 1:
            states.append("cross-instance")
        if self.store:
            states.append("store-warm")
        return tuple(states)

    def transfer_config(self, role: Role, *, store_port: int, cpu: bool) -> dict[str, Any] | None:
        """What `--kv-transfer-config` takes for an instance of `role`; None for no connector."""
        if self.name == "lmcache":
            return {
                "kv_connector": "LMCacheMPConnector",
                "kv_role": "kv_both",
                "kv_connector_extra_config": {
                    "lmcache.mp.host": "tcp://127.0.0.1",
                    "lmcache.mp.port": store_port,
                    # The defaults (300 s, 10 s) freeze an engine for minutes when the store dies.
                    "lmcache.mp.mq_timeout": 3,
                    "lmcache.mp.heartbeat_interval": 1,
                },
            }
        if self.name == "nixl":
            config: dict[str, Any] = {
                "kv_connector": "NixlConnector",
                "kv_role": "kv_producer" if role == "prefill" else "kv_consumer",
            }
            if cpu:
                config["kv_buffer_device"] = "cpu"
                config["kv_connector_extra_config"] = {"num_threads": 1}
            return config
        return None


CONNECTORS = {
    c.name: c
    for c in (
        Connector(name="none", store=False, transfers=False),
        Connector(name="lmcache", store=True, transfers=True, chunk_tokens=LMCACHE_CHUNK_TOKENS),
        Connector(name="nixl", store=False, transfers=True),
    )
}


def connector(name: str) -> Connector:
    """The connector of that name. Raises ParameterError naming the nearest one."""
    if name not in CONNECTORS:
        raise ParameterError(
            f"connector {name!r} is not known: {nearest(name, CONNECTORS)};"
            " write one of none, lmcache, nixl"
        )
    return CONNECTORS[name]


def lmcache_server_args(
    *,
    port: int,
    http_port: int,
    shm_name: str,
    memory_gb: float,
    chunk_tokens: int = LMCACHE_CHUNK_TOKENS,
    disk_folder: str = "",
) -> list[str]:
    """Arguments of `lmcache server`; shared memory instead of pickle for the transfers.

    `disk_folder` gets a second tier below the memory: every chunk is written there too.
    """
    args = [
        "--host", "127.0.0.1", "--port", str(port),
        "--http-host", "127.0.0.1", "--http-port", str(http_port),
        "--supported-transfer-mode", "auto", "--shm-name", shm_name,
        "--l1-size-gb", f"{memory_gb:g}", "--eviction-policy", "LRU",
    ]  # fmt: skip
    if chunk_tokens != LMCACHE_CHUNK_TOKENS:
        args += ["--chunk-size", str(chunk_tokens)]
    if disk_folder:
        args += ["--l2-adapter", json.dumps({"type": "fs", "base_path": disk_folder})]
    return args


def as_option(config: dict[str, Any] | None) -> list[str]:
    """`--kv-transfer-config {...}`, or nothing."""
    return ["--kv-transfer-config", json.dumps(config)] if config else []
