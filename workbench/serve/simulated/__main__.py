"""Start a pretend instance or a pretend store:

python -m workbench.serve.simulated engine --name decode-0 --role decode --port 8200
python -m workbench.serve.simulated store --port 6600 --http-port 6680
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
from collections.abc import Sequence

from aiohttp import web

from workbench.serve.simulated.blocks import TOKEN_BYTES
from workbench.serve.simulated.faults import FAULTS
from workbench.serve.simulated.latency import SPEED
from workbench.serve.simulated.server import instance_app
from workbench.serve.simulated.settings import InstanceSettings
from workbench.serve.simulated.store import CHUNK_TOKENS, ChunkStore, http_app, private_app

__all__ = ["apps", "main"]

_SHUTDOWN_S = 0.2


def main(argv: Sequence[str] | None = None) -> None:
    """Serve until SIGTERM or SIGINT."""
    asked = _parser().parse_args(argv)
    try:
        import uvloop
    except ImportError:
        runner = asyncio.Runner()
    else:
        runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
    with runner:
        try:
            runner.run(_serve(_apps(asked), asked.host))
        except OSError as error:
            sys.exit(f"the pretend {asked.what} cannot listen on {asked.host}: {error}")


def apps(argv: Sequence[str]) -> list[tuple[web.Application, int]]:
    """The web applications that these arguments ask for, each with its port."""
    return _apps(_parser().parse_args(argv))


def _apps(asked: argparse.Namespace) -> list[tuple[web.Application, int]]:
    return _engine(asked) if asked.what == "engine" else _store(asked)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m workbench.serve.simulated")
    kinds = parser.add_subparsers(dest="what", required=True)
    engine, store = kinds.add_parser("engine"), kinds.add_parser("store")
    for kind in (engine, store):
        kind.add_argument("--host", default="127.0.0.1")
        kind.add_argument("--port", type=int, required=True)
        kind.add_argument("--kv-bytes-per-token", type=int, default=TOKEN_BYTES)
        kind.add_argument("--fault", choices=sorted(FAULTS), default="")
    engine.add_argument("--name", default="engine")
    engine.add_argument("--role", choices=("prefill", "decode", "aggregated"), default="aggregated")
    engine.add_argument("--max-model-len", type=int, default=24_576)
    engine.add_argument("--kv-cache-memory-bytes", type=int, default=2**28)
    engine.add_argument(
        "--enable-prefix-caching", action=argparse.BooleanOptionalAction, default=True
    )
    engine.add_argument("--kv-transfer-config", type=json.loads, default={})
    engine.add_argument("--seed", type=int, default=0)
    engine.add_argument("--speed", type=float, default=SPEED)
    store.add_argument("--http-port", type=int, required=True)
    store.add_argument("--l1-size-gb", type=float, default=1.0)
    return parser


def _engine(asked: argparse.Namespace) -> list[tuple[web.Application, int]]:
    settings = InstanceSettings(
        name=asked.name,
        role=asked.role,
        host=asked.host,
        port=asked.port,
        context_tokens=asked.max_model_len,
        kv_bytes=asked.kv_cache_memory_bytes,
        bytes_per_token=asked.kv_bytes_per_token,
        prefix_caching=asked.enable_prefix_caching,
        transfer=asked.kv_transfer_config,
        seed=asked.seed,
        speed=asked.speed,
        fault=asked.fault,
    )
    return [(instance_app(settings), asked.port)]


def _store(asked: argparse.Namespace) -> list[tuple[web.Application, int]]:
    chunk_bytes = CHUNK_TOKENS * asked.kv_bytes_per_token
    capacity = max(1, int(asked.l1_size_gb * 2**30 / chunk_bytes))
    store = ChunkStore(capacity, chunk_bytes=chunk_bytes, fault=asked.fault)
    return [(private_app(store), asked.port), (http_app(store), asked.http_port)]


async def _serve(apps: list[tuple[web.Application, int]], host: str) -> None:
    ended = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, ended.set)
    runners = []
    try:
        for app, port in apps:
            runner = web.AppRunner(
                app, access_log=None, handler_cancellation=True, shutdown_timeout=_SHUTDOWN_S
            )
            runners.append(runner)
            await runner.setup()
            await web.TCPSite(runner, host, port, backlog=4096).start()
        await ended.wait()
    finally:
        for runner in runners:
            await runner.cleanup()


if __name__ == "__main__":
    main()
