"""A real Prometheus (Debian's package) for tests; they are skipped where there is none."""

import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from workbench.monitoring.rules import rules
from workbench.monitoring.scrape import RULES_FILE, TARGETS_FOLDER, Target, prometheus_config
from workbench.serve.processes.ports import unused_ports

INTERVAL_S = 0.5


@contextmanager
def prometheus(folder: Path, outputs: Path, targets: Iterable[Target] = ()) -> Iterator[str]:
    """Its URL; it reads these targets, and the servers of runs whose `output_dir` is `outputs`."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("Prometheus is not installed (Debian's package prometheus)")
    folder.mkdir(parents=True, exist_ok=True)
    (outputs / TARGETS_FOLDER).mkdir(parents=True, exist_ok=True)
    files = f"{outputs / TARGETS_FOLDER}/*.json"
    config = prometheus_config(targets, interval_s=INTERVAL_S, target_files=files)
    (folder / "prometheus.yml").write_text(config)
    (folder / RULES_FILE).write_text(rules())
    address = f"127.0.0.1:{next(unused_ports())}"
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [program, f"--config.file={folder / 'prometheus.yml'}",
             f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address={address}"],
            stdout=log, stderr=log,
        )  # fmt: skip
    try:
        _wait(f"http://{address}", process)
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait()


def _wait(url: str, process: "subprocess.Popen[bytes]") -> None:
    for _ in range(300):
        assert process.poll() is None, "Prometheus ended"
        try:
            if httpx.get(f"{url}/-/ready", trust_env=False).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.1)
    raise TimeoutError(url)
