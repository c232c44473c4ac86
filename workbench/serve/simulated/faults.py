"""Faults on demand: each copies one real incident, and each shows in a way of its own.

A fault acts from the start of a process until its end. One that strikes single requests strikes
each second one that asks for at least four tokens (`Strikes`), so that warm-ups stay whole and a
run has good and bad requests.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Literal

from workbench.errors import ParameterError, PlanError, nearest
from workbench.serve.simulated.blocks import BLOCK_TOKENS, TOKEN_BYTES, blocks_of
from workbench.topology import Role, Topology

__all__ = [
    "FAULTS",
    "Fault",
    "Strikes",
    "applies",
    "check_fault",
    "fault_of_process",
    "small_kv_mib",
]

Place = Literal["answering", "last answering", "prefill", "every engine", "store", "proxy"]
"""Which processes: `answering` instances are decode or aggregated ones."""
Needs = Literal["", "lmcache", "nixl", "transfer"]
"""`transfer`: KV comes from elsewhere, from a store or, in a PD topology, another instance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing that goes wrong on purpose."""

    name: str
    incident: str
    """The real incident that it copies."""
    shows: str
    """How it can be seen from outside."""
    places: tuple[Place, ...]
    needs: Needs = ""
    disaggregated: bool = False
    """True where it makes sense only in a PD topology."""


FAULTS = {
    fault.name: fault
    for fault in (
        Fault(
            name="role_chunk_first",
            incident="a chunk without a token comes at once (guidellm#737, aibrix PR#1573)",
            shows="the stream begins with an empty chunk long before the first token",
            places=("answering",),
        ),
        Fault(
            name="tokens_in_bulk",
            incident="several tokens share a chunk, as with speculative decoding (sglang PR#12064)",
            shows="four tokens a chunk; gaps between chunks are not gaps between tokens",
            places=("answering",),
        ),
        Fault(
            name="error_in_stream",
            incident="the engine dies while HTTP 200 is already sent",
            shows="struck streams have an error event instead of their end",
            places=("answering",),
        ),
        Fault(
            name="truncated_stream",
            incident="something between engine and client hangs up",
            shows="struck streams end without finish_reason and without [DONE]",
            places=("answering",),
        ),
        Fault(
            name="late_finish",
            incident="finish_reason comes in a chunk of its own, long after the last token",
            shows="50 ms between the last token and the end of the stream",
            places=("answering",),
        ),
        Fault(
            name="buffered_stream",
            incident="a gateway holds the stream back until it has all of it (nginx"
            " proxy_buffering)",
            shows="all events of an answer come at once, at its end",
            places=("answering",),
        ),
        Fault(
            name="usage_all_cached",
            incident="usage calls a new prompt cached (a front that counts what it fetched)",
            shows="cached_tokens of each answer is its whole prompt; every counter looks good",
            places=("answering",),
        ),
        Fault(
            name="prefilled_again",
            incident="decode finds nothing and prefills in silence (modelplane PR#175)",
            shows="decode counts its prompts as local_compute, external hits stay 0",
            places=("answering",),
            needs="transfer",
            disaggregated=True,
        ),
        Fault(
            name="transfer_params_lost",
            incident="the proxy forgets kv_transfer_params (vllm PR#42703, llm-d#2535)",
            shows="as prefilled_again; prefill's blocks stay held until their lease ends",
            places=("proxy",),
            needs="nixl",
            disaggregated=True,
        ),
        Fault(
            name="failed_transfer",
            incident="the pull fails and vLLM computes instead (kv_load_failure_policy recompute)",
            shows="nixl_num_failed_transfers on decode; external hits were counted at admission,"
            " prompt_tokens_by_source then says local_compute",
            places=("answering",),
            needs="nixl",
            disaggregated=True,
        ),
        Fault(
            name="expired_blocks",
            incident="decode comes after prefill's lease has ended (vllm#21570, aibrix#1772)",
            shows="nixl_num_kv_expired_reqs and _notifications_after_expiry on prefill; decode"
            " reads the freed blocks and counts a good transfer",
            places=("prefill",),
            needs="nixl",
            disaggregated=True,
        ),
        Fault(
            name="wrong_kv",
            incident="a stale transfer answers with another prompt's KV (vllm#52234)",
            shows="struck requests get another text; every counter looks good",
            places=("answering",),
            needs="transfer",
        ),
        Fault(
            name="store_left_warm",
            incident="the store was not cleared between two runs (vllm#52884, Rapid-MLX#1641)",
            shows="/cache/clear says ok, and every chunk of every prompt is found",
            places=("store",),
            needs="lmcache",
        ),
        Fault(
            name="reset_refused",
            incident="blocks are still held, and HTTP 200 carries the refusal",
            shows='/reset_prefix_cache answers {"success": false} every time',
            places=("last answering",),
        ),
        Fault(
            name="preemption",
            incident="KV space runs out and a running request starts over (vllm#25780)",
            shows="num_preemptions on struck requests; a gap in their stream",
            places=("answering",),
        ),
        Fault(
            name="eviction",
            incident="the working set does not fit (LMCache#706 and its many siblings)",
            shows="engines are planned with KV space for a prompt and a half (`small_kv_mib`), the"
            " store keeps the chunks of one prompt",
            places=("store",),
        ),
        Fault(
            name="slow_instance",
            incident="one GPU is throttled or shared",
            shows="the last answering instance takes four times as long",
            places=("last answering",),
        ),
        Fault(
            name="stalled_instance",
            incident="an instance hangs in the middle of an answer",
            shows="the fourth struck-able request of the last answering instance never ends",
            places=("last answering",),
        ),
        Fault(
            name="hash_seed_mismatch",
            incident="PYTHONHASHSEED differs between processes (LMCache#2511, #2136, #1139)",
            shows="no instance finds a chunk that another has stored",
            places=("every engine",),
            needs="lmcache",
        ),
        Fault(
            name="store_dead",
            incident="the LMCache server is killed in mid-run",
            shows="the store ends at its twelfth lookup; engines go on without it",
            places=("store",),
            needs="lmcache",
        ),
    )
}


def applies(fault: str, connector: str, topology: Topology) -> bool:
    """Whether a fault can happen in such a deployment. Raises ParameterError for no such fault."""
    known = _fault(fault)
    if known.disaggregated and not topology.disaggregated:
        return False
    if known.needs == "transfer":
        return connector == "lmcache" or (connector == "nixl" and topology.disaggregated)
    return known.needs in ("", connector)


def check_fault(fault: str, connector: str, topology: Topology) -> None:
    """Refuse a fault that cannot happen there. Raises PlanError."""
    if fault and not applies(fault, connector, topology):
        known = _fault(fault)
        wants = {"transfer": "lmcache or nixl", "": ""}.get(known.needs, known.needs)
        needed = [f"connector {wants}"] if wants else []
        needed += ["a topology such as 1p1d"] if known.disaggregated else []
        raise PlanError(
            f"fault {fault!r} cannot happen in {topology} with connector {connector}: it needs"
            f" {' and '.join(needed)}"
        )


def fault_of_process(
    fault: str,
    connector: str,
    topology: Topology,
    role: Role | Literal["store", "proxy"],
    last: bool,
) -> str:
    """The fault that one process gets, empty for none; `last` of the instances of its role."""
    if not fault or not applies(fault, connector, topology):
        return ""
    answering = role in ("decode", "aggregated")
    here = {
        "answering": answering,
        "last answering": answering and last,
        "prefill": role == "prefill",
        "every engine": answering or role == "prefill",
        "store": role == "store",
        "proxy": role == "proxy",
    }
    return fault if any(here[place] for place in _fault(fault).places) else ""


def small_kv_mib(tokens: int) -> int:
    """KV space for the fault `eviction`: one and a half requests of so many tokens, whole MiB."""
    return max(1, ceil(1.5 * blocks_of(tokens) * BLOCK_TOKENS * TOKEN_BYTES / 2**20))


class Strikes:
    """Chooses the requests that a fault strikes: each second one that asks for enough tokens."""

    TOKENS = 4
    """Warm-ups and prefill legs ask for fewer."""

    def __init__(self) -> None:
        self.counted = 0

    def next(self, max_tokens: int) -> int:
        """The number of this request among those that count, from 1 on; 0 when it does not."""
        if max_tokens < self.TOKENS:
            return 0
        self.counted += 1
        return self.counted


def _fault(name: str) -> Fault:
    if name not in FAULTS:
        raise ParameterError(f"fault {name!r} is not known: {nearest(name, FAULTS)}")
    return FAULTS[name]
