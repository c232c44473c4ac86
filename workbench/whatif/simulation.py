"""An event simulation of a topology: requests through proxy, prefill, KV transfer and decode.

Each instance runs steps by vLLM's rule: every decoding request gets one token, the rest of the
token budget goes to prompts in the order of arrival. Steps between two events that change the
batch are taken together, so that the time does not depend on the number of output tokens.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from math import ceil, inf, nan, sqrt
from typing import TYPE_CHECKING, Any

import numpy as np
import simpy

from workbench.topology import Topology

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

LEASE_S = 30.0
"""How long prefill holds the blocks of a prompt that is not pulled (NixlConnector, vLLM 0.32)."""
OVERHEADS = ("front_s", "handoff_s", "decode_server_s", "stream_s")
"""Parts of TTFT outside engines and transfers: until the prefill engine has the request, between
the legs, until the decode engine has it, and back to the client."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """Durations of one resample of a profile, in seconds, and the engine's own limits."""

    prefill_step_s: float
    token_s: float
    """Per new token."""
    pair_s: float
    """Per new token and token that it attends to."""
    decode_step_s: float
    sequence_s: float
    """Per sequence of a decode step."""
    kv_token_s: float
    """Per KV token that a decode step reads."""
    transfer_s: float
    byte_s: float
    concurrent_s: float
    """Per other transfer to the same decode instance."""
    step_tokens: int
    """Token budget of a step (max_num_batched_tokens)."""
    step_sequences: int
    """Sequences of a step (max_num_seqs)."""
    block_tokens: int
    kv_tokens: dict[str, int]
    """KV space of an instance, by role."""
    kv_bytes_per_token: float
    holds: bool
    """Prefill keeps its blocks until decode has pulled them."""

    def prefill_s(self, tokens: int, before: int = 0) -> float:
        """A prompt alone on an instance, from its first step to its first token."""
        steps = max(1, ceil(tokens / self.step_tokens))
        pairs = tokens * (before + tokens / 2)
        return steps * self.prefill_step_s + tokens * self.token_s + pairs * self.pair_s

    def decode_s(self, batch: float, kv_tokens: float) -> float:
        """One decode step."""
        return self.decode_step_s + batch * self.sequence_s + kv_tokens * self.kv_token_s

    def transfer_of(self, tokens: float, others: float = 0) -> float:
        """The KV of a prompt to its decode instance."""
        moved = tokens * self.kv_bytes_per_token * self.byte_s
        return self.transfer_s + moved + others * self.concurrent_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """The requests to simulate, as arrays of one length."""

    prompt_tokens: NDArray[np.int64]
    cached_tokens: NDArray[np.int64]
    """Of each prompt, what the prefill (or aggregated) instance has."""
    output_tokens: NDArray[np.int64]
    offsets_s: NDArray[np.float64] | None
    """Arrival times; None in a closed loop."""
    concurrency: int = 0
    overheads_s: NDArray[np.float64]
    """A row of OVERHEADS for each request."""


@dataclass(slots=True, eq=False)
class _Leg:
    """One request on one instance."""

    index: int
    need: int
    """Tokens still to compute before the first output token."""
    context: int
    """Tokens with KV on this instance."""
    out: int
    """Output tokens."""
    first: Callable[[_Leg], None]
    last: Callable[[_Leg], None]
    source: Instance | None = None
    """Where its KV is pulled from."""
    pulled: _Leg | None = None
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
    """Not in use by prompts that are computed, loaded or held."""
    waiting: deque[_Leg] = field(default_factory=deque)
    ready: deque[_Leg] = field(default_factory=deque)
    """Their KV has arrived."""
    computing: list[_Leg] = field(default_factory=list)
    decoding: dict[int, _Leg] = field(default_factory=dict)
    ends: list[tuple[int, int, _Leg]] = field(default_factory=list)
    held: deque[_Leg] = field(default_factory=deque)
    steps: int = 0
    kv: int = 0
    """KV tokens of the decoding requests."""
    transfers: int = 0
    running: bool = False
    jump: tuple[float, int] | None = None
    """Start of the decode steps that are taken together, and how many."""
    version: int = 0
    busy_s: float = 0.0
    decode_s: dict[int, float] = field(default_factory=dict)
    """Time by batch size."""
    most_kv: int = 0
    preemptions: int = 0

    def __post_init__(self) -> None:
        self.blocks = self.costs.kv_tokens[self.role] // self.costs.block_tokens

    def enqueue(self, leg: _Leg) -> None:
        leg.queued_s = self.env.now
        self.waiting.append(leg)
        self.poke()

    def poke(self) -> None:
        """Something changed: begin a step, or end the steps taken together after this one."""
        if not self.running:
            self._next()
        elif self.jump is not None:
            began_s, planned = self.jump
            steps = self._steps_until(self.env.now - began_s)
            if steps < planned:
                self._later(began_s + self._decode_time(steps) - self.env.now, steps)

    def release(self, leg: _Leg) -> None:
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
        parts: list[tuple[_Leg, int]] = []
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
        self.busy_s += duration_s
        self._count(batch, duration_s)
        done = (parts, joining)
        self.env.timeout(duration_s, done).callbacks.append(self._stepped)

    def _admit(self) -> list[_Leg]:
        """Give blocks to waiting requests; those whose first decode step comes now."""
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
            took_s = costs.transfer_of(leg.context, self.transfers)
            self.transfers += 1
            self.env.timeout(took_s, leg).callbacks.append(self._loaded)
        return joining

    def _loaded(self, event: Any) -> None:
        leg: _Leg = event.value
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
        self.busy_s += self.env.now - began_s
        self._count(len(self.decoding), self.env.now - began_s)
        self.steps += steps
        self.kv += steps * len(self.decoding)
        self._end()

    def _first(self, leg: _Leg) -> None:
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
        self.most_kv = max(self.most_kv, self.kv)
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
        """Free blocks, exactly where fewer than `wanted` are certain to be."""
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
            again = _Leg(
                leg.index, length, 0, leg.ends - self.steps, leg.first, leg.last,
                queued_s=leg.queued_s, started_s=leg.started_s, first_s=leg.first_s,
            )  # fmt: skip
            self.waiting.appendleft(again)

    def _decode_time(self, steps: int) -> float:
        """So many decode steps of this batch: an arithmetic series, since KV grows."""
        batch = len(self.decoding)
        growth_s = self.costs.kv_token_s * batch * steps * (steps - 1) / 2
        return steps * self.costs.decode_s(batch, self.kv) + growth_s

    def _steps_until(self, passed_s: float) -> int:
        """The steps that have begun by then."""
        batch = len(self.decoding)
        slope = self.costs.kv_token_s * batch / 2
        first_s = self.costs.decode_s(batch, self.kv) - slope
        root = sqrt(first_s**2 + 4 * slope * passed_s)
        steps = max(1, ceil(2 * passed_s / (first_s + root) - 1e-9))
        return steps

    def _count(self, batch: int, took_s: float) -> None:
        if batch:
            self.decode_s[batch] = self.decode_s.get(batch, 0.0) + took_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulated:
    """What a simulation gives."""

    requests: pd.DataFrame
    """A row per request: index, sent_s, the parts of its TTFT, ttft_s, tpot_s, e2e_s."""
    busy: dict[str, float]
    """By role: the busiest instance's fraction of the time until the last arrival or end."""
    batch_s: dict[int, float]
    """Time by decode batch, over all instances."""
    most_kv_tokens: int
    """The largest KV of a decode step."""
    preemptions: int
    stuck: int
    """Requests that never ended: they do not fit the KV space."""


class _Run:
    def __init__(self, topology: Topology, load: Load, costs: Costs) -> None:
        self.env = simpy.Environment()
        self.load, self.costs = load, costs
        self.split = topology.disaggregated
        roles = {role: [Instance(self.env, costs, role) for _ in range(n)]
                 for role, n in topology.roles}  # fmt: skip
        self.fronts = roles["prefill" if self.split else "aggregated"]
        self.backs = roles["decode"] if self.split else self.fronts
        self.instances = roles
        n = len(load.prompt_tokens)
        # sent, queued, started, prefilled, queued again, started again, first, last
        self.stamps = np.full((8, n), nan)
        self.prompts = load.prompt_tokens.tolist()
        self.cached = load.cached_tokens.tolist()
        self.outputs = load.output_tokens.tolist()
        self.overheads = load.overheads_s.tolist()
        self.sent = 0

    def run(self) -> None:
        offsets_s = self.load.offsets_s
        if offsets_s is None:
            for _ in range(min(self.load.concurrency, len(self.prompts))):
                self._send(0.0)
        else:
            self._arrivals = iter(offsets_s.tolist())
            self._arrive()
        self.env.run()

    def _arrive(self, event: Any = None) -> None:
        """Send the request that is due, and wait for the next one."""
        if event is not None:
            self._send(self.env.now)
        at_s = next(self._arrivals, None)
        if at_s is not None:
            self.env.timeout(at_s - self.env.now).callbacks.append(self._arrive)

    def _send(self, at_s: float) -> None:
        index = self.sent
        self.sent += 1
        self.stamps[0, index] = at_s
        front = self.env.timeout(at_s - self.env.now + self.overheads[index][0], index)
        front.callbacks.append(self._prefill)

    def _prefill(self, event: Any) -> None:
        index = event.value
        cached = self.cached[index]
        need = max(1, self.prompts[index] - cached)
        if self.split:
            leg = _Leg(index, need, cached, 1, _ignore, self._prefilled)
        else:
            leg = _Leg(index, need, cached, self.outputs[index], self._answers, self._ended)
        self.fronts[index % len(self.fronts)].enqueue(leg)

    def _prefilled(self, leg: _Leg) -> None:
        index, row = leg.index, self.overheads[leg.index]
        self.stamps[1:4, index] = leg.queued_s, leg.started_s, leg.first_s
        self.env.timeout(row[1] + row[2], leg).callbacks.append(self._decode)

    def _decode(self, event: Any) -> None:
        pulled: _Leg = event.value
        index = pulled.index
        source = self.fronts[index % len(self.fronts)]
        leg = _Leg(
            index, 1, self.prompts[index] - 1, self.outputs[index], self._answers, self._ended,
            source=source, pulled=pulled,
        )  # fmt: skip
        self.backs[index % len(self.backs)].enqueue(leg)

    def _answers(self, leg: _Leg) -> None:
        at = slice(4, 7) if self.split else slice(1, 4)
        self.stamps[at, leg.index] = leg.queued_s, leg.started_s, leg.first_s

    def _ended(self, leg: _Leg) -> None:
        self.stamps[7, leg.index] = self.env.now
        if self.load.offsets_s is None and self.sent < len(self.prompts):
            self._send(self.env.now + self.overheads[leg.index][3])


def _ignore(_leg: _Leg) -> None:
    """A prefill leg has one token, which is its last."""


def simulate(topology: Topology, load: Load, costs: Costs) -> Simulated:
    """Send the load through the topology. Deterministic: the same input gives the same output.

    The proxy routes by index, as ours does. Seconds.
    """
    import pandas as pd

    run = _Run(topology, load, costs)
    run.run()
    sent, queued, started, prefilled, queued_2, started_2, first, last = run.stamps
    front, handoff, server, stream = load.overheads_s.T
    nothing = np.zeros_like(sent)
    if not run.split:
        first, handoff, server = prefilled, nothing, nothing
    ttft_s = first + stream - sent
    out = load.output_tokens
    requests = pd.DataFrame(
        {
            "index": np.arange(len(sent)),
            "prompt_tokens": load.prompt_tokens,
            "output_tokens": out,
            "sent_s": sent,
            "front_s": front,
            "prefill_queue_s": started - queued,
            "prefill_compute_s": prefilled - started,
            "handoff_s": handoff,
            "decode_server_s": server,
            "transfer_queue_s": started_2 - queued_2 if run.split else nothing,
            "decode_step_s": first - started_2 if run.split else nothing,
            "stream_s": stream,
            "ttft_s": ttft_s,
            "tpot_s": (last - first) / np.where(out > 1, out - 1, np.nan),
            "e2e_s": last + stream - sent,
        }
    )
    whole_s = np.nanmax(last) - np.nanmin(sent) if np.isfinite(last).any() else inf
    batch_s: dict[int, float] = {}
    for instance in run.backs:
        for batch, took_s in instance.decode_s.items():
            batch_s[batch] = batch_s.get(batch, 0.0) + took_s
    everyone = [one for group in run.instances.values() for one in group]
    return Simulated(
        requests=requests,
        busy={role: max(one.busy_s for one in group) / whole_s
              for role, group in run.instances.items()},
        batch_s=batch_s,
        most_kv_tokens=max(one.most_kv for one in run.backs),
        preemptions=sum(one.preemptions for one in everyone),
        stuck=int(np.isnan(last).sum()),
    )  # fmt: skip


def plain_load(
    prompts: Sequence[int] | NDArray[np.int64],
    outputs: Sequence[int] | NDArray[np.int64],
    offsets_s: Sequence[float] | NDArray[np.float64],
) -> Load:
    """Requests without cached tokens or overheads, at these times."""
    n = len(prompts)
    return Load(
        prompt_tokens=np.asarray(prompts, np.int64),
        cached_tokens=np.zeros(n, np.int64),
        output_tokens=np.asarray(outputs, np.int64),
        offsets_s=np.asarray(offsets_s, float),
        overheads_s=np.zeros((n, len(OVERHEADS))),
    )
