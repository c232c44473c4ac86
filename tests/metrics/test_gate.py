import pytest

from workbench.machine import repository_root
from workbench.metrics.gate import judge, meaning


def documented() -> list[str]:
    """The names of the gates, from the table that readers have."""
    text = (repository_root() / "docs" / "result.md").read_text()
    table = text.partition("| name | holds when |")[2].partition("\n\n")[0]
    return [line.split("|")[1].strip() for line in table.splitlines()[2:]]


def test_a_problem_outweighs_what_is_not_known():
    gate = judge("a gate", holds="fine", problems=["bad", "worse"], unknown=["dark"])
    assert (gate.outcome, gate.sentence) == ("FAIL", "bad (and 1 more like it)")


def test_what_is_not_known_is_never_fine():
    gate = judge("a gate", holds="fine", unknown=["dark"], next_step="mend", if_unknown="look")
    assert (gate.outcome, gate.next_step) == ("INCONCLUSIVE", "look")
    assert judge("a gate", holds="fine").outcome == "PASS"


def test_the_table_of_gates_is_found():
    assert {"KV moved", "same text", "client kept up"} <= set(documented())


@pytest.mark.parametrize("name", documented())
def test_every_gate_has_a_meaning_for_readers_who_do_not_know_it(name):
    assert name not in meaning(name)
    assert not meaning(name).endswith(".")
