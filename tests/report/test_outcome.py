"""How a run came out: the words that page, index and terminal share."""

import pytest

from workbench.experiment.result.facts import RunFacts, RunOutcome
from workbench.metrics.gates.gate import Gate
from workbench.report.outcome import outcome_of


def result(*outcomes, **facts):
    """A run whose gates have these outcomes; `name=outcome`, or the outcome of `KV moved`."""
    gates = []
    for text in outcomes:
        name, _, outcome = text.rpartition("=")
        gates.append(Gate(name=name or "KV moved", outcome=outcome, sentence=""))
    fields = {"notebook": "pd_sweep", "run_id": "r", "status": "success", "gates": tuple(gates)}
    return RunFacts(**fields | facts)


@pytest.mark.parametrize(
    ("facts", "word", "severity"),
    [
        (result("PASS"), "gates passed", "ok"),
        (result("PASS", "same text=INCONCLUSIVE"), "gates undecided", "unsure"),
        (result("client kept up=FAIL"), "gates failed", "unsure"),
        (result("FAIL", unproven="PD halves TTFT"), "not valid", "bad"),
        (result("memory=FAIL"), "gates failed", "unsure"),
        (result(), "not checked", "unsure"),
        (result("PASS", status="failed"), "run failed", "bad"),
        (result("PASS", status="cancelled"), "cancelled", "unsure"),
        (None, "unreadable", "unsure"),
    ],
)
def test_a_run_comes_out_as_its_gates_and_its_headline_say(facts, word, severity):
    found = outcome_of(facts)
    assert (found.word, found.severity) == (word, severity)
    assert bool(found.why) == (severity != "ok")


def test_the_reason_names_what_is_taken_away():
    found = outcome_of(result("client kept up=FAIL"))
    assert found.why.startswith("client did not keep up: do not use p99 or ITL")


def test_a_result_may_bring_its_own_words():
    own = RunOutcome(word="ready, busy", severity="unsure", why="Other programs run.")
    assert outcome_of(result("PASS", outcome=own)) == own
    assert outcome_of(result("PASS", outcome=own, status="cancelled")).word == "cancelled"
    # What a notebook said before a later cell failed is no outcome.
    assert outcome_of(result("PASS", outcome=own), "failed").word == "run failed"


def test_the_notebook_outranks_its_result():
    assert outcome_of(result("PASS"), "failed").word == "run failed"
