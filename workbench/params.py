"""The parameters of each notebook: names, types, defaults, rules, and one check for all of them.

Papermill itself accepts an unknown name and any type. Every notebook's second cell therefore calls
`check_params`, and `workbench run` calls it before a kernel starts; the notebooks' own parameter
cells repeat the defaults, and a test holds the two together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, get_type_hints

from workbench.errors import ParameterError, nearest
from workbench.rules import param
from workbench.topology import TensorParallel, Topology

__all__ = [
    "FAULTS",
    "NOTEBOOKS",
    "SCENARIOS",
    "EngineParams",
    "EnvironmentCheck",
    "LMCacheHitAnalysis",
    "PdSweep",
    "PrefixCache",
    "check_params",
]


FAULTS = (
    "role_chunk_first", "tokens_in_bulk", "error_in_stream", "truncated_stream", "late_finish",
    "prefilled_again", "transfer_params_lost", "failed_transfer", "expired_blocks", "wrong_kv",
    "store_left_warm", "reset_refused", "preemption", "eviction", "slow_instance",
    "stalled_instance", "hash_seed_mismatch", "store_dead",
)  # fmt: skip
"""What a simulated engine can do wrong; `workbench.serve.simulated.faults` says what each is."""

SCENARIOS = (
    "cold_start", "batch_processing", "code_generation", "long_context_high_reuse",
    "multi_turn_conversation",
)  # fmt: skip
"""Reuse scenarios; `workbench.load.scenarios` says what each is. The first reuses nothing."""


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
        "model folder or hub name, empty for the tiny local model",
        example="Qwen/Qwen2.5-7B-Instruct",
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
    fork: bool = param(True, "on a CPU, fork the servers from one process that has loaded vLLM")
    fault: str = param(
        "",
        "simulated: one thing that goes wrong on purpose, empty for none",
        choices=("", *FAULTS),
        example="wrong_kv",
    )
    timeout_s: float = param(600.0, "longest wait for one answer, seconds", low=1, high=86_400)
    seed: int = param(0, "seed of prompts and arrivals", low=0, high=2**31)
    output_dir: str = param("outputs", "folder of the run folders, from the repository's root")

    def check_engine(self) -> None:
        """Refuse what a simulated engine lacks, and faults of a real one. Raises ParameterError."""
        if self.fault and self.engine != "simulated":
            raise ParameterError(
                f"fault is {self.fault!r} and engine is {self.engine!r}: only engine simulated"
                " goes wrong on purpose; add -p engine simulated, or leave fault empty"
            )
        if self.engine == "simulated" and self.model:
            raise ParameterError(
                f"model is {self.model!r}: a simulated engine has none; leave model empty"
            )

    def check_lengths(self, prompt_tokens: int, output_tokens: int) -> None:
        """Refuse a prompt and answer longer than the servers accept. Raises ParameterError."""
        if prompt_tokens + output_tokens > self.context_tokens:
            raise ParameterError(
                f"prompt_tokens {prompt_tokens} + output_tokens {output_tokens} do not"
                f" fit context_tokens {self.context_tokens}; raise context_tokens, e.g. to 40960"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class PdSweep(EngineParams):
    """Parameters of `pd_sweep`."""

    topology: str = param(
        "",
        "comma-separated, as 1p4d or 5a, or all; empty is 1p4d (attach: no label)",
        example="1p4d",
    )
    connector: str = param(
        "lmcache", "how KV moves: none, lmcache or nixl", choices=("none", "lmcache", "nixl")
    )
    workload: str = param(
        "reference",
        "reference (prompts asked again), shared_prefix, a scenario or trace",
        choices=("reference", "short", "shared_prefix", *SCENARIOS, "trace"),
        example="batch_processing",
    )
    prompt_tokens: int = param(
        22660,
        "tokens of each prompt, in a scenario or trace of the longest",
        low=32,
        high=10_000_000,
    )
    output_tokens: int = param(32, "tokens of each answer", low=1, high=1_000_000)
    requests: int = param(3, "requests of each pass", low=1, high=1_000_000)
    shared_share: float = param(
        0.9, "share of the prompt that shared_prefix requests share", low=0.0, high=1.0
    )
    target_reuse: float = param(
        0.0,
        "scenarios: reused share of all prompt tokens, 0 for their own",
        low=0.0,
        high=0.999,
    )
    trace_file: str = param("", "trace: file in the Mooncake format", example="trace.jsonl")
    trace_speed: float = param(
        0.0,
        "trace: so many times as fast as recorded, 0 to ignore its times",
        low=0.0,
        high=1_000_000,
    )
    concurrency: int = param(1, "closed loop: requests in flight", low=1, high=100_000)
    rate_per_s: float = param(
        0.0,
        "open loop: Poisson arrivals per second, 0 for the closed loop",
        low=0.0,
        high=1_000_000,
    )
    rounds: int = param(3, "launches of every arm, the unit of replication", low=1, high=1000)
    opponents: bool = param(True, "also run the same GPUs aggregated, with and without the store")
    prefill_tp: int = param(1, "GPUs of a prefill instance", low=1, high=64)
    decode_tp: int = param(1, "GPUs of a decode instance", low=1, high=64)
    aggregated_tp: int = param(1, "GPUs of an aggregated instance", low=1, high=64)
    instances_per_gpu: int = param(1, "instances that share a GPU", low=1, high=16)
    store_gb: float = param(1.0, "memory of the KV store, GB", low=0.1, high=100_000)
    base_url: str = param("", "attach: where requests go", example="http://127.0.0.1:8000")
    prefill_urls: list[str] = param(
        [], "attach: prefill servers, for counters and resets", example="http://127.0.0.1:8100"
    )
    decode_urls: list[str] = param(
        [],
        "attach: decode or aggregated servers, likewise",
        example="http://127.0.0.1:8200,http://127.0.0.1:8201",
    )
    lmcache_url: str = param(
        "", "attach: HTTP address of the LMCache server", example="http://127.0.0.1:8080"
    )

    def __post_init__(self) -> None:
        if self.engine == "attach":
            if not self.base_url.startswith(("http://", "https://")):
                raise ParameterError(
                    f"base_url is {self.base_url!r}: engine attach needs the address of a running"
                    " server, e.g. http://127.0.0.1:8000"
                )
            if self.prefill_urls and not self.decode_urls:
                raise ParameterError(
                    "prefill_urls without decode_urls would prove half of a deployment; give both,"
                    " e.g. -p decode_urls http://127.0.0.1:8200"
                )
        else:
            # An attached deployment may have any label; one that is started has to be understood.
            _ = self.topologies
        self.check_engine()
        self.check_lengths(self.prompt_tokens, self.output_tokens)
        self._check_workload()

    def _check_workload(self) -> None:
        if self.target_reuse and self.workload not in SCENARIOS[1:]:
            raise ParameterError(
                f"target_reuse is {self.target_reuse:g} and workload is {self.workload!r}: only"
                f" these meet a target: {', '.join(SCENARIOS[1:])}"
            )
        if (self.workload == "trace") != bool(self.trace_file):
            raise ParameterError(
                f"workload is {self.workload!r} and trace_file {self.trace_file!r}: a trace takes"
                " both, e.g. -p workload trace -p trace_file trace.jsonl"
            )
        if self.trace_speed and (self.workload != "trace" or self.rate_per_s):
            raise ParameterError(
                f"trace_speed is {self.trace_speed:g}: it needs workload trace, and rate_per_s 0"
            )
        one_at_a_time = self.concurrency == 1 and not self.rate_per_s
        if self.workload == "multi_turn_conversation" and not one_at_a_time:
            raise ParameterError(
                "a turn of multi_turn_conversation may only be sent when the one before has been"
                " answered: leave concurrency at 1 and rate_per_s at 0"
            )

    @property
    def topologies(self) -> tuple[Topology, ...]:
        """What is swept. Raises ParameterError on a text that is not a topology."""
        return Topology.parse_list(self.topology or "1p4d")

    @property
    def tp(self) -> TensorParallel:
        return TensorParallel(
            prefill=self.prefill_tp, decode=self.decode_tp, aggregated=self.aggregated_tp
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixCache(EngineParams):
    """Parameters of `single_instance_prefix_cache`."""

    prompt_tokens: int = param(2048, "tokens of each prompt", low=32, high=10_000_000)
    output_tokens: int = param(32, "tokens of each answer", low=1, high=1_000_000)
    requests: int = param(24, "requests of each pass", low=1, high=1_000_000)
    concurrency: int = param(4, "requests in flight", low=1, high=100_000)
    shares: list[float] = param([0.25, 0.5, 0.75], "shares of the prompt that a pass finds cached")
    rounds: int = param(3, "launches of every arm", low=1, high=1000)
    aggregated_tp: int = param(1, "GPUs of the instance", low=1, high=64)

    def __post_init__(self) -> None:
        if self.engine == "attach":
            raise ParameterError(
                "engine is 'attach': this notebook starts its servers with the cache on and off;"
                " take engine vllm, or measure running servers with pd_sweep"
            )
        self.check_engine()
        self.check_lengths(self.prompt_tokens, self.output_tokens)
        if any(not 0 < share < 1 for share in self.shares):
            raise ParameterError(f"shares is {self.shares}: each is between 0 and 1, e.g. [0.5]")
        if len({f"{share:.0%}" for share in self.shares}) < len(self.shares):
            raise ParameterError(
                f"shares is {self.shares}: two of them are the same percentage, e.g. [0.25, 0.5]"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class LMCacheHitAnalysis(EngineParams):
    """Parameters of `lmcache_hit_analysis`."""

    log_file: str = param(
        "",
        "analyse this log of vLLM or `lmcache server`, and start nothing",
        example="logs/vllm.log",
    )
    log_ranks: int = param(1, "log_file: workers of an instance (TP)", low=1, high=1024)
    prompt_tokens: list[int] = param([400, 900, 1900, 3900], "lengths of the prompts, tokens")
    output_tokens: int = param(8, "tokens of each answer", low=1, high=1_000_000)
    requests: int = param(2, "requests of each length in a pass", low=1, high=100_000)
    shares: list[float] = param([0.5], "shares of the prompt that a pass finds in LMCache")
    chunk_tokens: list[int] = param([64, 128, 256, 512], "LMCache's chunks to compare, tokens")
    block_tokens: int = param(
        64, "KV block of the engine, 0 for its own (CPU: 128); chunks are whole blocks",
        low=0, high=65_536,
    )  # fmt: skip
    store_gb: float = param(0.5, "memory of LMCache (L1), GB", low=0.1, high=100_000)
    small_store_mb: float = param(
        5.0, "memory of LMCache where it is too small on purpose, MB", low=1, high=100_000
    )
    disk: bool = param(True, "also measure LMCache with a second tier (L2) on the disk")
    rounds: int = param(3, "launches of every arm", low=1, high=1000)
    aggregated_tp: int = param(1, "GPUs of the instance", low=1, high=64)
    base_url: str = param("", "attach: where requests go", example="http://127.0.0.1:8000")
    decode_urls: list[str] = param(
        [], "attach: the servers behind it, for counters and resets",
        example="http://127.0.0.1:8200",
    )  # fmt: skip
    lmcache_url: str = param(
        "", "attach: HTTP address of the LMCache server", example="http://127.0.0.1:8080"
    )

    def __post_init__(self) -> None:
        if self.engine == "simulated":
            raise ParameterError(
                "engine is 'simulated': LMCache's tiers are not pretended; take engine vllm or"
                " attach, or give a log_file"
            )
        self.check_engine()
        if self.engine == "attach" and self.log_file:
            raise ParameterError(
                "engine attach and log_file are two different analyses; give one of them, e.g."
                " -p log_file logs/vllm.log alone"
            )
        if self.engine == "attach" and not self.base_url.startswith(("http://", "https://")):
            raise ParameterError(
                f"base_url is {self.base_url!r}: engine attach needs the address of a running"
                " server, e.g. http://127.0.0.1:8000"
            )
        for name, values, least in (("prompt_tokens", self.prompt_tokens, 32),
                                    ("chunk_tokens", self.chunk_tokens, 16)):  # fmt: skip
            if not values or min(values) < least or len(set(values)) < len(values):
                raise ParameterError(
                    f"{name} is {values}: it takes different numbers of at least {least}, e.g."
                    f" [{4 * least}, {16 * least}]"
                )
        if any(not 0 < share < 1 for share in self.shares):
            raise ParameterError(f"shares is {self.shares}: each is between 0 and 1, e.g. [0.5]")
        if len({f"{share:.0%}" for share in self.shares}) < len(self.shares):
            raise ParameterError(
                f"shares is {self.shares}: two of them are the same percentage, e.g. [0.25, 0.5]"
            )
        self.check_lengths(max(self.prompt_tokens), self.output_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentCheck:
    """Parameters of `environment_check`."""

    platform: str = param(
        "auto", "auto, cpu, cuda or rocm", choices=("auto", "cpu", "cuda", "rocm")
    )
    smoke: bool = param(True, "start a real 1p1d deployment and send it a few requests")
    output_dir: str = param("outputs", "folder of the run folders, from the repository's root")


NOTEBOOKS: dict[str, type[EngineParams] | type[EnvironmentCheck]] = {
    "environment_check": EnvironmentCheck,
    "single_instance_prefix_cache": PrefixCache,
    "lmcache_hit_analysis": LMCacheHitAnalysis,
    "pd_sweep": PdSweep,
}


def check_params(notebook: str, values: Mapping[str, Any]) -> Any:
    """The checked parameters of a notebook.

    `values` may be a notebook's `globals()`: a name that is no parameter is an error only where
    papermill could have injected it. Raises ParameterError on an unknown name (with the nearest
    known one), a wrong type, or a value out of range.
    """
    if notebook not in NOTEBOOKS:
        raise ParameterError(f"notebook {notebook!r} is not known: {nearest(notebook, NOTEBOOKS)}")
    kind = NOTEBOOKS[notebook]
    hints = get_type_hints(kind)
    for name, value in values.items():
        if name not in hints and _injected(name, value):
            raise ParameterError(f"parameter {name!r} is not known: {nearest(name, hints)}")
    checked = {}
    for spec in fields(kind):
        if spec.name in values:
            rule = spec.metadata["rule"]
            checked[spec.name] = rule.read(spec.name, values[spec.name], hints[spec.name])
    return kind(**checked)


def _injected(name: str, value: Any) -> bool:
    """True for plain data, as opposed to modules, functions, results and IPython's history."""
    plain = type(value) in (str, int, float, bool, dict, list, type(None))
    return plain and not name.startswith("_") and name not in ("In", "Out")
