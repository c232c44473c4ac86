"""HTTP/1.1 over connections that timestamp every socket read before any other code runs.

A general client timestamps a chunk when its own code gets to it. Here each stream in flight has its
own connection, and the next request reuses the most recent one.
"""

from __future__ import annotations

import asyncio
from typing import Self

from workbench.control import connect_problem, tls_context
from workbench.load.http.connection import (
    Connection,
    PlainConnection,
    Readable,
    TlsConnection,
    connected,
    read_now,
)
from workbench.load.http.kernel_stamps import KernelClock, ask_for_stamps
from workbench.load.http.request import Origin, Outgoing
from workbench.load.http.response import Response

CONNECT_TIMEOUT_S = 10.0
_LOOK_S = 1.0
"""How often reads that wait are parsed; see response.Response."""


class Transport:
    """The connections to one server, as many as there are requests in flight.

    With a `clock` the kernel timestamps each read of plain http. Proxy variables of the environment
    are ignored. A context manager: leaving it closes all connections.
    """

    def __init__(self, origin: Origin, *, clock: KernelClock | None = None) -> None:
        self._origin, self._clock = origin, clock
        self._address = origin.host
        self._opened: set[Connection] = set()
        self._idle: list[Connection] = []
        self._looking: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Self:
        self._readable = Readable()
        self._look()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None  # it holds this
        for connection in tuple(self._opened):
            connection.abort()
        self._idle.clear()  # they know this list: cycles
        self._readable.close()
        await asyncio.sleep(0)  # the turn in which the loop closes the sockets

    async def send(self, request: Outgoing, response: Response) -> None:
        """Send it in one write and wait for the end; every outcome is in `response`.

        Only a cancellation is raised, and closes the connection. If the server closed an idle
        connection, the request is sent once more on a new one, provided that no response had
        begun; `sent_s` stays that of the first try.
        """
        timeout_s = request.endpoint.timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                idle = self._take_idle()
                if idle is not None:
                    await idle.exchange(request.message, response)
                    if not response.error or response.stamps:
                        return
                    response.expect()
                connection = await self._connect()
                await connection.exchange(request.message, response)
        except asyncio.CancelledError:
            response.fail("cancelled", "cancelled before the response ended")
            raise
        except TimeoutError:
            response.fail("timeout", f"the response did not end within {timeout_s:g} s")
        except ConnectionError as error:
            response.fail("connect", str(error))
        except Exception as error:  # nothing loses a record
            response.fail("protocol", f"{type(error).__name__}: {error}")

    def _look(self) -> None:
        """Once a second: parse reads that wait for a server with nothing more to send."""
        for connection in tuple(self._opened):
            connection.look()
        self._looking = asyncio.get_running_loop().call_later(_LOOK_S, self._look)

    def _take_idle(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                return connection
        return None

    async def _connect(self) -> Connection:
        """A new connection. Raises ConnectionError with the reason."""
        where = f"{self._origin.host}:{self._origin.port}"
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                connection = await self._open()
        except TimeoutError as error:
            raise ConnectionError(
                f"no connection to {where} within {CONNECT_TIMEOUT_S:g} s"
            ) from error
        except (OSError, UnicodeError) as error:  # an invalid host name fails to encode
            reason = connect_problem(error) or str(error)
            raise ConnectionError(f"cannot connect to {where}: {reason}") from error
        return connection

    async def _open(self) -> Connection:
        tls, host, port = self._origin
        sock = await connected(self._address, port)
        self._address = str(sock.getpeername()[0])  # a name is looked up once
        if not tls:
            if self._clock is not None:
                ask_for_stamps(sock)
            read = read_now if self._clock is None else self._clock.read
            return PlainConnection(
                self._opened, self._idle, sock=sock, read=read, readable=self._readable
            )
        _, connection = await asyncio.get_running_loop().create_connection(
            lambda: TlsConnection(self._opened, self._idle),
            sock=sock,
            ssl=tls_context(),
            server_hostname=host,
        )
        return connection
