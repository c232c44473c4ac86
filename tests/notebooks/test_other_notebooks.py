"""The other notebooks, the `workbench` command, attach, and cells run as JupyterLab runs them."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import nbformat
import pytest
from nbclient import NotebookClient

from workbench.hardware.machine import fast_bf16, repository_root
from workbench.serve.processes.ports import free_ports
from workbench.serve.tiny_model import tiny_model
from workbench.serve.vllm import (
    EngineSettings,
    instance_argv,
    instance_env,
    number_format,
    program,
)

DTYPE = number_format("auto", "cpu", fast_bf16=fast_bf16())

Papermill = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def busy_loops() -> Iterator[None]:
    """Another program on each core, for as long as the test runs."""
    loop = [sys.executable, "-c", "while True: pass"]
    loops = [subprocess.Popen(loop) for _ in range(os.cpu_count() or 1)]
    yield
    for one in loops:
        one.kill()
        one.wait()


@pytest.mark.alone  # it fills the cores
def test_a_machine_that_others_keep_busy_is_ready_and_is_told_what_that_means(
    tmp_path: Path, clean_env: dict[str, str], nothing_left: str, result_of: Any, busy_loops: None
) -> None:
    done = subprocess.run(
        ["workbench", "run", "environment_check", "-p", "output_dir", str(tmp_path)],
        env=clean_env, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "without encryption" not in done.stdout + done.stderr  # the kernel's own warning
    facts = result_of("environment_check")
    assert (facts["ready"], facts["quiet"]) == (True, "busy")
    assert facts["finding"].startswith("Ready, busy: other programs use ")
    assert facts["finding"] in done.stdout
    outcomes = {gate["name"]: gate["outcome"] for gate in facts["gates"]}
    assert outcomes["smoke run: KV moved"] == outcomes["smoke run: same text"] == "PASS"
    assert outcomes["packages"] == outcomes["memory"] == "PASS"


@pytest.mark.alone  # it compares times
def test_single_instance_prefix_cache(papermill: Papermill, result_of: Any) -> None:
    done = papermill(
        "single_instance_prefix_cache", "-p", "requests", "6", "-p", "concurrency", "1",
        "-p", "rounds", "1", "-p", "prompt_tokens", "1024", "-p", "output_tokens", "8",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    facts = result_of("single_instance_prefix_cache")
    assert {g["name"]: g["outcome"] for g in facts["gates"]}["same text"] == "PASS"
    ttft = {
        (r["arm"], r["pass"]): r["estimate"]["value"]
        for r in facts["summary"]
        if r["metric"] == "ttft_s"
    }
    # More of the prompt in the cache, less to compute: 1,024 tokens in blocks of 128.
    assert (
        ttft["cache on", "engine-warm"] < ttft["cache on", "50% cached"] < ttft["cache off", "cold"]
    )


def test_workbench_run_makes_a_page_and_reuses_a_finished_run(
    tmp_path: Path, clean_env: dict[str, str], nothing_left: str
) -> None:
    command = [
        "workbench", "run", "pd_sweep", "-p", "topology", "1a", "-p", "connector", "none",
        "-p", "rounds", "1", "-p", "requests", "1", "-p", "prompt_tokens", "500",
        "-p", "output_dir", str(tmp_path),
    ]  # fmt: skip
    first = subprocess.run(command, env=clean_env, capture_output=True, text=True, timeout=200)
    assert first.returncode == 0, first.stderr[-3000:]
    assert "round 1/1" in first.stdout  # progress is shown
    page = Path(first.stdout.strip().splitlines()[-1].removeprefix("page: "))
    assert page.name == "report.html"
    assert (page.parent / "run.ipynb").exists()
    second = subprocess.run(command, env=clean_env, capture_output=True, text=True, timeout=60)
    assert "has succeeded before" in second.stdout
    index = subprocess.run(
        ["workbench", "index", "--output-dir", str(tmp_path)],
        env=clean_env, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert index.returncode == 0
    assert "report.html" in (tmp_path / "index.html").read_text()


@pytest.fixture
def somebody_elses_server(tmp_path: Path, free_port: int, nothing_left: str) -> Any:
    """A vLLM server started by hand, without anything of ours behind it."""
    settings = EngineSettings(model=tiny_model(), platform="cpu", context_tokens=4096, dtype=DTYPE)
    argv = [*program("cpu"), *instance_argv(settings, port=free_port, tp=1)]
    with (
        open(tmp_path / "server.log", "w") as log,
        subprocess.Popen(
            argv,
            env=dict(os.environ) | instance_env("cpu"),
            stdout=log,
            stderr=log,
            start_new_session=True,
        ) as server,
    ):
        url = f"http://127.0.0.1:{free_port}"
        wait_until_healthy(url, server)
        yield url
        server.terminate()


def wait_until_healthy(url: str, server: subprocess.Popen[bytes]) -> None:
    ends_s = time.monotonic() + 120
    while time.monotonic() < ends_s and server.poll() is None:
        try:
            if httpx.get(f"{url}/health", trust_env=False).status_code == 200:
                return
        except httpx.HTTPError:
            time.sleep(0.3)
    raise AssertionError("the server did not become healthy")


@pytest.fixture
def free_port() -> int:
    return free_ports(1)[0]


def test_attach_without_and_with_lists(
    papermill: Papermill, result_of: Any, somebody_elses_server: str, tmp_path: Path
) -> None:
    attach = (
        "-p", "engine", "attach", "-p", "base_url", somebody_elses_server, "-p", "rounds", "1",
        "-p", "requests", "2", "-p", "prompt_tokens", "1000", "-p", "output_tokens", "8",
    )  # fmt: skip
    done = papermill("pd_sweep", *attach)
    assert done.returncode == 0, done.stderr[-3000:]
    facts = result_of("pd_sweep")
    assert [arm["label"] for arm in facts["arms"]] == ["attached"]
    assert {row["pass"] for row in facts["summary"]} == {"cold", "engine-warm"}
    assert any("salt alone" in doubt for doubt in facts["doubts"])
    outcome = {g["name"]: g["outcome"] for g in facts["gates"]}
    assert outcome["cold was cold"] == "INCONCLUSIVE"  # no counter was read: never green
    assert outcome["no failures"] == "PASS"

    done = papermill(
        "pd_sweep", *attach, "-p", "decode_urls", somebody_elses_server, "-p", "topology", "1a"
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (path,) = (tmp_path / "pd_sweep").glob("1a-*/result.json")
    facts = json.loads(path.read_text())
    assert {g["name"]: g["outcome"] for g in facts["gates"]}["cold was cold"] == "PASS"


def test_attach_to_nobody_is_one_sentence(papermill: Papermill) -> None:
    done = papermill("pd_sweep", "-p", "engine", "attach", "-p", "base_url", "http://127.0.0.1:9")
    assert done.returncode != 0
    assert "no OpenAI-compatible server answers at http://127.0.0.1:9" in done.stderr


def test_cells_run_one_by_one_in_the_notebooks_folder(tmp_path: Path, nothing_left: str) -> None:
    """JupyterLab works in notebooks/, papermill in the repository's root."""
    root = repository_root()
    notebook = nbformat.read(root / "notebooks" / "pd_sweep.ipynb", as_version=4)
    cell = next(c for c in notebook.cells if c.metadata.get("tags") == ["parameters"])
    cell.source += (
        f"\ntopology = '1a'\nconnector = 'none'\nrounds = 1\nrequests = 1\nprompt_tokens = 500"
        f"\noutput_dir = {str(tmp_path)!r}"
    )
    client = NotebookClient(
        notebook, timeout=200, kernel_name="python3",
        resources={"metadata": {"path": str(root / "notebooks")}},
    )  # fmt: skip
    with client.setup_kernel():
        for number, cell in enumerate(notebook.cells):
            client.execute_cell(cell, number)
        # Running the check again, after every result exists, still finds only known names.
        check = next(n for n, c in enumerate(notebook.cells) if c.id == "check")
        client.execute_cell(notebook.cells[check], check)
    assert list(tmp_path.glob("pd_sweep/*/result.json"))
