"""The parameters of `pd_sweep`: topologies, connector, rates, and servers that run elsewhere."""

from __future__ import annotations

from dataclasses import dataclass

from workbench.errors import ParameterError
from workbench.params.load import LoadParams
from workbench.params.rules import check_address, check_addresses, param
from workbench.topology import TensorParallel, Topology

__all__ = ["CONNECTORS", "PdSweep"]

CONNECTORS = ("none", "lmcache", "nixl")
"""Ways to move KV; each is a module of that name in `serve.connectors`."""


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

    def __post_init__(self) -> None:
        if self.engine == "attach":
            check_address(self.base_url)
            lists = {"prefill_urls": self.prefill_urls, "decode_urls": self.decode_urls}
            check_addresses(lists | {"lmcache_url": [self.lmcache_url] * bool(self.lmcache_url)})
            if self.prefill_urls and not self.decode_urls:
                raise ParameterError(
                    "prefill_urls without decode_urls would prove half of a deployment; give both,"
                    " e.g. -p decode_urls http://127.0.0.1:8200"
                )
        else:
            # An attached deployment may have any label; one that is started has to be understood.
            _ = self.topologies
        self.check_engine()
        self.check_load(swept=bool(self.rates_per_s or self.search))
        self._check_rates()

    def _check_rates(self) -> None:
        if not (self.rates_per_s or self.search):
            return
        rates = self.rates_per_s
        if rates and (min(rates) <= 0 or len(set(rates)) < len(rates)):
            raise ParameterError(
                f"rates_per_s is {rates}: it takes different rates above 0, e.g. 1,2,4"
            )
        if rates and (self.search or self.rate_per_s):
            raise ParameterError(
                "rates_per_s names the rates of a sweep: leave search and rate_per_s out, e.g."
                " -p rates_per_s 1,2,4"
            )
        if self.search and not (self.ttft_limit_ms or self.tpot_limit_ms):
            raise ParameterError(
                "search looks for the highest rate within limits: give one, e.g."
                " -p ttft_limit_ms 500"
            )
        if self.arrivals not in ("auto", "constant", "poisson", "gamma"):
            raise ParameterError(
                f"arrivals is {self.arrivals!r}: a sweep or search over rates takes constant,"
                " poisson or gamma"
            )
        if self.trace_speed:
            raise ParameterError(
                f"trace_speed is {self.trace_speed:g}: a sweep or search over rates sets the times"
                " itself; leave trace_speed at 0"
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
