"""Servers in other places than this machine's own processes; `make test-places` runs these tests.

They need docker or podman. What podman needs on a machine is its user's matter: a file that
CONTAINERS_CONF names, for example.
"""

import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.serve.conftest import spec as spec
from workbench.errors import WorkbenchError
from workbench.hardware.images import LABEL, PROGRAMS, image

NAME = "localhost/workbench-places:test"
LINKS = ("bin", "lib", "lib64", "sbin")
FOLDERS = ("dev", "etc", "opt", "proc", "root", "run", "sys", "tmp", "usr", "var")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    wanted = "places" in config.getoption("markexpr")
    for item in items:
        if "places" in Path(item.path).parts:
            item.add_marker(pytest.mark.places)
            if not wanted:
                item.add_marker(pytest.mark.skip(reason="run by make test-places"))


@dataclass(frozen=True)
class Made:
    """An image of this machine's own files, and the options that mount them."""

    program: str
    name: str
    args: str
    bare_args: str
    """Without the environment that has vLLM."""

    def containers(self) -> list[str]:
        """Every container of the workbench that exists."""
        line = (self.program, "ps", "--all", "--quiet", "--filter", f"label={LABEL}")
        return subprocess.run(line, capture_output=True, text=True, check=True).stdout.split()


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    """An image without a registry: links, and empty folders for read-only volumes."""
    program = ""
    for name in PROGRAMS:
        try:
            if not subprocess.run((name, "info"), capture_output=True, timeout=60).returncode:
                program = name
                break
        except OSError:
            continue
    if not program:
        pytest.skip("neither docker nor podman answers")
    file = tmp_path_factory.mktemp("image") / "root.tar"
    with tarfile.open(file, "w") as root:
        for folder in FOLDERS:
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            root.addfile(entry)
        for link in LINKS:
            entry = tarfile.TarInfo(link)
            entry.type, entry.linkname = tarfile.SYMTYPE, f"usr/{link}"
            root.addfile(entry)
    path = f"{sys.prefix}/bin:/usr/bin:/bin"
    subprocess.run(
        (program, "import", "--change", f"ENV PATH={path}", str(file), NAME),
        check=True, capture_output=True,
    )  # fmt: skip
    own = dict.fromkeys((sys.prefix, sys.base_prefix))
    bare = [word for folder in ("/usr", "/etc") for word in ("--volume", f"{folder}:{folder}:ro")]
    mounts = [word for folder in own for word in ("--volume", f"{folder}:{folder}:ro")]
    yield Made(program, NAME, " ".join([*bare, *mounts]), " ".join(bare))
    subprocess.run((program, "rmi", "--force", NAME), capture_output=True)


@pytest.fixture(autouse=True)
def nothing_stays(made: Made, nothing_left: str) -> Iterator[None]:
    """Fails the test when a container, a process or a shared-memory segment is left behind."""
    assert made.containers() == []
    image.cache_clear()
    yield
    assert made.containers() == []


@pytest.fixture
def refused() -> Callable[[Callable[[], object]], str]:
    """The sentence with which something is refused."""

    def sentence(act: Callable[[], object]) -> str:
        with pytest.raises(WorkbenchError) as error:
            act()
        return str(error.value)

    return sentence


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    return dict(os.environ) | {"PYTHONPATH": str(Path(__file__).parents[2])}
