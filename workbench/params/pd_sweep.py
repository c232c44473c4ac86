"""The parameters of a sweep over topologies: names, types, defaults, rules."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, get_type_hints

from workbench.errors import ParameterError, must_be, needs, unused
from workbench.params.engine_args import STORE_OURS, argument_mistakes
from workbench.params.price import Price
from workbench.params.rules import address_mistakes, param
from workbench.params.several_models import EXAMPLE, read_models, short_names
from workbench.params.shared import LoadParams
from workbench.params.store_tiers import tier_mistakes
from workbench.topology import ROLES, TensorParallel, Topology

CONNECTORS = (
    *("none", "lmcache", "nixl", "mooncake", "mooncake-store", "offload", "lmcache-inprocess"),
)
"""Ways to move KV; each is a module of that name in `serve.connectors`."""
ALL_CONNECTORS = "all"
"""A sweep over every connector that this machine has and that serves the topology."""


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
                    f"{name}={_plain(value)} and predict=True exclude each other. Leave out one"
                    f" (example: {example})"
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
    def uses_concurrency(self) -> bool:
        """Also for the profile of a run with predictions."""
        return self.predict or (self.arrival_kind == "closed" and not self.sweeps_rates)

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


def _plain(value: Any) -> str:
    """`1,2.5` for a list of numbers, `A,B` for names."""
    if not isinstance(value, list | dict):
        return str(value)
    return ",".join(each if isinstance(each, str) else f"{each:g}" for each in value)
