"""An LMCache tier (L2) on a Mooncake store, for LMCache's adapter type `plugin`.

It runs inside `lmcache server` and imports nothing of the workbench: the folder of this file is on
that server's path, whose Python may be another one. LMCache's own adapter for Mooncake needs a C++
extension that its wheel does not have. This one uses Mooncake's Python binding, and hands it
LMCache's memory by address where Mooncake can register it, so that nothing is copied twice.

    --l2-adapter '{"type": "plugin", "module_path": "mooncake_tier", "class_name": "MooncakeTier",
                   "adapter_params": {"master": "127.0.0.1:50051", "segment_mb": 512}}'
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from lmcache.lmcache_native import Bitmap
from lmcache.logging import init_logger
from lmcache.v1.distributed.internal_api import L2StoreResult
from lmcache.v1.distributed.l2_adapters.base import L2AdapterInterface
from lmcache.v1.distributed.l2_adapters.native_connector_l2_adapter import _object_key_to_string
from lmcache.v1.platform import create_event_notifier
from mooncake.store import MooncakeDistributedStore, ReplicateConfig

_log = init_logger(__name__)


class _Tasks:
    """Tasks of one kind: each gets a number, its result waits, and an event tells LMCache."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self._pool = pool
        self._event = create_event_notifier()
        self._lock = threading.Lock()
        self._results: dict[int, Any] = {}
        self._last = 0

    @property
    def event_fd(self) -> int:
        return int(self._event.fileno())

    def submit(self, work: Callable[[], Any], failed: Callable[[], Any]) -> int:
        """Run `work` in a thread; a task that raises has the result of `failed`."""
        with self._lock:
            self._last += 1
            task = self._last

        def run() -> None:
            try:
                result = work()
            except Exception:
                _log.exception("A task on Mooncake failed")
                result = failed()
            with self._lock:
                self._results[task] = result
            self._event.notify()

        self._pool.submit(run)
        return task

    def pop(self, task: int) -> Any:
        with self._lock:
            return self._results.pop(task, None)

    def pop_all(self) -> dict[int, Any]:
        with self._lock:
            done, self._results = self._results, {}
        return done

    def close(self) -> None:
        self._event.close()


class MooncakeTier(L2AdapterInterface):  # type: ignore[misc]
    """Keeps each chunk as one object of the Mooncake store, to which this server lends memory.

    Parameters: `master` (host:port), `segment_mb` (memory lent), and optionally `buffer_mb`,
    `protocol`, `device`, `host` (this server's address for others) and `threads`.
    """

    def __init__(self, params: Mapping[str, Any], l1_memory_desc: Any = None) -> None:
        super().__init__()
        self._store = MooncakeDistributedStore()
        status = self._store.setup(
            str(params.get("host", "127.0.0.1")),
            "P2PHANDSHAKE",
            int(params["segment_mb"]) << 20,
            int(params.get("buffer_mb", 64)) << 20,
            str(params.get("protocol", "tcp")),
            str(params.get("device", "")),
            str(params["master"]),
        )
        if status:
            raise RuntimeError(f"Mooncake at {params['master']} refused the set-up: {status}")
        self._replicas = ReplicateConfig()
        self._by_address = (
            l1_memory_desc is not None
            and self._store.register_buffer(l1_memory_desc.ptr, l1_memory_desc.size) == 0
        )
        threads = int(params.get("threads", 2))
        # Writes may be slow, and nobody waits for them; a request waits for what is read.
        self._pools = [ThreadPoolExecutor(threads, f"mooncake-{use}") for use in ("put", "get")]
        puts, gets = self._pools
        self._stores, self._lookups, self._loads = _Tasks(puts), _Tasks(gets), _Tasks(gets)
        _log.info("Mooncake tier at %s, by address: %s", params["master"], self._by_address)

    def get_store_event_fd(self) -> int:
        return self._stores.event_fd

    def get_lookup_and_lock_event_fd(self) -> int:
        return self._lookups.event_fd

    def get_load_event_fd(self) -> int:
        return self._loads.event_fd

    def submit_store_task(self, keys: Sequence[Any], objects: Sequence[Any]) -> int:
        known, values = list(keys), list(objects)
        return self._stores.submit(
            lambda: self._put(known, values), lambda: L2StoreResult(False, 0)
        )

    def pop_completed_store_tasks(self) -> dict[int, Any]:
        return self._stores.pop_all()

    def submit_lookup_and_lock_task(self, keys: Sequence[Any], group_layout_descs: object) -> int:
        known = list(keys)
        return self._lookups.submit(lambda: self._look_up(known), lambda: Bitmap(len(known)))

    def query_lookup_and_lock_result(self, task_id: int) -> Any:
        return self._lookups.pop(task_id)

    def submit_unlock(self, keys: Sequence[Any]) -> None:
        """Nothing to do: Mooncake leases what was looked up, and the lease ends by itself."""

    def submit_load_task(self, keys: Sequence[Any], objects: Sequence[Any]) -> int:
        known, values = list(keys), list(objects)
        return self._loads.submit(lambda: self._get(known, values), lambda: Bitmap(len(known)))

    def query_load_result(self, task_id: int) -> Any:
        return self._loads.pop(task_id)

    def delete(self, keys: Sequence[Any]) -> None:
        gone = [key for key in keys if self._store.remove(_object_key_to_string(key)) == 0]
        self._notify_keys_deleted(gone, [0] * len(gone))

    def report_status(self) -> dict[str, Any]:
        return {"is_healthy": True, "type": "MooncakeTier", "by_address": self._by_address}

    def close(self) -> None:
        for pool in self._pools:
            pool.shutdown(wait=True)
        self._store.close()
        for tasks in (self._stores, self._lookups, self._loads):
            tasks.close()

    def _put(self, keys: list[Any], values: list[Any]) -> Any:
        names = [_object_key_to_string(key) for key in keys]
        sizes = [len(value.byte_array) for value in values]
        if self._by_address:
            addresses = [value.data_ptr for value in values]
            status = self._store.batch_put_from(names, addresses, sizes, self._replicas)
        else:
            both = zip(names, values, strict=True)
            status = [self._store.put(name, bytes(value.byte_array)) for name, value in both]
        kept = [position for position, code in enumerate(status) if code == 0]
        self._notify_keys_stored([keys[n] for n in kept], [sizes[n] for n in kept])
        if len(kept) < len(keys):
            codes = sorted({code for code in status if code})
            _log.warning("Mooncake kept %d of %d chunks, codes %s", len(kept), len(keys), codes)
        return L2StoreResult(len(kept) == len(keys), sum(sizes[n] for n in kept))

    def _look_up(self, keys: list[Any]) -> Any:
        found = Bitmap(len(keys))
        known = self._store.batch_is_exist([_object_key_to_string(key) for key in keys])
        for position, held in enumerate(known):
            if held == 1:
                found.set(position)
        return found

    def _get(self, keys: list[Any], values: list[Any]) -> Any:
        names = [_object_key_to_string(key) for key in keys]
        sizes = [len(value.byte_array) for value in values]
        if self._by_address:
            got = self._store.batch_get_into(names, [v.data_ptr for v in values], sizes)
        else:
            got = [self._copied(name, value) for name, value in zip(names, values, strict=True)]
        loaded = Bitmap(len(keys))
        for position, (read, size) in enumerate(zip(got, sizes, strict=True)):
            if read == size:
                loaded.set(position)
        return loaded

    def _copied(self, name: str, value: Any) -> int:
        data = self._store.get(name)
        if len(data) == len(value.byte_array):
            value.byte_array[:] = data
        return len(data)
