"""A recorded run to explore, and a log."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.golden.replay import recorded_plan, replay
from tests.metrics.lmcache_log.log_lines import lookup, retrieved, stored
from workbench.experiment.result.result import Result, load_result


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """A simulated pd_sweep of two topologies with 171 requests, in its run folder."""
    plan = recorded_plan("pd_sweep", str(tmp_path_factory.mktemp("outputs")))
    return load_result(asyncio.run(replay(plan)).folder)


@pytest.fixture(scope="session")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve lookups; every second one is retrieved."""
    path = tmp_path_factory.mktemp("logs") / "lmcache.log"
    path.write_text("".join(
        lookup(f"r-{n}", 1000, 768, 640, engine=128)
        + (retrieved(f"r-{n}", 640, 640) if n % 2 else "")
        + stored(f"r-{n}", 256)
        for n in range(12)
    ))  # fmt: skip
    return path
