"""The parameters of each notebook: names, types, defaults, rules, and one check for all of them.

Papermill accepts unknown names and any type. So every notebook's second cell calls `check_params`,
and `workbench run` calls it before a kernel starts. The parameter cells of the notebooks repeat
defaults and help; a test keeps the two equal.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, ClassVar, get_type_hints

from workbench.errors import ParameterError, must_be, nearest, needs, unused
from workbench.params.engine_args import STORE_OURS, argument_mistakes, place_mistakes
from workbench.params.price import Price
from workbench.params.rules import address_mistakes, body_mistakes, param, share_mistakes
from workbench.params.several_models import EXAMPLE, read_models, short_names
from workbench.params.shared import EngineParams as EngineParams
from workbench.params.shared import LoadParams as LoadParams
from workbench.params.store_tiers import tier_mistakes
from workbench.topology import ROLES, TensorParallel, Topology

CONNECTORS = (
    *("none", "lmcache", "nixl", "mooncake", "mooncake-store", "offload", "lmcache-inprocess"),
)
"""Ways to move KV; each is a module of that name in `serve.connectors`."""
ALL_CONNECTORS = "all"
"""A sweep over every connector that this machine has and that serves the topology."""
_OWN_TIERS = ["memory", "disk"]
"""What the hit analysis measures unless told otherwise."""
CLAIM_TIERS = ("source", "kernel", "engine", "serving")
"""How a claim is tested: by reading and arithmetic, or by a measurement at one of three levels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PdSweep(LoadParams):
    """Parameters of `pd_sweep`."""

    topology: str = param(
        "",
        "1p4d (PD split), 5a (aggregated), a comma-separated list or all (empty: 1p4d)",
        example="1p4d",
    )
    connector: str = param(
        "lmcache",
        f"KV by {', '.join(CONNECTORS[:4])}, ... or {ALL_CONNECTORS} (docs/engine.md)",
        choices=(*CONNECTORS, ALL_CONNECTORS),
    )
    models: str = param(
        "",
        "several models instead of one; in YAML with settings for each (docs/models.md)",
        example=EXAMPLE,
        mapping=True,
        listed=True,
    )
    rates_per_s: list[float] = param(
        [], "rate sweep: arrival rates in requests/s, one cold pass each", example="1,2,4"
    )
    concurrencies: list[int] = param(
        [], "user sweep: users (requests in flight), one cold pass each", example="1,2,4,8"
    )
    search: bool = param(
        False, "find the highest rate within the limits (with arrivals closed: most users)"
    )
    ttft_limit_ms: float = param(
        0.0, "TTFT SLO (goodput, decision), in ms (0: no limit)", low=0.0, high=1e9, example=500
    )
    tpot_limit_ms: float = param(
        0.0, "TPOT SLO (goodput, decision), in ms (0: no limit)", low=0.0, high=1e9, example=50
    )
    limits_share: float = param(
        0.9,
        "fraction of requests that must meet the limits",
        low=0.01,
        high=0.999,
    )
    gpu_hour_price: str = param(
        "", "price of a GPU hour, for cost per token (empty: no cost)", example="2.5 USD"
    )
    predict: bool = param(
        False, "profile 1p1d, predict every topology, measure some (docs/whatif.md)"
    )
    measure: str = param(
        "",
        "only with predict: topologies to measure (1p1d and 1a cannot check predictions)",
        example="1p2d",
    )
    working_sets: list[float] = param(
        [], "working-set sweep: prompts sent, as multiples of the KV space", example="0.5,2,8"
    )
    rounds: int = param(
        3,
        "launches of each arm; confidence intervals come from the spread between them",
        low=1,
        high=1000,
    )
    link_runs: list[str] = param(
        [],
        "folders of runs over other links, to compare with (docs/links.md)",
        example="outputs/pd_sweep/1a2b3c4d",
    )
    opponents: bool = param(
        True, "also measure the baselines (aggregated instances, same number of GPUs)"
    )
    prefill_args: str = param(
        "",
        "additional vLLM arguments of prefill instances only",
        example="--max-num-batched-tokens 8192",
        words=True,
    )
    decode_args: str = param(
        "",
        "additional vLLM arguments of decode instances only",
        example="--max-num-seqs 512",
        words=True,
    )
    aggregated_args: str = param(
        "",
        "additional vLLM arguments of aggregated instances only",
        example="--enable-chunked-prefill",
        words=True,
    )
    store_args: str = param(
        "", "additional arguments of the KV store's server", example="--max-workers 4", words=True
    )
    mooncake_protocol: str = param(
        "tcp",
        "transport of connectors mooncake and mooncake-store: tcp or rdma",
        choices=("tcp", "rdma"),
    )
    prefill_tp: int = param(1, "GPUs per prefill instance (tensor parallelism)", low=1, high=64)
    decode_tp: int = param(1, "GPUs per decode instance (tensor parallelism)", low=1, high=64)
    aggregated_tp: int = param(
        1, "GPUs per aggregated instance (tensor parallelism)", low=1, high=64
    )
    instances_per_gpu: int = param(1, "instances that share a GPU", low=1, high=16)
    cores_per_instance: int = param(
        0,
        "only on a CPU: cores reserved for each instance (0: all are shared)",
        low=0,
        high=1024,
        example=1,
    )
    store_gb: float = param(
        1.0, "memory of the KV store (offload: of each instance), in GB", low=0.001, high=100_000
    )
    store_tiers: list[str] = param(
        ["memory"],
        "LMCache's tiers: memory, disk, redis, mooncake (docs/engine.md)",
        example="memory,redis",
    )
    tier_gb: float = param(1.0, "size of a Redis or Mooncake tier, in GB", low=0.02, high=1_000_000)
    base_url: str = param(
        "", "only with engine attach: URL to send the requests to", example="http://127.0.0.1:8000"
    )
    prefill_urls: list[str] = param(
        [],
        "only with engine attach: prefill servers (metrics, resets)",
        example="http://127.0.0.1:8100",
    )
    decode_urls: list[str] = param(
        [],
        "only with engine attach: decode/aggregated servers (metrics, resets)",
        example="http://127.0.0.1:8200,http://127.0.0.1:8201",
    )
    lmcache_url: str = param(
        "",
        "only with engine attach: HTTP URL of the LMCache server",
        example="http://127.0.0.1:8080",
    )
    tokenizer: str = param(
        "",
        "only with engine attach: tokenizer folder or hub name (empty: that of model)",
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
                example = "http://127.0.0.1:8200"
                yield needs("prefill_urls", "decode_urls", self.decode_urls, example)
        else:
            # A running deployment may have any label; one that is started must be a topology.
            yield from self._role_mistakes()
        yield from self._sweep_mistakes()
        yield from LoadParams.mistakes(self)
        yield from self._model_mistakes()
        yield from argument_mistakes(
            STORE_OURS, example="--max-workers 4", store_args=self.store_args
        )
        yield from tier_mistakes(
            self.store_tiers, engine=self.engine, connector=self.connector, together=True
        )
        Price.parse(self.gpu_hour_price)
        if self.search and not (self.ttft_limit_ms or self.tpot_limit_ms):
            limits = "-p search True -p ttft_limit_ms 500"
            yield needs("search=True", "ttft_limit_ms or tpot_limit_ms", 0, limits)
        yield from self._size_mistakes()
        yield from self._prediction_mistakes()
        if self.sweeps_rates and self.arrivals not in ("auto", "constant", "poisson", "gamma"):
            needed = "arrivals=auto, constant, poisson or gamma"
            yield needs("a rate sweep or search", needed, self.arrivals, "poisson")
        if self.sweeps_rates and self.trace_speed:
            yield needs("a rate sweep or search", "trace_speed=0", self.trace_speed, 0)

    def _sweep_mistakes(self) -> Iterator[str]:
        """Lists of loads, and what excludes them."""
        rates, users = self.rates_per_s, self.concurrencies
        if rates and (min(rates) <= 0 or len(set(rates)) < len(rates)):
            yield must_be("rates_per_s", "different numbers above 0", rates, [1, 2, 4])
        if users and (min(users) <= 0 or len(set(users)) < len(users)):
            yield must_be("concurrencies", "different integers above 0", users, [1, 2, 4, 8])
        usual = {spec.name: spec.default for spec in fields(self)} | {"rates_per_s": []}
        excluded = {
            "rates_per_s": ("search", "rate_per_s"),
            "concurrencies": ("search", "rate_per_s", "rates_per_s", "concurrency"),
        }
        for swept, names in excluded.items():
            for name in names if getattr(self, swept) else ():
                if (value := getattr(self, name)) != usual[name]:
                    example = "1,2,4" + ",8" * bool(users)
                    yield (
                        f"{name}={_plain(value)} and {swept}={_plain(getattr(self, swept))} exclude"
                        f" each other. Leave out one (example: -p {swept} {example})"
                    )
        if users and self.trace_speed:
            yield needs("concurrencies", "trace_speed=0", self.trace_speed, 0)
        if users and self.arrival_kind != "closed":
            yield needs("concurrencies", "arrivals=closed", self.arrival_kind, "closed")

    def _model_mistakes(self) -> Iterator[str]:
        if not self.models:
            return
        if self.model:
            yield (
                f"model={self.model} and models={self.models} exclude each other. Leave out one"
                f" (example: -p models {EXAMPLE})"
            )
        if self.engine == "attach":
            example = f"-p engine vllm -p models {EXAMPLE}"
            yield unused("models", self.models, "engine=attach", example)
        elif self.link_runs:
            yield needs("link_runs", "a sweep of one model", self.models, "-p models ''")
        else:
            self.each_model  # noqa: B018  refuses what a model cannot have

    @property
    def each_model(self) -> dict[str, PdSweep]:
        """The parameters of each model's part of the sweep, by its short name; empty without
        `models`. Raises ParameterError for what a model cannot have."""
        if not self.models:
            return {}
        own, found = read_models(self.models), {}
        hints = get_type_hints(PdSweep)
        rules = {spec.name: spec.metadata["rule"] for spec in fields(PdSweep)}
        for name, short in short_names(own).items():
            try:
                given = {key: rules[key].read(key, v, hints[key]) for key, v in own[name].items()}
                found[short] = replace(self, models="", model=name, **given)
            except ParameterError as error:
                raise ParameterError(f"models, {name}: {error}") from error
        return found

    def _role_mistakes(self) -> Iterator[str]:
        """Arguments for a role that no measured topology has."""
        roles = {role for topology in self.topologies for role, _ in topology.roles}
        if self.opponents and "prefill" in roles:
            roles.add("aggregated")
        for role in ROLES:
            name = f"{role}_args"
            if role not in roles and (text := getattr(self, name)):
                other = "5a" if role == "aggregated" else "1p4d"
                example = f"-p topology {other} -p {name} {shlex.quote(text)}"
                yield unused(
                    name, shlex.quote(text), f"topology={self.topology or '1p4d'}", example
                )

    def _prediction_mistakes(self) -> Iterator[str]:
        if not self.predict:
            if self.measure:
                example = f"-p predict True -p measure {self.measure}"
                yield unused("measure", self.measure, "predict=False", example)
            return
        example = "-p predict True -p topology all -p measure 1p2d"
        if self.engine == "attach":
            yield unused("predict", True, "engine=attach", f"-p engine vllm {example}")
        for name in ("models", "rates_per_s", "concurrencies", "search", "working_sets"):
            if value := getattr(self, name):
                yield (
                    f"{name}={value} and predict=True exclude each other. Leave out one (example:"
                    f" {example})"
                )
        if self.connector == ALL_CONNECTORS:
            yield must_be("connector", "a single one with predict=True", self.connector, "nixl")
        if not self.measure:
            yield needs("predict=True", "measure", self.measure, example)
            return
        try:
            others = [str(one) for one in self.measured if one not in self.topologies]
        except ParameterError:
            others = [self.measure]
        if others:
            allowed = f"of topology ({', '.join(map(str, self.topologies))})"
            yield must_be("measure", allowed, ", ".join(others), self.topologies[0])

    def _size_mistakes(self) -> Iterator[str]:
        sizes, what = self.working_sets, "working_sets"
        if not sizes:
            return
        if min(sizes) <= 0 or len(set(sizes)) < len(sizes):
            yield must_be(what, "different numbers above 0", sizes, [0.5, 2, 8])
        if self.connector != "offload":
            yield needs(what, "connector=offload", self.connector, "offload")
        if self.workload not in ("reference", "short"):
            yield needs(what, "workload=reference or short", self.workload, "reference")
        if self.arrival_kind != "closed" or self.swept:
            needed = "a closed loop without a rate sweep, concurrencies or search"
            yield needs(what, needed, self.arrival_kind, "closed")
        if self.requests:
            example = "-p requests 0 -p working_sets 0.5,2,8"
            yield unused("requests", self.requests, "a working-set sweep", example)

    @property
    def swept(self) -> bool:
        """Whether loads come from a sweep or search: rates, or users of a closed loop."""
        return bool(self.rates_per_s or self.concurrencies or self.search)

    @property
    def sweeps_rates(self) -> bool:
        return bool(self.rates_per_s) or (self.search and self.arrivals != "closed")

    @property
    def topologies(self) -> tuple[Topology, ...]:
        """The topologies to measure, or to predict. Raises ParameterError on text that is not a
        topology."""
        return Topology.parse_list(self.topology or "1p4d")

    @property
    def measured(self) -> tuple[Topology, ...]:
        """The topologies to measure: all but in a run with predictions. Raises ParameterError."""
        return Topology.parse_list(self.measure) if self.predict else self.topologies

    @property
    def tp(self) -> TensorParallel:
        return TensorParallel(
            prefill=self.prefill_tp, decode=self.decode_tp, aggregated=self.aggregated_tp
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixCache(LoadParams):
    """Parameters of `single_instance_prefix_cache`."""

    REFERENCE: ClassVar[tuple[int, int]] = (2_048, 24)

    concurrency: int = param(4, "only in a closed loop: requests in flight", low=1, high=100_000)
    shares: list[float] = param(
        [0.25, 0.5, 0.75], "cached fractions of each prompt (partly warm passes)"
    )
    rounds: int = param(
        3,
        "launches of each arm; confidence intervals come from the spread between them",
        low=1,
        high=1000,
    )
    aggregated_tp: int = param(1, "GPUs of the instance (tensor parallelism)", low=1, high=64)

    def mistakes(self) -> Iterator[str]:
        if self.engine == "attach":
            allowed = "vllm or simulated (this notebook starts its own servers)"
            yield must_be("engine", allowed, self.engine, "vllm")
        yield from LoadParams.mistakes(self)
        yield from share_mistakes(self.shares)


@dataclass(frozen=True, slots=True, kw_only=True)
class LMCacheHitAnalysis(EngineParams):
    """Parameters of `lmcache_hit_analysis`."""

    log_file: str = param(
        "",
        "analyse this vLLM or LMCache log, start no servers (several: a.log,b.log)",
        example="logs/vllm.log",
    )
    log_ranks: int = param(
        0, "only with log_file: tensor-parallel workers per instance (0: detect)", low=0, high=1024
    )
    prompt_tokens: list[int] = param([400, 900, 1900, 3900], "prompt lengths in tokens")
    output_tokens: int = param(8, "output tokens of each request", low=1, high=1_000_000)
    requests: int = param(2, "requests of each prompt length per pass", low=1, high=100_000)
    shares: list[float] = param([0.5], "cached fractions of each prompt (partly warm passes)")
    chunk_tokens: list[int] = param([64, 128, 256, 512], "LMCache chunk sizes to compare (tokens)")
    block_tokens: int = param(
        64,
        "vLLM's KV block size in tokens (0: its default); chunks are multiples",
        low=0,
        high=65_536,
    )
    store_gb: float = param(0.5, "LMCache's memory (L1), in GB", low=0.1, high=100_000)
    small_store_mb: float = param(
        5.0, "LMCache's memory (L1) in the eviction test, in MB", low=1, high=100_000
    )
    store_tiers: list[str] = param(
        _OWN_TIERS,
        "LMCache's tiers; all but memory get an arm (docs/engine.md)",
        example="memory,disk,redis",
    )
    tier_gb: float = param(1.0, "size of a Redis or Mooncake tier, in GB", low=0.02, high=1_000_000)
    rounds: int = param(
        3,
        "launches of each arm; confidence intervals come from the spread between them",
        low=1,
        high=1000,
    )
    aggregated_tp: int = param(1, "GPUs of the instance (tensor parallelism)", low=1, high=64)
    base_url: str = param(
        "", "only with engine attach: URL to send the requests to", example="http://127.0.0.1:8000"
    )
    decode_urls: list[str] = param(
        [],
        "only with engine attach: vLLM servers (metrics, resets)",
        example="http://127.0.0.1:8200",
    )
    lmcache_url: str = param(
        "",
        "only with engine attach: HTTP URL of the LMCache server",
        example="http://127.0.0.1:8080",
    )
    tokenizer: str = param(
        "",
        "only with engine attach: tokenizer folder or hub name (empty: that of model)",
        example="Qwen/Qwen2.5-7B-Instruct",
    )
    extra_body: str = param(
        "",
        "additional fields of every request body, as a JSON object",
        example='{"top_k": 1}',
        mapping=True,
    )

    @property
    def log_files(self) -> list[str]:
        """The files of `log_file`, which are separated by commas."""
        if self.log_file and Path(self.log_file).exists():
            return [self.log_file]
        return [name.strip() for name in self.log_file.split(",") if name.strip()]

    def mistakes(self) -> Iterator[str]:
        if self.engine == "simulated":
            allowed = "vllm or attach (the simulated engine has no LMCache tiers)"
            yield must_be("engine", allowed, self.engine, "vllm")
        yield from EngineParams.mistakes(self)
        if self.engine == "attach":
            if self.log_file:
                example = f"-p engine vllm -p log_file {self.log_file}"
                yield unused("log_file", self.log_file, "engine=attach", example)
            yield from address_mistakes(
                base_url=self.base_url,
                decode_urls=self.decode_urls,
                lmcache_url=self.lmcache_url or (),
            )
        for name, least in (("prompt_tokens", 32), ("chunk_tokens", 16)):
            values = getattr(self, name)
            if not values or min(values) < least or len(set(values)) < len(values):
                allowed = f"one or more numbers, none twice, each at least {least}"
                yield must_be(name, allowed, values, [4 * least, 16 * least])
        tiers = self.store_tiers
        if self.engine == "vllm" or tiers != _OWN_TIERS:  # the default is for servers started here
            yield from tier_mistakes(tiers, engine=self.engine, connector="lmcache")
        yield from share_mistakes(self.shares)
        yield from body_mistakes(self.extra_body)
        self.check_lengths(max(self.prompt_tokens), self.output_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class PaperClaimValidation(EngineParams):
    """Parameters of `paper_claim_validation`."""

    claims: list[str] = param(
        ["all"],
        "'all', or claim ids and groups (workbench claims list)",
        example="VLLM-APC,own_runs",
    )
    tiers: list[str] = param(
        list(CLAIM_TIERS),
        "how to test: source (read and compute); kernel, engine, serving (measure)",
    )
    time_budget_s: float = param(
        420.0, "time for measurements, in seconds (0: only read sources)", low=0, high=1_000_000
    )
    rounds: int = param(5, "minimum launches of each arm; a verdict needs 5", low=1, high=1000)
    registry: str = param(
        "params/claims",
        "folder of the claims, relative to the repository root",
        example="my/claims",
    )

    def mistakes(self) -> Iterator[str]:
        if self.engine == "attach":
            allowed = "vllm or simulated (this notebook starts its own servers)"
            yield must_be("engine", allowed, self.engine, "vllm")
        if self.place != "local":
            allowed = "local (claims are measured by processes of this machine)"
            yield must_be("place", allowed, self.place, "local")
        for name in ("engine_args", "engine_env"):
            if text := getattr(self, name):
                yield must_be(name, "empty (claims set their own arguments)", text, f"-p {name} ''")
        yield from EngineParams.mistakes(self)
        if not self.claims:
            allowed = "'all', or one or more claim ids or groups"
            yield must_be("claims", allowed, self.claims, "VLLM-APC")
        if not self.tiers or not {*self.tiers} <= {*CLAIM_TIERS}:
            allowed = f"one or more of {', '.join(CLAIM_TIERS)}"
            yield must_be("tiers", allowed, self.tiers, "source,kernel")


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentCheck:
    """Parameters of `environment_check`."""

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
        "local: this machine, container: docker or podman",
        choices=("local", "container"),
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
    smoke: bool = param(True, "start a real 1p1d deployment and send a few requests")
    output_dir: str = param("outputs", "folder for results, relative to the repository root")

    def __post_init__(self) -> None:
        if why := next(place_mistakes(self.place, self.image, self.container_args), ""):
            raise ParameterError(why)


NOTEBOOKS: dict[str, type[EngineParams] | type[EnvironmentCheck]] = {
    "environment_check": EnvironmentCheck,
    "pd_sweep": PdSweep,
    "single_instance_prefix_cache": PrefixCache,
    "lmcache_hit_analysis": LMCacheHitAnalysis,
    "paper_claim_validation": PaperClaimValidation,
}
"""In the order in which a new user wants to see them."""


def check_params(notebook: str, values: Mapping[str, Any]) -> Any:
    """The checked parameters of a notebook.

    `values` may be a notebook's `globals()`: an unknown name is an error only if papermill could
    have injected it. Raises ParameterError on an unknown name, a wrong type or value, and on values
    that contradict each other.
    """
    if notebook not in NOTEBOOKS:
        raise ParameterError(f"unknown notebook {notebook!r}; {nearest(notebook, NOTEBOOKS)}")
    kind = NOTEBOOKS[notebook]
    hints = get_type_hints(kind)
    hints = {spec.name: hints[spec.name] for spec in fields(kind)}
    for name, value in values.items():
        if name not in hints and _injected(name, value):
            near = get_close_matches(name, hints, n=1)
            manual = f"papermill --help-notebook notebooks/{notebook}.ipynb"
            hint = f"did you mean {near[0]!r}?" if near else f"{manual} lists them"
            raise ParameterError(f"{notebook} has no parameter {name!r}; {hint}")
    checked = {}
    for spec in fields(kind):
        if spec.name in values:
            rule = spec.metadata["rule"]
            checked[spec.name] = rule.read(spec.name, values[spec.name], hints[spec.name])
    return kind(**checked)


def changed(params: EngineParams | EnvironmentCheck) -> dict[str, Any]:
    """The parameters that differ from their default."""
    usual = asdict(type(params)())
    return {name: value for name, value in asdict(params).items() if value != usual[name]}


def as_typed(values: Mapping[str, Any]) -> list[str]:
    """Parameters as command-line words: `-p rounds 5`."""
    words = []
    for name, value in values.items():
        words += ["-p", name, ",".join(map(str, value)) if isinstance(value, list) else str(value)]
    return words


def _plain(value: Any) -> str:
    """`1,2.5` for a list of numbers."""
    return ",".join(f"{each:g}" for each in value) if isinstance(value, list) else str(value)


def _injected(name: str, value: Any) -> bool:
    """True for plain data; False for modules, functions, results and IPython's history."""
    plain = type(value) in (str, int, float, bool, dict, list, type(None))
    return plain and not name.startswith("_") and name not in ("In", "Out")
