from __future__ import annotations

from math import nan

import pandas as pd
import pytest

from workbench.metrics.gates.answer_gates import (
    Ceilings,
    below_ceilings,
    cached_as_planned,
    no_failures,
    output_counts_equal,
    same_text,
)


def requests(arm: str = "5a none", state: str = "cold", rounds: int = 2, n: int = 3):
    """One arm in one cache state: every request answers with its round and index."""
    return pd.DataFrame(
        [
            {
                "arm": arm,
                "pass": state,
                "round": number,
                "index": index,
                "text": f"answer {number}.{index}",
                "output_tokens": 32,
                "error": "",
            }
            for number in range(1, rounds + 1)
            for index in range(n)
        ]
    )


@pytest.fixture
def frame():
    arms = [
        requests(),
        requests("1p4d lmcache"),
        requests("1p4d lmcache", "store-warm"),
    ]
    return pd.concat(arms, ignore_index=True)


NOTHING = requests().iloc[:0]


def test_no_failure(frame):
    gate = no_failures(frame)
    assert (gate.outcome, gate.sentence) == ("PASS", "0 of 18 requests failed")


def test_failures_are_judged_within_each_arm_and_pass():
    good, bad = requests(n=500, rounds=1), requests("1p4d lmcache", n=50, rounds=1)
    bad.loc[:1, "error"] = ["timeout", "reset"]
    bad.loc[2, "error"] = "timeout"
    gate = no_failures(pd.concat([good, bad]))
    assert gate.outcome == "FAIL"
    assert gate.sentence == (
        "1p4d lmcache, cold: 3 of 50 requests failed (2 timeout, 1 reset), where 1 % may"
    )
    assert "error_message" in gate.next_step


def test_one_failure_in_a_hundred_may_be():
    frame = requests(rounds=1, n=100)
    frame.loc[0, "error"] = "reset"
    assert no_failures(frame).outcome == "PASS"
    assert no_failures(frame).sentence == "1 of 100 requests failed"
    frame.loc[1, "error"] = "reset"
    assert no_failures(frame).outcome == "FAIL"


def test_nothing_sent_proves_nothing():
    for gate in (no_failures(NOTHING), same_text(NOTHING, "5a none"), output_counts_equal(NOTHING)):
        assert gate.outcome == "INCONCLUSIVE"


def test_equal_texts(frame):
    gate = same_text(frame, "5a none")
    assert (gate.outcome, gate.sentence) == (
        "PASS",
        "12 of 12 answers equal those of 5a none, cold",
    )


def test_a_differing_text_is_named(frame):
    frame.loc[frame["pass"].eq("store-warm") & frame["round"].eq(2), "text"] = "!!!!"
    gate = same_text(frame, "5a none")
    assert gate.outcome == "FAIL"
    assert gate.sentence == (
        "3 of 12 answers differ from those of 5a none, cold;"
        " first 1p4d lmcache, round 3, store-warm, request 0"
    )
    assert "concurrency 1" in gate.next_step


def test_answers_that_part_at_a_tie_are_no_damage(frame):
    parted = frame["pass"].eq("store-warm") & frame["index"].eq(1)
    frame.loc[parted, "text"] = "the other word"
    assert same_text(frame, "5a none").outcome == "FAIL"
    frame.loc[parted, "parting_nat"] = 0.125
    gate = same_text(frame, "5a none")
    assert (gate.outcome, gate.sentence) == (
        "PASS",
        "10 of 12 answers equal those of 5a none, cold; the other 2 part where the model's best"
        " tokens are within 0.12 nat, so that rounding decides",
    )
    frame.loc[parted, "parting_nat"] = [0.125, 0.5]
    assert same_text(frame, "5a none").sentence.startswith("1 of 12 answers differ")


def test_failed_requests_have_no_text_to_compare_and_are_counted(frame):
    frame.loc[0, ["text", "error"]] = ["", "reset"]  # of the baseline: takes two others with it
    frame.loc[17, ["text", "error"]] = ["ans", "truncated"]
    gate = same_text(frame, "5a none")
    assert gate.outcome == "PASS"
    assert gate.sentence == (
        "9 of 9 answers equal those of 5a none, cold; 3 left out: a side failed or is missing"
    )


def test_frames_that_were_put_together_may_repeat_their_row_labels():
    two = pd.concat([requests(), requests("1p4d lmcache")])
    assert same_text(two, "5a none").sentence.startswith("6 of 6 answers equal")


def test_texts_without_the_baseline_arm_prove_nothing(frame):
    gate = same_text(frame, "5a lmcache")
    assert gate.outcome == "INCONCLUSIVE"
    assert gate.sentence == "no answer has one of 5a lmcache, cold, beside it"
    assert gate.next_step == "run an aggregated arm too"


def test_equal_output_counts(frame):
    gate = output_counts_equal(frame)
    assert gate.outcome == "PASS"
    assert gate.sentence == "all arms and passes generated equal counts for 6 requests"


def test_unequal_output_counts_are_named(frame):
    frame.loc[frame["pass"].eq("store-warm") & frame["index"].eq(1), "output_tokens"] = 31
    gate = output_counts_equal(frame)
    assert gate.outcome == "FAIL"
    assert gate.sentence == (
        "2 of 6 requests got unequal numbers of tokens;"
        " one of them 5a none, round 2, cold, request 1"
    )
    assert "ignore_eos" in gate.next_step


def test_requests_may_differ_from_one_another_in_length(frame):
    frame["output_tokens"] = 10 + frame["index"]
    assert output_counts_equal(frame).outcome == "PASS"


def test_unknown_counts_are_left_out(frame):
    frame.loc[0, "output_tokens"] = -1
    frame.loc[1, ["output_tokens", "error"]] = [7, "truncated"]
    gate = output_counts_equal(frame)
    assert gate.outcome == "PASS"
    assert gate.sentence.endswith("; 2 rows left out: failed or without a count")
    frame["output_tokens"] = -1
    assert output_counts_equal(frame).outcome == "INCONCLUSIVE"


def test_partly_warm_requests_found_what_was_planned():
    rows = requests(state="50% cached", rounds=1, n=2)
    rows = rows.assign(ideal_reuse_tokens=1024, cached_tokens=[1024, 896])
    assert cached_as_planned(rows, {"50% cached"}).outcome == "PASS"
    gate = cached_as_planned(rows.assign(cached_tokens=[0, 896]), {"50% cached"})
    assert gate.outcome == "FAIL"
    assert "1 of 2 requests found another share cached than planned" in gate.sentence
    unknown = cached_as_planned(rows.assign(cached_tokens=-1), {"50% cached"})
    assert unknown.outcome == "INCONCLUSIVE"


def test_a_few_different_texts_in_batches_are_not_called_damage():
    many = pd.concat([requests(n=50), requests("1p4d lmcache", n=50)], ignore_index=True)
    many.loc[len(many) - 1, "text"] = "another"
    assert same_text(many, "5a none").outcome == "FAIL"
    batched = same_text(many, "5a none", batched=True)
    assert batched.outcome == "INCONCLUSIVE"
    assert "requests ran in batches" in batched.sentence


def test_equal_counts_that_nobody_asked_for_are_not_known_to_be_fine(frame):
    gate = output_counts_equal(frame.assign(max_tokens=40))
    assert gate.outcome == "INCONCLUSIVE"
    assert "18 of 18 requests got another number of tokens than they asked for" in gate.sentence
    assert "ignore_eos" in gate.next_step


LIMIT = {"1a": Ceilings(prefill_tps=20_000, decode_tps=200)}


def computed(ttft_s: float = 0.1, tpot_s: float = 0.01, name: str = "cold", reuse: int = 0):
    """One request of 1,000 prompt tokens: 10,000 a second cold, 100 a second of output."""
    row = {"arm": "1a", "pass": name, "error": "", "prompt_tokens": 1000}
    return pd.DataFrame([row | {"ideal_reuse_tokens": reuse, "ttft_s": ttft_s, "tpot_s": tpot_s}])


def test_rates_below_the_roofline_pass_with_their_distance():
    gate = below_ceilings(computed(), LIMIT)
    assert gate.outcome == "PASS"
    assert gate.sentence.endswith("the nearest is at 50% of it")


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({"ttft_s": 0.01}, "1a: 100,000 prompt tokens per second of a cold prompt, where"),
        ({"tpot_s": 0.001}, "1a: 1,000 output tokens per second of one request, where"),
    ],
)
def test_a_rate_above_it_cannot_be(values, what):
    gate = below_ceilings(computed(**values), LIMIT)
    assert gate.outcome == "FAIL"
    assert gate.sentence.startswith(what)


@pytest.mark.parametrize(
    "row", [computed(0.01, name="engine-warm"), computed(0.01, reuse=900), computed(nan, nan)]
)
def test_what_was_not_computed_has_no_ceiling(row):
    assert below_ceilings(row, LIMIT).outcome == "PASS"


def test_without_a_roofline_nothing_is_proven():
    gate = below_ceilings(computed(), {}, "no roofline is known of this hardware")
    assert gate.outcome == "INCONCLUSIVE"
