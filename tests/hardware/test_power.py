"""Energy by fakes of the three interfaces: what they count, and each way in which they fail."""

from __future__ import annotations

import sys
import threading
import time
from math import isnan
from types import SimpleNamespace

import pytest

from workbench.hardware import power
from workbench.hardware.power import Meter, find_meters, watched


class Clock:
    """Seconds that pass by command, so that energy is exact."""

    def __init__(self, monkeypatch):
        self.now_s = 100.0
        monkeypatch.setattr(power.time, "monotonic", lambda: self.now_s)


class NVMLError(Exception):
    pass


class FakeNvml(SimpleNamespace):
    """Two GPUs of 300 W and 500 W; the second has no energy counter."""

    def __init__(self):
        super().__init__(broken="", counter_j={"0": 1000.0}, power_w={"0": 300.0, "1": 500.0})
        self.started = 0

    def nvmlInit(self):
        self.started += 1

    def nvmlDeviceGetHandleByIndex(self, index):
        if str(index) not in self.power_w:
            raise NVMLError("Invalid Argument")
        return str(index)

    def nvmlDeviceGetHandleByUUID(self, uuid):
        return {"GPU-aa": "0", "MIG-bb": "mig"}[uuid]

    def nvmlDeviceGetTotalEnergyConsumption(self, handle):
        if self.broken:
            raise NVMLError(self.broken)
        if handle not in self.counter_j:
            raise NVMLError("Not Supported")
        return int(1000 * self.counter_j[handle])

    def nvmlDeviceGetPowerUsage(self, handle):
        if self.broken or handle not in self.power_w:
            raise NVMLError(self.broken or "Not Supported")
        return int(1000 * self.power_w[handle])


@pytest.fixture
def nvml(monkeypatch):
    fake = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    return fake


@pytest.fixture
def powercap(tmp_path, monkeypatch):
    """A powercap tree with two packages, their cores, a copy by MMIO, and the whole platform."""
    zones = {
        "intel-rapl:0": "package-0", "intel-rapl:0:0": "core", "intel-rapl:1": "package-1",
        "intel-rapl:2": "psys", "intel-rapl-mmio:0": "package-0",
    }  # fmt: skip
    for zone, name in zones.items():
        (tmp_path / zone).mkdir()
        (tmp_path / zone / "name").write_text(f"{name}\n")
        (tmp_path / zone / "energy_uj").write_text("262143000000\n")
        (tmp_path / zone / "max_energy_range_uj").write_text("262143328850\n")
    monkeypatch.setattr(power, "POWERCAP", tmp_path)
    return tmp_path


def reads(meters, change, *, times=1, monkeypatch):
    """What the meters count if `change` happens between two readings, 2 s apart."""
    clock = Clock(monkeypatch)
    tracks = [power._Track(meter) for meter in meters]
    for track in tracks:
        track.read()
    for _ in range(times):
        clock.now_s += 2.0
        change()
        for track in tracks:
            track.read()
    return [track.used(hung=False) for track in tracks]


def test_an_nvidia_gpu_is_read_by_its_energy_counter(nvml, monkeypatch):
    found = find_meters("cuda", ["0"])
    assert (found.missing, nvml.started) == ("", 1)
    (used,) = reads(
        found.found, lambda: nvml.counter_j.update({"0": 1600.0}), monkeypatch=monkeypatch
    )
    assert (used.meter, used.source, used.counted) == ("GPU 0", "NVML", True)
    assert (used.joules, used.seconds, used.watts) == pytest.approx((600.0, 2.0, 300.0))


def test_only_the_gpus_of_the_arm_are_read_and_a_uuid_names_one_too(nvml):
    assert [meter.name for meter in find_meters("cuda", ["1"]).found] == ["GPU 1"]
    assert [meter.name for meter in find_meters("cuda", ["GPU-aa"]).found] == ["GPU GPU-aa"]


def test_servers_without_known_gpus_are_said(nvml):
    assert find_meters("cuda", []).missing == "the GPUs of the servers are not known"


def test_power_of_a_gpu_without_a_counter_is_integrated(nvml, monkeypatch):
    found = find_meters("cuda", ["1"])
    watts = iter([500.0, 300.0, 300.0])
    nvml.power_w["1"] = next(watts)
    (used,) = reads(
        found.found, lambda: nvml.power_w.update({"1": next(watts)}), times=2,
        monkeypatch=monkeypatch,
    )  # fmt: skip
    assert not used.counted
    # 500 to 300 W over 2 s, then 300 W over 2 s
    assert (used.joules, used.seconds, used.samples) == pytest.approx((1400.0, 4.0, 3))


def test_a_mig_slice_and_a_gpu_that_is_not_there_are_said_and_others_are_read(nvml):
    found = find_meters("cuda", ["0", "MIG-bb", "7"])
    assert [meter.name for meter in found.found] == ["GPU 0"]
    assert found.missing == (
        "GPU MIG-bb reports neither energy nor power (Not Supported) (and 1 more)"
    )


def test_a_driver_that_vanishes_leaves_the_energy_unknown_and_ends_nothing(nvml, monkeypatch):
    found = find_meters("cuda", ["0", "1"])

    def lost():
        nvml.broken = "GPU is lost"

    one, other = reads(found.found, lost, monkeypatch=monkeypatch)
    for used in (one, other):
        assert isnan(used.joules) and isnan(used.watts)
        assert used.problem == "it stopped responding (GPU is lost)"


def test_a_counter_that_goes_back_without_wrapping_was_reset(nvml, monkeypatch):
    found = find_meters("cuda", ["0"])
    (used,) = reads(found.found, lambda: nvml.counter_j.update({"0": 3.0}), monkeypatch=monkeypatch)
    assert isnan(used.joules)
    assert used.problem == "its energy counter was reset"


@pytest.mark.parametrize(
    ("platform", "reason"),
    [
        ("cuda", "the Python module pynvml is not installed (package nvidia-ml-py)"),
        ("rocm", "the Python module amdsmi is not installed (comes with ROCm)"),
    ],
)
def test_a_library_that_is_not_installed_is_said(platform, reason, monkeypatch):
    for name in ("pynvml", "amdsmi"):
        monkeypatch.setitem(sys.modules, name, None)
    assert find_meters(platform, ["0"]) == power.Meters(missing=reason)


def test_a_library_without_a_driver_is_said(monkeypatch):
    def no_driver():
        raise NVMLError("NVML Shared Library Not Found")

    monkeypatch.setitem(sys.modules, "pynvml", SimpleNamespace(nvmlInit=no_driver))
    found = find_meters("cuda", ["0"])
    assert found.missing == "pynvml does not respond (NVML Shared Library Not Found)"


NEW = {"energy_accumulator": 4_000_000, "counter_resolution": 15.3, "timestamp": 1}
OLD = {"power": 4_000_000, "counter_resolution": 15.3, "timestamp": 1}


def amd(monkeypatch, energy, watts):
    told = SimpleNamespace(energy=energy, watts=watts)
    fake = SimpleNamespace(
        amdsmi_init=lambda: None,
        amdsmi_get_processor_handles=lambda: ["first"],
        amdsmi_get_energy_count=lambda handle: told.energy,
        amdsmi_get_power_info=lambda handle: told.watts,
    )
    monkeypatch.setitem(sys.modules, "amdsmi", fake)
    return told


@pytest.mark.parametrize("energy", [NEW, OLD], ids=["new names", "old names"])
def test_an_amd_gpu_counts_ticks_of_its_own_size(energy, monkeypatch):
    told = amd(monkeypatch, energy, {})
    (meter,) = find_meters("rocm", ["0"]).found

    def more():
        told.energy = {
            name: value + 1_000_000 * (name in ("power", "energy_accumulator"))
            for name, value in energy.items()
        }

    (used,) = reads([meter], more, monkeypatch=monkeypatch)
    assert (used.meter, used.source, used.counted) == ("GPU 0", "amdsmi", True)
    assert used.joules == pytest.approx(15.3)


@pytest.mark.parametrize(
    "watts",
    [
        {"socket_power": 400, "average_socket_power": "N/A"},
        {"current_socket_power": 400, "average_socket_power": "N/A"},
        {"current_socket_power": "N/A", "average_socket_power": 400},
        {"current_socket_power": 0, "average_socket_power": 400},
    ],
)
def test_a_virtual_amd_gpu_has_no_counter_and_its_power_is_integrated(watts, monkeypatch):
    amd(monkeypatch, {"energy_accumulator": "N/A", "counter_resolution": "N/A"}, watts)
    (meter,) = find_meters("rocm", ["0"]).found
    (used,) = reads([meter], lambda: None, monkeypatch=monkeypatch)
    assert (used.counted, used.joules) == (False, pytest.approx(800.0))


def test_an_amd_gpu_that_reports_nothing_is_said(monkeypatch):
    amd(monkeypatch, {}, {"socket_power": "N/A"})
    found = find_meters("rocm", ["0", "5"])
    assert found.found == ()
    assert found.missing.startswith("GPU 0 reports neither energy nor power (")


def test_rapl_counts_each_package_once_and_wraps(powercap, monkeypatch):
    found = find_meters("cpu", [])
    assert found.missing == ""
    assert [meter.name for meter in found.found] == ["CPU package-0", "CPU package-1"]

    def wrapped():
        (powercap / "intel-rapl:0" / "energy_uj").write_text("1671150\n")
        (powercap / "intel-rapl:1" / "energy_uj").write_text("262143200000\n")

    one, other = reads(found.found, wrapped, monkeypatch=monkeypatch)
    # 0.32885 J to the end of the range, and 1.67115 J from 0
    assert one.joules == pytest.approx(2.0)
    assert other.joules == pytest.approx(0.2)


def test_a_counter_that_only_root_may_read_is_said(powercap, monkeypatch):
    read_text = power.Path.read_text

    def refused(self, *args, **given):
        if self.name == "energy_uj":
            raise PermissionError(13, "Permission denied")
        return read_text(self, *args, **given)

    monkeypatch.setattr(power.Path, "read_text", refused)
    found = find_meters("cpu", [])
    assert found.found == ()
    assert found.missing.startswith(f"{powercap}/intel-rapl:0/energy_uj may be read by root only")
    assert found.missing.endswith("(and 1 more)")


def test_a_machine_without_rapl_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(power, "POWERCAP", tmp_path / "absent")
    assert find_meters("cpu", []) == power.Meters(missing="this machine has no RAPL counters")


def test_the_watch_reads_at_both_ends_and_in_between():
    readings = []

    def energy_j():
        readings.append(float(len(readings)))
        return readings[-1]

    meter = Meter(name="a meter", source="NVML", energy_j=energy_j)
    with watched([meter], period_s=0.01) as used:
        assert used == []
        while len(readings) < 3:
            time.sleep(0.01)
        before = len(readings)
    (one,) = used
    assert one.samples == len(readings) > before
    assert one.joules == one.samples - 1
    assert one.seconds > 0


def test_without_meters_nothing_runs():
    threads = threading.active_count()
    with watched([]) as used:
        assert threading.active_count() == threads
    assert used == []


def test_a_driver_that_hangs_is_left_behind(monkeypatch):
    monkeypatch.setattr(power, "_HUNG_S", 0.05)
    free = threading.Event()
    calls = iter([1.0])

    def hangs():
        for value in calls:
            return value
        free.wait(30)
        return 2.0

    with watched([Meter(name="a", source="NVML", energy_j=hangs)], period_s=0.01) as used:
        time.sleep(0.05)
    free.set()
    assert isnan(used[0].joules)
    assert used[0].problem == "its driver does not respond"


def test_an_error_in_the_block_still_ends_the_watch():
    meter = Meter(name="a", source="NVML", power_w=lambda: 100.0)
    with pytest.raises(ValueError), watched([meter], period_s=0.01) as used:
        raise ValueError
    assert len(used) == 1
    assert not [thread for thread in threading.enumerate() if thread.name == "power"]
