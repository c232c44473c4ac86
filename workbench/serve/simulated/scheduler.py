"""The scheduler and counters of a simulated vLLM instance, without clock or network.

The rules are those of vLLM 0.32 (`v1/core/sched/scheduler.py`, `v1/metrics/stats.py`);
tests/engine/test_simulated_semantics.py compares the counters with a real one:

- the local prefix cache is looked up before external ones, for whole blocks without the last token;
- external hits are counted when a request is admitted, and again if its transfer failed and it is
  admitted again; a preempted request is not counted twice;
- the source of the prompt tokens is counted with the first output token.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from collections.abc import Sequence as Tokens
from dataclasses import dataclass, field
from math import isnan, nan
from typing import Any

from workbench.serve.simulated.exposition import Series
from workbench.serve.simulated.kv_blocks import BLOCK_TOKENS, BlockPool, blocks_of, chain, chain_of

STEP_TOKENS = 2048
"""Token limit of one step, vLLM's on a CPU; longer prompts take several."""
STEP_SEQUENCES = 256

_SOURCE = "vllm:prompt_tokens_by_source_total"
_TIER = "vllm:prompt_tokens_cached_by_source_total"


@dataclass(slots=True, kw_only=True, eq=False)
class Sequence:
    """One request inside the engine: its prompt, progress and blocks."""

    id: str
    prompt: Tokens[int]
    max_tokens: int
    arrived_s: float
    offered: int = 0
    """Prefix tokens that are available outside the instance."""
    tier: str = "external_unspecified"
    """vLLM's name of that source: this for a store, `p2p` for another instance."""
    reported_cached: int = -1
    """`cached_tokens` of usage, if the prefill instance reported it; else -1."""
    hold: bool = False
    """Keep the blocks after the end for a decode instance."""
    outputs: list[int] = field(default_factory=list)
    hashes: list[bytes] = field(default_factory=list)
    contents: list[bytes] = field(default_factory=list)
    final: bytes = b""
    """The content of the whole prompt, from which the text is derived."""
    blocks: list[int] = field(default_factory=list)
    computed: int = 0
    sealed: int = 0
    """Number of leading blocks that are in the cache."""
    loading: bool = False
    local: int = 0
    external: int = 0
    preemptions: int = 0
    scheduled_s: float = nan
    first_s: float = nan
    last_s: float = nan
    ended: bool = False
    # Set by the instance.
    number: int = 0
    """Position among the requests that faults may affect, from 1; 0: never affected."""
    transfer: Mapping[str, Any] = field(default_factory=dict)
    """kv_transfer_params of the request."""
    found: list[bytes] = field(default_factory=list)
    """Contents of the blocks that the store has."""
    write: asyncio.Task[None] | None = None
    """The write of its chunks to the store."""
    tokens: asyncio.Queue[int | None] = field(default_factory=asyncio.Queue)
    """Output tokens for the client; None if the request failed."""

    def __post_init__(self) -> None:
        self.hashes = chain_of(self.prompt)

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.outputs)

    @property
    def cached(self) -> int:
        """`cached_tokens` of the usage."""
        return self.local + self.external if self.reported_cached < 0 else self.reported_cached

    @property
    def struck(self) -> bool:
        """Whether faults of single requests affect it."""
        return self.number > 0 and self.number % 2 == 0


@dataclass(frozen=True, slots=True)
class Step:
    """The batch of one step, as (sequence, new tokens, tokens before), and loads to begin."""

    batch: list[tuple[Sequence, int, int]] = field(default_factory=list)
    loads: list[Sequence] = field(default_factory=list)


class Scheduler:
    """Requests, blocks and counters of one instance."""

    def __init__(self, series: Series, pool: BlockPool, *, connector: bool) -> None:
        self.series = series
        self.pool = pool
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.held: dict[str, Sequence] = {}
        """Ended prefills whose blocks are not yet fetched."""
        self.preempted: list[Sequence] = []
        """Preempted requests, whose prompts the instance looks up again."""
        self._connector = connector

    def schedule(self, now_s: float) -> Step:
        """Choose the next step's batch: running requests first, then waiting ones."""
        step = Step()
        budget, preempted = STEP_TOKENS, False
        position = 0
        while position < len(self.running) and budget > 0:
            sequence = self.running[position]
            new = min(sequence.length - sequence.computed, budget)
            while not self._grow(sequence, new):
                preempted = True
                victim = self.running[-1]
                self.preempt(victim)
                if victim is sequence:
                    return step
            step.batch.append((sequence, new, sequence.computed))
            budget -= new
            position += 1
        for sequence in list(self.waiting):
            if preempted or budget <= 0 or len(self.running) >= STEP_SEQUENCES:
                break
            if sequence.loading:
                continue
            if sequence.computed == 0 and not self._admit(sequence):
                break
            if sequence.loading:
                step.loads.append(sequence)
                continue
            new = min(sequence.length - sequence.computed, budget)
            if not self._grow(sequence, new):
                break
            self.waiting.remove(sequence)
            self.running.append(sequence)
            if isnan(sequence.scheduled_s):
                sequence.scheduled_s = now_s
            step.batch.append((sequence, new, sequence.computed))
            budget -= new
        return step

    def complete(self, step: Step, now_s: float) -> list[Sequence]:
        """End a step; returns the sequences with a new token, the last of `outputs`."""
        answered = []
        for sequence, new, before in step.batch:
            if sequence.ended or sequence not in self.running or sequence.computed != before:
                continue  # aborted or preempted meanwhile
            sequence.computed += new
            if sequence.computed < sequence.length:
                continue
            if not sequence.outputs:
                self._first(sequence, now_s)
            sequence.last_s = now_s
            sequence.outputs.append(_token(sequence.final, len(sequence.outputs)))
            self.series.add("vllm:generation_tokens_total", 1)
            answered.append(sequence)
            if len(sequence.outputs) >= sequence.max_tokens:
                self._finish(sequence)
        return answered

    def loaded(self, sequence: Sequence, contents: Tokens[bytes], final: bytes = b"") -> None:
        """The offered prefix was loaded: `contents` of its whole blocks after the local hit.

        `final` is given if the whole prompt was loaded.
        """
        sequence.loading = False
        if sequence.ended:
            self._free(sequence)
            return
        sequence.contents += contents
        sequence.final = final
        sequence.computed = sequence.local + sequence.external
        self._seal(sequence, sequence.computed)
        sequence.computed = min(sequence.computed, sequence.length - 1)
        sequence.offered = 0
        if sequence.computed == 0:  # a prompt of one token is looked up again
            self._free(sequence)

    def lost(self, sequence: Sequence) -> None:
        """The load failed: the prompt is computed here."""
        sequence.loading = False
        sequence.offered = 0
        self._free(sequence)

    def failed(self, sequence: Sequence) -> None:
        """The load failed, and the request with it (vLLM's default policy)."""
        self.lost(sequence)
        if not sequence.ended:
            sequence.ended = True
            self.waiting.remove(sequence)
            self.series.add("vllm:request_success_total", 1, finished_reason="error")
            sequence.tokens.put_nowait(None)

    def preempt(self, sequence: Sequence) -> None:
        """Free a running request's blocks and put it first in the queue; it starts over."""
        self.running.remove(sequence)
        self._free(sequence)
        sequence.preemptions += 1
        self.preempted.append(sequence)
        self.waiting.insert(0, sequence)
        self.series.add("vllm:num_preemptions_total", 1)

    def abort(self, sequence: Sequence) -> None:
        """The client disconnected: nothing is counted, as in vLLM.

        Blocks into which KV is being loaded stay in use until that ends.
        """
        if sequence.ended:
            return
        sequence.ended = True
        for queue in (self.waiting, self.running):
            if sequence in queue:
                queue.remove(sequence)
        if not sequence.loading:
            self._free(sequence)

    def release(self, request_id: str) -> Sequence | None:
        """Free the blocks held for a decode instance; None if there are none."""
        sequence = self.held.pop(request_id, None)
        if sequence is not None:
            self._free(sequence)
        return sequence

    def _admit(self, sequence: Sequence) -> bool:
        """Look up the prompt, take its blocks and count; False while they do not fit."""
        blocks = self.pool.find(sequence.hashes[: (sequence.length - 1) // BLOCK_TOKENS])
        local = len(blocks) * BLOCK_TOKENS
        # Connectors load nothing for a preempted request.
        external = 0 if sequence.preemptions else max(0, sequence.offered - local)
        space = self.pool.free - self.pool.idle(blocks)
        if blocks_of(sequence.length) - len(blocks) > space:
            return False
        self.pool.take(blocks)
        sequence.blocks = blocks
        sequence.contents = [self.pool.content[block] for block in blocks]
        sequence.computed = local
        sequence.sealed = len(blocks)
        sequence.loading = external > 0
        if external:
            sequence.blocks += self.pool.new(blocks_of(local + external) - len(blocks))
        if not sequence.preemptions:
            sequence.local, sequence.external = local, external
            self._count_admission(sequence)
        return True

    def _count_admission(self, sequence: Sequence) -> None:
        add = self.series.add
        if self.pool.caching:
            add("vllm:prefix_cache_queries_total", sequence.length)
            add("vllm:prefix_cache_hits_total", sequence.local)
        if self._connector:
            add("vllm:external_prefix_cache_queries_total", sequence.length - sequence.local)
            add("vllm:external_prefix_cache_hits_total", sequence.external)
        add(_TIER, sequence.local, source="device")
        add(_TIER, sequence.external, source=sequence.tier)

    def _first(self, sequence: Sequence, now_s: float) -> None:
        """Count the prompt with its first output token."""
        sequence.first_s = now_s
        prompt = len(sequence.prompt)
        cached = sequence.local + sequence.external
        add = self.series.add
        add("vllm:prompt_tokens_total", prompt)
        add("vllm:prompt_tokens_cached_total", cached)
        add(_SOURCE, prompt - cached, source="local_compute")
        add(_SOURCE, sequence.local, source="local_cache_hit")
        add(_SOURCE, sequence.external, source="external_kv_transfer")
        if not sequence.final:
            whole = prompt // BLOCK_TOKENS
            before = sequence.contents[whole - 1] if whole else b""
            rest = sequence.prompt[whole * BLOCK_TOKENS :]
            sequence.final = chain(before, rest) if rest else before

    def _finish(self, sequence: Sequence) -> None:
        sequence.ended = True
        self.running.remove(sequence)
        if sequence.hold:
            self.held[sequence.id] = sequence
        else:
            self._free(sequence)
        self.series.add("vllm:request_success_total", 1, finished_reason="length")
        for name, value in (
            ("request_prefill_kv_computed_tokens", len(sequence.prompt) - sequence.cached),
            ("request_prompt_tokens", len(sequence.prompt)),
            ("request_generation_tokens", len(sequence.outputs)),
            ("request_queue_time_seconds", sequence.scheduled_s - sequence.arrived_s),
            ("time_to_first_token_seconds", sequence.first_s - sequence.arrived_s),
            ("e2e_request_latency_seconds", sequence.last_s - sequence.arrived_s),
        ):
            self.series.observe(f"vllm:{name}", value)

    def _grow(self, sequence: Sequence, new: int) -> bool:
        """Take blocks for `new` more tokens; False if there are not enough."""
        missing = blocks_of(sequence.computed + new) - len(sequence.blocks)
        if missing > self.pool.free:
            return False
        sequence.blocks += self.pool.new(max(0, missing))
        self._seal(sequence, sequence.computed + new)
        return True

    def _seal(self, sequence: Sequence, tokens: int) -> None:
        """Cache the blocks that are full after this many tokens."""
        for number in range(sequence.sealed, tokens // BLOCK_TOKENS):
            for known in (sequence.hashes, sequence.contents):
                if number >= len(known):
                    known.append(chain(known[-1] if number else b"", _block(sequence, number)))
            self.pool.cache(
                sequence.blocks[number], sequence.hashes[number], sequence.contents[number]
            )
            sequence.sealed = number + 1

    def _free(self, sequence: Sequence) -> None:
        self.pool.give_back(sequence.blocks)
        sequence.blocks = []
        sequence.computed = sequence.sealed = 0


def _block(sequence: Sequence, number: int) -> Tokens[int]:
    """The tokens of one block, which may include outputs."""
    span = slice(number * BLOCK_TOKENS, (number + 1) * BLOCK_TOKENS)
    if span.stop <= len(sequence.prompt):
        return sequence.prompt[span]
    return [*sequence.prompt, *sequence.outputs][span]


def _token(final: bytes, number: int) -> int:
    """The id of an output token: a function of the KV alone."""
    return 16 + int.from_bytes(chain(final, [number])[:4], "little") % 12_000
