"""Every gate that a test of this folder makes has to follow the rules for its words."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.wording import check_words
from workbench.metrics.gates.gate import Gate


@pytest.fixture(autouse=True)
def plain_gates(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Checks the words of each gate once the test is over."""
    made: list[Gate] = []
    init = Gate.__init__

    def kept(gate: Gate, **facts: Any) -> None:
        init(gate, **facts)
        made.append(gate)

    monkeypatch.setattr(Gate, "__init__", kept)
    yield
    for gate in made:
        check_words(gate)
