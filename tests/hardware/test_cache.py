"""Where this machine keeps what it made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from workbench.hardware.cache import cache_folder


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({"WORKBENCH_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, "/a"),
        ({"XDG_CACHE_HOME": "/b"}, "/b/workbench"),
        ({"HOME": "/home/someone"}, "/home/someone/.cache/workbench"),
    ],
)
def test_where_it_is_kept(
    env: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WORKBENCH_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert cache_folder() == Path(expected)
