"""Every gate and every cause that a test of this folder makes has to follow the rules for words."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.wording import check_words, plain
from workbench.metrics.gates.gate import Gate
from workbench.metrics.ledger.causes import Entry


@pytest.fixture(autouse=True)
def plain_words(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Checks the words of all gates and causes once the test is over."""
    made: list[Any] = []
    for kind in (Gate, Entry):

        def kept(record: Any, _init: Any = kind.__init__, **facts: Any) -> None:
            _init(record, **facts)
            made.append(record)

        monkeypatch.setattr(kind, "__init__", kept)
    yield
    for record in made:
        if isinstance(record, Gate):
            check_words(record)
        else:
            plain(record.why, most_words=25)
