"""The parameters of each notebook: names, types, defaults, rules, and one check for all of them.

Papermill itself accepts an unknown name and any type. Every notebook's second cell therefore calls
`check_params`, and `workbench run` calls it before a kernel starts; the notebooks' own parameter
cells repeat the defaults, and a test holds the two together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, get_type_hints

from workbench.errors import ParameterError, nearest
from workbench.params.rules import address_mistakes, body_mistakes, param, share_mistakes
from workbench.params.shared import EngineParams as EngineParams
from workbench.params.shared import LoadParams as LoadParams
from workbench.topology import TensorParallel, Topology

CONNECTORS = ("none", "lmcache", "nixl", "mooncake-store")
"""Ways to move KV; each is a module of that name in `serve.connectors`."""
CLAIM_TIERS = ("source", "kernel", "engine", "serving")
"""How a claim may be tested: by reading and arithmetic alone, or by measuring at a level."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PdSweep(LoadParams):
    """Parameters of `pd_sweep`."""

    topology: str = param(
        "",
        "comma-separated, as 1p4d or 5a, or all; empty is 1p4d (attach: no label)",
        example="1p4d",
    )
    connector: str = param(
        "lmcache",
        f"how KV moves: {', '.join(CONNECTORS[:-1])} or {CONNECTORS[-1]}",
        choices=CONNECTORS,
    )
    rates_per_s: list[float] = param([], "rate sweep: a cold pass at each rate", example="1,2,4")
    search: bool = param(False, "find the highest rate within the limits, from rate_per_s on")
    ttft_limit_ms: float = param(
        0.0, "goodput: longest TTFT, ms, 0 for none", low=0.0, high=1e9, example=500
    )
    tpot_limit_ms: float = param(
        0.0, "goodput: longest TPOT, ms, 0 for none", low=0.0, high=1e9, example=50
    )
    limits_share: float = param(
        0.9, "search: share of requests that has to keep the limits", low=0.01, high=0.999
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
    tokenizer: str = param(
        "",
        "attach: folder or hub name of the tokenizer, empty for that of model",
        example="Qwen/Qwen2.5-7B-Instruct",
    )

    def mistakes(self) -> Iterator[str]:
        if self.engine == "attach":
            yield from address_mistakes(
                base_url=self.base_url,
                prefill_urls=self.prefill_urls,
                decode_urls=self.decode_urls,
                lmcache_url=self.lmcache_url or (),
            )
            if self.prefill_urls and not self.decode_urls:
                yield (
                    "prefill_urls without decode_urls would prove half of a deployment; give both,"
                    " e.g. -p decode_urls http://127.0.0.1:8200"
                )
        else:
            # An attached deployment may have any label; one that is started has to be understood.
            _ = self.topologies
        yield from LoadParams.mistakes(self)
        rates, swept = self.rates_per_s, self.swept
        if rates and (min(rates) <= 0 or len(set(rates)) < len(rates)):
            yield f"rates_per_s is {rates}: it takes different rates above 0, e.g. 1,2,4"
        if rates and (self.search or self.rate_per_s):
            yield (
                "rates_per_s names the rates of a sweep: leave search and rate_per_s out, e.g. -p"
                " rates_per_s 1,2,4"
            )
        if self.search and not (self.ttft_limit_ms or self.tpot_limit_ms):
            yield (
                "search looks for the highest rate within limits: give one, e.g. -p ttft_limit_ms"
                " 500"
            )
        if swept and self.arrivals not in ("auto", "constant", "poisson", "gamma"):
            yield (
                f"arrivals is {self.arrivals!r}: a sweep or search over rates takes constant,"
                " poisson or gamma"
            )
        if swept and self.trace_speed:
            yield (
                f"trace_speed is {self.trace_speed:g}: a sweep or search over rates sets the times"
                " itself; leave trace_speed at 0"
            )

    @property
    def swept(self) -> bool:
        return bool(self.rates_per_s or self.search)

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
class PrefixCache(LoadParams):
    """Parameters of `single_instance_prefix_cache`."""

    REFERENCE: ClassVar[tuple[int, int]] = (2_048, 24)

    concurrency: int = param(4, "closed loop: requests in flight", low=1, high=100_000)
    shares: list[float] = param([0.25, 0.5, 0.75], "cached shares of the partly warm passes")
    rounds: int = param(3, "launches of every arm", low=1, high=1000)
    aggregated_tp: int = param(1, "GPUs of the instance", low=1, high=64)

    def mistakes(self) -> Iterator[str]:
        if self.engine == "attach":
            yield (
                "engine is 'attach': this notebook starts its servers with the cache on and off;"
                " take engine vllm, or measure running servers with pd_sweep"
            )
        yield from LoadParams.mistakes(self)
        yield from share_mistakes(self.shares)


@dataclass(frozen=True, slots=True, kw_only=True)
class LMCacheHitAnalysis(EngineParams):
    """Parameters of `lmcache_hit_analysis`."""

    log_file: str = param(
        "",
        "analyse this log of vLLM or `lmcache server` (or a.log,b.log); start nothing",
        example="logs/vllm.log",
    )
    log_ranks: int = param(
        0, "log_file: workers of an instance (TP), 0 to find it in the log", low=0, high=1024
    )
    prompt_tokens: list[int] = param([400, 900, 1900, 3900], "lengths of the prompts, tokens")
    output_tokens: int = param(8, "tokens of each answer", low=1, high=1_000_000)
    requests: int = param(2, "requests of each length in a pass", low=1, high=100_000)
    shares: list[float] = param([0.5], "shares of the prompt that a pass finds in LMCache")
    chunk_tokens: list[int] = param([64, 128, 256, 512], "LMCache's chunks to compare, tokens")
    block_tokens: int = param(
        64,
        "KV block of the engine, 0 for its own (CPU: 128); chunks are whole blocks",
        low=0,
        high=65_536,
    )
    store_gb: float = param(0.5, "memory of LMCache (L1), GB", low=0.1, high=100_000)
    small_store_mb: float = param(
        5.0, "memory of LMCache where it is too small on purpose, MB", low=1, high=100_000
    )
    disk: bool = param(True, "also measure LMCache with a second tier (L2) on the disk")
    rounds: int = param(3, "launches of every arm", low=1, high=1000)
    aggregated_tp: int = param(1, "GPUs of the instance", low=1, high=64)
    base_url: str = param("", "attach: where requests go", example="http://127.0.0.1:8000")
    decode_urls: list[str] = param(
        [],
        "attach: the servers behind it, for counters and resets",
        example="http://127.0.0.1:8200",
    )
    lmcache_url: str = param(
        "", "attach: HTTP address of the LMCache server", example="http://127.0.0.1:8080"
    )
    tokenizer: str = param(
        "",
        "attach: folder or hub name of the tokenizer, empty for that of model",
        example="Qwen/Qwen2.5-7B-Instruct",
    )
    extra_body: str = param(
        "",
        "further fields of each request's body, as a JSON object",
        example='{"top_k": 1}',
        mapping=True,
    )

    @property
    def log_files(self) -> list[str]:
        """The files of `log_file`, which has commas between several."""
        if self.log_file and Path(self.log_file).exists():
            return [self.log_file]
        return [name.strip() for name in self.log_file.split(",") if name.strip()]

    def mistakes(self) -> Iterator[str]:
        if self.engine == "simulated":
            yield (
                "engine is 'simulated': LMCache's tiers are not pretended; take engine vllm or"
                " attach, or give a log_file"
            )
        yield from EngineParams.mistakes(self)
        if self.engine == "attach":
            if self.log_file:
                yield (
                    "engine attach and log_file are two different analyses; give one of them, e.g."
                    " -p log_file logs/vllm.log alone"
                )
            yield from address_mistakes(
                base_url=self.base_url,
                decode_urls=self.decode_urls,
                lmcache_url=self.lmcache_url or (),
            )
        for name, least in (("prompt_tokens", 32), ("chunk_tokens", 16)):
            values = getattr(self, name)
            if not values or min(values) < least or len(set(values)) < len(values):
                yield (
                    f"{name} is {values}: it takes different numbers of at least {least}, e.g."
                    f" [{4 * least}, {16 * least}]"
                )
        yield from share_mistakes(self.shares)
        yield from body_mistakes(self.extra_body)
        self.check_lengths(max(self.prompt_tokens), self.output_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class PaperClaimValidation(EngineParams):
    """Parameters of `paper_claim_validation`."""

    claims: list[str] = param(
        ["all"], "ids or groups of claims, or all", example="VLLM-APC,own_runs"
    )
    tiers: list[str] = param(list(CLAIM_TIERS), "how claims may be tested")
    time_budget_s: float = param(
        420.0, "time to spend on measuring, seconds; 0 reads only", low=0, high=1_000_000
    )
    rounds: int = param(
        5, "launches of every arm at least; 5 are needed for a verdict", low=1, high=1000
    )
    registry: str = param(
        "params/claims", "folder of the claims, from the repository's root", example="my/claims"
    )

    def mistakes(self) -> Iterator[str]:
        if self.engine == "attach":
            yield (
                "engine is 'attach': a claim is tested with set-ups that are started one beside"
                " the other; take engine vllm, or measure running servers with pd_sweep"
            )
        yield from EngineParams.mistakes(self)
        if not self.claims:
            yield "claims is empty: write all, a group or ids, e.g. VLLM-APC"
        for tier in self.tiers:
            if tier not in CLAIM_TIERS:
                yield f"tiers has {tier!r}: write some of {', '.join(CLAIM_TIERS)}, e.g. source"
        if not self.tiers:
            yield "tiers is empty: write at least one, e.g. source"


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
    "pd_sweep": PdSweep,
    "single_instance_prefix_cache": PrefixCache,
    "lmcache_hit_analysis": LMCacheHitAnalysis,
    "paper_claim_validation": PaperClaimValidation,
}
"""In the order in which a newcomer wants to see them."""


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
    hints = {spec.name: hints[spec.name] for spec in fields(kind)}
    for name, value in values.items():
        if name not in hints and _injected(name, value):
            raise ParameterError(f"parameter {name!r} is not known: {nearest(name, hints)}")
    checked = {}
    for spec in fields(kind):
        if spec.name in values:
            rule = spec.metadata["rule"]
            checked[spec.name] = rule.read(spec.name, values[spec.name], hints[spec.name])
    return kind(**checked)


def changed(params: EngineParams | EnvironmentCheck) -> dict[str, Any]:
    """The parameters that are not at their default."""
    usual = asdict(type(params)())
    return {name: value for name, value in asdict(params).items() if value != usual[name]}


def as_typed(values: Mapping[str, Any]) -> list[str]:
    """Parameters as the words of a command: `-p rounds 5`."""
    words = []
    for name, value in values.items():
        words += ["-p", name, ",".join(map(str, value)) if isinstance(value, list) else str(value)]
    return words


def _injected(name: str, value: Any) -> bool:
    """True for plain data, as opposed to modules, functions, results and IPython's history."""
    plain = type(value) in (str, int, float, bool, dict, list, type(None))
    return plain and not name.startswith("_") and name not in ("In", "Out")
