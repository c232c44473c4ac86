"""Tiny servers in place of vLLM, a few lines of Python each, below a real supervisor."""

import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from workbench.serve.processes.launcher import ProcessSpec
from workbench.serve.processes.local import LocalLauncher
from workbench.serve.processes.ports import free_ports

SERVER = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.send_header("Content-Length", "0"); self.end_headers()
    do_POST = do_GET
    def log_message(self, *_): pass
http.server.HTTPServer.allow_reuse_address = False
server = http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
server.serve_forever()
"""

MakeSpec = Callable[..., ProcessSpec]


@pytest.fixture
def spec() -> MakeSpec:
    """Makes a process that answers 200 on its port, after `first` has run; or that runs `code`."""

    def make(
        name: str = "decode-0",
        *,
        first: str = "",
        code: str = "",
        port: int = 0,
        role: Any = "decode",
        **given: Any,
    ) -> ProcessSpec:
        port = port or free_ports(1)[0]
        return ProcessSpec(
            name=name,
            role=role,
            program=(sys.executable, "-c", code or first + SERVER),
            args=(str(port),),
            port=port,
            ready_url=f"http://127.0.0.1:{port}/health",
            **given,
        )

    return make


@pytest.fixture
async def launcher(tmp_path: Path, nothing_running: str) -> AsyncIterator[LocalLauncher]:
    async with LocalLauncher(tmp_path / "logs") as running:
        yield running
