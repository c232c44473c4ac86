"""One vLLM instance in simulated time: its queue, batch, KV blocks and steps.

Each step gives a token to every decoding request and the rest of the token budget to prompts in
the order of arrival, by vLLM's rule. Steps between two events that change the batch are taken
together, so the simulation's run time does not depend on the number of output tokens.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from math import ceil, inf, nan, sqrt
from typing import Any

import simpy

from workbench.whatif.model.costs import Costs

LEASE_S = 30.0
"""How long prefill holds the blocks of a prompt that is not pulled (NixlConnector, vLLM 0.32)."""


@dataclass(slots=True, eq=False)
class Leg:
    """One request on one instance."""

    index: int
    need: int
    """Tokens still to compute before the first output token."""
    context: int
    """Tokens with KV on this instance."""
    out: int
    """Output tokens."""
    first: Callable[[Leg], None]
    last: Callable[[Leg], None]
    source: Instance | None = None
    """Where its KV is pulled from."""
    moved: int = 0
    """Tokens of KV that are pulled."""
    pulled: Leg | None = None
    blocks: int = 0
    queued_s: float = 0.0
    started_s: float = nan
    first_s: float = nan
    began: int = 0
    """The step before its first decode step."""
    ends: int = 0
    """The step with its last token."""
    held_until_s: float = inf


@dataclass(slots=True, eq=False)
class Instance:
    """One vLLM instance: its queue, batch, KV blocks and step clock."""

    env: simpy.Environment
    costs: Costs
    role: str
    blocks: int = 0
    """Blocks not used by prompts that are computed, loaded or held."""
    waiting: deque[Leg] = field(default_factory=deque)
    ready: deque[Leg] = field(default_factory=deque)
    """Requests whose KV has arrived."""
    computing: list[Leg] = field(default_factory=list)
    decoding: dict[int, Leg] = field(default_factory=dict)
    ends: list[tuple[int, int, Leg]] = field(default_factory=list)
    held: deque[Leg] = field(default_factory=deque)
    steps: int = 0
    kv: int = 0
    """KV tokens of the decoding requests."""
    transfers: int = 0
    running: bool = False
    jump: tuple[float, int] | None = None
    """Start of the decode steps that are taken together, and how many."""
    version: int = 0
    decode_s: dict[int, float] = field(default_factory=dict)
    """Time by batch size."""
    kv_above_s: float = 0.0
    """Decode time with more KV tokens than were profiled."""
    most_kv: int = 0
    beside: dict[int, int] = field(default_factory=dict)
    """Transfers by how many others ran to this instance when they began."""
    preemptions: int = 0

    def __post_init__(self) -> None:
        self.blocks = self.costs.kv_tokens[self.role] // self.costs.block_tokens

    def enqueue(self, leg: Leg) -> None:
        leg.queued_s = self.env.now
        self.waiting.append(leg)
        self.poke()

    def poke(self) -> None:
        """React to a change: begin a step, or end the steps taken together after this one."""
        if not self.running:
            self._next()
        elif self.jump is not None:
            began_s, planned = self.jump
            steps = self._steps_until(self.env.now - began_s)
            if steps < planned:
                self._later(began_s + self._decode_time(steps) - self.env.now, steps)

    def release(self, leg: Leg) -> None:
        """The held blocks of an ended prefill were pulled."""
        if leg.blocks:
            self.blocks += leg.blocks
            leg.blocks = 0
            if self.waiting:
                self.poke()

    def _later(self, delay_s: float, steps: int) -> None:
        assert self.jump is not None
        self.jump = (self.jump[0], steps)
        self.version += 1
        self.env.timeout(max(0.0, delay_s), self.version).callbacks.append(self._jumped)

    def _next(self) -> None:
        """Begin the next step, or several where nothing can join them."""
        joining = self._admit()
        costs, batch = self.costs, len(self.decoding)
        parts: list[tuple[Leg, int]] = []
        budget = costs.step_tokens - batch - len(joining)
        duration_s, steps = 0.0, 1
        if self.role == "prefill" and self.computing and self.computing[0].need > budget:
            # Whole steps of one prompt leave no budget for others.
            leg = self.computing[0]
            steps = (leg.need - 1) // budget
            parts.append((leg, steps * budget))
        else:
            for leg in self.computing:
                if budget <= 0:
                    break
                parts.append((leg, min(leg.need, budget)))
                budget -= parts[-1][1]
        batch += len(joining)
        if not parts and not batch:
            self.running = False
            return
        self.running = True
        for leg, new in parts:
            if leg.started_s != leg.started_s:
                leg.started_s = self.env.now
            duration_s += new * costs.token_s + new * (leg.context + new / 2) * costs.pair_s
        if parts:
            decoded_s = batch * costs.sequence_s + self.kv * costs.kv_token_s
            others_s = (len(parts) - 1) * costs.sequence_s
            duration_s += steps * costs.prefill_step_s + decoded_s + others_s
        elif joining or not self._grows(1):
            self._make_room()
            duration_s = costs.decode_s(len(self.decoding) + len(joining), self.kv)
        else:
            steps = self.ends[0][0] - self.steps
            while steps > 1 and not self._grows(steps):
                steps //= 2
            self.jump = (self.env.now, steps)
            self._later(self._decode_time(steps), steps)
            return
        self._count(batch, duration_s)
        done = (parts, joining)
        self.env.timeout(duration_s, done).callbacks.append(self._stepped)

    def _admit(self) -> list[Leg]:
        """Give blocks to waiting requests; returns those whose first decode step is next."""
        costs = self.costs
        joining = []
        room = costs.step_sequences - len(self.decoding) - len(self.computing)
        while self.ready and room > 0:
            leg = self.ready.popleft()
            leg.started_s = self.env.now
            joining.append(leg)
            self.kv += leg.context
            room -= 1
        while self.waiting and room > 0:
            leg = self.waiting[0]
            if leg.source is None and sum(one.need for one in self.computing) >= costs.step_tokens:
                break
            need = -(-(leg.context + leg.need) // costs.block_tokens)
            if need > self._free(need):
                break
            self.waiting.popleft()
            leg.blocks = need
            self.blocks -= need
            if leg.source is None:
                self.computing.append(leg)
                room -= 1
                continue
            took_s = costs.transfer_of(leg.moved, self.transfers)
            self.beside[self.transfers] = self.beside.get(self.transfers, 0) + 1
            self.transfers += 1
            self.env.timeout(took_s, leg).callbacks.append(self._loaded)
        return joining

    def _loaded(self, event: Any) -> None:
        leg: Leg = event.value
        self.transfers -= 1
        if leg.source is not None and leg.pulled is not None:
            leg.source.release(leg.pulled)
        self.ready.append(leg)
        self.poke()

    def _stepped(self, event: Any) -> None:
        parts, joining = event.value
        self.steps += 1
        self.kv += len(self.decoding)
        for leg in joining:
            self._first(leg)
        for leg, new in parts:
            leg.need -= new
            leg.context += new
            if leg.need <= 0:
                self.computing.remove(leg)
                self.kv += leg.context
                self._first(leg)
        self._end()

    def _jumped(self, event: Any) -> None:
        if event.value != self.version or self.jump is None:
            return
        began_s, steps = self.jump
        self.jump = None
        self._count(len(self.decoding), self.env.now - began_s, steps)
        self.steps += steps
        self.kv += steps * len(self.decoding)
        self._end()

    def _first(self, leg: Leg) -> None:
        """A request has a token; it decodes until its last."""
        self.kv += 1
        self.blocks += leg.blocks  # counted by its length from now on
        leg.context += 1
        leg.began, leg.ends = self.steps, self.steps + leg.out - 1
        self.decoding[leg.index] = leg
        heappush(self.ends, (leg.ends, leg.index, leg))
        if leg.first_s != leg.first_s:
            leg.first_s = self.env.now
            leg.first(leg)

    def _end(self) -> None:
        """Finish the requests whose last token this was, and go on."""
        while self.ends and self.ends[0][0] <= self.steps:
            at, index, leg = heappop(self.ends)
            if self.decoding.get(index) is not leg or leg.ends != at:
                continue  # preempted meanwhile
            del self.decoding[index]
            length = leg.context + leg.ends - leg.began
            self.kv -= length
            leg.blocks = 0
            if self.role == "prefill" and self.costs.holds:
                leg.blocks = -(-length // self.costs.block_tokens)
                self.blocks -= leg.blocks
                leg.held_until_s = self.env.now + LEASE_S
                self.held.append(leg)
            leg.last(leg)
        while self.ends and self.decoding.get(self.ends[0][1]) is not self.ends[0][2]:
            heappop(self.ends)
        while self.held and (not self.held[0].blocks or self.held[0].held_until_s < self.env.now):
            self.release(self.held.popleft())
        self._next()

    def _free(self, wanted: int) -> int:
        """Free blocks: a lower bound if that is enough for `wanted`, otherwise the exact number."""
        at_least = self.blocks - self.kv // self.costs.block_tokens - len(self.decoding)
        return at_least if at_least >= wanted else self.blocks - self._used(self.steps)

    def _used(self, step: int) -> int:
        """Blocks of the decoding requests at a step."""
        block = self.costs.block_tokens
        return sum(-(-(a.context + step - a.began) // block) for a in self.decoding.values())

    def _grows(self, steps: int) -> bool:
        """Whether all decoding requests have blocks for so many more steps."""
        batch = len(self.decoding)
        most = (self.kv + steps * batch) // self.costs.block_tokens + batch
        return most <= self.blocks or self._used(self.steps + steps) <= self.blocks

    def _make_room(self) -> None:
        """Preempt the latest requests until the others have a block; they start over."""
        while len(self.decoding) > 1 and not self._grows(1):
            index = next(reversed(self.decoding))
            leg = self.decoding.pop(index)
            length = leg.context + self.steps - leg.began
            self.kv -= length
            self.preemptions += 1
            again = Leg(
                leg.index, length, 0, leg.ends - self.steps, leg.first, leg.last,
                queued_s=leg.queued_s, started_s=leg.started_s, first_s=leg.first_s,
            )  # fmt: skip
            self.waiting.appendleft(again)

    def _decode_time(self, steps: int) -> float:
        """Time of so many decode steps of this batch: an arithmetic series, since KV grows."""
        batch = len(self.decoding)
        growth_s = self.costs.kv_token_s * batch * steps * (steps - 1) / 2
        return steps * self.costs.decode_s(batch, self.kv) + growth_s

    def _steps_until(self, passed_s: float) -> int:
        """How many steps have begun after so much time."""
        batch = len(self.decoding)
        slope = self.costs.kv_token_s * batch / 2
        first_s = self.costs.decode_s(batch, self.kv) - slope
        root = sqrt(first_s**2 + 4 * slope * passed_s)
        steps = max(1, ceil(2 * passed_s / (first_s + root) - 1e-9))
        return steps

    def _count(self, batch: int, took_s: float, steps: int = 0) -> None:
        """Time by batch, and with more KV than was profiled: it grows by a token a step each."""
        if batch:
            self.decode_s[batch] = self.decode_s.get(batch, 0.0) + took_s
            grown = steps * batch
            self.most_kv = max(self.most_kv, self.kv + grown)
            above = self.kv + grown - self.costs.profiled_kv_tokens
            if above > 0:
                self.kv_above_s += took_s * (min(1.0, above / grown) if grown else 1.0)
