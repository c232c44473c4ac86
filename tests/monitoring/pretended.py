"""A pretended server of somebody else's: a handler that answers in a thread."""

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any


class Quiet(BaseHTTPRequestHandler):
    """A handler that writes nothing about its requests."""

    def log_message(self, *_: Any) -> None: ...


@contextmanager
def pretended(handler: type[Quiet]) -> Iterator[str]:
    """Its URL while the block runs."""
    running = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=running.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{running.server_port}"
    finally:
        running.shutdown()
