"""The GPUs of this machine, as reported by their vendors' tools.

This never fails: a tool that is missing, fails, hangs or prints an unknown format
finds no GPU. 1 GB here is 2^30 bytes, as those tools and vLLM count.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from math import nan
from typing import Any, Literal

Platform = Literal["cpu", "cuda", "rocm"]

_GB = 2**30
_MB = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU as reported by its vendor's tool."""

    index: int
    name: str
    memory_gb: float = nan
    memory_free_gb: float = nan
    driver: str = ""


def find(*, timeout_s: float = 10.0) -> tuple[tuple[Gpu, ...], Platform]:
    """The GPUs and their platform: cuda, rocm, or cpu if no tool finds one.

    `timeout_s` is per tool: nvidia-smi takes seconds if the driver is not kept loaded.
    """
    tools: tuple[tuple[Callable[[float], tuple[Gpu, ...]], Platform], ...] = (
        (_nvidia_smi, "cuda"),
        (_rocm_smi, "rocm"),
        (_amd_smi, "rocm"),
    )
    for look, platform in tools:
        try:
            gpus = look(timeout_s)
        except (AttributeError, KeyError, TypeError, ValueError):
            # an unknown output format
            continue
        if gpus:
            return gpus, platform
    return (), "cpu"


def _nvidia_smi(timeout_s: float) -> tuple[Gpu, ...]:
    query = "--query-gpu=index,name,memory.total,memory.free,driver_version"
    told = printed(timeout_s, "nvidia-smi", query, "--format=csv,noheader,nounits") or ""
    rows = [[cell.strip() for cell in line.split(",")] for line in told.splitlines()]
    return tuple(
        Gpu(
            index=int(index),
            name=name,
            memory_gb=_number(total_mb) * _MB / _GB,
            memory_free_gb=_number(free_mb) * _MB / _GB,
            driver=driver,
        )
        for index, name, total_mb, free_mb, driver in rows
    )


def _rocm_smi(timeout_s: float) -> tuple[Gpu, ...]:
    wanted = ("--showproductname", "--showmeminfo", "vram", "--showdriverversion", "--json")
    cards = json.loads(printed(timeout_s, "rocm-smi", *wanted) or "{}")
    driver = str(cards.pop("system", {}).get("Driver version", ""))
    gpus = []
    for key, card in cards.items():
        total = _number(card.get("VRAM Total Memory (B)"))
        gpus.append(
            Gpu(
                index=int(key.removeprefix("card")),
                name=str(card.get("Card Series") or card.get("Card series", "")),
                memory_gb=total / _GB,
                memory_free_gb=(total - _number(card.get("VRAM Total Used Memory (B)"))) / _GB,
                driver=driver,
            )
        )
    return tuple(gpus)


def _amd_smi(timeout_s: float) -> tuple[Gpu, ...]:
    """The successor of rocm-smi: a list of GPUs, or in later versions that list under gpu_data."""
    wanted = ("static", "--asic", "--vram", "--driver", "--json")
    found = json.loads(printed(timeout_s, "amd-smi", *wanted) or "[]")
    rows = found["gpu_data"] if isinstance(found, dict) else found
    return tuple(
        Gpu(
            index=int(row["gpu"]),
            name=str(row.get("asic", {}).get("market_name", "")),
            memory_gb=_number(row.get("vram", {}).get("size", {}).get("value")) * _MB / _GB,
            driver=str(row.get("driver", {}).get("version", "")),
        )
        for row in rows
    )


def _number(value: Any) -> float:
    """A number printed by a tool; NaN for `[N/A]` and for nothing."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return nan


def printed(timeout_s: float, *command: str) -> str | None:
    """The output of a tool; None if it is missing, fails or hangs."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout_s, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout
