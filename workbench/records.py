"""The rows that a run writes: one per request, and one per request at the proxy.

Every time is `time.monotonic()` in seconds (CLOCK_MONOTONIC, one clock for all processes of a
host), so stamps of client and proxy can be subtracted. Missing times are NaN, never zero. Readings
of other hosts' clocks and of links between hosts are records too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from math import nan
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRecord:
    """One request as the client saw it: facts and raw stamps only; latencies are derived later.

    A request ends as exactly one record. `error` is empty for a success, otherwise its class:
    `connect`, `timeout`, `http_<status>`, `stream_error` (an error event inside HTTP 200),
    `truncated` (no finish), `reset`, `protocol`, `too_large`, `cancelled`,
    `client_died` (a worker process of this client ended by itself).
    """

    index: int
    """Position in the workload; the proxy routes by it."""
    request_id: str
    prompt_tokens: int
    """Prompt tokens sent (exact: the prompt is token ids)."""
    ideal_reuse_tokens: int
    """Prefix tokens that an infinite cache, empty at the start of the workload, would have."""
    max_tokens: int
    scheduled_s: float
    sent_s: float = nan
    """When the first byte was handed to the socket."""
    head_s: float = nan
    """When the response's head had arrived."""
    chunk_s: tuple[float, ...] = ()
    """Arrival of each chunk that carried generated tokens (content, reasoning or tool call)."""
    chunk_tokens: tuple[int, ...] = ()
    """Tokens of each of those chunks, where the server says so; else empty."""
    stream_end_s: float = nan
    http_status: int = 0
    finish_reason: str = ""
    usage_prompt_tokens: int = -1
    """Prompt tokens as the server counted them; -1 when it did not say."""
    output_tokens: int = -1
    """Completion tokens from the server's usage; -1 when it did not say."""
    cached_tokens: int = -1
    """Prompt tokens that the server calls cached; -1 when it did not say."""
    text: str = ""
    answer_ids: tuple[int, ...] = ()
    """Token ids of the answer, where they were asked for."""
    engine_metrics: str = ""
    """The engine's own per-request metrics as JSON text, where it sends them."""
    error: str = ""
    error_message: str = ""

    @property
    def ok(self) -> bool:
        return not self.error


@dataclass(frozen=True, slots=True, kw_only=True)
class LegRecord:
    """One request as the proxy saw it. `prefill_*` is empty or NaN where there is one leg."""

    request_id: str
    index: int
    prefill_instance: str = ""
    decode_instance: str = ""
    """The instance that streamed the answer: a decode or an aggregated one."""
    at_once: bool = False
    """Both legs were sent at once, and decode waits for the KV of prefill."""
    received_s: float = nan
    prefill_sent_s: float = nan
    prefill_done_s: float = nan
    decode_sent_s: float = nan
    decode_head_s: float = nan
    decode_first_byte_s: float = nan
    decode_done_s: float = nan
    prefill_engine_metrics: str = ""
    error: str = ""
    """`prefill` or `decode` with the reason, empty when both legs went well."""


PROXY_HEADER = "X-Workbench-Proxy"
"""In the model list of the workbench's proxy; its GET /servers then has ProxyFacts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyFacts:
    """What the workbench's proxy knows about the servers behind it, for who did not start them."""

    prefill: tuple[str, ...] = ()
    """Base URLs of the instances, in the order of its routes."""
    decode: tuple[str, ...] = ()
    connector: str = ""
    """Empty if unknown."""
    store_url: str = ""
    """Of the store's /metrics and resets; empty without one."""
    kv_bytes_per_token: float = nan
    chunk_tokens: int = 0
    """The store's chunk; 0 if unknown."""
    store_gb: float = nan
    ranks: Mapping[str, int] = field(default_factory=dict)
    """Tensor parallelism by role."""
    prefix_caching: bool = True
    drop_blocks: tuple[str, ...] = ()
    """Roles whose draft model makes them drop the last cached block."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockReading:
    """The clocks of another host compared with ours, by the shortest of several round trips.

    The host read its clocks between our question and its answer. So in the middle of the round trip
    they differ from ours by the offsets, give or take half of it (Cristian, "Probabilistic clock
    synchronization", 1989; NTP takes the shortest too: RFC 5905, section 10).
    """

    host: str
    """Its address."""
    at_s: float
    """Our clock in the middle of the round trip."""
    offset_s: float
    """Its monotonic clock minus ours."""
    wall_offset_s: float
    """Its time of day minus ours."""
    bound_s: float
    """The largest error of the offsets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkRate:
    """The throughput of one TCP connection from one host to another."""

    sender: str
    """Its address."""
    receiver: str
    bit_s: float
    """Payload, without headers."""


def to_frame(records: Iterable[RequestRecord | LegRecord], **columns: Any) -> pd.DataFrame:
    """Records as a frame, one row each, with constant `columns` in front.

    An empty iterable gives a frame that has the columns of RequestRecord and no row.
    """
    import pandas as pd

    rows = [{**columns, **asdict(record)} for record in records]
    names = [*columns, *(field.name for field in fields(RequestRecord))]
    return pd.DataFrame(rows) if rows else pd.DataFrame(columns=names)
