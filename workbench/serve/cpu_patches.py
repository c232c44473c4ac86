"""Patches for vLLM and its connectors on a machine without a GPU.

`register` is a vLLM plugin (entry point group `vllm.general_plugins`): vLLM calls it in each of its
processes. With a GPU it does nothing.
"""

from __future__ import annotations

import sys
from typing import Any

from workbench.serve.connectors import CONNECTORS


def register() -> None:
    """Apply the patches that this process needs."""
    import torch

    if torch.cuda.is_available():
        return
    shield_kernel_overrides()
    for known in CONNECTORS.values():
        known.patch_cpu()


def shield_kernel_overrides() -> None:
    """Hide llvmlite while vLLM scans every loaded module for Triton kernels.

    The scan reads `vars(value).get(...)` and fails on llvmlite's function wrapper, which is loaded
    with numba by LMCache. vLLM scans since 0.31.
    """
    try:
        from vllm.triton_utils import dispatcher
    except ImportError:
        return

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
