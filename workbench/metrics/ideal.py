"""What infinite caches, which never evict, would serve: the ledger's reference, to the token."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

import numpy as np

from workbench.topology import Role

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One leg of a request: which instance was asked, when, and when it held the prompt's KV."""

    role: Role
    instance: str
    asked_s: float = 0.0
    held_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One request as it was sent: its prompt's ids, and its legs in order."""

    index: int
    prompt: NDArray[np.integer]
    ideal_tokens: int
    """Prefix tokens that a cache of single tokens would have for its first leg."""
    calls: tuple[Call, ...]
    answer: NDArray[np.integer] | None = None
    """Token ids of the response if a later prompt may contain them: its instance has their KV."""
    ended_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tokens:
    """What infinite caches would serve, in tokens."""

    prompt_tokens: int
    ideal: int
    """Prefix tokens that a cache of single tokens would have, without the last token."""
    engine_hit: int
    external_hit: int
    """Loaded through the connector, beyond the engine's own hit."""
    held_twice: int
    """Hits of the store that are not loaded: the engine has them, or the last token."""
    alone_external_hit: int
    """What it could load if it hit only chunks that it had stored itself."""
    alone_held_twice: int
    """`held_twice`, likewise."""
    in_flight: int
    """Hits missed because the request that computes them was still running."""
    own_in_flight: int
    """Engine hits that may be missed for that reason, and then be loaded instead."""
    moved_tokens: int
    """Tokens of the whole blocks that NIXL pulls for it; 0 for others."""

    @property
    def cached(self) -> int:
        """Served from any cache."""
        return self.engine_hit + self.external_hit


@dataclass(frozen=True, slots=True, kw_only=True)
class Served(_Tokens):
    """One leg of a request."""

    index: int
    role: Role
    instance: str
    rest: int
    """Tokens of `ideal` that no cache can serve; -1 where a fetched last token counts."""
    why_rest: str
    """`last token`, `block rounding`, `chunk rounding`, `block for drafts` or `held by another
    instance`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reuse(_Tokens):
    """The legs of one role in a pass, summed."""

    legs: int
    rest: tuple[tuple[str, int], ...]
    """Tokens that no cache can serve, by reason."""


def reuse_by_role(served: Iterable[Served]) -> dict[Role, Reuse]:
    """The legs of a pass, summed for each role."""
    by_role: dict[Role, list[Served]] = {}
    for leg in served:
        by_role.setdefault(leg.role, []).append(leg)
    return {role: _added(legs) for role, legs in by_role.items()}


def _added(legs: Sequence[Served]) -> Reuse:
    rest = Counter[str]()
    for leg in legs:
        rest[leg.why_rest] += leg.rest
    totals = {f.name: sum(getattr(leg, f.name) for leg in legs) for f in fields(_Tokens)}
    return Reuse(legs=len(legs), rest=tuple((why, n) for why, n in rest.items() if n), **totals)


@dataclass(slots=True)
class _Held:
    """Prefixes that one cache holds, in blocks or chunks, and since when."""

    unit: int
    since_s: dict[int, float] = field(default_factory=dict)

    def tokens(self, keys: Sequence[int], asked_s: float) -> tuple[int, int]:
        """Tokens of the longest prefix held then, and of the longest held later."""
        now = later = 0
        for number, key in enumerate(keys, 1):
            since_s = self.since_s.get(key)
            if since_s is None:
                break
            later = number
            if since_s <= asked_s and now == number - 1:
                now = number
        return now * self.unit, later * self.unit

    def add(self, keys: Iterable[int], held_s: float) -> None:
        for key in keys:
            self.since_s[key] = min(held_s, self.since_s.get(key, held_s))


class IdealCaches:
    """The caches of one deployment if none of them ever evicts or fails, by the rules of vLLM
    0.32.0 and LMCache (tests/engine/test_ledger.py checks them on real servers):

    - an instance's cache serves whole blocks and never the last token (v1 KVCacheManager,
      `get_computed_blocks`);
    - the store serves whole chunks, of a prompt of whole chunks all but the last token, and loads
      only what lies beyond the instance's own hit (LMCacheMPConnector,
      `get_num_new_matched_tokens`);
    - a store of whole blocks (Mooncake's) loads none that holds the last token, as the instance's
      own cache (MooncakeStoreConnector, vLLM 0.32.0; tests/engine/test_mooncake.py);
    - with speculative decoding from hidden states (EAGLE, MTP) an instance's cache drops the last
      block of its hit (FullAttentionManager, `find_longest_cache_hit`);
    - vLLM's offloading loads whole blocks, of a prompt of whole blocks also the last token
      (OffloadingConnectorScheduler, `_lookup_complete_chunks`; tests/engine/test_offload.py);
    - NIXL gives a decode instance the whole prompt beyond its own hit (NixlPullConnectorScheduler).

    `chunk_tokens` is 0 without a store; `prefix_caching` is False for engines without a prefix
    cache; with `loads_blocks` the store's chunks are whole blocks and loaded as such; with `pulls`
    decode instances fetch whole prompts from their prefill instance (NIXL); the engines of the
    roles in `drop_blocks` draft from hidden states; with `private` each instance has a store of
    its own.
    """

    def __init__(
        self,
        *,
        block_tokens: int,
        chunk_tokens: int = 0,
        prefix_caching: bool = True,
        pulls: bool = False,
        loads_blocks: bool = False,
        drop_blocks: Container[str] = (),
        private: bool = False,
    ) -> None:
        self._block, self._chunk = block_tokens, chunk_tokens
        self._prefix_caching, self._pulls = prefix_caching, pulls
        self._loads_blocks, self._private = loads_blocks, private
        self._drop_blocks = drop_blocks
        self._engines: dict[str, _Held] = {}
        self._store = _Held(chunk_tokens)
        self._stored_by: dict[str, _Held] = {}

    def forget_engines(self) -> None:
        """The prefix caches of all instances were emptied."""
        self._engines.clear()

    def forget_store(self) -> None:
        """The KV store was emptied."""
        self._store = _Held(self._chunk)
        self._stored_by.clear()

    def held_tokens(self) -> dict[str, int]:
        """Prompt tokens in whole blocks that each instance was given since it was emptied."""
        return {name: len(held.since_s) * held.unit for name, held in self._engines.items()}

    def serve(self, pass_: Sequence[Asked]) -> list[Served]:
        """What each leg of these requests can hit, in the order of the requests.

        A prompt serves others from the moment an instance holds it; concurrent requests can miss
        it, which `in_flight` counts.
        """
        legs = [(call, asked, n) for asked in pass_ for n, call in enumerate(asked.calls)]
        keys = {
            asked.index: (_keys(asked.prompt, self._block), _keys(asked.prompt, self._chunk))
            for asked in pass_
        }
        served = []
        for call, asked, number in sorted(legs, key=lambda leg: leg[0].asked_s):
            served.append(self._leg(call, asked, keys[asked.index], first=number == 0))
            blocks, chunks = keys[asked.index]
            if self._prefix_caching:
                self._held_by(call.instance).add(blocks, call.held_s)
            self._store.add(chunks, call.held_s)
            self._stored_alone(call.instance).add(chunks, call.held_s)
            last = number == len(asked.calls) - 1
            if last and asked.answer is not None and self._prefix_caching:
                # The KV of a response's last token is never computed, and the store has none of it.
                computed = asked.answer[:-1].astype(asked.prompt.dtype)
                more = _keys(np.concatenate([asked.prompt, computed]), self._block)
                self._held_by(call.instance).add(more, asked.ended_s)
        return served

    def _stored_alone(self, instance: str) -> _Held:
        return self._stored_by.setdefault(instance, _Held(self._chunk))

    def _held_by(self, instance: str) -> _Held:
        return self._engines.setdefault(instance, _Held(self._block))

    def _leg(
        self, call: Call, asked: Asked, keys: tuple[list[int], list[int]], *, first: bool
    ) -> Served:
        length = len(asked.prompt)
        blocks, chunks = keys
        whole = blocks[: (length - 1) // self._block]
        if self._loads_blocks and not self._private:
            chunks = chunks[: (length - 1) // self._chunk]
        held = self._held_by(call.instance).tokens(whole, call.asked_s)
        dropped = self._block if call.role in self._drop_blocks else 0
        engine, engine_later = (max(0, tokens - dropped) for tokens in held)
        fetched = self._pulls and not first
        if fetched:
            stored, stored_later = length, length
        else:
            store = self._stored_alone(call.instance) if self._private else self._store
            stored, stored_later = store.tokens(chunks, call.asked_s)
        alone, _ = self._stored_alone(call.instance).tokens(chunks, call.asked_s)
        ideal = asked.ideal_tokens if first else length - 1
        last = length if fetched or (self._private and self._loads_blocks) else length - 1
        offered, offered_later, offered_alone = (
            min(tokens, last) for tokens in (stored, stored_later, alone)
        )
        external, external_alone = max(0, offered - engine), max(0, offered_alone - engine)
        reach = max(engine, offered)
        reach_later = max(engine_later, offered_later, reach)
        rest = ideal - reach_later
        unit = self._chunk if self._chunk and engine_later < stored_later else self._block
        if rest < 0:
            why = "last token"
        elif dropped and rest - dropped < max(unit, self._chunk) <= rest:
            why = "block for drafts"
        elif rest >= max(unit, self._chunk):
            why = "held by another instance"
        else:
            by_chunk = unit == self._chunk or rest >= self._block
            why = "chunk rounding" if by_chunk else "block rounding"
        return Served(
            index=asked.index,
            role=call.role,
            instance=call.instance,
            prompt_tokens=length,
            ideal=ideal,
            engine_hit=engine,
            external_hit=external,
            held_twice=0 if fetched else stored - external,
            alone_external_hit=external_alone,
            alone_held_twice=alone - external_alone,
            in_flight=reach_later - reach,
            own_in_flight=engine_later - engine,
            rest=rest,
            why_rest=why,
            moved_tokens=-(-length // self._block) * self._block - engine if fetched else 0,
        )


def _keys(prompt: NDArray[np.integer], unit: int) -> list[int]:
    """One key for each whole unit of a prompt, for all tokens up to its end."""
    if not unit:
        return []
    keys, before = [], 0
    for start in range(0, len(prompt) - unit + 1, unit):
        before = hash((before, prompt[start : start + unit].tobytes()))
        keys.append(before)
    return keys
