"""Ports of the loopback interface: which are free, and who listens."""

from __future__ import annotations

import random
import socket
from contextlib import suppress

from workbench.errors import DeploymentError

_PORTS = range(20_000, 32_000)
"""Below Linux's ephemeral range, so that no outgoing connection takes a chosen port."""


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on at this moment, at random, so that two runs rarely meet."""
    chosen: list[int] = []
    for port in random.SystemRandom().sample(_PORTS, len(_PORTS)):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            chosen.append(port)
        if len(chosen) == count:
            return chosen
    raise DeploymentError(
        f"fewer than {count} free ports between {_PORTS.start} and {_PORTS.stop} on this machine"
    )


def listens(pid: int, port: int) -> bool:
    """True when this process, or one below it, listens on the port."""
    import psutil

    def listens_itself(process: psutil.Process) -> bool:
        return any(
            connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
            for connection in process.net_connections("tcp")
        )

    with suppress(psutil.Error):
        process = psutil.Process(pid)
        # Its children come last: to find them, psutil looks at every process of the machine.
        return listens_itself(process) or any(map(listens_itself, process.children(recursive=True)))
    return False
