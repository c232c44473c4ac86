"""KV transfers as vLLM logs them, where their connector has no Prometheus series.

    KV Transfer metrics: Num successful transfers=4, ..., Avg MB per transfer=8.062, ...

A line counts one period (VLLM_LOG_STATS_INTERVAL) and is written only if something was transferred
in it, or failed, and the engine was not idle (vLLM 0.32, `KVConnectorLogging.log`). So failures are
read from their own lines too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from math import fsum
from pathlib import Path

from workbench.metrics.counters import TransferCounters

_LINE = re.compile(rb"KV Transfer metrics: (.*)")
_VALUE = re.compile(rb"(Num|Avg) ([\w /]+?)(?: \(\w+\))?=([\d.]+)")
_FAILED = re.compile(rb"Failing (\d+) request\(s\) due to KV load failure")
_WHY = re.compile(rb"pulling kv_caches for \[.*?\] failed: (.{1,200})")
_EXPIRED = re.compile(rb"without being sent\. Freeing its blocks")
_ROUNDED_MB = 0.0005


def read_transfers(logs: Iterable[Path]) -> TransferCounters | None:
    """All that these logs of instances have counted so far; None if none has such a line."""
    text = b"\n".join(log.read_bytes() for log in logs if log.is_file())
    periods = [
        {name.decode(): float(value) for _, name, value in _VALUE.findall(line)}
        for line in _LINE.findall(text)
    ]
    if not periods:
        return None

    def total(name: str) -> float:
        return fsum(period.get(name, 0.0) for period in periods)

    moved_mb = fsum(p["successful transfers"] * p["MB per transfer"] for p in periods)
    reasons = _WHY.findall(text)
    return TransferCounters(
        bytes_moved=moved_mb * 2**20,
        transfers=total("successful transfers"),
        # A transfer that prefill could not send is one that decode did not receive.
        failed=max(
            total("failed transfers"),
            total("failed recvs"),
            fsum(map(float, _FAILED.findall(text))),
        ),
        expired=max(total("KV expired reqs"), len(_EXPIRED.findall(text))),
        rounding_bytes=total("successful transfers") * _ROUNDED_MB * 2**20,
        reason=reasons[-1].decode(errors="replace").strip() if reasons else "",
    )
