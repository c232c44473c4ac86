"""Shared by all tests: nothing may be left running, and real-engine runs go to a folder apart."""

import datetime
import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path

import psutil
import pytest
from hypothesis import settings

from workbench.experiment.plan.speed import TYPICAL
from workbench.grammars import spare_grammars
from workbench.serve.vllm import Abilities

TOKEN = "WORKBENCH_TEST_TOKEN"

spare_grammars()

# The same examples in every run, however long one of them takes.
settings.register_profile("steady", derandomize=True, deadline=None)
settings.load_profile("steady")


@pytest.hookimpl(trylast=True)  # the folders have set their markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first, so that of several processes none ends with much left for another."""

    def shortness(item: pytest.Item) -> int:
        if item.get_closest_marker("engine"):
            return 0 if "notebooks" in item.path.parts else 1
        return 2 if item.get_closest_marker("servers") else 3

    items.sort(key=shortness)


def marked_processes(token: str) -> dict[int, str]:
    """Live processes that inherited this token in their environment: pid -> command line."""
    found = {}
    for process in psutil.process_iter(["environ", "status", "cmdline"]):
        said = process.info
        marked = (said["environ"] or {}).get(TOKEN) == token
        if marked and said["status"] != psutil.STATUS_ZOMBIE and process.pid != os.getpid():
            found[process.pid] = " ".join(said["cmdline"] or ())[:120]
    return found


@pytest.fixture
def token(monkeypatch: pytest.MonkeyPatch) -> str:
    """A mark that every process started in this test inherits."""
    value = secrets.token_hex(8)
    monkeypatch.setenv(TOKEN, value)
    return value


def left_running(token: str, *, within_s: float, besides: Iterable[int] = ()) -> dict[int, str]:
    """Marked processes, `besides` those known, that still live after `within_s` seconds."""
    ends_s = time.monotonic() + within_s
    while alive := {p: line for p, line in marked_processes(token).items() if p not in besides}:
        if time.monotonic() > ends_s:
            break
        time.sleep(0.1)
    return alive


def gone(pid: int) -> bool:
    """Whether that process has ended; its parent may not have noticed yet."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.fixture
def alive(token: str) -> Callable[[], dict[int, str]]:
    """What this test has started and still runs: pid -> command line."""
    return lambda: marked_processes(token)


@pytest.fixture
def nothing_running(token: str) -> Iterator[str]:
    """Fails the test when a process of it is left behind."""
    yield token
    assert left_running(token, within_s=10) == {}


@pytest.fixture
def nothing_left(nothing_running: str) -> Iterator[str]:
    """Fails the test when a process of it, or a shared-memory segment, is left behind."""
    before = {entry.name for entry in os.scandir("/dev/shm")}
    yield nothing_running
    assert left_running(nothing_running, within_s=10) == {}
    # What a live process has mapped belongs to somebody else's run beside this one.
    ends_s = time.monotonic() + 10
    while (segments := orphaned_segments() - before) and time.monotonic() < ends_s:
        time.sleep(0.2)
    assert segments == set()


def orphaned_segments() -> set[str]:
    """Shared-memory files of this user that no live process has mapped."""
    mapped = set()
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with suppress(OSError):
            lines = [line for line in maps.read_text().splitlines() if "/dev/shm/" in line]
            mapped |= {int(line.split()[4]) for line in lines}
    return {
        entry.name
        for entry in os.scandir("/dev/shm")
        if entry.stat().st_uid == os.getuid() and entry.inode() not in mapped
    }


@pytest.fixture(autouse=True)
def _typical_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """No plan of a test measures the machine; what runs in a process of its own does."""
    monkeypatch.setattr("workbench.experiment.plan.engine_setup.machine_speed", lambda *_: TYPICAL)


@pytest.fixture(autouse=True)
def _tested_vllm(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans are for the tested vLLM, without asking an installed one; real engines are asked."""
    if not request.node.get_closest_marker("engine"):
        monkeypatch.setattr(
            "workbench.experiment.plan.engine_setup.abilities", lambda _: Abilities()
        )


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificate and key of 127.0.0.1, signed by itself, in one file."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "workbench test")])
    now, day = datetime.datetime.now(datetime.UTC), datetime.timedelta(days=1)
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - day)
        .not_valid_after(now + day)
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    path.write_bytes(
        signed.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return path
