"""A tier on a Mooncake store (LMCache's adapter `plugin`, see `lmcache_plugins`)."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import nan
from pathlib import Path

from workbench.errors import DeploymentError, LaunchError
from workbench.hardware.interpreter import Interpreter
from workbench.serve.connectors import mooncake_store
from workbench.serve.connectors.tiers.tier import Held, Tier

PLUGINS = Path(__file__).parent / "lmcache_plugins"
_MASTER_COUNTS = re.compile(r"^master_((?:evicted_)?key)_count (\S+)", re.MULTILINE)
_EMPTY_MOONCAKE = """
import sys
from mooncake.store import MooncakeDistributedStore
store = MooncakeDistributedStore()
if store.setup("127.0.0.1", "P2PHANDSHAKE", 0, 16 << 20, "tcp", "", sys.argv[1]):
    sys.exit("no connection to the Mooncake master")
store.remove_all(True)
"""
"""Leased keys go only by force, and only a client can ask for that; the master's HTTP has no such
request. In a process of its own, since Mooncake's threads would outlive it here."""
_EMPTY_MOONCAKE_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class MooncakeTier(Tier):
    """A Mooncake store: a master that is started here, and memory that LMCache's server lends."""

    interpreter: Interpreter
    """Where the package is."""
    master: str
    metrics_url: str

    async def check(self) -> None:
        if not self.interpreter.find("mooncake"):
            raise LaunchError(
                "store_tiers=mooncake needs the package mooncake, not found. Run make setup"
                " MOONCAKE=1 (docs/engine.md), or use another tier (example: -p store_tiers"
                " memory,redis)"
            )

    async def held(self) -> Held:
        import httpx  # the engine's interpreter, which loads this module too, may not have it

        from workbench.control import control_client

        try:
            async with control_client() as client:
                answer = await client.get(f"{self.metrics_url}/metrics")
        except httpx.HTTPError as error:
            raise DeploymentError(
                f"the Mooncake master at {self.master} does not answer ({error!r}); see its log"
            ) from error
        told = dict(_MASTER_COUNTS.findall(answer.text))
        return Held(chunks=float(told.get("key", nan)), evicted=float(told.get("evicted_key", 0)))

    async def empty(self) -> None:
        run = await asyncio.create_subprocess_exec(
            *self.interpreter.line("-c", _EMPTY_MOONCAKE, self.master),
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        try:
            said, _ = await asyncio.wait_for(run.communicate(), _EMPTY_MOONCAKE_TIMEOUT_S)
        except TimeoutError:
            run.kill()
            said = f"no answer within {_EMPTY_MOONCAKE_TIMEOUT_S:g} s".encode()
        if run.returncode:
            last = said.decode(errors="replace").strip().splitlines()[-1:] or ["no reason"]
            raise DeploymentError(
                f"the Mooncake store at {self.master} was not emptied: {last[0]}; check that its"
                " master runs"
            )


def mooncake_tier(ports: Iterator[int], interpreter: Interpreter, size_gb: float) -> Tier:
    """A master on free ports, and `size_gb` of the memory of LMCache's server."""
    master = replace(mooncake_store.master(ports, interpreter), name="mooncake", role="tier")
    address = f"127.0.0.1:{master.port}"
    params = {"master": address, "segment_mb": int(size_gb * 1024)}
    return MooncakeTier(
        name="mooncake", shown="Mooncake", l2_name="plugin", state="remote-warm",
        adapter={"type": "plugin", "module_path": "mooncake_tier", "class_name": "MooncakeTier",
                 "adapter_params": params},
        processes=(master,), env={"PYTHONPATH": _python_path()},
        interpreter=interpreter, master=address,
        metrics_url=master.ready_url.removesuffix("/health"),
    )  # fmt: skip


def _python_path() -> str:
    """PYTHONPATH of an LMCache server that loads a tier from this room."""
    return os.pathsep.join(filter(None, [str(PLUGINS), os.environ.get("PYTHONPATH")]))
