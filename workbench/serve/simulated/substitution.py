"""From the processes of a real deployment to those of a simulated one. Nothing is started here.

Names, roles, ports, order and the proxy stay the same; instances and store become simulated ones,
and the affected processes get the fault.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import replace

from workbench.serve.connectors import Connector, Wiring
from workbench.serve.processes.launcher import ProcessSpec
from workbench.serve.simulated.faults import FAULTS, SHORT_TIMEOUT_S, applies
from workbench.serve.vllm import EngineSettings
from workbench.topology import Topology

_MAIN, _PROXY_MAIN = "workbench.serve.simulated.__main__:main", "workbench.serve.proxy.proxy:main"
LOADS = tuple(name.partition(":")[0] for name in (_MAIN, _PROXY_MAIN))
"""What the fork server of a simulation loads."""
_OPTIONS = {
    "VLLM_MOONCAKE_BOOTSTRAP_PORT": "--bootstrap-port",
    "VLLM_MOONCAKE_ABORT_REQUEST_TIMEOUT": "--transfer-timeout",
    "VLLM_LOG_STATS_INTERVAL": "--log-period",
}
"""Options of a simulated instance that vLLM reads from its environment."""
_PROGRAM = (sys.executable, "-m", "workbench.serve.simulated")


def simulated_processes(
    processes: Iterable[ProcessSpec],
    topology: Topology,
    connector: Connector,
    settings: EngineSettings,
    *,
    store_gb: float,
) -> list[ProcessSpec]:
    """The same processes, simulated, with `settings.fault` in the affected ones."""
    made: list[ProcessSpec] = []
    store_port = 0
    fault, private = settings.fault, bool(connector.store and connector.store.private)
    acts_on = FAULTS[fault].acts_on if fault and applies(fault, connector.name, topology) else ""
    for spec in processes:
        faulty = ("--fault", fault) if acts_on in _places(spec, topology) else ()
        if spec.role == "proxy":
            made.append(replace(spec, args=spec.args + faulty, env={}, forks=_PROXY_MAIN))
            continue
        if spec.role == "store":
            store_port = spec.port
            args = (connector.name, *_store_args(spec, store_gb))
        elif spec.role == "tier":
            continue  # tiers are not simulated, and refused before
        else:
            wiring = Wiring(
                role=spec.role, cpu=True, store_port=store_port,
                store_gb=store_gb if private else store_gb / topology.instances,
            )  # fmt: skip
            args = _instance_args(spec, settings, json.dumps(connector.transfer_config(wiring)))
            for text in connector.env_files(wiring).values():
                args += ("--mooncake-config", text)
            for name in _OPTIONS.keys() & spec.env.keys():
                args += (_OPTIONS[name], spec.env[name])
            if acts_on and fault == "transfer_timeout":
                args += ("--transfer-timeout", f"{SHORT_TIMEOUT_S:g}")
        made.append(
            replace(spec, program=_PROGRAM, args=args + faulty, env={}, env_files={}, forks=_MAIN)
        )
    return made


def _places(spec: ProcessSpec, topology: Topology) -> set[str]:
    """Which values of `Fault.acts_on` include this process."""
    places: set[str] = {spec.role}
    counts = {str(role): count for role, count in topology.roles}
    if spec.role in counts:
        places.add("every engine")
    if spec.role in ("decode", "aggregated"):
        places.add("answering")
        if spec.name == f"{spec.role}-{counts[spec.role] - 1}":
            places.add("last answering")
    return places


def _store_args(spec: ProcessSpec, store_gb: float) -> tuple[str, ...]:
    http_port = spec.ready_url.split(":")[2].split("/")[0]
    ports = ("--port", str(spec.port), "--http-port", http_port)
    return (*ports, "--l1-size-gb", f"{store_gb:g}")


def _instance_args(spec: ProcessSpec, settings: EngineSettings, transfer: str) -> tuple[str, ...]:
    """The options of a simulated instance, named as in vLLM."""
    caching = "--enable-prefix-caching" if settings.prefix_caching else "--no-enable-prefix-caching"
    return (
        "engine", "--name", spec.name, "--port", str(spec.port),
        "--max-model-len", str(settings.context_tokens),
        "--kv-cache-memory-bytes", str(settings.kv_cache_mib * 2**20), caching,
        "--kv-transfer-config", transfer, "--seed", str(settings.seed), *settings.extra_args,
    )  # fmt: skip
