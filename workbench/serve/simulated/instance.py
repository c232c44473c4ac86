"""A pretend vLLM instance in time: its steps, its loads, and what it holds for others."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from time import monotonic
from typing import Any
from uuid import uuid4
from zlib import crc32

from workbench.serve.simulated.answers import Asked
from workbench.serve.simulated.blocks import BLOCK_TOKENS, BlockPool, blocks_of, chain
from workbench.serve.simulated.engine import Engine
from workbench.serve.simulated.faults import Strikes
from workbench.serve.simulated.latency import Latency
from workbench.serve.simulated.links import Links
from workbench.serve.simulated.sequence import Offer, Sequence
from workbench.serve.simulated.settings import InstanceSettings, all_series
from workbench.serve.simulated.store import CHUNK_TOKENS

__all__ = ["Instance"]

FAILED_PULL_S = 0.05
CATCH_UP_S = 0.005
"""Timers come late; the steps' own clock makes up for that much, so that rates stay true."""
LAYERS = 3
"""Descriptors of a NIXL transfer whose blocks lie side by side: one a layer, as in the tiny
model."""
SLOWDOWN = 4.0


class Instance:
    """The engine with its clock. `links` is set by whoever has an event loop."""

    links: Links

    def __init__(self, settings: InstanceSettings) -> None:
        self.settings = settings
        self.series = all_series(settings)
        pool = BlockPool(settings.blocks, caching=settings.prefix_caching)
        self.engine = Engine(self.series, pool, connector=bool(settings.transfer))
        own_seed = settings.seed ^ crc32(settings.name.encode())
        slow = SLOWDOWN if settings.fault == "slow_instance" else 1.0
        self.latency = Latency(seed=own_seed, speed=settings.speed / slow)
        self.strikes = Strikes()
        self._outputs: dict[Sequence, asyncio.Queue[int]] = {}
        self._found: dict[Sequence, list[bytes]] = {}
        self._transfers: dict[Sequence, Mapping[str, Any]] = {}
        self._writes: dict[Sequence, asyncio.Task[None]] = {}
        self._struck: set[Sequence] = set()
        self._expired: dict[str, Sequence] = {}
        self._held_legs = self._preempted = 0
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def submit(self, asked: Asked, request_id: str) -> tuple[Sequence, int]:
        """Let a request in; returns it and its number for stream faults (0: spared)."""
        arrived_s = monotonic()
        number = self.strikes.next(asked.max_tokens)
        sequence = Sequence(
            id=f"{'chatcmpl' if asked.chat else 'cmpl'}-{request_id or uuid4().hex}",
            prompt=asked.prompt,
            max_tokens=asked.max_tokens,
            arrived_s=arrived_s,
            hold=self.settings.nixl and bool(asked.transfer.get("do_remote_decode")),
        )
        if number and number % 2 == 0:
            self._struck.add(sequence)
        await self._offer(sequence, asked.transfer)
        self._outputs[sequence] = asyncio.Queue()
        self.engine.add(sequence)
        self._wake.set()
        return sequence, number

    async def token(self, sequence: Sequence) -> int:
        """The next output token of a request."""
        return await self._outputs[sequence].get()

    async def stored(self, sequence: Sequence) -> None:
        """Wait until the store has the prompt, so that whoever is asked next finds it."""
        if sequence in self._writes:
            await self._writes[sequence]

    def end(self, sequence: Sequence) -> None:
        """Forget a request, ended or not."""
        self.engine.abort(sequence)
        for table in (self._outputs, self._found, self._transfers, self._writes):
            table.pop(sequence, None)
        self._struck.discard(sequence)
        self._wake.set()

    def struck(self, sequence: Sequence, fault: str) -> bool:
        """Whether this instance has that fault and it strikes this request."""
        return self.settings.fault == fault and sequence in self._struck

    def preempt(self, sequence: Sequence) -> None:
        """Let a running request start over."""
        if sequence in self.engine.running:
            self.engine.preempt(sequence)
            self._wake.set()

    def hand_over(self, sequence: Sequence) -> dict[str, Any] | None:
        """The transfer parameters of an ended prefill leg; None for any other request."""
        if sequence.id not in self.engine.held:
            return None
        params = {
            "do_remote_prefill": True,
            "do_remote_decode": False,
            "remote_block_ids": [list(sequence.blocks)],
            "remote_engine_id": self.settings.name,
            "remote_request_id": sequence.id,
            "remote_host": self.settings.host,
            "remote_port": self.settings.port,
            "tp_size": 1,
            "remote_num_tokens": len(sequence.prompt),
            "transfer_mode": "pull",
            "remote_prefill_cached_tokens": sequence.cached,
        }
        self._held_legs += 1
        if self.settings.fault == "expired_blocks" and self._held_legs % 2 == 0:
            self._expire(sequence.id)
        else:
            asyncio.get_running_loop().call_later(self.settings.lease_s, self._expire, sequence.id)
        return params

    def pulled(self, request_id: str) -> Sequence | None:
        """A decode instance fetches what was held: blocks are free again. None: not known here.

        Expired blocks are read all the same: nobody tells the reader.
        """
        sequence = self.engine.release(request_id)
        if sequence is None and request_id in self._expired:
            self.series.add("vllm:nixl_num_notifications_after_expiry_total", 1)
            sequence = self._expired.pop(request_id)
        self._wake.set()
        return sequence

    def reset(self) -> bool:
        """Empty the prefix cache, as /reset_prefix_cache does; False while blocks are in use."""
        return self.settings.fault != "reset_refused" and self.engine.pool.reset()

    async def work(self) -> None:
        """Do one step after the other, for ever."""
        clock_s = monotonic()
        while True:
            self._wake.clear()
            step = self.engine.schedule(monotonic())
            for sequence in step.loads:
                self._spawn(self._load(sequence))
            for sequence in self.engine.preempted[self._preempted :]:
                self._preempted += 1
                self._spawn(self._look_up_again(sequence))
            if not step.batch:
                await self._wake.wait()
                clock_s = monotonic()
                continue
            took_s = self.latency.step_s((new, before) for _, new, before in step.batch)
            clock_s = max(clock_s, monotonic() - CATCH_UP_S) + took_s
            await asyncio.sleep(max(0.0, clock_s - monotonic()))
            for sequence in self.engine.complete(step, monotonic()):
                self._deliver(sequence)

    def _deliver(self, sequence: Sequence) -> None:
        if len(sequence.outputs) == 1 and self.settings.store_url:
            found = len(self._found.get(sequence, ())) * BLOCK_TOKENS // CHUNK_TOKENS
            write = self.links.write(sequence, sequence.contents, found)
            self._writes[sequence] = self._spawn(write)
        queue = self._outputs.get(sequence)
        if queue is not None:
            queue.put_nowait(sequence.outputs[-1])

    async def _offer(self, sequence: Sequence, transfer: Mapping[str, Any]) -> None:
        """What of the prompt lies elsewhere."""
        blind = self.settings.fault == "prefilled_again" and sequence.max_tokens >= Strikes.TOKENS
        prompt = len(sequence.prompt)
        if self.settings.nixl:
            if transfer.get("do_remote_prefill") and blind:
                # As vLLM does that loads nothing: the prefill instance is told, and lets go.
                self._spawn(self._let_go(transfer))
            elif transfer.get("do_remote_prefill"):
                sequence.offer = Offer(tokens=prompt, tier="p2p")
                sequence.reported_cached = int(transfer.get("remote_prefill_cached_tokens") or 0)
                self._transfers[sequence] = transfer
        elif self.settings.store_url:
            contents = await self.links.lookup(sequence)
            if not blind:
                self._found[sequence] = contents
                # The last token is always computed, for its logits.
                tokens = min(len(contents) * BLOCK_TOKENS, prompt - 1)
                sequence.offer = Offer(tokens=tokens)

    async def _load(self, sequence: Sequence) -> None:
        """Bring in the offered prefix."""
        first = sequence.local // BLOCK_TOKENS
        moved = (blocks_of(sequence.local + sequence.external) - first) * BLOCK_TOKENS
        moved_bytes = moved * self.settings.bytes_per_token
        final = b""
        if self.settings.nixl:
            pulled = None
            if self.struck(sequence, "failed_transfer"):
                await asyncio.sleep(FAILED_PULL_S)
            else:
                pulled = await self.links.pull(self._transfers[sequence])
            if pulled is None:
                self.series.add("vllm:nixl_num_failed_transfers_total", 1)
                self.engine.lost(sequence)
                self._wake.set()
                return
            contents, final = pulled
        else:
            contents = self._found[sequence]
        took_s = self.latency.transfer_s(moved_bytes)
        await asyncio.sleep(took_s)
        if self.settings.nixl:
            self.series.observe("vllm:nixl_bytes_transferred", moved_bytes)
            self.series.observe("vllm:nixl_num_descriptors", LAYERS)
            self.series.observe("vllm:nixl_xfer_time_seconds", took_s)
        contents = contents[first:]
        if self.struck(sequence, "wrong_kv"):
            contents = [chain(content, [1]) for content in contents]
            final = chain(final, [1]) if final else final
        self.engine.loaded(sequence, contents, final)
        self._wake.set()

    async def _let_go(self, transfer: Mapping[str, Any]) -> None:
        """Free what a prefill instance holds for us, without a use for it."""
        await self.links.pull(transfer)

    async def _look_up_again(self, sequence: Sequence) -> None:
        """A preempted request is looked up again, and nothing is loaded."""
        if self.settings.store_url:
            await self.links.lookup(sequence)

    def _expire(self, request_id: str) -> None:
        sequence = self.engine.release(request_id)
        if sequence is not None:
            self.series.add("vllm:nixl_num_kv_expired_reqs_total", 1)
            self._expired[request_id] = sequence
            self._wake.set()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
