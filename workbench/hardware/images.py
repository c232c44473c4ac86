"""Images of docker or podman on this machine: found, named by digest, and asked what they have.

Servers in containers are started by `serve.processes.containers`; what is asked here runs in a
container that ends at once. Nothing is pulled: an image has tens of GB.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

from workbench.errors import ParameterError, PlanError, must_be, shown

PROGRAMS = ("docker", "podman")
"""In the order in which they are tried."""
LABEL = "workbench"
"""Every container has it; its value says who started it."""
_ANSWER_S = 30.0
_NO_ANSWER = -1
_REMOVED_S = 60.0
_LOCAL = "or use the programs of this machine (example: -p place local)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """An image on this machine, and how its containers are started."""

    name: str
    """As it was asked for."""
    id: str
    digest: str
    """The registry's digest; the id of an image that was made here."""
    program: str
    """The command, `docker` or `podman`; empty for one that was not looked for (`elsewhere`)."""
    version: str
    """Of that program's server."""
    args: tuple[str, ...] = ()
    """More options of `docker run`."""
    python_path: str = ""
    """The PYTHONPATH that the image sets."""

    @classmethod
    def elsewhere(cls, name: str) -> Self:
        """An image that need not be on this machine, so that nothing is asked of it."""
        return cls(name=name, id=name, digest="", program="", version="")

    @property
    def mounts(self) -> bool:
        """Whether `args` add files to its containers."""
        return any(re.match(r"-v|--volume|--mount|--rootfs", word) for word in self.args)

    def run_line(
        self,
        program: str,
        *words: str,
        label: str,
        options: Sequence[str] = (),
        env: Iterable[str] = (),
        reads: Iterable[str] = (),
        writes: Iterable[str] = (),
    ) -> tuple[str, ...]:
        """The command line that runs a program of the image.

        Its network is that of this machine. `env` are names of variables of whoever runs the line:
        values may be secret, and a command line is not. Paths are the same inside and outside, and
        those in `reads` cannot be written.
        """
        return (
            self.program, "run", "--pull", "never", "--label", f"{LABEL}={label}",
            "--network", "host", "--security-opt", "label=disable",
            *(word for path in reads for word in _mounted(path, read_only=True)),
            *(word for path in writes for word in _mounted(path)),
            *(word for name in env for word in ("--env", name)),
            *options, *self.args, "--entrypoint", program, self.id, *words,
        )  # fmt: skip

    def last_line(
        self,
        program: str,
        *words: str,
        env: Mapping[str, str],
        timeout_s: float,
        reads: Iterable[str] = (),
        writes: Iterable[str] = (),
    ) -> str:
        """The last line that a program of the image prints; empty if the program fails.

        Raises PlanError if its container cannot be run.
        """
        name = f"{LABEL}-question-{uuid.uuid4().hex[:12]}"
        line = self.run_line(
            program, *words, label="question", options=("--rm", "--name", name), env=env,
            reads=reads, writes=writes,
        )  # fmt: skip
        ended = False
        try:
            status, out, err = _printed(line, timeout_s, env)
            ended = status != _NO_ANSWER
        finally:
            if not ended:  # its client has, but not the container
                remove(self.program, [name])
        if status in (_NO_ANSWER, 125, 126, 127):
            raise PlanError(explained(err, self))
        return "" if status else (out.strip().splitlines() or [""])[-1]


@lru_cache
def image(name: str, args: tuple[str, ...] = ()) -> Image:
    """The image of that name, in docker or podman, whichever answers and has it.

    Raises PlanError if neither runs, ParameterError if no image of that name is here.
    """
    reasons, answering = [], ""
    for program in filter(shutil.which, PROGRAMS):
        status, out, err = _printed((program, "version", "--format", "{{json .}}"), _ANSWER_S)
        if status:
            reasons.append(_unreachable(program, err))
            continue
        answering = answering or program
        about = json.loads(out)
        found = _inspected(program, name)
        if found is not None:
            variables = dict(v.partition("=")[::2] for v in found["Config"].get("Env") or ())
            digests = [text.partition("@")[2] for text in found.get("RepoDigests") or ()]
            return Image(
                name=name,
                id=found["Id"],
                digest=(digests or [found["Id"]])[0],
                program=program,
                version=(about.get("Server") or about["Client"])["Version"],
                args=args,
                python_path=variables.get("PYTHONPATH", ""),
            )
    if answering:
        raise ParameterError(
            f"image must be on this machine, because nothing is pulled unasked, got {shown(name)}"
            f" (example: {answering} pull {name})"
        )
    if reasons:
        raise PlanError(reasons[0])
    raise PlanError(
        "place=container needs docker or podman, and neither is on PATH. Install one (example:"
        f" apt-get install podman), {_LOCAL}"
    )


def remove(program: str, names: Sequence[str]) -> None:
    """End containers at once and remove them with their volumes; those that are gone are no error.

    podman's `rm --force` alone would wait 10 s for programs that ignore TERM.
    """
    for line in (("kill",), ("rm", "--force", "--volumes")) if names else ():
        _printed((program, *line, *names), _REMOVED_S)


def _mounted(path: str, *, read_only: bool = False) -> tuple[str, str]:
    """The option that mounts a path. `--volume` would split one that has a colon."""
    if ":" in path:
        return "--mount", f"type=bind,source={path},target={path}{',readonly' * read_only}"
    return "--volume", f"{path}:{path}{':ro' * read_only}"


def _inspected(program: str, name: str) -> dict[str, Any] | None:
    # A name with a dash in front would be read as an option.
    status, out, _ = _printed((program, "image", "inspect", "--", name), _ANSWER_S)
    rows = json.loads(out) if not status else []
    return rows[0] if rows else None


def _printed(
    line: Sequence[str], timeout_s: float, env: Mapping[str, str] | None = None
) -> tuple[int, str, str]:
    """Exit status and output; _NO_ANSWER and the reason if it does not run or does not end."""
    try:
        done = subprocess.run(
            line, capture_output=True, text=True, errors="replace", timeout=timeout_s, check=False,
            env=os.environ | dict(env or {}), stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return _NO_ANSWER, "", f"no answer within {timeout_s:.0f} s"
    except OSError as error:
        return _NO_ANSWER, "", str(error)
    return done.returncode, done.stdout, done.stderr


def _unreachable(program: str, said: str) -> str:
    if re.search("permission denied", said, re.IGNORECASE):
        return (
            f"{program} must accept this user, but its socket refused: permission denied. Join its"
            " group and log in again (example: sudo usermod -aG docker $USER),"
            f" {_LOCAL}"
        )
    return (
        f"{program} must be running, but it does not answer: {_last(said)}. Start it (example:"
        f" sudo systemctl start {program}), {_LOCAL}"
    )


def explained(said: str, used: Image) -> str:
    """Why a container did not start, in one sentence with the way out; else what was said."""
    last, program = _last(said), Path(used.program).name
    toolkit = {
        "docker": "sudo nvidia-ctk runtime configure --runtime docker",
        "podman": "sudo nvidia-ctk cdi generate --output /etc/cdi/nvidia.yaml",
    }[program]
    known = {
        "no space left on device": (
            f"the disk of {program} must have free space, but it is full. Delete what is not used"
            f" (example: {program} system prune)"
        ),
        r"permission denied.*\.sock": _unreachable(program, said),
        r"cannot connect to the docker daemon": _unreachable(program, said),
        r"capabilities: \[\[gpu\]\]|nvidia\.com/gpu|nvidia-container": (
            f"{program} must be set up for NVIDIA GPUs, but it said: {last}. Install the NVIDIA"
            f" Container Toolkit (example: {toolkit})"
        ),
        r"/dev/kfd|/dev/dri": (
            f"{program} must reach the AMD GPUs, but it said: {last}. Install AMD's driver on this"
            " machine (example: ls /dev/kfd /dev/dri)"
        ),
        r"unknown (shorthand )?flag|flag needs an|(invalid|incorrect) (arg|ref|val|vol)": must_be(
            "container_args",
            f"options of {program} run ({last})",
            " ".join(used.args),
            "--volume /data:/data:ro",
        ),
        r"executable file not found|no such file or directory.*exec|exec.*no such file": must_be(
            "image",
            f"one with Python and vLLM ({last})",
            used.name,
            "vllm/vllm-openai:v0.32.0",
        ),
    }
    for pattern, sentence in known.items():
        if re.search(pattern, said, re.IGNORECASE):
            return sentence
    return f"{program} could not start a container of {used.name}: {last}"


def _last(said: str) -> str:
    """The last line that says something, without the program's own prefixes and advice."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    telling = [line for line in lines if "--help" not in line] or lines or ["it said nothing"]
    errors = [line for line in telling if re.match(r"(?i)(docker: |error)", line)] or telling
    text = re.sub(r"(?i)^(docker: |error response from daemon: |error: )+", "", errors[-1])
    return text.rstrip(".")[:200]
