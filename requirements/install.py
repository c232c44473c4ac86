"""Install a set of packages by pip: hundreds of lines to a log, one line of progress to the reader.

    python requirements/install.py cpu|cuda|mooncake|ray [--log outputs/install.log]

It runs before anything is installed, so it takes nothing but Python itself. Of an install that
fails it shows pip's last lines and where the log is.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

ROOT = Path(__file__).resolve().parents[1]
CPU_WHEELS = "https://download.pytorch.org/whl/cpu"
SETS = {
    "cpu": (
        "the CPU set (about 3 GB)",
        (
            ("--no-deps", "--extra-index-url", CPU_WHEELS, "torch==2.13.0+cpu"),
            ("--no-deps", "-r", "requirements/cpu.txt"),
            ("--no-deps", "-e", "."),
        ),
    ),
    "cuda": ("the CUDA set", (("-e", ".[cuda,notebooks,dev]"),)),
    "mooncake": ("Mooncake (100 MB)", (("--no-deps", "-r", "requirements/mooncake.txt"),)),
    "ray": ("Ray (100 MB)", (("-r", "requirements/ray.txt"),)),
}
MOONCAKE_LIBRARIES = {
    "libibverbs.so.1": "libibverbs1",
    "librdmacm.so.1": "librdmacm1",
    "libnuma.so.1": "libnuma1",
    "liburing.so.2": "liburing2",
}
"""Shared libraries that Mooncake's wheel loads, with the Debian packages that have them."""
LAST_LINES = 12
TERMINAL_PERIOD_S, LOG_PERIOD_S = 0.5, 15.0

_WHEEL = re.compile(r"^\s*(?:Downloading|Using cached|Processing) (?!.*\.metadata)")
_UNPACKED = re.compile(r"^Installing collected packages: (.+)")


class Progress:
    """What pip has done so far, from the lines that it prints."""

    def __init__(self, expected: int) -> None:
        self.expected = expected
        self.fetched = 0
        self.unpacking = 0
        """Packages that are being unpacked; 0 while pip still fetches."""
        self.unpacked_before = 0

    def read(self, line: str, installed: int) -> None:
        """Take one line of pip; `installed` packages are in the environment now."""
        if _WHEEL.match(line):
            self.fetched += 1
        if names := _UNPACKED.match(line):
            self.unpacking, self.unpacked_before = names[1].count(",") + 1, installed
        elif line.startswith("Successfully installed"):
            self.unpacking = 0

    def said(self, what: str, *, mb: float, installed: int, elapsed_s: float) -> str:
        """One line: what is installed, how far that is, and the time gone."""
        minutes, seconds = divmod(int(elapsed_s), 60)
        if self.unpacking:
            done = min(self.unpacking, max(0, installed - self.unpacked_before))
            far = f"{done} of {self.unpacking} packages unpacked"
        else:
            of = f" of {self.expected}" if self.fetched <= self.expected else ""
            far = f"{self.fetched}{of} packages fetched"
        return f"installing {what}: {far}, {mb:,.0f} MB, {minutes}:{seconds:02}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Install the set; 0 when all of it is there."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("set", choices=SETS)
    parser.add_argument("--log", type=Path, default=ROOT / "outputs" / "install.log")
    options = parser.parse_args(arguments)
    what, steps = SETS[options.set]
    if options.set == "mooncake" and (missing := missing_packages()):
        print("Mooncake needs system libraries that are not installed. As root:\n")
        print(f"    apt-get install -y {' '.join(missing)}\n")
        print("Without root, use connector none, lmcache or nixl: they work as before.")
        return 1
    options.log.parent.mkdir(parents=True, exist_ok=True)
    began_s = time.monotonic()
    with (
        tempfile.TemporaryDirectory(dir=options.log.parent, prefix=".install-") as scratch,
        open(options.log, "w", encoding="utf-8") as log,
    ):
        progress = Progress(_pinned() + 2 if options.set == "cpu" else 0)
        line = _Line(progress, what, Path(scratch), began_s)
        with line:
            for step in steps:
                status = _pip(step, log, line, Path(scratch))
                if status:
                    break
    if status:
        _tell_failure(what, status, options.log)
        return 1
    took = int(time.monotonic() - began_s)
    print(f"installed {what} in {took // 60}:{took % 60:02}; the log is {_short(options.log)}")
    return 0


def missing_packages() -> list[str]:
    """Debian packages with the libraries that Mooncake needs and this machine does not have.

    Checked before pip: with Mooncake but without them, `lmcache server` does not start any more.
    """
    missing = []
    for library, package in MOONCAKE_LIBRARIES.items():
        try:
            ctypes.CDLL(library)
        except OSError:
            missing.append(package)
    return missing


def _pip(step: Sequence[str], log: TextIO, line: _Line, scratch: Path) -> int:
    command = ["pip", "install", "--progress-bar", "off", *step]
    print("$", *command, file=log, flush=True)
    # What pip fetches lies under TMPDIR until it is unpacked: that is what can be measured.
    environment = os.environ | {"TMPDIR": str(scratch), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, errors="replace",
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as pip:  # fmt: skip
        assert pip.stdout is not None
        for text in pip.stdout:
            log.write(text)
            line.progress.read(text, _installed())
            if line.progress.unpacking:
                line.measure()  # all is fetched, and not yet removed
    line.step_ended()
    return pip.returncode


class _Line:
    """Shows the progress while it is entered: over itself in a terminal, else now and then."""

    def __init__(self, progress: Progress, what: str, scratch: Path, began_s: float) -> None:
        self.progress, self._what, self._scratch = progress, what, scratch
        self._began_s, self._step_mb, self._mb = began_s, 0.0, 0.0
        self._terminal = sys.stdout.isatty()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._tick, daemon=True)

    def __enter__(self) -> _Line:
        self._show()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        if self._terminal:
            print("\r\033[K", end="", flush=True)

    def _tick(self) -> None:
        while not self._stop.wait(TERMINAL_PERIOD_S if self._terminal else LOG_PERIOD_S):
            self._show()

    def measure(self) -> None:
        """See how much pip has fetched in this step."""
        self._step_mb = max(self._step_mb, _size_mb(self._scratch))

    def step_ended(self) -> None:
        """Pip has removed what it fetched; it counts all the same."""
        self._mb, self._step_mb = self._mb + self._step_mb, 0.0

    def _show(self) -> None:
        self.measure()
        text = self.progress.said(
            self._what,
            mb=self._mb + self._step_mb,
            installed=_installed(),
            elapsed_s=time.monotonic() - self._began_s,
        )
        print(f"\r\033[K{text}" if self._terminal else text, end="" if self._terminal else "\n")
        sys.stdout.flush()


def _pinned() -> int:
    lines = (ROOT / "requirements" / "cpu.txt").read_text().splitlines()
    return sum("==" in line for line in lines)


def _installed() -> int:
    """Packages in the environment that runs this."""
    folder = sysconfig.get_paths()["purelib"]
    return sum(name.endswith(".dist-info") for name in os.listdir(folder))


def _size_mb(folder: Path) -> float:
    total = 0
    for path in folder.glob("pip-unpack-*/*"):
        try:
            total += path.stat().st_size
        except OSError:  # moved or removed in the meantime
            continue
    return total / 1e6


def _tell_failure(what: str, status: int, log: Path) -> None:
    lines = [line for line in log.read_text("utf-8").splitlines() if line.strip()]
    print(f"{what} could not be installed: pip ended with status {status}. Its last lines:")
    print(*(f"  {line}" for line in lines[-LAST_LINES:]), sep="\n")
    print(f"The whole log: {_short(log)}")
    print("Mend what pip names (often the network or a full disk), then type the command again:")
    print("what was fetched is kept in pip's cache.")


def _short(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("\nstopped; type the command again to go on: what was fetched is kept")
