"""Ports: which are free, and which process listens."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterable, Iterator
from itertools import islice

from workbench.errors import DeploymentError

_ANSWER_S = 1.0
PORTS = range(20_000, 32_000)
"""Below Linux's ephemeral range, so that no outgoing connection takes a chosen port."""


def unused_ports() -> Iterator[int]:
    """Free ports of the loopback interface in random order, so that two runs rarely collide.

    Raises DeploymentError if none is left.
    """
    yield from free(random.SystemRandom().sample(PORTS, len(PORTS)))
    raise DeploymentError(
        f"no free port between {PORTS.start} and {PORTS.stop} on this machine; end programs that"
        " listen there (example: ss -ltnp lists them)"
    )


def free(ports: Iterable[int], address: str = "127.0.0.1") -> Iterator[int]:
    """Those of these ports that a server can have at this address of this machine."""
    for port in ports:
        with socket.socket() as probe:
            try:
                probe.bind((address, port))
            except OSError:
                continue
        yield port


def in_use(port: int, address: str = "127.0.0.1") -> bool:
    """True if a program listens on this port."""
    with socket.socket() as probe:
        probe.settimeout(_ANSWER_S)
        return probe.connect_ex((address, port)) == 0


def free_ports(count: int) -> list[int]:
    """`count` unused ports."""
    return list(islice(unused_ports(), count))


def listens(pid: int, port: int) -> bool:
    """True if this process or one of its children listens on the port, or if nobody may know.

    What another user's process has open (a container of docker is root's) is not told.
    """
    import psutil

    def listens_itself(process: psutil.Process) -> bool:
        return any(
            connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
            for connection in process.net_connections("tcp")
        )

    try:
        process = psutil.Process(pid)
        # Children come last: to find them, psutil scans every process of the machine.
        return listens_itself(process) or any(map(listens_itself, process.children(recursive=True)))
    except psutil.AccessDenied:
        return True
    except psutil.Error:
        return False
