"""The install shows how far it is; its hundreds of lines are in a log, and of a failure its end."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from workbench.hardware.machine import repository_root

INSTALL = repository_root() / "requirements" / "install.py"

PIP = """\
#!/bin/sh
echo "$*" >> calls
echo 'Collecting torch==2.13.0+cpu'
echo '  Downloading https://wheels/torch-2.13.0.whl (190.3 MB)'
echo '  Downloading https://wheels/torch-2.13.0.whl.metadata (29 kB)'
mkdir -p $TMPDIR/pip-unpack-1 && head -c 3000000 /dev/zero > $TMPDIR/pip-unpack-1/torch.whl
echo 'Collecting numpy==2.2.6'
echo '  Using cached numpy-2.2.6.whl (16.8 MB)'
echo 'Installing collected packages: numpy, torch'
{end}
"""


@pytest.fixture
def install(tmp_path):
    """Run the installer with a pretended pip, which ends as told, from `tmp_path`."""

    def run(set_="cpu", end="echo 'Successfully installed numpy-2.2.6 torch-2.13.0'", **env):
        pip = tmp_path / "bin" / "pip"
        pip.parent.mkdir(exist_ok=True)
        pip.write_text(PIP.replace("{end}", end).replace(">> calls", f">> {tmp_path}/calls"))
        pip.chmod(0o755)
        return subprocess.run(
            [sys.executable, INSTALL, set_, "--log", tmp_path / "out" / "install.log"],
            env=os.environ | {"PATH": f"{pip.parent}{os.pathsep}{os.environ['PATH']}"} | env,
            cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip

    return run


def test_pips_lines_go_to_the_log_and_two_lines_to_the_reader(install, tmp_path):
    done = install()
    assert done.returncode == 0
    first, last = done.stdout.splitlines()
    assert re.fullmatch(
        r"installing the CPU set \(about 3 GB\): 0 of \d+ packages fetched, 0 MB, 0:00", first
    )
    assert re.fullmatch(
        r"installed the CPU set \(about 3 GB\) in 0:\d\d; the log is out/install.log", last
    )
    log = (tmp_path / "out" / "install.log").read_text()
    assert log.count("Collecting numpy==2.2.6") == 3
    assert list((tmp_path / "out").iterdir()) == [tmp_path / "out" / "install.log"]


def test_torch_comes_from_the_cpu_index_then_the_pins_then_the_workbench(install, tmp_path):
    install()
    torch, pins, ours = (tmp_path / "calls").read_text().splitlines()
    assert torch.endswith(
        "--extra-index-url https://download.pytorch.org/whl/cpu torch==2.13.0+cpu"
    )
    assert pins.endswith("--no-deps -r requirements/cpu.txt")
    assert ours.endswith("--no-deps -e .")


def test_a_gpu_gets_the_cuda_set(install, tmp_path):
    assert install("cuda").returncode == 0
    assert (tmp_path / "calls").read_text().endswith("-e .[cuda,notebooks,dev]\n")


def test_an_install_that_fails_shows_pips_last_lines_and_the_log(install, tmp_path):
    done = install(end="echo 'ERROR: No space left on device' >&2; exit 2")
    assert done.returncode == 1
    shown = done.stdout
    assert "could not be installed: pip ended with status 2. Its last lines:" in shown
    assert "  ERROR: No space left on device\nThe whole log: out/install.log" in shown
    assert len((tmp_path / "calls").read_text().splitlines()) == 1  # the next step was not tried


@pytest.fixture
def progress(monkeypatch):
    monkeypatch.syspath_prepend(str(INSTALL.parent))
    monkeypatch.delitem(sys.modules, "install", raising=False)
    import install as module

    return module.Progress(191)


def test_the_line_says_what_how_far_and_megabytes(progress):
    for line in PIP.splitlines()[2:9]:
        progress.read(line.removeprefix("echo '").rstrip("'"), installed=3)
    said = progress.said("the CPU set", mb=207.1, installed=3, elapsed_s=65)
    assert said == "installing the CPU set: 0 of 2 packages unpacked, 207 MB, 1:05"
    assert progress.said("x", mb=0, installed=4, elapsed_s=65).startswith("installing x: 1 of 2")
    progress.read("Successfully installed numpy-2.2.6 torch-2.13.0", installed=5)
    said = progress.said("the CPU set", mb=207.1, installed=5, elapsed_s=65)
    # A wheel's metadata is no package.
    assert said == "installing the CPU set: 2 of 191 packages fetched, 207 MB, 1:05"


def test_where_the_number_of_packages_is_not_known_none_is_told(progress):
    progress.expected = 0
    progress.read("  Downloading torch-2.13.0.whl (190.3 MB)", installed=3)
    assert "1 packages fetched, 190 MB" in progress.said("x", mb=190.3, installed=3, elapsed_s=1)


def test_make_names_the_installer_and_nothing_that_it_does_itself():
    makefile = Path(repository_root() / "Makefile").read_text()
    assert "requirements/install.py cpu" in makefile
    assert "pip install" not in makefile


def test_mooncake_is_not_installed_where_its_system_libraries_are_missing(install, tmp_path):
    """With Mooncake but without them, `lmcache server` would not start any more."""
    hide = tmp_path / "hide" / "sitecustomize.py"
    hide.parent.mkdir()
    hide.write_text("import ctypes\ndef fail(name, *_): raise OSError(name)\nctypes.CDLL = fail\n")
    done = install("mooncake", PYTHONPATH=str(hide.parent))
    assert done.returncode == 1
    assert "apt-get install -y libibverbs1 librdmacm1 libnuma1 liburing2" in done.stdout
    assert not (tmp_path / "calls").exists()
