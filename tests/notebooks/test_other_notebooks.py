"""The other notebooks, the `workbench` command, attach, and cells run as JupyterLab runs them."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import nbformat
import pytest
from nbclient import NotebookClient

from tests.runs import outcomes
from workbench.hardware.machine import fast_bf16, repository_root
from workbench.serve.processes.parent import die_with_parent
from workbench.serve.processes.ports import free_ports
from workbench.serve.tiny_model import tiny_model
from workbench.serve.vllm import (
    EngineSettings,
    instance_argv,
    instance_env,
    number_format,
    program,
)


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
    typed: Any, tmp_path: Path, busy_loops: None
) -> None:
    done = typed(f"workbench run environment_check -p output_dir {tmp_path}")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "without encryption" not in done.stdout + done.stderr  # the kernel's own warning
    (result,) = tmp_path.glob("environment_check/*/result.json")
    facts = json.loads(result.read_text())
    assert (facts["ready"], facts["quiet"]) == (True, "busy")
    assert facts["finding"] == "Ready to run, but not idle enough for timing"
    assert facts["finding"] in done.stdout
    for name in ("smoke run: KV moved", "smoke run: same text", "packages", "memory"):
        assert outcomes(facts)[name] == "PASS"


@pytest.mark.alone  # it compares times
def test_single_instance_prefix_cache(found: Any) -> None:
    facts = found(
        "single_instance_prefix_cache",
        "-p requests 6 -p concurrency 1 -p rounds 1 -p prompt_tokens 1024 -p output_tokens 8",
    )
    assert outcomes(facts)["same text"] == "PASS"
    warm, half, cold = (
        ("cache on", "engine-warm"),
        ("cache on", "50% cached"),
        ("cache off", "cold"),
    )
    hits = {(r["arm"], r["pass"]): r["engine_hit"] for r in facts["token_sources"]}
    assert hits[warm] > hits[half] > hits[cold] == 0
    ttft = {
        (r["arm"], r["pass"]): r["estimate"]["value"]
        for r in facts["summary"]
        if r["metric"] == "ttft_s"
    }
    assert ttft[warm] < ttft[cold]


def test_workbench_run_makes_a_page_and_reuses_a_finished_run(typed: Any, tmp_path: Path) -> None:
    command = (
        "workbench run pd_sweep -p engine simulated -p topology 1a -p connector none -p rounds 1"
        f" -p requests 1 -p prompt_tokens 500 -p output_dir {tmp_path}"
    )
    first = typed(command)
    assert first.returncode == 0, first.stderr[-3000:]
    assert "round 1/1" in first.stdout  # progress is shown
    page = Path(first.stdout.strip().splitlines()[-1].removeprefix("page: "))
    assert page.name == "report.html"
    assert (page.parent / "run.ipynb").exists()
    assert "reusing the result of an earlier run" in typed(command, timeout_s=60).stdout
    assert typed(f"workbench index --output-dir {tmp_path}").returncode == 0
    assert "report.html" in (tmp_path / "index.html").read_text()


@pytest.fixture
def somebody_elses_server(tmp_path: Path, nothing_left: str) -> Iterator[str]:
    """A vLLM server started by hand, without anything of ours behind it."""
    (port,) = free_ports(1)
    dtype = number_format("auto", "cpu", fast_bf16=fast_bf16())
    settings = EngineSettings(model=tiny_model(), platform="cpu", context_tokens=4096, dtype=dtype)
    with (
        open(tmp_path / "server.log", "w") as log,
        subprocess.Popen(
            [*program(settings), *instance_argv(settings, role="aggregated", port=port, tp=1)],
            env=os.environ | instance_env("cpu"), stdout=log, stderr=log, start_new_session=True,
            preexec_fn=die_with_parent,
        ) as server,
    ):  # fmt: skip
        try:
            wait_until_healthy(f"http://127.0.0.1:{port}", server)
            yield f"http://127.0.0.1:{port}"
        finally:
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


def test_attach_without_and_with_lists(found: Any, somebody_elses_server: str) -> None:
    attach = (
        f"-p engine attach -p base_url {somebody_elses_server} -p rounds 1 -p requests 2"
        " -p prompt_tokens 1000 -p output_tokens 8"
    )
    facts = found("pd_sweep", attach)
    assert [arm["label"] for arm in facts["arms"]] == ["attached"]
    assert {row["pass"] for row in facts["summary"]} == {"cold", "engine-warm"}
    assert any("only unique prompts" in doubt for doubt in facts["doubts"])
    assert outcomes(facts)["cold was cold"] == "INCONCLUSIVE"  # no counter was read: never green
    assert outcomes(facts)["no failures"] == "PASS"

    facts = found("pd_sweep", f"{attach} -p decode_urls {somebody_elses_server} -p topology 1a")
    assert outcomes(facts)["cold was cold"] == "PASS"


def test_attach_to_nobody_is_one_sentence(papermill: Any) -> None:
    done = papermill("pd_sweep", "-p engine attach -p base_url http://127.0.0.1:9")
    assert done.returncode != 0
    assert (
        "OpenAI-compatible server, but http://127.0.0.1:9/v1/models did not respond" in done.stderr
    )


def test_cells_run_one_by_one_in_the_notebooks_folder(tmp_path: Path, nothing_left: str) -> None:
    """JupyterLab works in notebooks/, papermill in the repository's root."""
    root = repository_root()
    notebook = nbformat.read(root / "notebooks" / "pd_sweep.ipynb", as_version=4)
    cell = next(c for c in notebook.cells if c.metadata.get("tags") == ["parameters"])
    cell.source += (
        "\nengine = 'simulated'\ntopology = '1a'\nconnector = 'none'\nrounds = 1\nrequests = 1"
        f"\nprompt_tokens = 500\noutput_dir = {str(tmp_path)!r}"
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
