"""`papermill notebooks/pd_sweep.ipynb -p topology 1p4d` as typed: wall time, and what it measured.

Beside it the same sweep of one round with the fork server off, for what a round costs outside its
measuring. `python benchmarks/sweep.py [--plain]`; 4 minutes, 10 with --plain. Last line JSON.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def sweep(*arguments: str) -> tuple[float, dict[str, Any]]:
    """Wall seconds of the papermill process, and the result.json that it wrote."""
    with tempfile.TemporaryDirectory() as folder:
        began_s = time.monotonic()
        subprocess.run(
            [Path(sys.executable).with_name("papermill"), "notebooks/pd_sweep.ipynb",
             f"{folder}/out.ipynb", "-p", "topology", "1p4d", "-p", "output_dir", folder,
             *arguments],
            cwd=ROOT, check=True, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        wall_s = time.monotonic() - began_s
        (path,) = Path(folder).glob("pd_sweep/*/result.json")
        return wall_s, json.loads(path.read_text())


def report(name: str, wall_s: float, facts: dict[str, Any]) -> dict[str, Any]:
    rounds = facts["parameters"]["rounds"]
    share = facts["measuring_s"] / wall_s
    other_s = (wall_s - facts["measuring_s"]) / rounds
    print(
        f"{name}: {wall_s:.0f} s, {share:.0%} of it measuring; {other_s:.0f} s a round of the rest"
    )
    return {"wall_s": round(wall_s, 1), "measuring_share": round(share, 3)}


def main() -> None:
    wall_s, facts = sweep()
    summary = {"fork": report("as typed", wall_s, facts)}
    for row in facts["comparisons"]:
        if row["kind"] == "cache-state" and row["metric"] == "ttft_s" and "p" in row["arm"]:
            print(f"TTFT cold / {row['pass']}, {row['arm']}: {row['sentence']}")
            summary[row["pass"]] = [round(row["ratio"][key], 1) for key in ("value", "low", "high")]
    print("gates: " + ", ".join(f"{g['name']} {g['outcome']}" for g in facts["gates"]))
    if "--plain" in sys.argv:
        plain = sweep("-p", "fork", "False", "-p", "rounds", "1")
        summary["plain"] = report("plain start, one round", *plain)
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
