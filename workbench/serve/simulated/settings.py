"""What a pretend instance is started with, and the counters that it shows from the start."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from workbench.serve.simulated.blocks import BLOCK_TOKENS, TOKEN_BYTES
from workbench.serve.simulated.latency import SPEED
from workbench.serve.simulated.series import Series
from workbench.serve.vllm import SERVED_MODEL

__all__ = ["InstanceSettings", "all_series"]

LEASE_S = 30.0
"""How long a prefill instance holds blocks that nobody fetches (as vLLM's NIXL lease), unless
kv_connector_extra_config says otherwise with vLLM's own `kv_lease_duration`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceSettings:
    """What one pretend instance is started with."""

    name: str
    role: str
    host: str
    port: int
    context_tokens: int
    kv_bytes: int
    bytes_per_token: int = TOKEN_BYTES
    prefix_caching: bool = True
    transfer: Mapping[str, Any] = field(default_factory=dict)
    """vLLM's kv_transfer_config; empty without a connector."""
    seed: int = 0
    speed: float = SPEED
    fault: str = ""

    @property
    def blocks(self) -> int:
        return self.kv_bytes // (BLOCK_TOKENS * self.bytes_per_token)

    @property
    def nixl(self) -> bool:
        return self.transfer.get("kv_connector") == "NixlConnector"

    @property
    def lease_s(self) -> float:
        extra = self.transfer.get("kv_connector_extra_config") or {}
        return float(extra.get("kv_lease_duration", LEASE_S))

    @property
    def store_url(self) -> str:
        """Where the pretend store listens; empty without one."""
        extra = self.transfer.get("kv_connector_extra_config") or {}
        host = str(extra.get("lmcache.mp.host", "")).replace("tcp://", "http://")
        return f"{host}:{extra.get('lmcache.mp.port')}" if host else ""


def all_series(settings: InstanceSettings) -> Series:
    """The counters that vLLM shows before anything has happened."""
    series = Series(engine="0", model_name=SERVED_MODEL)
    for name in (
        "prefix_cache_queries", "prefix_cache_hits", "external_prefix_cache_queries",
        "external_prefix_cache_hits", "num_preemptions", "prompt_tokens", "prompt_tokens_cached",
        "generation_tokens",
    ):  # fmt: skip
        series.born(f"vllm:{name}_total")
    for source in ("local_compute", "local_cache_hit", "external_kv_transfer"):
        series.born("vllm:prompt_tokens_by_source_total", source=source)
    for tier in ("device", "host", "p2p", "disk", "external_unspecified"):
        series.born("vllm:prompt_tokens_cached_by_source_total", source=tier)
    for reason in ("stop", "length", "abort", "error", "repetition"):
        series.born("vllm:request_success_total", finished_reason=reason)
    if settings.nixl:
        for name in ("bytes_transferred", "num_descriptors", "xfer_time_seconds"):
            series.observe(f"vllm:nixl_{name}")
        for name in (
            "failed_transfers", "failed_notifications", "kv_expired_reqs",
            "notifications_after_expiry",
        ):  # fmt: skip
            series.born(f"vllm:nixl_num_{name}_total")
    return series
