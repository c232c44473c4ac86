"""Energy of devices while something runs: NVIDIA GPUs by NVML, AMD GPUs by amdsmi, CPUs by RAPL.

Nothing here ever ends a run: a missing library, a counter that only root may read, or a driver that
stops responding is reported as a reason. Energy comes from a device's own counter. Without one, its
power is sampled and integrated over time (trapezoids).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from math import isnan, nan
from pathlib import Path
from typing import Any, Literal

from workbench.hardware.gpus import Platform

Source = Literal["NVML", "amdsmi", "RAPL"]

POWERCAP = Path("/sys/class/powercap")
PERIOD_S = 0.25
"""Between two readings: short compared with the averaging time of GPUs (about a second), and long
enough that reading eight GPUs takes little of the client's time."""
_HUNG_S = 5.0
"""A driver that has not responded for this long is given up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Meter:
    """One device. Its readings raise whatever its library raises."""

    name: str
    source: Source
    energy_j: Callable[[], float] | None = None
    """Its energy counter, in joules; None if it has none."""
    power_w: Callable[[], float] | None = None
    """Its power, in watts, for a device without an energy counter."""
    wraps_at_j: float = nan
    """Where its counter starts again at 0; NaN if it never does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Meters:
    """The devices that can be read, and why others cannot."""

    found: tuple[Meter, ...] = ()
    missing: str = ""
    """Empty if every device can be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Used:
    """What a device used while it was watched."""

    meter: str
    source: Source
    joules: float
    """NaN if unknown."""
    seconds: float
    samples: int
    counted: bool
    """By the device's own energy counter; otherwise from samples of its power."""
    problem: str = ""
    """Why it is unknown."""

    @property
    def watts(self) -> float:
        """Mean power; NaN if unknown."""
        return self.joules / self.seconds if self.seconds > 0 else nan


def find_meters(platform: Platform, devices: Sequence[str]) -> Meters:
    """The meters of some GPUs (as CUDA_VISIBLE_DEVICES names them), or of the CPU's packages."""
    if platform == "cpu":
        return _rapl()
    if not devices:
        return Meters(missing="the GPUs of the servers are not known")
    name, package, start, of_device = {
        "cuda": ("pynvml", "package nvidia-ml-py", "nvmlInit", _nvidia),
        "rocm": ("amdsmi", "comes with ROCm", "amdsmi_init", _amd),
    }[platform]
    try:
        library = import_module(name)
        getattr(library, start)()
    except ImportError:
        return Meters(missing=f"the Python module {name} is not installed ({package})")
    except Exception as error:  # each library has exceptions of its own
        return Meters(missing=f"{name} does not respond ({_said(error)})")
    found, missing = [], []
    for device in devices:
        try:
            found.append(of_device(library, device))
        except Exception as error:
            missing.append(f"GPU {device} reports neither energy nor power ({_said(error)})")
    return Meters(found=tuple(found), missing=_first(missing))


def _nvidia(nvml: Any, device: str) -> Meter:
    """NVML counts millijoules since the driver was loaded, from Volta on."""
    if device.isdecimal():
        handle = nvml.nvmlDeviceGetHandleByIndex(int(device))
    else:
        handle = nvml.nvmlDeviceGetHandleByUUID(device)

    def energy_j() -> float:
        return float(nvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1000

    def power_w() -> float:
        return float(nvml.nvmlDeviceGetPowerUsage(handle)) / 1000

    return _either(f"GPU {device}", "NVML", energy_j, power_w)


def _amd(amdsmi: Any, device: str) -> Meter:
    """The fields of amdsmi have other names in other versions; `N/A` stands for no value.

    A virtual machine's guest has no energy counter.
    """
    handle = amdsmi.amdsmi_get_processor_handles()[int(device)]

    def energy_j() -> float:
        told = amdsmi.amdsmi_get_energy_count(handle)
        ticks = told["energy_accumulator"] if "energy_accumulator" in told else told["power"]
        return float(ticks) * float(told["counter_resolution"]) / 1e6

    def power_w() -> float:
        told = amdsmi.amdsmi_get_power_info(handle)
        names = ("socket_power", "current_socket_power", "average_socket_power")
        known = [told[name] for name in names if isinstance(told.get(name), int | float)]
        return float(next(watts for watts in known if watts > 0))

    return _either(f"GPU {device}", "amdsmi", energy_j, power_w)


def _either(
    name: str, source: Source, energy_j: Callable[[], float], power_w: Callable[[], float]
) -> Meter:
    """The meter of a GPU: its counter if it counts, otherwise its power; raises without either."""
    try:
        if energy_j() > 0:
            return Meter(name=name, source=source, energy_j=energy_j)
    except Exception:  # not supported by this GPU, or not here
        pass
    power_w()
    return Meter(name=name, source=source, power_w=power_w)


def _rapl() -> Meters:
    """The packages of this machine's CPUs, with all programs that run on them.

    The kernel lists AMD's under the same name. A package of `intel-rapl-mmio` is the same one a
    second time, and `psys` holds all packages.
    """
    found, missing = [], []
    for zone in sorted(POWERCAP.glob("intel-rapl:*")):
        try:
            name = (zone / "name").read_text().strip()
            if zone.name.count(":") > 1 or not name.startswith("package"):
                continue
            (zone / "energy_uj").read_text()
            wraps_at_j = float((zone / "max_energy_range_uj").read_text()) / 1e6
        except PermissionError:
            missing.append(f"{zone / 'energy_uj'} may be read by root only (docs/decision.md)")
            continue
        except (OSError, ValueError) as error:
            missing.append(f"RAPL does not respond ({_said(error)})")
            continue

        def energy_j(file: Path = zone / "energy_uj") -> float:
            return float(file.read_text()) / 1e6

        found.append(
            Meter(name=f"CPU {name}", source="RAPL", energy_j=energy_j, wraps_at_j=wraps_at_j)
        )
    if not found and not missing:
        missing.append("this machine has no RAPL counters")
    return Meters(found=tuple(found), missing=_first(missing))


def _first(reasons: Sequence[str]) -> str:
    more = len(reasons) - 1
    return (reasons[0] + f" (and {more} more)" * (more > 0)) if reasons else ""


def _said(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


@contextmanager
def watched(meters: Iterable[Meter], *, period_s: float = PERIOD_S) -> Iterator[list[Used]]:
    """Read the meters from here to the end of the block; then the list has what each used.

    A thread reads them, so that a driver which hangs does not stop the caller.
    """
    used: list[Used] = []
    tracks = [_Track(meter) for meter in meters]
    if not tracks:
        yield used
        return
    begun, stop = threading.Event(), threading.Event()

    def watch() -> None:
        ended = False
        while not ended:
            for track in tracks:
                track.read()
            begun.set()
            ended = stop.wait(period_s)
        for track in tracks:
            track.read()

    thread = threading.Thread(target=watch, name="power", daemon=True)
    thread.start()
    begun.wait(_HUNG_S)
    try:
        yield used
    finally:
        stop.set()
        thread.join(_HUNG_S)
        used += [track.used(hung=thread.is_alive()) for track in tracks]


@dataclass(slots=True)
class _Track:
    """The readings of one device so far."""

    meter: Meter
    joules: float = 0.0
    problem: str = ""
    samples: int = 0
    times_s: list[float] = field(default_factory=list)
    """Of the first and the last reading."""
    last: float = nan

    def read(self) -> None:
        """Take one reading; after a failed one no more."""
        if self.problem:
            return
        meter = self.meter
        reader = meter.energy_j or meter.power_w
        assert reader is not None
        try:
            value = reader()
        except Exception as error:
            self.problem = f"it stopped responding ({_said(error)})"
            return
        now_s = time.monotonic()
        if not isnan(self.last):
            self._add(value, now_s - self.times_s[-1])
        self.times_s = [*self.times_s[:1], now_s]
        self.last = value
        self.samples += 1

    def _add(self, value: float, seconds: float) -> None:
        if self.meter.energy_j is None:
            self.joules += (self.last + value) / 2 * seconds
            return
        grown = value - self.last
        if grown < 0:
            grown += self.meter.wraps_at_j  # NaN if it does not wrap: it was reset
        if isnan(grown):
            self.problem = "its energy counter was reset"
        self.joules += grown

    def used(self, *, hung: bool) -> Used:
        """What it used; unknown after a problem, or while its driver `hung`."""
        problem = self.problem or ("its driver does not respond" if hung else "")
        if not problem and self.samples < 2:
            problem = "it was read only once"
        return Used(
            meter=self.meter.name,
            source=self.meter.source,
            joules=nan if problem else self.joules,
            seconds=self.times_s[-1] - self.times_s[0] if self.times_s else nan,
            samples=self.samples,
            counted=self.meter.energy_j is not None,
            problem=problem,
        )
