from workbench.experiment.clauses import rounds, sample, unproven


def test_one_round_is_one():
    assert [rounds(n) for n in (0, 1, 3)] == ["0 rounds", "1 round", "3 rounds"]
    assert sample({"n_rounds": 1, "n_pairs": 6}) == "1 round, 6 pairs"


def test_a_failed_gate_is_noted_on_every_key_number():
    cards = [{"value": 8.0, "note": "3 rounds"}, {"value": 2.0, "note": "24 requests"}]
    assert unproven(cards, []) == cards
    assert [card["note"] for card in unproven(cards, ["cold was cold"])] == [
        "not proven: a gate failed; 3 rounds",
        "not proven: a gate failed; 24 requests",
    ]
