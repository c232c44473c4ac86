"""Result folders of real runs on simulated servers, kept beside the tests.

Each has `result.json` and `requests.parquet` as the run wrote them. Recorded, in half a minute, by

    python -m tests.experiment.between.recorded
"""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

RECORDINGS = Path(__file__).parent / "recordings"
COMMON: dict[str, Any] = {
    "topology": "1p1d", "connector": "nixl", "engine": "simulated", "opponents": False,
    "rounds": 4, "requests": 4, "prompt_tokens": 4000, "output_tokens": 16,
}  # fmt: skip
RUNS: dict[str, dict[str, Any]] = {
    "base": {},
    "again": {},
    "third": {},
    "slow": {"fault": "slow_instance"},
    "few": {"rounds": 2},
    "void": {"fault": "failed_transfer"},
}
"""The base, two repetitions, a decode instance that is four times slower, two rounds only, and KV
transfers that failed, so that gates void the numbers."""


def recorded(name: str) -> Path:
    """The folder of a recorded run."""
    return RECORDINGS / name


def quiet(name: str, folder: Path) -> Path:
    """A copy of it in which the machine was idle.

    Other programs were busy when it was recorded, so `client kept up` failed in every run, and no
    comparison of times is decided.
    """
    copy = folder / name
    shutil.copytree(recorded(name), copy)
    facts = json.loads((copy / "result.json").read_text())
    for gate in facts["gates"]:
        if gate["name"] == "client kept up":
            gate["outcome"] = "PASS"
    (copy / "result.json").write_text(json.dumps(facts))
    return copy


async def record() -> None:
    """Run all of them anew."""
    from workbench.experiment.plan.arms import plan
    from workbench.experiment.run.run import run
    from workbench.params.notebooks import check_params

    with tempfile.TemporaryDirectory() as outputs:
        for name, given in RUNS.items():
            params = check_params(
                "pd_sweep", COMMON | given | {"output_dir": str(Path(outputs) / name)}
            )
            result = await run(plan(params))
            target = recorded(name)
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy(result.folder / "requests.parquet", target / "requests.parquet")
            text = (result.folder / "result.json").read_text()
            text = text.replace(str(Path(outputs) / name), "outputs")
            (target / "result.json").write_text(text.replace(sys.executable, "python3"))


if __name__ == "__main__":
    asyncio.run(record())
