"""Parameters that several notebooks share: engine, machine and output; which requests, and when.

A help text has no equals sign: papermill's `--help-notebook` skips lines with two of them.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import ClassVar, Literal

from workbench.errors import ParameterError, must_be, needs, unused
from workbench.params.engine_args import (
    argument_mistakes,
    host_mistakes,
    place_mistakes,
    variable_mistakes,
)
from workbench.params.rules import address_mistakes, body_mistakes, param
from workbench.params.targets import target_mistakes

FAULTS = (
    "role_chunk_first", "tokens_in_bulk", "error_in_stream", "truncated_stream", "late_finish",
    "buffered_stream", "usage_all_cached",
    "prefilled_again", "transfer_params_lost", "failed_transfer", "expired_blocks",
    "transfer_timeout", "prefill_dead", "wrong_kv",
    "store_left_warm", "reset_refused", "preemption", "eviction", "slow_instance",
    "stalled_instance", "hash_seed_mismatch", "store_dead",
    "store_dead_at_start", "late_store", "leased_blocks",
)  # fmt: skip
"""Faults of the simulated engine; `workbench/serve/simulated/faults.csv` explains each."""


BUILT_IN_MODELS = ("tiny", "tiny-wide")
"""Models that are made on this machine (`serve.tiny_model`); the first is used without `model`."""

ROLE_ARGS = ("prefill_args", "decode_args", "aggregated_args")
"""Parameters with additional vLLM arguments of one role; not every notebook has them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineParams:
    """Engine, machine and output of every measuring notebook."""

    engine: str = param(
        "vllm",
        "vllm: start servers, attach: measure running ones, simulated: without vLLM",
        choices=("vllm", "attach", "simulated"),
    )
    platform: str = param(
        "auto", "auto (detect), cpu, cuda or rocm", choices=("auto", "cpu", "cuda", "rocm")
    )
    engine_python: str = param(
        "",
        "Python interpreter of another environment that has vLLM (empty: this one)",
        example="/opt/vllm/bin/python",
    )
    place: str = param(
        "local",
        "local: this machine, container: docker or podman, ray: a Ray cluster",
        choices=("local", "container", "ray"),
    )
    image: str = param(
        "",
        "only with place container: an image with vLLM that is on this machine",
        example="vllm/vllm-openai:v0.32.0",
    )
    container_args: str = param(
        "",
        "only with place container: more options of docker run, as in a shell",
        example="--device /dev/infiniband --cap-add IPC_LOCK",
        words=True,
    )
    ray_address: str = param(
        "auto",
        "only with place ray: HOST:PORT of the Ray head, auto: let Ray find it",
        example="10.0.0.1:6379",
    )
    spread: str = param(
        "pack",
        "only with place ray: use few hosts (pack), many (spread) or one (node)",
        choices=("pack", "spread", "node"),
    )
    model: str = param(
        "",
        "model folder or hub name (empty: tiny built-in model; attach: first served)",
        example="Qwen/Qwen2.5-7B-Instruct",
    )
    dtype: str = param(
        "auto",
        "dtype of weights and KV cache: auto, bfloat16, float16 or float32",
        choices=("auto", "bfloat16", "float16", "float32"),
    )
    context_tokens: int = param(
        24576,
        "longest prompt plus output, in tokens (vLLM's --max-model-len)",
        low=256,
        high=10_000_000,
    )
    kv_cache_mib: int = param(
        256, "only on a CPU: KV cache size of each instance, in MiB", low=16, high=1_000_000
    )
    gpu_memory_share: float = param(
        0.9, "only on a GPU: fraction of its memory that vLLM may use", low=0.05, high=0.99
    )
    fork: bool = param(
        True, "only on a CPU or simulated: start servers faster by forking a preloaded process"
    )
    engine_args: str = param(
        "",
        "additional vLLM arguments of all instances, as in a shell",
        example="--max-num-batched-tokens 2048",
        words=True,
    )
    engine_env: str = param(
        "",
        "environment variables of all instances, as in a shell",
        example="NCCL_MIN_NCHANNELS=112",
        words=True,
    )
    fault: str = param(
        "",
        "only with engine simulated: fault to inject (docs/faults.md; empty: none)",
        choices=("", *FAULTS),
        example="wrong_kv",
    )
    timeout_s: float = param(600.0, "timeout of a request, in seconds", low=1, high=86_400)
    kernel_stamps: bool = param(
        True, "use kernel receive timestamps for response chunks (http only)"
    )
    client_workers: int = param(
        0, "load generator processes (0: one, more if one cannot keep up)", low=0, high=64
    )
    time_budget_s: float = param(
        0.0,
        "run only as many whole rounds as fit into this time, in s (0: all)",
        low=0,
        high=10_000_000,
        example=3600,
    )
    seed: int = param(0, "random seed of prompts and arrival times", low=0, high=2**31)
    output_dir: str = param("outputs", "folder for results, relative to the repository root")

    def __post_init__(self) -> None:
        if why := next(self.mistakes(), ""):
            raise ParameterError(why)

    def mistakes(self) -> Iterator[str]:
        """What is wrong with the combination of values; the first sentence is raised."""
        engine = self.engine
        arguments: dict[str, str] = {
            name: getattr(self, name, "") for name in ("engine_args", *ROLE_ARGS)
        }
        others = {"fault": "simulated", "model": "vllm", "dtype": "vllm", "tokenizer": "attach"}
        others |= dict.fromkeys((*arguments, "engine_env", "engine_python"), "vllm")
        for name, other in others.items():
            value = getattr(self, name, "")  # not every notebook has each
            accepted = {other}
            if name == "model":
                accepted |= {"attach"} | ({"simulated"} if value in BUILT_IN_MODELS else set())
            if value not in ("", "auto") and engine not in accepted:
                example = f"-p engine {other} -p {name} {shlex.quote(value)}"
                yield unused(name, value, f"engine={engine}", example)
        yield from argument_mistakes(**arguments)
        yield from variable_mistakes("engine_env", self.engine_env)
        if engine != "vllm" and self.place != "local":
            yield unused("place", self.place, f"engine={engine}", "-p engine vllm")
        yield from place_mistakes(self.place, self.image, self.container_args)
        yield from host_mistakes(self.place, self.ray_address, self.spread)
        if self.place == "ray" and getattr(self, "instances_per_gpu", 1) > 1:
            given = getattr(self, "instances_per_gpu", 1)
            yield must_be("instances_per_gpu", "1 with place=ray (Ray gives whole GPUs)", given, 1)
        if cores := getattr(self, "cores_per_instance", 0):
            example = f"-p engine vllm -p place local -p cores_per_instance {cores}"
            for name, wrong in (("engine", engine == "attach"), ("place", self.place != "local")):
                if wrong:
                    given = f"{name}={getattr(self, name)}"
                    yield unused("cores_per_instance", cores, given, example)
        tiers = list(getattr(self, "store_tiers", ()))
        if self.place == "ray" and tiers not in ([], ["memory"]):
            example = f"-p place local -p store_tiers {','.join(tiers)}"
            yield unused("store_tiers", tiers, "place=ray", example)

    @property
    def built_in_model(self) -> str:
        """The name of the built-in model that servers are started with; empty for another."""
        name = self.model or BUILT_IN_MODELS[0]
        return name if name in BUILT_IN_MODELS and self.engine != "attach" else ""

    def check_lengths(self, prompt_tokens: int, output_tokens: int) -> None:
        """Refuse requests longer than the servers accept. Raises ParameterError."""
        if (total := prompt_tokens + output_tokens) > self.context_tokens:
            allowed = f"at least prompt_tokens + output_tokens ({total:,})"
            example = -(-total // 4096) * 4096
            raise ParameterError(must_be("context_tokens", allowed, self.context_tokens, example))


SCENARIOS = (
    "cold_start", "batch_processing", "code_generation", "long_context_high_reuse",
    "multi_turn_conversation",
)  # fmt: skip
"""Scenarios of prefix reuse, explained in `load.workload.scenarios`; the first reuses nothing."""

TEXTS = ("astrophysics", "code_to_refactor", "fiction", "hardware_history", "licence_terms")
"""Built-in texts, in `workbench/load/workload/texts/`."""

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
"""Default length of the longest prompt, in tokens, and number of requests. Other workloads have
those of the notebook's reference workload."""

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
        "reference, trace, text, code_generation, ... (see docs/workloads.md)",
        choices=WORKLOADS,
        example="batch_processing",
    )
    prompt_tokens: int = param(
        0,
        "tokens of the longest prompt (0: the workload's default)",
        low=0,
        high=10_000_000,
        example=22_660,
    )
    output_tokens: int = param(32, "output tokens of each request", low=1, high=1_000_000)
    requests: int = param(
        0,
        "requests per pass (0: the workload's default; all rows of a prompts_file)",
        low=0,
        high=1_000_000,
        example=3,
    )
    shared_share: float = param(
        0.9,
        "only with workload shared_prefix: shared fraction of each prompt",
        low=0.0,
        high=1.0,
    )
    target_reuse: float = param(
        0.0,
        "only with code_generation and the like: reused fraction (0: default)",
        low=0.0,
        high=0.999,
    )
    trace_file: str = param(
        "",
        "only with workload trace: Mooncake, Bailian, BurstGPT, Azure or Vidur file",
        example="trace.jsonl",
    )
    trace_block_tokens: int = param(
        0,
        "only with workload trace: tokens per hash id (0: detect)",
        low=0,
        high=1_000_000,
        example=512,
    )
    trace_speed: float = param(
        0.0,
        "only with workload trace: speed (1: as recorded, 0: ignore timestamps)",
        low=0.0,
        high=1_000_000,
        example=1,
    )
    prompts_file: str = param(
        "",
        "only with workload prompts: JSON Lines or CSV, prompt or messages per row",
        example="prompts.jsonl",
    )
    text: str = param(
        "hardware_history",
        "only with workload text: which built-in text (docs/workloads.md)",
        choices=TEXTS,
    )
    api: str = param(
        "completions",
        "completions (prompts as token ids) or chat (messages)",
        choices=("completions", "chat"),
    )
    extra_body: str = param(
        "",
        "additional fields of every request body, as a JSON object",
        example='{"top_k": 1}',
        mapping=True,
    )
    arrivals: str = param(
        "auto",
        f"{', '.join(ARRIVALS)} or auto (docs/workloads.md)",
        choices=("auto", *ARRIVALS),
        example="gamma",
    )
    concurrency: int = param(1, "only in a closed loop: requests in flight", low=1, high=100_000)
    rate_per_s: float = param(
        0.0,
        "arrival rate in requests/s; 0 in a closed loop, a trace or a sweep",
        low=0.0,
        high=1_000_000,
    )
    burstiness: float = param(
        1.0,
        "only with arrivals gamma: 1 is Poisson, lower is more bursty",
        low=0.01,
        high=10_000,
    )
    end_rate_per_s: float = param(
        0.0,
        "only with arrivals ramp: arrival rate at the end, in requests/s",
        low=0.0,
        high=1_000_000,
    )
    targets: list[str] = param(
        [],
        "targets to check, e.g. pd tpot within 20% of aggregated (docs/targets.md)",
        example="store-warm ttft cut >= 60%",
    )
    prometheus_url: str = param(
        "",
        "URL of a Prometheus that scrapes the servers: adds panels to the page",
        example="http://127.0.0.1:9090",
    )
    grafana_url: str = param(
        "",
        "URL of a Grafana: marks each pass there; needs the variable GRAFANA_TOKEN",
        example="http://127.0.0.1:3000",
    )

    @property
    def lengths(self) -> tuple[int, int]:
        """Tokens of the longest prompt, and requests per pass; a prompts file has its own."""
        tokens, requests = OWN_LENGTHS.get(self.workload, self.REFERENCE)
        return self.prompt_tokens or tokens, self.requests or requests

    @property
    def arrival_kind(self) -> ArrivalKind:
        """The kind of arrivals, with `auto` resolved."""
        known: dict[str, ArrivalKind] = {kind: kind for kind in ARRIVALS}
        if self.arrivals in known:
            return known[self.arrivals]
        if self.trace_speed:
            return "trace"
        return "poisson" if self.rate_per_s else "closed"

    @property
    def sweeps_rates(self) -> bool:
        """Whether arrival rates come from a sweep or search."""
        return False

    @property
    def uses_concurrency(self) -> bool:
        """Whether `concurrency` has an effect."""
        return self.arrival_kind == "closed" and not self.sweeps_rates

    def mistakes(self) -> Iterator[str]:
        yield from EngineParams.mistakes(self)
        yield from target_mistakes(self.targets)
        yield from address_mistakes(
            prometheus_url=self.prometheus_url or (), grafana_url=self.grafana_url or ()
        )
        workload, kind = self.workload, self.arrival_kind
        if 0 < self.prompt_tokens < _SHORTEST_PROMPT:
            allowed = f"at least {_SHORTEST_PROMPT}, or 0 for the workload's default"
            yield must_be("prompt_tokens", allowed, self.prompt_tokens, 1024)
        if workload not in ("prompts", "long_context_high_reuse") or self.prompt_tokens:
            # The plan knows the lengths of a file, and what is long on this machine.
            self.check_lengths(self.lengths[0], self.output_tokens)
        yield from body_mistakes(self.extra_body)
        given = f"workload={workload}"
        if self.target_reuse and workload not in SCENARIOS[1:]:
            example = f"-p workload {SCENARIOS[1]} -p target_reuse 0.5"
            yield unused("target_reuse", self.target_reuse, given, example)
        for name in ("trace", "prompts"):
            file = getattr(self, f"{name}_file")
            example = f"-p workload {name} -p {name}_file {file or f'{name}.jsonl'}"
            if workload == name and not file:
                yield needs(given, f"{name}_file", file, example)
            if file and workload != name:
                yield unused(f"{name}_file", file, given, example)
        timed = "-p workload trace -p trace_file trace.jsonl"
        if (blocks := self.trace_block_tokens) and workload != "trace":
            example = f"{timed} -p trace_block_tokens {blocks}"
            yield unused("trace_block_tokens", blocks, given, example)
        turns = workload == "multi_turn_conversation"
        if turns and self.api == "chat":
            needed = "api=completions, because chat cannot carry token ids"
            yield needs(given, needed, self.api, "completions")
        at_odds = {
            given: workload != "trace",
            f"rate_per_s={self.rate_per_s:g}": self.rate_per_s > 0,
            f"arrivals={kind}": kind != "trace",
        }
        if self.trace_speed and any(at_odds.values()):
            first = next(setting for setting, wrong in at_odds.items() if wrong)
            yield unused("trace_speed", self.trace_speed, first, f"{timed} -p trace_speed 1")
        arriving = f"arrivals={kind}"
        if kind == "trace" and workload != "trace":
            yield needs(arriving, "workload=trace", workload, f"{timed} -p arrivals trace")
        at_a_rate = kind in _AT_A_RATE
        if at_a_rate and not (self.rate_per_s or self.sweeps_rates):
            yield needs(arriving, "rate_per_s above 0", self.rate_per_s, 2)
        if self.rate_per_s and not (at_a_rate or self.sweeps_rates):
            example = "-p arrivals poisson -p rate_per_s 2"
            yield unused("rate_per_s", self.rate_per_s, arriving, example)
        usual = {spec.name: spec.default for spec in fields(self)}  # a notebook may have its own
        if self.concurrency != usual["concurrency"] and not self.uses_concurrency:
            loop = "a rate sweep or search" if self.sweeps_rates else arriving
            example = f"-p arrivals closed -p concurrency {self.concurrency}"
            yield unused("concurrency", self.concurrency, loop, example)
        if self.burstiness != 1 and kind != "gamma":
            example = "-p arrivals gamma -p rate_per_s 2 -p burstiness 0.5"
            yield unused("burstiness", self.burstiness, arriving, example)
        example = "-p arrivals ramp -p rate_per_s 1 -p end_rate_per_s 4"
        if kind == "ramp" and not self.end_rate_per_s:
            yield needs(arriving, "end_rate_per_s above 0", self.end_rate_per_s, example)
        if kind != "ramp" and self.end_rate_per_s:
            yield unused("end_rate_per_s", self.end_rate_per_s, arriving, example)
        if turns and kind != "closed":
            needed = "arrivals=closed, because its turns wait for responses"
            yield needs(given, needed, kind, "-p arrivals closed -p rate_per_s 0")
        if turns and self.sweeps_rates:
            needed = "a single-turn workload"
            yield needs("a rate sweep or search", needed, workload, f"-p workload {SCENARIOS[1]}")
