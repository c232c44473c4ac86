"""What a launch of an engine loads, loaded once before launches are forked from it (CPU only)."""

from __future__ import annotations

from importlib import import_module

from workbench.serve.vllm import scan_kernels_once

__all__ = ["load"]

_MODULES = (
    "transformers.models.auto.modeling_auto",
    "transformers.models.llama.modeling_llama",
    "vllm.entrypoints.llm",
    "vllm.model_executor.models.llama",
    "vllm.v1.attention.backends.cpu_attn",
    "vllm.v1.engine.core",
    "vllm.v1.executor.uniproc_executor",
    "vllm.v1.worker.cpu_worker",
)


def load() -> None:
    """Import both engines, and let vLLM scan all modules for kernels once instead of each time."""
    for name in _MODULES:
        import_module(name)
    scan_kernels_once()
