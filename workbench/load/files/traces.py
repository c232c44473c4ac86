"""Traces: when requests arrive, how long they are, and which prompt blocks they share.

An id stands for a block and all blocks before it, so equal ids are equal prefixes. Prompts are
drawn from the ids. A trace cannot show what prompts share inside a block that one does not fill.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import count
from math import isfinite

import numpy as np

from workbench.errors import ParameterError
from workbench.load.workload.arrivals import Arrivals, at_times
from workbench.load.workload.token_ids import FIRST_ID, SALT_TOKENS, TokenIds, drawn_ids, salt_ids
from workbench.load.workload.workload import Request, Workload, assemble, check_numbers
from workbench.records import RequestRecord

BLOCK_TOKENS = 512
"""Prompt tokens per hash id in Mooncake's own traces, and in those we write."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceRow:
    """One request of a trace."""

    arrival_s: float
    """Seconds from the start of the trace."""
    prompt_tokens: int
    output_tokens: int
    hash_ids: tuple[int, ...]
    """One for each block of the prompt; the last may be shorter than the others."""
    line: int = 0
    """Line of the file, from 1; 0 without a file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """Requests in the order of their arrival."""

    name: str
    rows: tuple[TraceRow, ...]
    block_tokens: float = BLOCK_TOKENS
    """A fraction only if a scaled block is shorter than the salt."""
    untimed: int = 0
    """Requests without a time; if there are any, `arrival_s` means nothing."""
    doubts: tuple[str, ...] = ()
    """What a reader must know about how the file was read."""

    def tokens(self, blocks: int) -> int:
        """Tokens in the first `blocks` blocks of a prompt."""
        return int(blocks * self.block_tokens + 1e-9)

    def scaled(self, *, speed: float = 1.0, length: float = 1.0) -> Trace:
        """The same requests `speed` times as fast, with `length` times the tokens.

        Lengths are scaled by the block, which becomes round(length * block) tokens, so that which
        blocks are shared stays as it was; answers are scaled alike, to 1 token at least. A block
        that would be shorter than the salt may be a fraction: what is shared is rounded down.
        """
        if not (isfinite(speed) and speed > 0 and isfinite(length) and length > 0):
            raise ParameterError(
                f"speed and length must be above 0, got speed {speed} and length {length}"
                " (example: length=0.1 for a tenth of the tokens)"
            )
        block: float = self.block_tokens * length
        if block >= SALT_TOKENS:
            block = round(block)

        def prompt_tokens(tokens: int) -> int:
            if block < SALT_TOKENS:
                return max(1, int(tokens * length + 1e-9))
            whole, rest = divmod(tokens, self.block_tokens)
            # A rest stays a rest: at least one token, and never a whole block.
            part = min(max(1, round(rest * length)), max(1, block - 1)) if rest else 0
            return int(whole * block + part)

        def shorter(row: TraceRow) -> TraceRow:
            return replace(
                row,
                arrival_s=row.arrival_s / speed,
                prompt_tokens=prompt_tokens(row.prompt_tokens),
                output_tokens=max(1, round(row.output_tokens * length)),
            )

        return replace(self, rows=tuple(map(shorter, self.rows)), block_tokens=block)

    def arrivals(self) -> Arrivals:
        """One request at each time of the trace."""
        return at_times(row.arrival_s for row in self.rows)

    def workload(
        self,
        *,
        context_tokens: int,
        vocab_tokens: int = 12_288,
        seed: int = 0,
        salt: str,
    ) -> Workload:
        """Prompts that share what the trace shares, the same on any machine for the same seed.

        Each starts with the salt, and a prompt that is shorter is all salt. Prompts that share
        less than the salt share nothing: no engine has blocks that small. Raises ParameterError
        for a prompt that does not fit `context_tokens` with its answer.
        """
        check_numbers(
            salt,
            vocab_tokens=(vocab_tokens, FIRST_ID + 2),
            seed=(seed, 0),
            rows=(len(self.rows), 1),
        )
        for row in self.rows:
            where = f"{self.name}, line {row.line}"
            if row.prompt_tokens + row.output_tokens > context_tokens:
                raise ParameterError(
                    f"{where}: {row.prompt_tokens:,} prompt tokens and {row.output_tokens:,} output"
                    f" tokens exceed context_tokens ({context_tokens:,}). Scale the trace or raise"
                    " context_tokens"
                )
        drawn: dict[int, TokenIds] = {}
        groups: dict[int, int] = {}
        prompts = []
        # An id stands for its block and all before it: this one, for all that the salt covers.
        salted = next(n for n in count() if self.tokens(n + 1) >= SALT_TOKENS)
        for row in self.rows:
            for depth, hash_id in enumerate(row.hash_ids):
                if hash_id not in drawn:
                    tokens = self.tokens(depth + 1) - self.tokens(depth)
                    drawn[hash_id] = drawn_ids(tokens, vocab_tokens, seed, 5, hash_id)
            ids = np.zeros(row.prompt_tokens, np.int32)
            text = np.concatenate([drawn[hash_id] for hash_id in row.hash_ids])[: len(ids)]
            ids[: len(text)] = text  # a fractional block may leave one token unset
            key = row.hash_ids[min(salted, len(row.hash_ids) - 1)]
            group = groups.setdefault(key, len(groups))
            ids[:SALT_TOKENS] = salt_ids(salt, group, vocab_tokens)[: len(ids)]
            prompts.append(ids)
        asked = [row.output_tokens for row in self.rows]
        made = assemble(self.name, prompts, asked, seed=seed, salt=salt)
        return replace(made, doubts=(*made.doubts, *self.doubts))


def fitted(trace: Trace, *, prompt_tokens: int, output_tokens: int) -> Trace:
    """The trace scaled down so that its longest prompt and longest output have these lengths.

    Each has its own factor, and none is lengthened. The prompt's factor is rounded down to whole
    tokens of a block, so the longest prompt may be a little shorter than asked. A block that would
    be shorter than the salt is not rounded.
    """
    longest = max(row.prompt_tokens for row in trace.rows)
    block: float = trace.block_tokens * min(1.0, prompt_tokens / longest)
    if block >= SALT_TOKENS:
        block = int(block)
    share = min(1.0, output_tokens / max(1, *(row.output_tokens for row in trace.rows)))
    smaller = trace.scaled(length=block / trace.block_tokens)
    answers = [max(1, int(row.output_tokens * share)) for row in trace.rows]
    rows = zip(smaller.rows, answers, strict=True)
    return replace(smaller, rows=tuple(replace(row, output_tokens=n) for row, n in rows))


def trace_of_run(workload: Workload, records: Iterable[RequestRecord]) -> Trace:
    """A workbench run as a trace: send times, output lengths, and the ids of the prompt blocks.

    Requests that were never sent are left out. Every block (also the last, shorter one) gets a new
    id unless an earlier prompt has it after the same blocks. Raises ParameterError for a record of
    another workload.
    """
    asked = {request.index: request for request in workload.requests}
    sent = sorted((r for r in records if isfinite(r.sent_s)), key=lambda r: r.sent_s)
    blocks = _Blocks(BLOCK_TOKENS)
    rows = []
    for record in sent:
        request = asked.get(record.index)
        if request is None or request.prompt_tokens != record.prompt_tokens:
            raise ParameterError(
                f"request {record.request_id} is not in workload {workload.name!r}. Give the"
                " records of a run of this workload"
            )
        sent_s, tokens = record.sent_s - sent[0].sent_s, max(record.output_tokens, 0)
        rows.append(blocks.row(request, sent_s, tokens))
    return Trace(name=workload.name, rows=tuple(rows))


def trace_of(workload: Workload, *, block_tokens: int) -> Trace:
    """A workload before it is sent as a trace without times, in blocks of any size."""
    blocks = _Blocks(block_tokens)
    rows = tuple(blocks.row(request, 0.0, request.max_tokens) for request in workload.requests)
    return Trace(name=workload.name, rows=rows, block_tokens=block_tokens)


class _Blocks:
    """Gives each block an id that stands for it and all blocks before it."""

    def __init__(self, block_tokens: int) -> None:
        self._block_tokens = block_tokens
        self._known: dict[tuple[int, bytes], int] = {}

    def row(self, request: Request, arrival_s: float, output_tokens: int) -> TraceRow:
        ids: list[int] = []
        for start in range(0, len(request.prompt_ids), self._block_tokens):
            block = request.prompt_ids[start : start + self._block_tokens].tobytes()
            before = ids[-1] if ids else -1
            ids.append(self._known.setdefault((before, block), len(self._known)))
        return TraceRow(
            arrival_s=arrival_s,
            prompt_tokens=request.prompt_tokens,
            output_tokens=output_tokens,
            hash_ids=tuple(ids),
        )


def lru_hit_rates(trace: Trace, cache_tokens: Sequence[int]) -> tuple[float, ...]:
    """Hit rate of the prompt tokens for one LRU cache of each size, simulated.

    The cache starts empty and holds whole blocks of prompts, not of outputs. It evicts the least
    recently used block first, of one prompt the last block. Only prefixes hit, at most L - 1 of L
    tokens. Requests come one after the other, so a prefix still being computed is a hit here.
    """
    total = sum(row.prompt_tokens for row in trace.rows)
    return tuple(
        _hit_tokens(trace, int(size / trace.block_tokens)) / total for size in cache_tokens
    )


def _hit_tokens(trace: Trace, room: int) -> int:
    held: OrderedDict[int, None] = OrderedDict()
    hit_tokens = 0
    for row in trace.rows:
        hits = 0
        for hash_id in row.hash_ids:
            if hash_id not in held:
                break
            hits += 1
        hit_tokens += min(trace.tokens(hits), row.prompt_tokens - 1)
        # Only what the cache can keep is put in, the first block last: it is dropped last.
        for hash_id in reversed(row.hash_ids[:room]):
            held[hash_id] = None
            held.move_to_end(hash_id)
        while len(held) > room:
            held.popitem(last=False)
    return hit_tokens
