from workbench.metrics.gates.gate import judge

STEPS = {"next_step": "Mend it", "if_unknown": "Look"}


def test_a_problem_outweighs_what_is_not_known():
    gate = judge("a gate", holds="Fine", problems=["Bad", "Worse"], unknown=["Dark"], **STEPS)
    assert (gate.outcome, gate.sentence) == ("FAIL", "Bad (and 1 more case)")


def test_what_is_not_known_is_never_fine():
    gate = judge("a gate", holds="Fine", unknown=["Dark"], **STEPS)
    assert (gate.outcome, gate.next_step) == ("INCONCLUSIVE", "Look")
    assert judge("a gate", holds="Fine", **STEPS).outcome == "PASS"
