"""An event simulation of a topology: requests through proxy, prefill, KV transfer and decode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan
from typing import TYPE_CHECKING, Any

import numpy as np
import simpy

from workbench.topology import Topology
from workbench.whatif.model.costs import Costs
from workbench.whatif.model.instance_model import Instance, Leg

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

OVERHEADS = ("front_s", "handoff_s", "decode_server_s", "stream_s")
"""Parts of TTFT outside engines and transfers: until the prefill engine has the request, between
the legs, until the decode engine has it, and back to the client."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """The requests to simulate, as arrays of one length."""

    prompt_tokens: NDArray[np.int64]
    cached_tokens: NDArray[np.int64]
    """Of each prompt, what the prefill (or aggregated) instance has."""
    moved_tokens: NDArray[np.int64]
    """Of each prompt, what the decode instance does not have."""
    output_tokens: NDArray[np.int64]
    offsets_s: NDArray[np.float64] | None
    """Arrival times; None in a closed loop."""
    concurrency: int = 0
    overheads_s: NDArray[np.float64]
    """A row of OVERHEADS for each request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulated:
    """The result of a simulation."""

    requests: pd.DataFrame
    """A row per request: index, sent_s, the parts of its TTFT, ttft_s, tpot_s, e2e_s."""
    batch_s: dict[int, float]
    """Time by decode batch, over all instances."""
    kv_above_s: float
    """Decode time with more KV tokens in the batch than were profiled."""
    most_kv: int
    """The most KV tokens of a decode batch."""
    beside: dict[int, int]
    """Transfers by how many others ran to the same instance when they began."""
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
        self.moved = load.moved_tokens.tolist()
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
            leg = Leg(index, need, cached, 1, _ignore, self._prefilled)
        else:
            leg = Leg(index, need, cached, self.outputs[index], self._answers, self._ended)
        self.fronts[index % len(self.fronts)].enqueue(leg)

    def _prefilled(self, leg: Leg) -> None:
        index, row = leg.index, self.overheads[leg.index]
        self.stamps[1:4, index] = leg.queued_s, leg.started_s, leg.first_s
        self.env.timeout(row[1] + row[2], leg).callbacks.append(self._decode)

    def _decode(self, event: Any) -> None:
        pulled: Leg = event.value
        index = pulled.index
        source = self.fronts[index % len(self.fronts)]
        leg = Leg(
            index, 1, self.prompts[index] - 1, self.outputs[index], self._answers, self._ended,
            source=source, pulled=pulled, moved=self.moved[index],
        )  # fmt: skip
        self.backs[index % len(self.backs)].enqueue(leg)

    def _answers(self, leg: Leg) -> None:
        at = slice(4, 7) if self.split else slice(1, 4)
        self.stamps[at, leg.index] = leg.queued_s, leg.started_s, leg.first_s

    def _ended(self, leg: Leg) -> None:
        self.stamps[7, leg.index] = self.env.now
        if self.load.offsets_s is None and self.sent < len(self.prompts):
            self._send(self.env.now + self.overheads[leg.index][3])


def _ignore(_leg: Leg) -> None:
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
    batch_s: dict[int, float] = {}
    beside: dict[int, int] = {}
    for instance in run.backs:
        for others, transfers in instance.beside.items():
            beside[others] = beside.get(others, 0) + transfers
        for batch, took_s in instance.decode_s.items():
            batch_s[batch] = batch_s.get(batch, 0.0) + took_s
    everyone = [one for group in run.instances.values() for one in group]
    return Simulated(
        requests=requests,
        batch_s=batch_s,
        kv_above_s=sum(one.kv_above_s for one in run.backs),
        most_kv=max(one.most_kv for one in run.backs),
        beside=beside,
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
        moved_tokens=np.asarray(prompts, np.int64),
        output_tokens=np.asarray(outputs, np.int64),
        offsets_s=np.asarray(offsets_s, float),
        overheads_s=np.zeros((n, len(OVERHEADS))),
    )
