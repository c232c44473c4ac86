from workbench.metrics.gates.gate import judge


def test_a_problem_outweighs_what_is_not_known():
    gate = judge("a gate", holds="fine", problems=["bad", "worse"], unknown=["dark"])
    assert (gate.outcome, gate.sentence) == ("FAIL", "bad (and 1 more like it)")


def test_what_is_not_known_is_never_fine():
    gate = judge("a gate", holds="fine", unknown=["dark"], next_step="mend", if_unknown="look")
    assert (gate.outcome, gate.next_step) == ("INCONCLUSIVE", "look")
    assert judge("a gate", holds="fine").outcome == "PASS"
