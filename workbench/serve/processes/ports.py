"""Ports of the loopback interface: which are free, and who listens."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice

from workbench.errors import DeploymentError

_PORTS = range(20_000, 32_000)
"""Below Linux's ephemeral range, so that no outgoing connection takes a chosen port."""


def unused_ports() -> Iterator[int]:
    """Ports that nobody listens on at this moment, at random, so that two runs rarely meet.

    Raises DeploymentError when there is none any more.
    """
    for port in random.SystemRandom().sample(_PORTS, len(_PORTS)):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        yield port
    raise DeploymentError(
        f"no more free ports between {_PORTS.start} and {_PORTS.stop} on this machine; end what"
        " listens there: ss -ltnp lists it"
    )


def free_ports(count: int) -> list[int]:
    """So many unused ports."""
    return list(islice(unused_ports(), count))


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
