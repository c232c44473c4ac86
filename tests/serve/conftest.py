"""Tiny servers in place of vLLM: a Python one-liner each, started through a real supervisor."""

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from workbench.serve.plan import ProcessSpec
from workbench.serve.processes import Launcher, free_ports

SERVER = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.send_header("Content-Length", "0"); self.end_headers()
    do_POST = do_GET
    def log_message(self, *_): pass
http.server.HTTPServer.allow_reuse_address = False
server = http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
"""
"""Binds the port of its first argument; the code that follows says how it goes on."""

SERVES = SERVER + "server.serve_forever()"


def spec(code: str = SERVES, *, name: str = "decode-0", port: int = 0, **given) -> ProcessSpec:
    """A process that runs `code` as an instance would run: same plan, same environment rules."""
    port = port or free_ports(1)[0]
    return ProcessSpec(
        name=name,
        role="decode",
        program=(sys.executable, "-S", "-c", code),
        args=(str(port),),
        port=port,
        ready_url=f"http://127.0.0.1:{port}/health",
        **given,
    )


@pytest.fixture
async def launcher(tmp_path: Path, nothing_left: str) -> AsyncIterator[Launcher]:
    async with Launcher(tmp_path / "logs", fork=False) as running:
        yield running
