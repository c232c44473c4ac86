"""Python environments made for a test: real interpreters with packages that pretend."""

from __future__ import annotations

import venv
from pathlib import Path


def environment(folder: Path, **packages: str) -> Path:
    """The interpreter of a new environment with these packages; a value is a package's version.

    Each package can be imported, and does nothing.
    """
    venv.create(folder, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    for name, version in packages.items():
        package(site, name, version)
    return folder / "bin" / "python"


def package(site: Path, name: str, version: str, source: str = "") -> None:
    """Install a package whose `__init__` has this source."""
    (site / name).mkdir()
    (site / name / "__init__.py").write_text(source)
    about = site / f"{name}-{version}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
