"""What measuring notebooks are asked: engine, machine and output; which requests, and when."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

from workbench.errors import ParameterError
from workbench.params.rules import body_mistakes, param

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

    def __post_init__(self) -> None:
        if why := next(self.mistakes(), ""):
            raise ParameterError(why)

    def mistakes(self) -> Iterator[str]:
        """What is wrong with the values together, in sentences: the first is raised."""
        if self.fault and self.engine != "simulated":
            yield (
                f"fault is {self.fault!r} and engine is {self.engine!r}: only engine simulated goes"
                " wrong on purpose; add -p engine simulated, or leave fault empty"
            )
        if self.engine == "simulated" and self.model:
            yield f"model is {self.model!r}: a simulated engine has none; leave model empty"
        if self.engine != "vllm" and self.dtype != "auto":
            yield (
                f"dtype is {self.dtype!r} and engine is {self.engine!r}: only servers that are"
                " started here take a dtype; leave it at auto"
            )
        tokenizer = getattr(self, "tokenizer", "")  # of notebooks that can attach
        if tokenizer and self.engine != "attach":
            yield (
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


SCENARIOS = (
    "cold_start", "batch_processing", "code_generation", "long_context_high_reuse",
    "multi_turn_conversation",
)  # fmt: skip
"""Reuse scenarios; `load.workload.scenarios` says what each is. The first reuses nothing."""

TEXTS = ("astrophysics", "code_to_refactor", "fiction", "hardware_history", "licence_terms")
"""Texts of our own, `workbench/load/workload/texts/`."""

WORKLOADS = ("reference", "short", "shared_prefix", *SCENARIOS, "trace", "prompts", "text")

OWN_LENGTHS = {
    "short": (1_024, 3),
    "text": (4_096, 8),
    "trace": (4_096, 20),
    "cold_start": (4_096, 8),
    "batch_processing": (4_096, 40),
    "code_generation": (8_192, 20),
    "long_context_high_reuse": (32_768, 20),
    "multi_turn_conversation": (4_096, 14),
}
"""Tokens of the longest prompt and requests of each workload, where none are given; the others
have those of the notebook's reference."""

ArrivalKind = Literal["closed", "constant", "poisson", "gamma", "ramp", "trace"]

ARRIVALS: tuple[ArrivalKind, ...] = ("closed", "constant", "poisson", "gamma", "ramp", "trace")
_AT_A_RATE = ARRIVALS[1:5]
_SHORTEST_PROMPT = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadParams(EngineParams):
    """Which workload is sent, and when."""

    REFERENCE: ClassVar[tuple[int, int]] = (22_660, 3)
    """Prompt tokens and requests of this notebook's reference workload."""

    workload: str = param(
        "reference",
        "reference, short, shared_prefix, a scenario, trace, prompts or text",
        choices=WORKLOADS,
        example="batch_processing",
    )
    prompt_tokens: int = param(
        0,
        "tokens of each prompt or of the longest, 0 for the workload's own",
        low=0,
        high=10_000_000,
        example=22_660,
    )
    output_tokens: int = param(32, "tokens of each answer", low=1, high=1_000_000)
    requests: int = param(
        0,
        "requests of each pass, 0 for the workload's own (prompts: all)",
        low=0,
        high=1_000_000,
        example=3,
    )
    shared_share: float = param(
        0.9, "share of the prompt that shared_prefix requests share", low=0.0, high=1.0
    )
    target_reuse: float = param(
        0.0, "scenarios: reused share of all prompt tokens, 0 for their own", low=0.0, high=0.999
    )
    trace_file: str = param(
        "", "trace: file of Mooncake, Bailian, BurstGPT, Azure or Vidur", example="trace.jsonl"
    )
    trace_block_tokens: int = param(
        0, "trace: tokens of each hash id, 0 to find it from the file", low=0, high=1_000_000
    )
    trace_speed: float = param(
        0.0,
        "trace: so many times as fast as recorded, 0 to ignore its times",
        low=0.0,
        high=1_000_000,
    )
    prompts_file: str = param(
        "", "prompts: JSON Lines or CSV, each with prompt or messages", example="prompts.jsonl"
    )
    text: str = param("hardware_history", "text: which of the five", choices=TEXTS)
    api: str = param(
        "completions", "completions (token ids) or chat", choices=("completions", "chat")
    )
    extra_body: str = param(
        "",
        "further fields of each request's body, as a JSON object",
        example='{"top_k": 1}',
        mapping=True,
    )
    arrivals: str = param(
        "auto",
        f"{', '.join(ARRIVALS)}, or auto (by rate and speed)",
        choices=("auto", *ARRIVALS),
        example="gamma",
    )
    concurrency: int = param(1, "closed loop: requests in flight", low=1, high=100_000)
    rate_per_s: float = param(
        0.0, "open loop: requests per second, 0 for the closed loop", low=0.0, high=1_000_000
    )
    burstiness: float = param(
        1.0, "gamma: below 1 requests come in bursts, above 1 evenly", low=0.01, high=10_000
    )
    end_rate_per_s: float = param(0.0, "ramp: the last rate", low=0.0, high=1_000_000)

    @property
    def lengths(self) -> tuple[int, int]:
        """Tokens of the longest prompt, and requests of a pass; a file of prompts has its own."""
        tokens, requests = OWN_LENGTHS.get(self.workload, self.REFERENCE)
        return self.prompt_tokens or tokens, self.requests or requests

    @property
    def arrival_kind(self) -> ArrivalKind:
        """How requests arrive, where `auto` has been decided."""
        known: dict[str, ArrivalKind] = {kind: kind for kind in ARRIVALS}
        if self.arrivals in known:
            return known[self.arrivals]
        if self.trace_speed:
            return "trace"
        return "poisson" if self.rate_per_s else "closed"

    @property
    def swept(self) -> bool:
        """Whether rates come from a sweep or search."""
        return False

    def mistakes(self) -> Iterator[str]:
        """What is wrong with the values together, in sentences: the first is raised."""
        yield from EngineParams.mistakes(self)
        workload, kind, swept = self.workload, self.arrival_kind, self.swept
        if 0 < self.prompt_tokens < _SHORTEST_PROMPT:
            yield (
                f"prompt_tokens is {self.prompt_tokens}: it is at least {_SHORTEST_PROMPT}, or 0"
                " for the workload's own"
            )
        if workload not in ("prompts", "long_context_high_reuse") or self.prompt_tokens:
            # The lengths of a file, and what is long on this machine, are known to the plan.
            self.check_lengths(self.lengths[0], self.output_tokens)
        yield from body_mistakes(self.extra_body)
        if self.target_reuse and workload not in SCENARIOS[1:]:
            yield (
                f"target_reuse is {self.target_reuse:g} and workload is {workload!r}: only these"
                f" meet a target: {', '.join(SCENARIOS[1:])}"
            )
        for name in ("trace", "prompts"):
            file = getattr(self, f"{name}_file")
            if (workload == name) != bool(file):
                yield (
                    f"workload is {workload!r} and {name}_file {file!r}: a {name} workload takes"
                    f" both, e.g. -p workload {name} -p {name}_file {name}.jsonl"
                )
        if self.trace_block_tokens and workload != "trace":
            yield (
                f"trace_block_tokens is {self.trace_block_tokens} and workload {workload!r}: only a"
                " trace has it, e.g. -p workload trace -p trace_file trace.jsonl"
            )
        turns = workload == "multi_turn_conversation"
        if turns and self.api == "chat":
            yield (
                "multi_turn_conversation feeds back the ids of the model's answers, which chat"
                " cannot carry: leave api at completions"
            )
        timed = workload == "trace" and kind == "trace" and not self.rate_per_s
        if self.trace_speed and not timed:
            yield (
                f"trace_speed is {self.trace_speed:g}: it needs workload trace, arrivals trace or"
                " auto, and rate_per_s 0"
            )
        if kind == "trace" and workload != "trace":
            yield (
                f"arrivals is 'trace' and workload {workload!r}: only a trace has times, e.g. -p"
                " workload trace -p trace_file trace.jsonl"
            )
        at_a_rate = kind in _AT_A_RATE
        if at_a_rate and not (self.rate_per_s or swept):
            yield (
                f"arrivals is {kind!r} and rate_per_s is 0: an open loop needs its rate, e.g. -p"
                " rate_per_s 2"
            )
        if self.rate_per_s and not (at_a_rate or swept):
            yield (
                f"rate_per_s is {self.rate_per_s:g} and arrivals is {kind!r}: only"
                f" {', '.join(_AT_A_RATE)} have a rate"
            )
        if self.burstiness != 1 and kind != "gamma":
            yield (
                f"burstiness is {self.burstiness:g} and arrivals is {kind!r}: only gamma has one,"
                " e.g. -p arrivals gamma"
            )
        if (kind == "ramp") != bool(self.end_rate_per_s):
            yield (
                f"arrivals is {kind!r} and end_rate_per_s is {self.end_rate_per_s:g}: a ramp takes"
                " both, e.g. -p arrivals ramp -p rate_per_s 1 -p end_rate_per_s 4"
            )
        if turns and (kind != "closed" or swept):
            yield (
                "a turn of multi_turn_conversation may only be sent when the one before has been"
                " answered: leave arrivals at closed, and rates at 0"
            )
