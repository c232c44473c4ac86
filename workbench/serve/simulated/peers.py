"""How KV gets from a simulated prefill instance to a decode instance: NIXL's way and Mooncake's.

With NIXL decode comes after prefill and pulls blocks that are held for it. With Mooncake both get a
request at once, with a transfer id in common, and prefill sends the blocks when it has them.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import mean, quantiles
from time import monotonic
from typing import Any
from uuid import uuid4

import aiohttp
import orjson

from workbench.serve.simulated.scheduler import Scheduler, Sequence
from workbench.serve.simulated.store import BROKEN

LAYERS = 3
"""Descriptors of a transfer with contiguous blocks: one per layer, as in the tiny model."""
FAILED_PULL_S = 0.05
NO_ANSWER_S = 60.0
"""A decode instance waits so much longer than a transfer may take, if prefill says nothing."""
_BOOTSTRAP_TRIES = 3
_BOOTSTRAP_PAUSE_S = 0.1

Prompt = tuple[list[bytes], bytes]
"""The contents of a prompt's blocks (see `kv_blocks`), and that of the whole prompt."""


class PullFailed(Exception):
    """A pull failed; with `ends_request` its request fails too, and else it is computed."""

    def __init__(self, *, ends_request: bool) -> None:
        super().__init__()
        self.ends_request = ends_request


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """The instance that sends or gets KV."""

    name: str
    port: int
    fault: str
    session: aiohttp.ClientSession
    scheduler: Scheduler
    transfer_s: Callable[[float], float]
    """How long so many bytes take."""
    wake: Callable[[], None]
    """Blocks were freed."""

    async def ask(
        self, url: str, body: Mapping[str, Any], timeout_s: float
    ) -> dict[str, Any] | None:
        """What another instance says; None if it does not answer, or knows nothing."""
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        try:
            async with self.session.post(
                f"{url}/simulated/pull", data=orjson.dumps(body), timeout=timeout
            ) as response:
                if response.status != 200:
                    return None
                said: dict[str, Any] = orjson.loads(await response.read())
                return said
        except BROKEN:
            return None


class NixlPeer:
    """NixlConnector 0.32: the response of prefill says where its blocks are."""

    def __init__(self, side: Side, *, lease_s: float) -> None:
        self._side = side
        self._lease_s = lease_s
        self._expired: dict[str, Sequence] = {}
        self._held_legs = 0

    def prefilled(self, sequence: Sequence) -> None:
        """Nothing: decode does not wait."""

    def hand_over(self, sequence: Sequence) -> dict[str, Any] | None:
        """The transfer parameters of an ended prefill leg; None for any other request."""
        if sequence.id not in self._side.scheduler.held:
            return None
        params = {
            "do_remote_prefill": True,
            "do_remote_decode": False,
            "remote_block_ids": [list(sequence.blocks)],
            "remote_engine_id": self._side.name,
            "remote_request_id": sequence.id,
            "remote_host": "127.0.0.1",
            "remote_port": self._side.port,
            "tp_size": 1,
            "remote_num_tokens": len(sequence.prompt),
            "transfer_mode": "pull",
            "remote_prefill_cached_tokens": sequence.cached,
        }
        self._held_legs += 1
        if self._side.fault == "expired_blocks" and self._held_legs % 2 == 0:
            self._expire(sequence.id)
        else:
            asyncio.get_running_loop().call_later(self._lease_s, self._expire, sequence.id)
        return params

    async def send(self, asked: Mapping[str, Any]) -> dict[str, Any] | None:
        """A decode instance fetches held blocks, which frees them. None: unknown request.

        Expired blocks can be read too, since the reader is not told.
        """
        request_id = asked["request_id"]
        sequence = self._side.scheduler.release(request_id)
        if sequence is None and request_id in self._expired:
            self._add("notifications_after_expiry", 1)
            sequence = self._expired.pop(request_id)
        self._side.wake()
        return None if sequence is None else _told(sequence)

    def offer(self, sequence: Sequence) -> None:
        """All of the prompt comes from elsewhere, and usage has what was cached there."""
        sequence.offered, sequence.tier = len(sequence.prompt), "p2p"
        cached = sequence.transfer.get("remote_prefill_cached_tokens")
        sequence.reported_cached = int(cached or 0)

    async def decline(self, sequence: Sequence) -> None:
        """Let the prefill instance free its blocks."""
        await self._fetch(sequence)

    async def pull(self, sequence: Sequence, moved_bytes: int) -> Prompt:
        """The prompt's KV. Raises PullFailed."""
        if self._side.fault == "failed_transfer" and sequence.struck:
            await asyncio.sleep(FAILED_PULL_S)
            said = None
        else:
            said = await self._fetch(sequence)
        if said is None:
            self._add("failed_transfers", 1)
            raise PullFailed(ends_request=False)
        took_s = self._side.transfer_s(moved_bytes)
        await asyncio.sleep(took_s)
        observe = self._side.scheduler.series.observe
        observe("vllm:nixl_bytes_transferred", moved_bytes)
        observe("vllm:nixl_num_descriptors", LAYERS)
        observe("vllm:nixl_xfer_time_seconds", took_s)
        return _prompt(said)

    async def _fetch(self, sequence: Sequence) -> dict[str, Any] | None:
        transfer = sequence.transfer
        url = f"http://{transfer['remote_host']}:{transfer['remote_port']}"
        body = {"request_id": transfer["remote_request_id"]}
        return await self._side.ask(url, body, self._side.session.timeout.total or 0.0)

    def _expire(self, request_id: str) -> None:
        sequence = self._side.scheduler.release(request_id)
        if sequence is not None:
            self._add("kv_expired_reqs", 1)
            self._expired[request_id] = sequence
            self._side.wake()

    def _add(self, what: str, value: float) -> None:
        self._side.scheduler.series.add(f"vllm:nixl_num_{what}_total", value)


@dataclass(slots=True)
class Period:
    """What vLLM counts between two lines of its log; no series does (vLLM 0.32)."""

    took_s: list[float] = field(default_factory=list)
    moved_bytes: list[int] = field(default_factory=list)
    failed: int = 0
    failed_receptions: int = 0
    expired: int = 0

    def line(self) -> str:
        """vLLM's own text; empty if nothing was counted."""
        if not (self.took_s or self.failed or self.failed_receptions or self.expired):
            return ""
        sent, all_s = len(self.took_s), sum(self.took_s)
        moved_mb = sum(self.moved_bytes) / 2**20
        p90_s = quantiles(self.took_s, n=10, method="inclusive")[-1] if sent > 1 else all_s
        numbers = {
            "Num successful transfers": sent,
            "Avg xfer time (ms)": round(1000 * mean(self.took_s or [0]), 3),
            "P90 xfer time (ms)": round(1000 * p90_s, 3),
            "Avg MB per transfer": round(moved_mb / sent, 3) if sent else 0,
            "Throughput (MB/s)": round(moved_mb / all_s, 3) if all_s else 0,
            "Avg number of descriptors": LAYERS if sent else 0,
            "Num failed transfers": self.failed,
            "Num failed recvs": self.failed_receptions,
            "Num KV expired reqs": self.expired,
        }
        return ", ".join(f"{name}={value}" for name, value in numbers.items())


class MooncakePeer:
    """MooncakeConnector 0.32: decode waits, up to `timeout_s`, for what prefill will send it."""

    def __init__(self, side: Side, *, timeout_s: float, recomputes: bool) -> None:
        self.engine_id = uuid4().hex
        """Another one after each start."""
        self._side = side
        self._timeout_s = timeout_s
        self._recomputes = recomputes
        self._ready: defaultdict[str, asyncio.Future[Sequence]] = defaultdict(
            lambda: asyncio.get_running_loop().create_future()
        )
        """Prompts by transfer id, wanted or there."""
        self._known: dict[str, str] = {}
        """URLs of prefill engines."""
        self._period = Period()

    async def log(self, period_s: float) -> None:
        """Write what was counted, period by period."""
        while True:
            await asyncio.sleep(period_s)
            if line := self._period.line():
                _log(f"KV Transfer metrics: {line}")
            self._period = Period()

    def addresses(self) -> dict[str, Any]:
        """The response of the bootstrap server to /query."""
        worker = {"0": {"0": f"tcp://127.0.0.1:{self._side.port}"}}
        return {"0": {"engine_id": self.engine_id, "worker_addr": worker}}

    def prefilled(self, sequence: Sequence) -> None:
        """A prompt is there, and its blocks are held until they are sent or the time is up."""
        transfer_id = sequence.transfer.get("transfer_id", sequence.id)
        if not self._ready[transfer_id].done():
            self._ready[transfer_id].set_result(sequence)
        loop = asyncio.get_running_loop()
        loop.call_later(self._timeout_s, self._expire, transfer_id, sequence)

    def hand_over(self, _sequence: Sequence) -> dict[str, Any] | None:
        """Nothing: decode knows the transfer id already."""
        return None

    async def send(self, asked: Mapping[str, Any]) -> dict[str, Any] | None:
        """Send a prompt when it is there; or `error`. None, if another engine is meant."""
        if asked["engine_id"] != self.engine_id:
            return None
        transfer_id = asked["transfer_id"]
        try:
            wanted = asyncio.shield(self._ready[transfer_id])
            sequence = await asyncio.wait_for(wanted, self._timeout_s)
        except TimeoutError:
            self._ready.pop(transfer_id, None)
            return {"error": "Timeout waiting for P side ready."}
        took_s = self._side.transfer_s(asked["bytes"])
        await asyncio.sleep(took_s)
        if asked["breaks"]:
            # The blocks stay held until their time is up.
            self._period.failed += 1
            return {"error": "Mooncake transfer engine returned -1"}
        self._ready.pop(transfer_id, None)
        self._side.scheduler.release(sequence.id)
        self._side.wake()
        self._period.took_s.append(took_s)
        self._period.moved_bytes.append(asked["bytes"])
        return _told(sequence)

    def offer(self, sequence: Sequence) -> None:
        """All of the prompt comes from elsewhere."""
        sequence.offered, sequence.tier = len(sequence.prompt), "p2p"

    async def decline(self, _sequence: Sequence) -> None:
        """Nothing: prefill learns from no one that its blocks are not wanted."""

    async def pull(self, sequence: Sequence, moved_bytes: int) -> Prompt:
        """The prompt's KV. Raises PullFailed."""
        said = await self._receive(sequence, moved_bytes)
        if "error" not in said:
            return _prompt(said)
        self._period.failed_receptions += 1
        _log(f"pulling kv_caches for ['{sequence.id}'] failed: {said['error']}")
        if not self._recomputes:
            _log(
                "Failing 1 request(s) due to KV load failure (failure_policy=fail,"
                f" {sequence.external} tokens affected). Request IDs: {{'{sequence.id}'}}"
            )
        raise PullFailed(ends_request=not self._recomputes)

    async def _receive(self, sequence: Sequence, moved_bytes: int) -> dict[str, Any]:
        """What prefill sends; or `error`."""
        engine_id = sequence.transfer["remote_engine_id"]
        bootstrap_url = sequence.transfer["remote_bootstrap_addr"]
        if engine_id not in self._known:
            await self._look_up(bootstrap_url)
        if engine_id not in self._known:
            server = f"from bootstrap server {bootstrap_url}"
            return {"error": f"remote engine_id {engine_id} not found {server}"}
        fault = self._side.fault if sequence.struck else ""
        transfer_id = sequence.transfer["transfer_id"]
        body = {
            "engine_id": engine_id,
            # One that no prompt has is waited for in vain.
            "transfer_id": uuid4().hex if fault == "transfer_timeout" else transfer_id,
            "bytes": moved_bytes,
            "breaks": fault == "failed_transfer",
        }
        ends_s = monotonic() + self._timeout_s + NO_ANSWER_S
        url = self._known[engine_id]
        said = await self._side.ask(url, body, self._timeout_s + NO_ANSWER_S)
        if said is None:
            # Nobody tells decode that an engine is gone.
            await asyncio.sleep(ends_s - monotonic())
            return {"error": "transfer failed: Resource temporarily unavailable"}
        return said

    async def _look_up(self, bootstrap_url: str) -> None:
        why = ""
        for _ in range(_BOOTSTRAP_TRIES):
            try:
                async with self._side.session.get(f"{bootstrap_url}/query") as response:
                    said = orjson.loads(await response.read())
            except BROKEN as error:
                why = type(error).__name__
                await asyncio.sleep(_BOOTSTRAP_PAUSE_S)
                continue
            for engine in said.values():
                worker = engine["worker_addr"]["0"]["0"]
                self._known[engine["engine_id"]] = worker.replace("tcp://", "http://")
            return
        _log(f"Failed to connect to bootstrap server {bootstrap_url} ({why})")

    def _expire(self, transfer_id: str, sequence: Sequence) -> None:
        if self._side.scheduler.release(sequence.id) is not None:
            self._ready.pop(transfer_id, None)
            self._period.expired += 1
            _log(
                f"Request {sequence.id} timed out after {self._timeout_s:g} seconds without being"
                " sent. Freeing its blocks on the producer side."
            )
            self._side.wake()


def _told(sequence: Sequence) -> dict[str, Any]:
    """A prompt's KV, for another process."""
    return {"contents": [c.hex() for c in sequence.contents], "final": sequence.final.hex()}


def _prompt(said: Mapping[str, Any]) -> Prompt:
    return [bytes.fromhex(c) for c in said["contents"]], bytes.fromhex(said["final"])


def _log(line: str) -> None:
    print(line, flush=True)
