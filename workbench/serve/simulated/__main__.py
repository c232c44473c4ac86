"""Start a simulated instance or a simulated store:

python -m workbench.serve.simulated engine --name decode-0 --port 8200
python -m workbench.serve.simulated lmcache --port 6600 --http-port 6680
python -m workbench.serve.simulated mooncake-store --port 6600 --http-port 6680
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import uvloop
from aiohttp import web

from workbench.serve.simulated import master as mooncake
from workbench.serve.simulated.faults import FAULTS
from workbench.serve.simulated.instance import Instance, InstanceSettings
from workbench.serve.simulated.server import bootstrap_app, instance_app
from workbench.serve.simulated.store import CHUNK_BYTES, ChunkStore, http_app, private_app

Apps = list[tuple[web.Application, int]]
"""Web applications, each with its port."""

_SHUTDOWN_S = 0.2


def main(argv: Sequence[str] | None = None) -> None:
    """Serve until SIGTERM or SIGINT."""
    made = apps(argv)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            runner.run(_until_ended(made))
        except OSError as error:
            sys.exit(f"the simulated server cannot listen on 127.0.0.1: {error}")


def apps(argv: Sequence[str] | None) -> Apps:
    """The web applications for these arguments."""
    # Missing arguments keep the defaults of InstanceSettings.
    parser = argparse.ArgumentParser(prog="python -m workbench.serve.simulated")
    kinds = parser.add_subparsers(dest="kind", required=True)
    engine = kinds.add_parser("engine", argument_default=argparse.SUPPRESS)
    store = kinds.add_parser("lmcache")
    master = kinds.add_parser("mooncake-store")
    for kind in (engine, store, master):
        kind.add_argument("--port", type=int, required=True)
        kind.add_argument("--fault", choices=sorted(FAULTS))
    engine.add_argument("--name")
    engine.add_argument("--max-model-len", dest="context_tokens", type=int)
    engine.add_argument("--kv-cache-memory-bytes", dest="kv_bytes", type=int)
    caching = argparse.BooleanOptionalAction
    engine.add_argument("--enable-prefix-caching", dest="prefix_caching", action=caching)
    engine.add_argument("--kv-transfer-config", dest="transfer", type=json.loads)
    engine.add_argument("--mooncake-config", dest="mooncake", type=json.loads)
    engine.add_argument("--bootstrap-port", type=int)
    engine.add_argument("--transfer-timeout", dest="transfer_timeout_s", type=float)
    engine.add_argument("--times-as-long", type=float)
    engine.add_argument("--log-period", dest="log_period_s", type=float)
    engine.add_argument("--seed", type=int)
    engine.add_argument("--speed", type=float)
    for kind in (store, master):
        kind.add_argument("--http-port", type=int, required=True)
        kind.add_argument("--l1-size-gb", type=float, default=1.0)
    asked = vars(parser.parse_args(argv))
    made = asked.pop("kind")
    if made == "engine":
        instance = Instance(InstanceSettings(**asked))
        served = [(instance_app(instance), asked["port"])]
        if port := instance.settings.bootstrap_port:
            served.append((bootstrap_app(instance), port))
        return served
    ports, fault = (asked["port"], asked["http_port"]), asked["fault"] or ""
    if made == "mooncake-store":
        keys = mooncake.Master(fault=fault)
        both = mooncake.rpc_app(keys), mooncake.http_app(keys)
    else:
        held = ChunkStore(int(asked["l1_size_gb"] * 2**30 / CHUNK_BYTES), fault=fault)
        both = private_app(held), http_app(held)
    return list(zip(both, ports, strict=True))


@asynccontextmanager
async def serving(made: Apps) -> AsyncIterator[None]:
    """Listen on 127.0.0.1 inside the context."""
    async with AsyncExitStack() as stack:
        for app, port in made:
            runner = web.AppRunner(
                app, access_log=None, handler_cancellation=True, shutdown_timeout=_SHUTDOWN_S
            )
            stack.push_async_callback(runner.cleanup)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", port, backlog=4096).start()
        yield


async def _until_ended(made: Apps) -> None:
    ended = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, ended.set)
    async with serving(made):
        await ended.wait()


if __name__ == "__main__":
    main()
