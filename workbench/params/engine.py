"""What every measuring notebook asks about engine, machine and output."""

from __future__ import annotations

from dataclasses import dataclass

from workbench.errors import ParameterError
from workbench.params.rules import param

__all__ = ["FAULTS", "EngineParams"]

FAULTS = (
    "role_chunk_first", "tokens_in_bulk", "error_in_stream", "truncated_stream", "late_finish",
    "buffered_stream", "usage_all_cached",
    "prefilled_again", "transfer_params_lost", "failed_transfer", "expired_blocks", "wrong_kv",
    "store_left_warm", "reset_refused", "preemption", "eviction", "slow_instance",
    "stalled_instance", "hash_seed_mismatch", "store_dead",
)  # fmt: skip
"""What a simulated engine can do wrong; `workbench.serve.simulated.faults` says what each is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineParams:
    """What every measuring notebook asks about engine, machine and output."""

    engine: str = param(
        "vllm",
        "vllm starts servers here, attach measures running ones, simulated pretends",
        choices=("vllm", "attach", "simulated"),
    )
    platform: str = param(
        "auto", "auto, cpu, cuda or rocm", choices=("auto", "cpu", "cuda", "rocm")
    )
    model: str = param(
        "",
        "folder or hub name, empty for the tiny local model; attach: a served model's name",
        example="Qwen/Qwen2.5-7B-Instruct",
    )
    dtype: str = param(
        "auto",
        "number format of weights and KV: auto, bfloat16, float16 or float32",
        choices=("auto", "bfloat16", "float16", "float32"),
    )
    context_tokens: int = param(
        24576, "longest prompt plus answer that a server accepts", low=256, high=10_000_000
    )
    kv_cache_mib: int = param(
        256, "KV space of each instance on a CPU, MiB", low=16, high=1_000_000
    )
    gpu_memory_share: float = param(
        0.9, "share of a GPU's memory that its instances take", low=0.05, high=0.99
    )
    fork: bool = param(
        True, "fork servers from one process that has loaded their code (CPU, simulated)"
    )
    fault: str = param(
        "",
        "simulated: one thing that goes wrong on purpose, empty for none",
        choices=("", *FAULTS),
        example="wrong_kv",
    )
    timeout_s: float = param(600.0, "longest wait for one answer, seconds", low=1, high=86_400)
    kernel_stamps: bool = param(
        True, "date reads by Linux's kernel, not when this program sees them (http)"
    )
    client_workers: int = param(
        0, "processes that send the load, 0 for one, and more once it is busy", low=0, high=64
    )
    seed: int = param(0, "seed of prompts and arrivals", low=0, high=2**31)
    output_dir: str = param("outputs", "folder of the run folders, from the repository's root")

    def check_engine(self) -> None:
        """Refuse what this engine does not heed. Raises ParameterError."""
        if self.fault and self.engine != "simulated":
            raise ParameterError(
                f"fault is {self.fault!r} and engine is {self.engine!r}: only engine simulated"
                " goes wrong on purpose; add -p engine simulated, or leave fault empty"
            )
        if self.engine == "simulated" and self.model:
            raise ParameterError(
                f"model is {self.model!r}: a simulated engine has none; leave model empty"
            )
        if self.engine != "vllm" and self.dtype != "auto":
            raise ParameterError(
                f"dtype is {self.dtype!r} and engine is {self.engine!r}: only servers that are"
                " started here take a dtype; leave it at auto"
            )
        tokenizer = getattr(self, "tokenizer", "")  # of notebooks that can attach
        if tokenizer and self.engine != "attach":
            raise ParameterError(
                f"tokenizer is {tokenizer!r} and engine is {self.engine!r}: servers started here"
                " use their model's own; leave tokenizer empty, or add -p engine attach"
            )

    def check_lengths(self, prompt_tokens: int, output_tokens: int) -> None:
        """Refuse a prompt and answer longer than the servers accept. Raises ParameterError."""
        if prompt_tokens + output_tokens > self.context_tokens:
            raise ParameterError(
                f"prompt_tokens {prompt_tokens} + output_tokens {output_tokens} do not"
                f" fit context_tokens {self.context_tokens}; raise context_tokens, e.g. to 40960"
            )
