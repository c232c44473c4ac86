"""On a host of a Ray cluster: the actor that starts our supervisor, and speaks for it.

`ray_hosts` is the other end, on the machine of the run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from queue import Empty, SimpleQueue

from workbench.serve.processes import ports
from workbench.serve.processes.host_probe import HostProbe
from workbench.serve.processes.local import SUPERVISOR

LEASE_S = 6.0
"""A host that gets no message for this long ends its servers; one that does not answer for this
long counts as lost. With the time that servers get to end, this stays below the 15 s after which
nothing may be left running."""
_SOURCES = str(Path(__file__).resolve().parents[3])


class HostAgent(HostProbe):
    """On a host: starts its supervisor, and keeps its messages and new log text to be fetched.

    A plain class, which `RayLauncher` makes an actor of. One thread runs what is defined here; the
    methods of the probe run beside it, and share nothing with it.
    """

    def __init__(self, lease_s: float = LEASE_S) -> None:
        super().__init__()
        self._folder = tempfile.mkdtemp(prefix="workbench-host-")
        self._read: dict[str, int] = {}
        self._lines: SimpleQueue[bytes] = SimpleQueue()
        # Servers must not get what Ray sets for its own workers, such as one OpenMP thread.
        env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        for name in ("OMP_NUM_THREADS", "PYTHONDONTWRITEBYTECODE"):
            env.pop(name, None)
        env["PYTHONPATH"] = os.pathsep.join(filter(None, (_SOURCES, env.get("PYTHONPATH"))))
        self._supervisor = subprocess.Popen(
            [sys.executable, "-m", SUPERVISOR, "--lease", str(lease_s), "--apart"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env, start_new_session=True,
        )  # fmt: skip
        self._supervisor.wait()  # it has detached itself and keeps running
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        # Even if the actor is killed: the logs were copied to the first machine by then.
        self.order(json.dumps({"finally": ["rm", "-rf", self._folder]}).encode() + b"\n")

    def folder(self) -> str:
        """Where logs are on this host."""
        return self._folder

    def gpus(self) -> list[str]:
        """The GPUs that Ray has given this actor."""
        context = import_module("ray").get_runtime_context()
        return list(context.get_accelerator_ids().get("GPU", ()))

    def free(self, candidates: Sequence[int], address: str) -> list[int]:
        """Those of these ports that are free on this host."""
        return list(ports.free(candidates, address))

    def write(self, files: Mapping[str, str]) -> dict[str, str]:
        """Write these files; returns their paths by name."""
        paths = {name: f"{self._folder}/{name}" for name in files}
        for name, text in files.items():
            Path(paths[name]).write_text(text, encoding="utf-8")
        return paths

    def order(self, line: bytes) -> None:
        """Pass an order on."""
        assert self._supervisor.stdin is not None
        with suppress(OSError, ValueError):
            self._supervisor.stdin.write(line)
            self._supervisor.stdin.flush()

    def news(self) -> tuple[list[bytes], dict[str, bytes], bool]:
        """New lines of the supervisor, new text of each log, and whether it has ended.

        A caller that asks is alive, so the lease starts again.
        """
        self.order(b'{"ping": 1}\n')
        ended = not self._listener.is_alive()
        lines = []
        with suppress(Empty):
            while True:
                lines.append(self._lines.get_nowait())
        return lines, self._new_text(), ended

    def close(self) -> None:
        """No more orders: the supervisor ends everything."""
        assert self._supervisor.stdin is not None
        with suppress(OSError):
            self._supervisor.stdin.close()

    def _listen(self) -> None:
        assert self._supervisor.stdout is not None
        for line in self._supervisor.stdout:
            self._lines.put(line)

    def _new_text(self) -> dict[str, bytes]:
        found = {}
        for log in Path(self._folder).glob("*.log"):
            with suppress(OSError), open(log, "rb") as file:
                file.seek(self._read.get(log.name, 0))
                if text := file.read():
                    self._read[log.name] = file.tell()
                    found[log.name] = text
        return found
