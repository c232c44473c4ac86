"""The fork server: import what servers need once, then fork the servers.

    python -m workbench.serve.processes.forkserver engine       vLLM and LMCache
    python -m workbench.serve.processes.forkserver simulated    the pretended ones, and the proxy

Importing is nine tenths of the start of an instance on a CPU. This program imports all that an
instance needs, then reads one JSON object a line from stdin,
`{"fork": kind, "name", "args": [...], "env": {}, "log": path}`, forks, and the child runs the
server of that kind (`vllm`, `lmcache`, `simulated`, `proxy`) with those arguments: vLLM's or
LMCache's own, or one of ours. An instance of vLLM is still an API server and an engine core with
ports of their own.
It answers on stdout: `{"ready": seconds}`, `{"forked": name, "pid"}`, `{"exited": name, "status"}`.
When stdin closes it ends.

With `engine` it leans on private parts of vLLM 0.32.0. When its imports fail, the plain start takes
over.
"""

from __future__ import annotations

import gc
import json
import os
import selectors
import signal
import sys
import time
import traceback
from typing import Any

from workbench.serve.cpu_patches import die_with_parent, register

__all__ = ["main"]


def _import_engine() -> None:
    """Load what an instance loads, and undo the CPU platform's choice of spawn."""
    import lmcache.cli.main
    import lmcache.v1.multiprocess.http_server
    import transformers.models.llama
    import uvloop
    import vllm.distributed.kv_transfer.kv_connector.v1.lmcache_mp_connector
    import vllm.entrypoints.launchers.api_server.entry
    import vllm.entrypoints.serve.utils.api_utils
    import vllm.model_executor.models.llama
    import vllm.v1.attention.backends.cpu_attn
    import vllm.v1.engine.async_llm
    import vllm.v1.engine.core
    import vllm.v1.executor.uniproc_executor
    import vllm.v1.worker.cpu_worker
    from vllm.platforms.cpu import CpuPlatform

    check = CpuPlatform.check_and_update_config.__func__

    def check_then_fork(cls: Any, config: Any) -> None:
        check(cls, config)
        os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"

    CpuPlatform.check_and_update_config = classmethod(check_then_fork)
    # Once here instead of once in each child: the scan of all modules takes a while.
    register()
    CpuPlatform.register_triton_kernel_overrides()
    CpuPlatform.register_triton_kernel_overrides = classmethod(lambda cls: None)


def _import_simulated() -> None:
    import uvloop

    import workbench.serve.proxy.proxy
    import workbench.serve.simulated.__main__


def _serve(job: dict[str, Any]) -> None:
    """Become the server that `job` describes; returns when it has ended."""
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD):
        signal.signal(name, signal.SIG_DFL)
    signal.set_wakeup_fd(-1)
    log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.update(job["env"])

    {"vllm": _vllm_serve, "lmcache": _lmcache_server, "simulated": _pretend, "proxy": _proxy}[
        job["fork"]
    ](job["args"])


def _vllm_serve(arguments: list[str]) -> None:
    import uvloop
    from vllm.entrypoints.launchers import cli_args
    from vllm.entrypoints.launchers.api_server import entry
    from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    sys.argv = ["vllm", *arguments]
    cli_env_setup()
    args = cli_args.make_arg_parser(FlexibleArgumentParser()).parse_args(arguments)
    entry.configure_logging_from_args(args)
    cli_args.validate_parsed_serve_args(args)
    uvloop.run(entry.run_server(args))


def _lmcache_server(arguments: list[str]) -> None:
    from lmcache.cli.main import main as lmcache

    sys.argv = ["lmcache", "server", *arguments]
    lmcache()


def _pretend(arguments: list[str]) -> None:
    from workbench.serve.simulated.__main__ import main as simulated

    simulated(arguments)


def _proxy(arguments: list[str]) -> None:
    from workbench.serve.proxy.proxy import main as proxy

    proxy(arguments)


def _fork(job: dict[str, Any]) -> int:
    pid = os.fork()
    # Both sides set the group, so that it exists for whoever looks first.
    os.setpgid(pid, pid or os.getpid())
    if pid:
        return pid
    status = 1
    try:
        _serve(job)
        status = 0
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _say(**event: Any) -> None:
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Serve fork orders until stdin closes."""
    started_s = time.monotonic()
    {"engine": _import_engine, "simulated": _import_simulated}[sys.argv[1]]()
    # Every later fork, the engine cores' included, ends with the process that forked it.
    os.register_at_fork(after_in_child=die_with_parent)
    # Frozen objects are not scanned by the children's collector, so their pages stay shared.
    gc.collect()
    gc.freeze()
    children: dict[int, str] = {}
    woken_r, woken_w = os.pipe()
    os.set_blocking(woken_w, False)
    signal.set_wakeup_fd(woken_w)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    ready = selectors.DefaultSelector()
    ready.register(0, selectors.EVENT_READ)
    ready.register(woken_r, selectors.EVENT_READ)
    _say(ready=round(time.monotonic() - started_s, 2))
    pending = b""
    while True:
        awake = {key.fd for key, _ in ready.select()}
        if woken_r in awake:
            os.read(woken_r, 4096)
            while children:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    break
                _say(exited=children.pop(pid, "?"), status=os.waitstatus_to_exitcode(status))
        if 0 in awake:
            data = os.read(0, 65536)
            if not data:
                return
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                job = json.loads(line)
                pid = _fork(job)
                children[pid] = job["name"]
                _say(forked=job["name"], pid=pid)


if __name__ == "__main__":
    main()
