"""A pretended docker: it writes down its arguments, and "containers" are processes of this machine.

`install` puts it on PATH. Images, faults and all calls are files in its folder, so that a test can
say what is there, what breaks with which words, and read what was asked.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

SOCKET_DENIED = (
    "permission denied while trying to connect to the Docker daemon socket at"
    " unix:///var/run/docker.sock: dial unix /var/run/docker.sock: connect: permission denied"
)
NO_DAEMON = (
    "Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon"
    " running?"
)
NO_GPU = (
    'docker: Error response from daemon: could not select device driver "" with capabilities:'
    " [[gpu]]."
)
NO_SPACE = (
    "docker: Error response from daemon: mkdir /var/lib/docker/overlay2/1f: no space left on device"
)
NO_PROGRAM = (
    "docker: Error response from daemon: failed to create task for container: runc create failed:"
    ' unable to start container process: exec: "python3": executable file not found in $PATH'
)
UNKNOWN_FLAG = "unknown flag: --foo\n\nRun 'docker run --help' for more information"

ID = "sha256:" + "ab" * 32
DIGEST = "sha256:" + "cd" * 32


class FakeDocker:
    """What a test says to it, and what it was asked."""

    def __init__(self, folder: Path, program: str = "docker") -> None:
        self.folder = folder
        (folder / "images").mkdir(parents=True)
        (folder / "containers").mkdir()
        (folder / "bin").mkdir()
        file = folder / "bin" / program
        file.write_text(f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(_ROOT)!r})\n"
                        f"from tests.fake_docker import main\nmain({str(folder)!r})\n")  # fmt: skip
        file.chmod(0o755)
        self.path = str(folder / "bin")

    def has(self, name: str, **config: Any) -> None:
        """There is an image of that name, which came from a registry."""
        about = {"Id": ID, "RepoDigests": [f"{name}@{DIGEST}"], "Config": {"Env": [], **config}}
        (self.folder / "images" / name.replace("/", "+")).write_text(json.dumps(about))

    def breaks(self, command: str, said: str, status: int = 125, *, only: str = "") -> None:
        """A command fails with these words; `only` where its line has this text."""
        (self.folder / f"{command}.fault").write_text(json.dumps([said, status, only]))

    @property
    def calls(self) -> list[list[str]]:
        """Arguments of each call."""
        file = self.folder / "calls"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def runs(self, name: str) -> list[list[str]]:
        """The `run` calls for containers whose name ends so."""
        named = [call for call in self.calls if "--name" in call]
        return [call for call in named if call[call.index("--name") + 1].endswith(f"-{name}")]

    @property
    def containers(self) -> list[str]:
        """Names of containers that were not removed."""
        return sorted(file.name for file in (self.folder / "containers").iterdir())


_ROOT = Path(__file__).resolve().parents[1]
_TAKES_A_VALUE = {
    *("--pull", "--label", "--network", "--security-opt", "--volume", "--env", "--name", "--ipc"),
    *("--shm-size", "--entrypoint", "--gpus", "--device", "--group-add", "--cap-add", "--memory"),
}


def main(folder: str) -> None:
    home, words = Path(folder), sys.argv[1:]
    with (home / "calls").open("a") as calls:
        calls.write(json.dumps(words) + "\n")
    fault = home / f"{words[0]}.fault"
    if fault.exists():
        said, status, only = json.loads(fault.read_text())
        if only in " ".join(words):
            print(said, file=sys.stderr)
            sys.exit(status)
    command = {
        "version": _version, "image": _image, "run": _run, "container": _inspect, "ps": _ps,
        "kill": _kill, "rm": _rm,
    }[words[0]]  # fmt: skip
    command(home, words[1:])


def _version(home: Path, words: list[str]) -> None:
    print(json.dumps({"Client": {"Version": "28.0.0"}, "Server": {"Version": "28.2.2"}}))


def _image(home: Path, words: list[str]) -> None:
    file = home / "images" / words[-1].replace("/", "+")
    if not file.exists():
        print("[]")
        sys.exit(f"Error response from daemon: No such image: {words[-1]}")
    print(json.dumps([json.loads(file.read_text())]))


def _run(home: Path, words: list[str]) -> None:
    options: dict[str, str] = {}
    while words[0].startswith("-"):
        name = words.pop(0)
        options[name] = words.pop(0) if name in _TAKES_A_VALUE else ""
    image, *args = words
    if image != ID:
        sys.exit(f"docker: Error response from daemon: No such image: {image}")
    entry = options["--entrypoint"]
    line = [sys.executable if entry == "python3" else entry, *args]
    detached = "--detach" in options
    child = subprocess.Popen(
        line, start_new_session=True, stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL if detached else None,
        stderr=subprocess.DEVNULL if detached else None,
    )  # fmt: skip
    file = home / "containers" / options.get("--name", f"question-{child.pid}")
    state = {"Pid": child.pid, "OOMKilled": False, "StartedAt": "2026-11-29T00:00:00Z"}
    file.write_text(json.dumps({"label": options["--label"], "state": state}))
    if detached:
        print("0123456789ab")
        return
    status = child.wait()
    if "--rm" in options:
        file.unlink()
    elif file.exists():
        state |= {"Pid": 0, "OOMKilled": (home / "oom").exists()}
        file.write_text(json.dumps({"label": options["--label"], "state": state}))
    sys.exit(128 - status if status < 0 else status)


def _inspect(home: Path, words: list[str]) -> None:
    file = home / "containers" / words[-1]
    if not file.exists():
        sys.exit(f"Error: No such container: {words[-1]}")
    print(json.dumps(json.loads(file.read_text())["state"]))


def _ps(home: Path, words: list[str]) -> None:
    label = words[-1].removeprefix("label=")
    for file in (home / "containers").iterdir():
        if json.loads(file.read_text())["label"] == label:
            print(file.name)


def _kill(home: Path, words: list[str]) -> None:
    for name in words:
        file = home / "containers" / name
        if file.exists() and (pid := json.loads(file.read_text())["state"]["Pid"]):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


def _rm(home: Path, words: list[str]) -> None:
    for name in words:
        if not name.startswith("-"):
            (home / "containers" / name).unlink(missing_ok=True)
