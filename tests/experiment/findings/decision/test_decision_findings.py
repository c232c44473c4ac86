"""What an arm serves within the limits, of servers whose capacity is known by construction.

The server of these tests takes 0.2 s for each request and serves one at a time, so it serves 5
requests/s: at a constant rate of up to 5/s each waits for none, above that the queue grows.
"""

from __future__ import annotations

from math import isnan, nan

import pandas as pd
import pytest

from tests.wording import plain, words
from workbench.experiment.findings.decision.decision_findings import (
    decision_headline,
    decision_rows,
    decision_sentence,
)
from workbench.experiment.findings.decision.point_findings import point_rows
from workbench.experiment.findings.load_findings import answers, load_rows
from workbench.experiment.load_unit import RATE, USERS
from workbench.experiment.result.facts import ArmFacts
from workbench.metrics.gates.gate import Gate
from workbench.metrics.latency import latencies
from workbench.records import LegRecord, RequestRecord, to_frame

CAPACITY_PER_S = 5.0
PROMPT, OUTPUT = 1000, 11


def served(arm, rate, *, requests=60, number=0, capacity=CAPACITY_PER_S):
    """The rows and legs of one pass: first come, first served, 10 tokens in 0.1 s after that."""
    free_s, records, legs = 0.0, [], []
    for index in range(requests):
        sent_s = index / rate
        begun_s = max(sent_s, free_s)
        free_s = begun_s + 1 / capacity
        stamps = tuple(free_s + 0.01 * n for n in range(OUTPUT))
        name = f"{arm}-{rate}-{number}-{index}"
        records.append(
            RequestRecord(
                index=index,
                request_id=name,
                prompt_tokens=PROMPT,
                ideal_reuse_tokens=0,
                max_tokens=OUTPUT,
                scheduled_s=sent_s,
                sent_s=sent_s,
                chunk_s=stamps,
                chunk_tokens=(1,) * OUTPUT,
                output_tokens=OUTPUT,
                text="",
                error="",
            )
        )
        legs.append(
            LegRecord(
                request_id=name, index=index, decode_sent_s=begun_s, decode_first_byte_s=free_s
            )
        )
    columns = {
        "arm": arm, "topology": arm, "connector": "lmcache", "round": number,
        "pass": RATE.pass_name(rate),
    }  # fmt: skip
    rows = latencies(to_frame(records, **columns)).assign(rate_per_s=float(rate))
    return rows, to_frame(legs, **columns)


def measured(rates, **arms):
    """Rows and legs of every arm (label=capacity) at every rate."""
    parts = [
        served(arm.replace("_", " "), rate, capacity=capacity)
        for arm, capacity in arms.items()
        for rate in rates
    ]
    return tuple(pd.concat(side, ignore_index=True) for side in zip(*parts, strict=True))


@pytest.fixture
def decided(sweep):
    """The plan and its decisions for a ladder of rates on servers of these capacities."""

    def decide(rates, gates=(), space=(), **given):
        arms = given.pop("arms", {"1p1d_lmcache": CAPACITY_PER_S})
        plan = sweep(
            **{"topology": "1p1d", "rates_per_s": rates, "ttft_limit_ms": 300, "requests": 60}
            | {"rounds": 1} | given
        )  # fmt: skip
        rows, legs = measured(rates, **arms)
        points = point_rows(plan, rows)
        facts = [ArmFacts(label=arm.label, decode_kv_tokens=space) for arm in plan.arms]
        return plan, decision_rows(
            plan, rows, legs,
            loads=load_rows(plan.loads, rows), found=answers(plan.loads, rows), arms=facts,
            points=points, gates=gates,
        )  # fmt: skip

    return decide


def test_the_capacity_of_a_known_server_is_found(decided):
    _, (row,) = decided([2, 4, 5, 6, 8])
    assert (row.arm, row.load) == ("1p1d lmcache", "rate")
    assert (row.met, row.missed) == pytest.approx((5, 6))
    assert row.settled and not row.note
    assert row.share == 1.0
    assert row.throughput_per_s == pytest.approx(5.0)
    assert row.pass_name == "cold at 5/s"


def test_its_sentence_names_each_arm_and_the_limits(decided):
    plan, rows = decided([2, 4, 6, 8], arms={"1p1d_lmcache": 5.0, "2a": 7.0})
    assert decision_sentence(plan, rows) == (
        "1p1d lmcache serves 4 req/s within 300 ms TTFT; 2a 6 (for 90 % of requests)."
    )
    text, arms = decision_headline(plan, rows)
    assert text == "1p1d lmcache serves 4 req/s within 300 ms TTFT; 2a 6"
    assert arms == ["1p1d lmcache", "2a"]
    plain(text, most_words=14)


def test_a_headline_stays_short_with_two_limits(decided):
    arms = {"1p1d_lmcache": 5.0, "2a_lmcache": 7.0}
    plan, rows = decided([2, 4, 6], arms=arms, tpot_limit_ms=50)
    text, _ = decision_headline(plan, rows)
    assert text == "1p1d lmcache serves 4 req/s within the limits; 2a lmcache at least 6"
    assert words(text) <= 14
    assert "within 300 ms TTFT and 50 ms TPOT" in decision_sentence(plan, rows)


def test_if_every_rate_met_the_limits_more_may_fit(decided):
    plan, (row,) = decided([2, 4])
    assert (row.met, isnan(row.missed), row.settled) == (pytest.approx(4), True, True)
    assert row.note == ""
    assert "serves at least 4 req/s" in decision_sentence(plan, [row])


def test_if_no_rate_met_the_limits_it_is_said(decided):
    plan, (row,) = decided([8, 16])
    assert isnan(row.met) and row.missed == pytest.approx(8)
    assert (row.settled, row.note) == (True, "")
    assert "1p1d lmcache serves less than 8 req/s within 300 ms TTFT" in decision_sentence(
        plan, [row]
    )


def test_a_rate_that_met_them_by_chance_above_one_that_missed_does_not_count(decided):
    """A short pass at a high rate can end before its queue is long."""
    plan, _ = decided([2, 4, 8])
    rows, legs = measured([2, 4, 8], **{"1p1d_lmcache": 5.0})
    missed = rows["rate_per_s"].eq(4)
    rows.loc[missed, "ttft_s"] = 1.0
    rows.loc[rows["rate_per_s"].eq(8), "ttft_s"] = 0.1
    (row,) = decision_rows(
        plan, rows, legs, loads=load_rows(plan.loads, rows), found={}, arms=(), points=(), gates=()
    )
    assert (row.met, row.missed) == pytest.approx((2, 4))


def test_too_few_requests_are_said(decided):
    plan, _ = decided([2, 8])
    parts = [served("1p1d lmcache", rate, requests=8) for rate in (2, 8)]
    rows, legs = (pd.concat(side, ignore_index=True) for side in zip(*parts, strict=True))
    (row,) = decision_rows(
        plan, rows, legs, loads=load_rows(plan.loads, rows), found={}, arms=(), points=(), gates=()
    )
    assert (row.met, row.settled) == (pytest.approx(2), False)
    assert row.note == "8 requests at 2 req/s do not decide 90 % (95 % CI 68 % to 100 %)"
    assert decision_headline(plan, [row])[0] == (
        "1p1d lmcache serves about 2 req/s within 300 ms TTFT"
    )


def test_a_rate_at_which_responses_fell_behind_is_no_steady_load(decided):
    _, (row,) = decided([4, 6], ttft_limit_ms=5000)
    assert row.met == pytest.approx(6)
    assert row.note.endswith("responses fell behind (5 per s), so the queue would grow")


def test_head_room_is_what_fits_less_what_runs(decided):
    """1,011 tokens a request: 9 fit 10,000 tokens, and with 5/s and 0.1 s of decode 1 runs."""
    _, (row,) = decided([5, 8], space=(10_000.0,))
    assert row.request_tokens == PROMPT + OUTPUT
    assert (row.kv_tokens, row.running, row.hand_offs) == (10_000, 1, 1)
    assert row.head_room == 10_000 // 1011 - 1 == 8


def test_each_instance_holds_whole_requests_and_a_full_one_none(decided):
    _, (row,) = decided([5, 8], space=(1_500.0, 1_500.0))
    assert row.head_room == 2 - 1
    _, (row,) = decided([5, 8], space=(500.0,))
    assert row.head_room == 0


def test_decode_without_kv_for_more_hand_offs_is_said(decided):
    _, (row,) = decided([5, 8], space=(2_100.0,))
    assert (row.head_room, row.hand_offs) == (1, 1)
    assert row.note == (
        "decode has KV for 1 hand-off and 1 were under way, so KV space limits the load"
    )


def test_without_a_split_requests_run_from_the_start_and_nothing_is_handed_off(decided):
    _, rows = decided([5, 8], space=(10_000.0,), arms={"2a": CAPACITY_PER_S})
    assert isnan(rows[0].hand_offs)
    # 0.2 s of prefill and 0.1 s of decode at 5/s: two at most
    assert (rows[0].running, rows[0].head_room) == (2, 7)


def test_head_room_is_unknown_where_the_engine_does_not_report_its_kv_space(decided):
    for space in ((), (nan,)):
        _, (row,) = decided([5], space=space)
        assert isnan(row.head_room)


FAILED = Gate(name="no failures", outcome="FAIL", sentence="Two", next_step="See", arms=())
BUSY = Gate(name="client kept up", outcome="FAIL", sentence="Late", next_step="See", arms=())
OPEN = Gate(name="KV moved", outcome="INCONCLUSIVE", sentence="No counters", next_step="See")
GOOD = Gate(name="no failures", outcome="PASS", sentence="All requests succeeded")


@pytest.mark.parametrize(
    ("gates", "said"),
    [
        ([FAILED, GOOD], "not valid: requests failed"),
        ([BUSY], "rough: client did not keep up"),
        ([OPEN, GOOD], "inconclusive: KV was transferred (not valid or rough if it fails)"),
        ([GOOD], "1 gate passed"),
        ([], "no gate checked it"),
    ],
)
def test_the_gate_that_makes_it_void_is_named(decided, gates, said):
    _, (row,) = decided([2, 8], gates=gates)
    assert row.gate == said


def test_a_failed_gate_marks_the_sentence_of_its_arm_and_no_other(decided):
    plan, rows = decided([2, 4, 6, 8], arms={"1p1d_lmcache": 5.0, "2a": 7.0})
    share = "(for 90 % of requests)."
    assert decision_sentence(plan, rows, {"no failures": ("1p1d lmcache",)}) == (
        f"Not valid (requests failed): 1p1d lmcache serves 4 req/s within 300 ms TTFT {share}"
        f" 2a serves 6 req/s within 300 ms TTFT {share}"
    )
    said = decision_sentence(plan, rows, {"client kept up": ()})
    assert said == f"Rough (client did not keep up): {decision_sentence(plan, rows)}"


def test_the_rate_is_the_one_that_was_sent(decided):
    """Few random arrivals can be much slower than requested: 12 at 80/s were sent at 52.3/s."""
    plan, _ = decided([80])
    rows, legs = served("1p1d lmcache", 52.3, requests=40, capacity=100)
    rows = rows.assign(rate_per_s=80.0, **{"pass": RATE.pass_name(80)})
    (row,) = decision_rows(
        plan, rows, legs.assign(**{"pass": RATE.pass_name(80)}),
        loads=load_rows(plan.loads, rows), found={}, arms=(), points=(), gates=(),
    )  # fmt: skip
    assert row.met == pytest.approx(52.3) and row.pass_name == "cold at 80/s"
    assert "serves at least 52.3 req/s" in decision_sentence(plan, [row])


def test_the_rate_of_a_run_without_a_sweep_is_the_one_that_was_sent(sweep):
    plan = sweep(topology="1p1d", rate_per_s=80, ttft_limit_ms=300, requests=40, rounds=1)
    rows, legs = served("1p1d lmcache", 52.3, requests=40, capacity=100)
    rows, legs = (part.assign(**{"pass": "cold"}) for part in (rows, legs))
    (row,) = decision_rows(
        plan, rows, legs, loads=(), found={}, arms=(), points=point_rows(plan, rows), gates=()
    )
    assert row.met == pytest.approx(52.3)


def test_without_limits_the_sentence_says_how_to_ask(decided):
    plan, rows = decided([2, 4], ttft_limit_ms=0)
    assert rows == ()
    said = decision_sentence(plan, rows)
    assert said.startswith(
        "No decision: set a latency limit and several rates or concurrencies (example: -p "
    )
    assert decision_headline(plan, rows) == ("", [])


def test_a_closed_loop_is_told_by_its_users(sweep, rows):
    plan = sweep(topology="2a", connector="none", concurrency=4, ttft_limit_ms=300, rounds=3)
    frame = pd.concat([rows("2a", "cold", [0.2] * 20, round=n) for n in range(3)])
    (row,) = decision_rows(
        plan, frame, frame.iloc[:0],
        loads=(), found={}, arms=(), points=point_rows(plan, frame), gates=(),
    )  # fmt: skip
    assert (row.load, row.met) == ("users", 4)
    assert decision_sentence(plan, [row]) == (
        "2a serves at least 4 users within 300 ms TTFT (for 90 % of requests)."
    )


def test_a_sweep_over_users_is_told_by_the_most_that_each_arm_serves(sweep, rows):
    plan = sweep(topology="1p1d", concurrencies=[4, 8], ttft_limit_ms=300, requests=80, rounds=1)

    def measured(arm, users, ttft_s):
        at = {"rate_per_s": 0.0, "concurrency": users}
        return rows(arm, USERS.pass_name(users), [ttft_s] * 80).assign(**at)

    parts = [("1p1d lmcache", 4, 0.2), ("1p1d lmcache", 8, 0.2), ("2a", 4, 0.2), ("2a", 8, 0.4)]
    frame = pd.concat([measured(*part) for part in parts], ignore_index=True)
    found = decision_rows(
        plan, frame, frame.iloc[:0], loads=load_rows(plan.loads, frame), found={}, arms=(),
        points=point_rows(plan, frame), gates=(),
    )  # fmt: skip
    assert [(row.load, row.met, row.pass_name) for row in found] == [
        ("users", 8, "cold at 8 users"),
        ("users", 4, "cold at 4 users"),
    ]
    assert [row.note for row in found] == ["", ""]  # responses cannot fall behind
    assert decision_headline(plan, found)[0] == (
        "1p1d lmcache serves at least 8 users within 300 ms TTFT; 2a 4"
    )


def test_a_trace_has_no_single_rate(sweep):
    plan = sweep(topology="1p1d", arrivals="ramp", rate_per_s=1, end_rate_per_s=4,
                 ttft_limit_ms=300)  # fmt: skip
    assert decision_sentence(plan, ()).startswith("No decision: a trace or ramp has no single rate")
