"""The machine and software of a result: hardware, drivers, versions, commit.

This never fails: unknown values are NaN, empty or None, and `Machine.as_dict` writes them as null.
1 GB here is 2^30 bytes, as vLLM counts. No hostname and no path is recorded.
"""

from __future__ import annotations

import os
import platform as python_platform
import shutil
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from math import nan
from pathlib import Path
from typing import Any, Self

import orjson

from workbench.hardware.gpus import Gpu, Platform, find, printed
from workbench.hardware.interpreter import ENGINE_PACKAGES, Interpreter, versions_of

CPU_INFO = Path("/proc/cpuinfo")
RDMA_DEVICES = Path("/sys/class/infiniband")
_GB = 2**30
_GIT_TIMEOUT_S = 10.0

_OUR_PACKAGES = ("numpy", "aiohttp", "httpx", "papermill", "workbench")
"""The packages that affect what the workbench itself measures and computes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The machine that a result was measured on."""

    cpu: str
    cores: int
    """Logical cores that this process may use."""
    fast_bf16: bool
    """Whether the CPU has the vector instructions that oneDNN's bf16 kernels need."""
    memory_gb: float
    memory_free_gb: float
    """Memory available without swapping."""
    shm_free_gb: float
    gpus: tuple[Gpu, ...]
    platform: Platform
    visible_devices: str
    """CUDA_VISIBLE_DEVICES or HIP_VISIBLE_DEVICES, empty when neither is set."""
    os: str
    kernel: str
    python: str
    versions: Mapping[str, str] = field(default_factory=dict)
    engine_python: str = ""
    """Version of the Python that engines run on, if it is another environment's."""
    git_commit: str = ""
    git_dirty: bool | None = None
    """None if the code is not in a git repository."""

    def with_engine(self, engine: Interpreter) -> Self:
        """The same machine with the engine packages of another environment.

        An image counts as a version too, by its digest, and so does what runs its containers.
        """
        if engine.own:
            return self
        ours = {name: v for name, v in self.versions.items() if name in _OUR_PACKAGES}
        if (image := engine.image) is not None:
            ours |= {"image": image.digest, image.program: image.version}
        return replace(self, versions=dict(engine.versions) | ours, engine_python=engine.python)

    def as_dict(self) -> dict[str, Any]:
        """For result.json: lists and plain values, GB with one decimal, null if unknown."""
        plain: dict[str, Any] = orjson.loads(orjson.dumps(self))
        if not self.engine_python:
            del plain["engine_python"]
        for row in (plain, *plain["gpus"]):
            for name, value in row.items():
                if name.endswith("_gb") and value is not None:
                    row[name] = round(value, 1)
        return plain


def rdma_devices() -> tuple[str, ...]:
    """Names of the RDMA devices of this machine."""
    return tuple(sorted(d.name for d in RDMA_DEVICES.iterdir())) if RDMA_DEVICES.is_dir() else ()


def facts() -> Machine:
    """Inspect this machine; takes well under a second without a GPU, a few with one."""
    import psutil

    memory = psutil.virtual_memory()
    gpus, platform = find()
    commit, dirty = _git(repository_root())
    return Machine(
        cpu=_cpu_model(),
        cores=len(usable_cores()),
        fast_bf16=fast_bf16(),
        memory_gb=memory.total / _GB,
        memory_free_gb=memory.available / _GB,
        shm_free_gb=shutil.disk_usage("/dev/shm").free / _GB if Path("/dev/shm").is_dir() else nan,
        gpus=gpus,
        platform=platform,
        visible_devices=os.environ.get(
            "CUDA_VISIBLE_DEVICES", os.environ.get("HIP_VISIBLE_DEVICES", "")
        ),
        os=_os_name(),
        kernel=python_platform.release(),
        python=python_platform.python_version(),
        versions=versions_of((*ENGINE_PACKAGES, *_OUR_PACKAGES)),
        git_commit=commit,
        git_dirty=dirty,
    )


def repository_root() -> Path:
    """The folder whose pyproject.toml names this project, above the package or the working folder.

    Falls back to the working folder, for an installed package used elsewhere.
    """
    import tomllib

    for start in (Path(__file__).resolve(), Path.cwd() / "x"):
        for folder in start.parents:
            try:
                project = tomllib.loads((folder / "pyproject.toml").read_text("utf-8"))
            except (OSError, ValueError):
                continue
            if project.get("project", {}).get("name") == "workbench":
                return folder
    return Path.cwd()


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessorLoad:
    """CPU seconds spent so far, by the whole machine and by this process with its children."""

    at_s: float
    busy_s: float
    own_s: float

    @classmethod
    def now(cls, also: Iterable[int] = ()) -> Self:
        """Read the CPU times. Ended children count if a living parent waited for them.

        `also` are processes with their children that are ours, though not below this one.
        """
        import psutil

        times = psutil.cpu_times()
        working = ("user", "nice", "system", "irq", "softirq", "steal")
        ours: dict[int, psutil.Process] = {}
        for pid in (os.getpid(), *also):
            with suppress(psutil.Error):
                top = psutil.Process(pid)
                ours |= {one.pid: one for one in (top, *top.children(recursive=True))}
        own = 0.0
        for process in ours.values():
            with suppress(psutil.Error):
                own += sum(process.cpu_times()[:4])  # user, system, and both of dead children
        return cls(
            at_s=time.monotonic(),
            busy_s=sum(getattr(times, name, 0.0) for name in working),
            own_s=own,
        )

    def others_since(self, before: ProcessorLoad) -> float:
        """Fraction (0 to 1) of all cores used by others since `before`; NaN within 0.1 s."""
        wall_s = self.at_s - before.at_s
        if wall_s < 0.1:  # the clocks of /proc tick every 10 ms
            return nan
        others_s = (self.busy_s - before.busy_s) - (self.own_s - before.own_s)
        return min(1.0, max(0.0, others_s / (wall_s * _cores())))


def fast_bf16() -> bool:
    """Whether a bf16 matrix product on this CPU is no slower than one in float32.

    oneDNN has bf16 kernels from AVX-512 (BW, DQ and VL) on, and on Arm with the `bf16` feature
    (oneDNN, "Data types"). Without them PyTorch falls back to a loop that is 3 to 5 times slower
    than float32. ONEDNN_MAX_CPU_ISA, oneDNN's own limit, is respected.
    """
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()
    if limit.startswith(("SSE", "AVX")) and not limit.startswith("AVX512_CORE"):
        return False
    features = {*_cpu_info("flags").split(), *_cpu_info("Features").split()}
    return features >= {"avx512f", "avx512bw", "avx512dq", "avx512vl"} or "bf16" in features


def _cpu_info(name: str) -> str:
    """A field of the first CPU in /proc/cpuinfo; empty if missing."""
    try:
        lines = CPU_INFO.read_text("utf-8").splitlines()
    except OSError:
        lines = []
    fields = (line.partition(":") for line in lines)
    return next((value.strip() for key, _, value in fields if key.strip() == name), "")


def usable_cores() -> tuple[int, ...]:
    """Numbers of the logical cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(_cores()))


def _cores() -> int:
    return os.cpu_count() or 1


def _cpu_model() -> str:
    return _cpu_info("model name") or python_platform.processor() or python_platform.machine()


def _os_name() -> str:
    try:
        return python_platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return python_platform.system()


def _git(root: Path) -> tuple[str, bool | None]:
    """Commit, and whether the working tree differs from it; ("", None) without git."""
    # Without optional locks `status` writes nothing and disturbs no other git command.
    git = partial(printed, _GIT_TIMEOUT_S, "git", "--no-optional-locks", "-C", str(root))
    commit, changes = git("rev-parse", "HEAD"), git("status", "--porcelain")
    return (commit or "").strip(), None if commit is None or changes is None else bool(changes)
