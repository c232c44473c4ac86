from __future__ import annotations

from math import nan

import pandas as pd
import pytest

from workbench.metrics.gates.response_gates import (
    Ceilings,
    below_ceilings,
    cached_as_planned,
    no_failures,
    output_counts_equal,
    same_text,
)


def requests(arm: str = "5a none", state: str = "cold", rounds: int = 2, n: int = 3):
    """One arm in one cache state: every response has its round and index as text."""
    return pd.DataFrame(
        [
            {"arm": arm, "pass": state, "round": number, "index": index, "error": "",
             "text": f"response {number}.{index}", "output_tokens": 32}
            for number in range(1, rounds + 1)
            for index in range(n)
        ]
    )  # fmt: skip


@pytest.fixture
def frame():
    arms = [requests(), requests("1p4d lmcache"), requests("1p4d lmcache", "store-warm")]
    return pd.concat(arms, ignore_index=True)


NOTHING = requests().iloc[:0]


def test_failures_are_judged_within_each_arm_and_pass(frame):
    gate = no_failures(frame)
    assert (gate.outcome, gate.sentence) == ("PASS", "0 of 18 requests failed")
    good, bad = requests(n=500, rounds=1), requests("1p4d lmcache", n=50, rounds=1)
    bad.loc[:2, "error"] = ["timeout", "reset", "timeout"]
    gate = no_failures(pd.concat([good, bad]))
    assert gate.outcome == "FAIL"
    assert gate.sentence == (
        "3 of 50 requests failed in 1p4d lmcache, cold (2 timeout, 1 reset; limit 1 %)."
        " Latencies cover only the requests that succeeded"
    )
    assert "error_message" in gate.next_step


def test_one_request_in_a_hundred_may_fail():
    frame = requests(rounds=1, n=100)
    frame.loc[0, "error"] = "reset"
    assert no_failures(frame).outcome == "PASS"
    assert no_failures(frame).sentence == "1 of 100 requests failed"
    frame.loc[1, "error"] = "reset"
    assert no_failures(frame).outcome == "FAIL"


def test_without_a_request_nothing_is_decided():
    for gate in (no_failures(NOTHING), same_text(NOTHING, "5a none"), output_counts_equal(NOTHING)):
        assert gate.outcome == "INCONCLUSIVE"


def test_equal_and_different_texts(frame):
    gate = same_text(frame, "5a none")
    assert gate.outcome == "PASS"
    assert gate.sentence == "12 of 12 responses match those of the reference (5a none, cold pass)"
    frame.loc[frame["pass"].eq("store-warm") & frame["round"].eq(2), "text"] = "!!!!"
    gate = same_text(frame, "5a none")
    assert gate.outcome == "FAIL"
    assert gate.sentence == (
        "3 of 12 responses differ from the reference (5a none, cold pass; first: 1p4d lmcache,"
        " round 3, store-warm, request 0). The KV cache may be corrupt"
    )
    assert "concurrency 1" in gate.next_step


def test_responses_that_differ_at_a_tie_are_no_damage(frame):
    parted = frame["pass"].eq("store-warm") & frame["index"].eq(1)
    frame.loc[parted, "text"] = "the other word"
    assert same_text(frame, "5a none").outcome == "FAIL"
    frame.loc[parted, "parting_nat"] = 0.125
    gate = same_text(frame, "5a none")
    assert gate.outcome == "PASS"
    assert gate.sentence == (
        "10 of 12 responses match those of the reference (5a none, cold pass; 2 differ where two"
        " tokens were about equally likely, at most 0.12 nat apart)"
    )
    frame.loc[parted, "parting_nat"] = [0.125, 0.5]
    assert same_text(frame, "5a none").sentence.startswith("1 of 12 responses differ")


def test_failed_requests_have_no_text_to_compare_and_are_counted(frame):
    frame.loc[0, ["text", "error"]] = ["", "reset"]  # of the baseline: takes two others with it
    frame.loc[17, ["text", "error"]] = ["ans", "truncated"]
    gate = same_text(frame, "5a none")
    assert gate.outcome == "PASS"
    assert gate.sentence == (
        "9 of 9 responses match those of the reference (5a none, cold pass; 3 not compared: failed"
        " or without a counterpart)"
    )


def test_frames_that_were_concatenated_may_repeat_their_row_labels():
    two = pd.concat([requests(), requests("1p4d lmcache")])
    assert same_text(two, "5a none").sentence.startswith("6 of 6 responses match")


def test_texts_that_cannot_be_compared_decide_nothing(frame):
    gate = same_text(frame, "5a lmcache")
    assert (gate.outcome, gate.sentence, gate.next_step) == (
        "INCONCLUSIVE",
        "The reference (5a lmcache, cold pass) has no response to compare with",
        "Add an aggregated arm to the run",
    )
    silent = same_text(frame.assign(text=""), "5a none")
    assert silent.outcome == "INCONCLUSIVE"
    assert silent.sentence == "The servers sent no text to compare"


def test_a_few_different_texts_in_batches_are_not_called_damage():
    many = pd.concat([requests(n=50), requests("1p4d lmcache", n=50)], ignore_index=True)
    many.loc[len(many) - 1, "text"] = "another"
    assert same_text(many, "5a none").outcome == "FAIL"
    batched = same_text(many, "5a none", batched=True)
    assert batched.outcome == "INCONCLUSIVE"
    assert batched.sentence.endswith(". Batching alone can cause this")


def test_output_counts_are_equal_between_arms(frame):
    gate = output_counts_equal(frame)
    assert gate.outcome == "PASS"
    assert gate.sentence == "All passes generated the same number of tokens for each of 6 requests"
    # Requests may differ from one another.
    assert output_counts_equal(frame.assign(output_tokens=10 + frame["index"])).outcome == "PASS"
    frame.loc[frame["pass"].eq("store-warm") & frame["index"].eq(1), "output_tokens"] = 31
    gate = output_counts_equal(frame)
    assert gate.outcome == "FAIL"
    assert gate.sentence == (
        "2 of 6 requests have different output token counts in different passes (first: 5a"
        " none, round 2, cold, request 1). TPOT and throughput compare unequal work"
    )
    assert "ignore_eos" in gate.next_step


def test_unknown_counts_are_left_out(frame):
    frame.loc[0, "output_tokens"] = -1
    frame.loc[1, ["output_tokens", "error"]] = [7, "truncated"]
    gate = output_counts_equal(frame)
    assert gate.outcome == "PASS"
    assert gate.sentence.endswith(" (2 rows left out: failed or without a count)")
    frame["output_tokens"] = -1
    assert output_counts_equal(frame).outcome == "INCONCLUSIVE"


def test_equal_counts_that_were_not_requested_decide_nothing(frame):
    gate = output_counts_equal(frame.assign(max_tokens=40))
    assert gate.outcome == "INCONCLUSIVE"
    assert "18 of 18 responses do not have the requested number of tokens" in gate.sentence
    assert "ignore_eos" in gate.next_step


def test_partly_warm_requests_hit_what_was_planned():
    rows = requests(state="50% cached", rounds=1, n=2)
    rows = rows.assign(ideal_reuse_tokens=1024, cached_tokens=[1024, 896])
    assert cached_as_planned(rows, {"50% cached"}).outcome == "PASS"
    gate = cached_as_planned(rows.assign(cached_tokens=[0, 896]), {"50% cached"})
    assert gate.outcome == "FAIL"
    assert "1 of 2 requests did not hit the planned prefix" in gate.sentence
    unknown = cached_as_planned(rows.assign(cached_tokens=-1), {"50% cached"})
    assert unknown.outcome == "INCONCLUSIVE"


LIMIT = {"1a": Ceilings(prefill_tps=20_000, decode_tps=200)}


def computed(ttft_s: float = 0.1, tpot_s: float = 0.01, name: str = "cold", reuse: int = 0):
    """One request of 1,000 prompt tokens: 10,000 a second cold, 100 a second of output."""
    row = {"arm": "1a", "pass": name, "error": "", "prompt_tokens": 1000}
    return pd.DataFrame([row | {"ideal_reuse_tokens": reuse, "ttft_s": ttft_s, "tpot_s": tpot_s}])


@pytest.mark.parametrize(
    ("rows", "outcome", "sentence"),
    [
        (computed(), "PASS", "stay below the hardware limit (at most 50 % of it)"),
        (computed(0.01), "FAIL", "1a prefilled a cold prompt at 100,000 tokens/s, above"),
        (computed(0.1, 0.001), "FAIL", "1a decoded a request at 1,000 tokens/s, above"),
        # What was not computed has no ceiling.
        (computed(0.01, name="engine-warm"), "PASS", ""),
        (computed(0.01, reuse=900), "PASS", ""),
        (computed(nan, nan), "PASS", ""),
    ],
)
def test_no_rate_may_exceed_the_roofline(rows, outcome, sentence):
    gate = below_ceilings(rows, LIMIT)
    assert gate.outcome == outcome
    assert sentence in gate.sentence


def test_without_a_roofline_nothing_is_decided():
    gate = below_ceilings(computed(), {}, "No hardware limit is known for this machine")
    assert gate.outcome == "INCONCLUSIVE"
