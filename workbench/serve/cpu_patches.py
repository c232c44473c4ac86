"""What vLLM 0.32.0 and NIXL 1.5.1 need to run PD on a machine without a GPU.

`register` is a vLLM plugin (entry point group `vllm.general_plugins`): vLLM calls it in each of its
processes. Where a GPU is present it does nothing.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import Any

_PR_SET_PDEATHSIG = 1
NIXL_POLL_US = 1000


def die_with_parent() -> None:
    """Ask Linux to end this process when the thread that started it ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def register() -> None:
    """Apply the patches that this process needs."""
    import torch

    if torch.cuda.is_available():
        return
    shield_kernel_overrides()
    if "VLLM_NIXL_SIDE_CHANNEL_PORT" in os.environ:
        calm_nixl()


def shield_kernel_overrides() -> None:
    """Hide llvmlite while vLLM scans every loaded module for Triton kernels.

    The scan reads `vars(value).get(...)` and dies on llvmlite's function wrapper, which is loaded
    as soon as LMCache has brought numba.
    """
    from vllm.triton_utils import dispatcher

    scan = dispatcher._rebind_kernels
    if getattr(scan, "shielded", False):
        return

    def shielded(overrides: Any) -> None:
        hidden = {name: sys.modules.pop(name) for name in list(sys.modules) if "llvmlite" in name}
        try:
            scan(overrides)
        finally:
            sys.modules.update(hidden)

    shielded.shielded = True  # type: ignore[attr-defined]
    dispatcher._rebind_kernels = shielded


def calm_nixl() -> None:
    """Give NIXL's progress thread a poll interval of 1 ms.

    The agent hard-codes 0: UCX then polls without pause and burns one core for each agent.
    """
    from importlib import import_module

    api: Any = import_module(import_module("nixl._api").nixl_agent.__module__)
    bindings = api.nixlBind
    if getattr(bindings, "calm", False):
        return

    class CalmConfig(bindings.nixlAgentConfig):  # type: ignore[misc,name-defined]
        def __setattr__(self, name: str, value: Any) -> None:
            super().__setattr__(name, NIXL_POLL_US if name == "pthrDelay" else value)

    class CalmBindings:
        calm = True
        nixlAgentConfig = CalmConfig

        def __getattr__(self, name: str) -> Any:
            return getattr(bindings, name)

    api.nixlBind = CalmBindings()
