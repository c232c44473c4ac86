"""Starts vLLM in this process, and loads what launches share before they are forked."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from workbench.claims.recipes.recipe import Setting
from workbench.claims.recipes.rounds import Cost
from workbench.serve.tiny_model import model_facts
from workbench.serve.vllm import scan_kernels_once

VLLM = "vllm"
FIRST_TOKEN_ID = 10
"""Lower ids are special tokens."""
KV_MIB = 256
"""KV space of vLLM on a CPU: 350,000 tokens of the tiny model."""
SLACK_TOKENS = 64
ENGINE = Cost(start_s=20.0, launch_s=4.0, gpu_launch_s=60.0)
"""Imports of vLLM and transformers, once on a CPU; a ready engine in a forked process; a minute on
a GPU, with imports."""
WARM = (f"{__name__}:load",)

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
    """Import both engines and scan for kernels once, before launches are forked (CPU only)."""
    for name in _MODULES:
        import_module(name)
    scan_kernels_once()


def engine_job(setting: Setting, **fields: Any) -> dict[str, Any]:
    """The fields of a job that every engine needs, and `fields`."""
    return {
        "model": str(setting.model), "vocab_tokens": model_facts(setting.model).vocab_tokens,
        "dtype": setting.dtype,
    } | fields  # fmt: skip


def start_vllm(job: Mapping[str, Any], **options: Any) -> Any:
    """A `vllm.LLM` in this process, with a job's number format and room for its lengths."""
    from vllm import LLM

    if job["device"] == "cpu":
        options |= {
            "enforce_eager": True, "distributed_executor_backend": "uni",
            "kv_cache_memory_bytes": KV_MIB * 2**20,
        }  # fmt: skip
    return LLM(
        model=job["model"], dtype=job["dtype"], seed=0,
        max_model_len=context_tokens(job), **options,
    )  # fmt: skip


def context_tokens(job: Mapping[str, Any]) -> int:
    """Room for a prompt and its output; vLLM's random prompts may be somewhat longer."""
    return int(job["input_tokens"] + job["output_tokens"] + SLACK_TOKENS)
