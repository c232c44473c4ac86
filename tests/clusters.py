"""Clusters of hosts that are not there, for plans."""

from dataclasses import replace
from typing import Any

from workbench.hardware import machine
from workbench.hardware.hosts import Cluster, Host, HostFacts, Spread


def host(number: int, *, cpus: int = 4, gpus: int = 0, model: str = "1f", **has: Any) -> HostFacts:
    has = {"memory_free_gb": 64.0, "shm_free_gb": 8.0, "cores": 8} | has
    return HostFacts(
        host=Host(name=f"host-{number}", address=f"10.0.0.{number}", interface="eth0"),
        cpus=cpus, gpus=gpus, model=model, machine=replace(machine.facts(), **has),
    )  # fmt: skip


def cluster(*hosts: HostFacts, spread: Spread = "spread") -> Cluster:
    return Cluster(
        address="10.0.0.1:6379", spread=spread, hosts=hosts or tuple(map(host, (1, 2, 3)))
    )
