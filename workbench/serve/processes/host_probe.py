"""What is asked of other hosts: what their clocks say, and how fast links between them are."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from workbench.errors import DeploymentError
from workbench.records import ClockReading, LinkRate

_ROUND_TRIPS = 10
LINK_S = 1.0
"""How long bytes are sent over a link. At 10 Mbit/s that is 1 MB, many times what a shaped link
lets through at once."""
_CHUNK = bytes(1 << 18)
_WAIT_S = 5.0
"""A host that drops packets is given up after so long, before who asked gives up."""


class HostProbe:
    """On a host: answers the questions below. It needs only the standard library."""

    def __init__(self) -> None:
        self._received: list[tuple[int, float]] = []
        self._receiving: threading.Thread | None = None

    def clock(self) -> tuple[float, float]:
        """The monotonic clock and that of the day."""
        return time.monotonic(), time.time()

    def listen(self, address: str) -> int:
        """Take bytes from one connection to the port that is returned."""
        listener = socket.create_server((address, 0))
        listener.settimeout(_WAIT_S)
        # A list of its own: what came over an earlier connection, or comes late, is not this one's.
        received: list[tuple[int, float]] = []
        self._received = received
        self._receiving = threading.Thread(
            target=self._receive, args=(listener, received), daemon=True
        )
        self._receiving.start()
        return int(listener.getsockname()[1])

    def send(self, address: str, port: int, seconds: float) -> None:
        """Send bytes to a host that listens, for so long."""
        try:
            with socket.create_connection((address, port), timeout=_WAIT_S) as link:
                ends_s = time.monotonic() + seconds
                while time.monotonic() < ends_s:
                    link.sendall(_CHUNK)
        except OSError as error:
            raise ConnectionError(f"cannot send to {address} ({error})") from error

    def received_bit_s(self) -> float:
        """How fast they came, once the sender is done."""
        if self._receiving is not None:
            self._receiving.join(_WAIT_S)
        return sum(8 * got / took_s for got, took_s in self._received if took_s)

    def _receive(self, listener: socket.socket, received: list[tuple[int, float]]) -> None:
        with listener:
            try:
                link, _ = listener.accept()
            except TimeoutError:
                return
        got, began_s, ended_s = 0, 0.0, 0.0
        with link:
            link.settimeout(_WAIT_S)
            while chunk := link.recv(len(_CHUNK)):
                ended_s = time.monotonic()
                # The clock starts when the first bytes are there, so they do not count.
                got, began_s = (got + len(chunk), began_s) if began_s else (0, ended_s)
        received.append((got, ended_s - began_s))


class Asked(Protocol):
    """A host of whose `HostProbe` something can be asked."""

    @property
    def here(self) -> bool:
        """It is this machine, so that its clocks are ours."""
        ...

    def ask(self, name: str, *arguments: Any) -> Any:
        """The answer of that method there; blocks. Raises DeploymentError if there is none."""
        ...


def read_clock(address: str, host: Asked, *, tries: int = _ROUND_TRIPS) -> ClockReading:
    """Compare a host's clocks with ours; blocks for some round trips."""
    readings = []
    for _ in range(tries):
        sent_s, day_s = time.monotonic(), time.time()
        there_s, day_there_s = host.ask("clock")
        half_s = (time.monotonic() - sent_s) / 2
        readings.append(
            ClockReading(
                host=address,
                at_s=sent_s + half_s,
                offset_s=there_s - (sent_s + half_s),
                wall_offset_s=day_there_s - (day_s + half_s),
                bound_s=half_s,
            )
        )
    return min(readings, key=lambda reading: reading.bound_s)


def link_rates(
    hosts: Mapping[str, Asked], pairs: Iterable[tuple[str, str]], *, seconds: float = LINK_S
) -> list[LinkRate]:
    """Send bytes over the link of each pair of addresses, one way and then the other; blocks.

    Raises DeploymentError if nothing came.
    """
    found = []
    for pair in pairs:
        for sender, receiver in (pair, pair[::-1]):
            port = hosts[receiver].ask("listen", receiver)
            hosts[sender].ask("send", receiver, port, seconds)
            bit_s = hosts[receiver].ask("received_bit_s")
            if not bit_s:
                raise DeploymentError(
                    f"no bytes came from {sender} to {receiver}; check the firewall between them"
                )
            found.append(LinkRate(sender=sender, receiver=receiver, bit_s=bit_s))
    return found
