from math import nan

from workbench.experiment.findings.clauses import marked, rounds, sample, told
from workbench.metrics.gates.gate_table import spoil


def test_one_round_is_one():
    assert [rounds(n) for n in (0, 1, 3)] == ["0 rounds", "1 round", "3 rounds"]
    assert sample({"n_rounds": 1, "n_pairs": 6}) == "1 round, 6 pairs"


RATIO = {"rests_on": "ratios", "low": 25.8, "note": "3 rounds"}
FEW = {"rests_on": "ratios", "low": nan, "note": "1 round"}
TIME = {"rests_on": "times", "low": 1.0, "note": "24 requests"}
COUNT = {"rests_on": "counts", "low": None, "note": ""}
BUSY = "gate “client kept up” failed"


def test_a_gate_that_failed_spoils_the_key_numbers_that_it_touches_and_no_other():
    cards = marked([RATIO, FEW, TIME, COUNT], ["client kept up"])
    assert [(card["spoilt"], card["note"]) for card in cards] == [
        ("doubt", f"doubtful: {BUSY}; 3 rounds"),
        ("rough", f"rough: {BUSY}; 1 round"),
        ("rough", f"rough: {BUSY}; 24 requests"),
        ("", ""),
    ]
    assert {card["spoilt"] for card in marked(cards, ["cold was cold"])} == {"struck"}
    assert {card["spoilt"] for card in marked([RATIO, COUNT], [])} == {""}


def test_a_key_number_is_spoilt_by_gates_on_its_own_passes():
    warm = RATIO | {"passes": ["engine-warm", "cold"]}
    (card,) = marked([warm], ["store-warm was store-warm"])
    assert card["spoilt"] == ""
    (card,) = marked([warm], ["engine-warm was engine-warm"])
    assert card["spoilt"] == "struck"


def test_a_sentence_is_led_by_what_a_failed_gate_does_to_its_numbers():
    said = "1p4d keeps up."
    assert told(said, spoil(["client kept up"], "times")) == f"Rough: {BUSY}. {said}"
    assert told(said, spoil(["KV moved", "same text"], "times")) == (
        f"Not proven: gates “KV moved” and 1 more failed. {said}"
    )
    assert told(said, spoil(["client kept up"], "ratios")) == said  # a doubt stands elsewhere
    assert told(said, spoil([], "times")) == said
