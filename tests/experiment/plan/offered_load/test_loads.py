from math import isnan

import numpy as np
import pandas as pd
import pytest

from workbench.experiment.findings.compare import compare
from workbench.experiment.findings.load_findings import answers, load_rows, load_sentences
from workbench.experiment.load_unit import USERS
from workbench.experiment.plan.offered_load.loads import Loads
from workbench.experiment.plan.offered_load.search import Limits, Search
from workbench.experiment.run.run import run

LIMITS = Limits(ttft_s=0.5, share=0.9)
SEARCH = Search(limits=LIMITS, first=2.0, bottom=0.1, top=50.0)


def queue(rate_per_s, *, arm="1a", round=0, requests=40, serves_per_s=10.0):
    """Requests evenly at a rate, served one after the other by a server of a given speed."""
    due_s = np.arange(requests) / rate_per_s
    ends_s, free_s = [], 0.0
    for at_s in due_s:
        free_s = max(free_s, at_s) + 1 / serves_per_s
        ends_s.append(free_s)
    return pd.DataFrame(
        {
            "arm": arm,
            "round": round,
            "pass": f"cold at {rate_per_s:g}/s",
            "rate_per_s": float(rate_per_s),
            "scheduled_s": due_s,
            "ttft_s": np.array(ends_s) - due_s,
            "tpot_s": 0.01,
            "chunk_s": [(end_s,) for end_s in ends_s],
        }
    )


def searched(rates, **options):
    """What a search measures on that server, round by round."""
    measured = [pd.DataFrame()]
    for number in range(3):
        for rate in rates.of_round(number, "1a", lambda: pd.concat(measured)):
            measured.append(queue(rate, round=number, **options))
    return pd.concat(measured, ignore_index=True)


def test_how_long_a_search_takes_is_told_by_rates_that_double():
    search = Search(limits=LIMITS, first=1.0, bottom=0.1, top=20.0)
    assert Loads(limits=LIMITS, search=search).expected == (1, 2, 4, 8, 16, 20, 20)
    assert Loads(limits=LIMITS, given=(3.0, 5.0)).expected == (3.0, 5.0)


def test_a_search_finds_where_the_queue_begins_to_grow():
    rates = Loads(limits=LIMITS, search=SEARCH)
    rows = searched(rates, requests=400)
    answer = answers(rates, rows)["1a"]
    assert answer.resolved, answer.reason
    # The n-th request at rate r waits n (1/10 - 1/r) s: 360 of 400 wait up to 0.4 s at 10.11.
    assert 9.0 <= answer.met <= 10.11 <= answer.missed <= 1.3 * answer.met
    (said,) = load_sentences(rates, load_rows(rates, rows), {"1a": answer})
    assert said.startswith(
        "1a: the highest tested rate at which 90 % of requests meet TTFT at most 500 ms is"
        f" {answer.met:g} req/s (100 % ["
    )


def test_every_round_repeats_the_rates_of_the_first():
    rows = searched(Loads(limits=LIMITS, search=SEARCH))
    tried = [list(dict.fromkeys(part["rate_per_s"])) for _, part in rows.groupby("round")]
    assert tried[0] == tried[1] == tried[2] and len(tried[0]) > 3


def test_a_rate_that_cannot_be_measured_ends_the_search():
    rates = Loads(limits=LIMITS, search=SEARCH)
    assert list(rates.of_round(0, "1a", pd.DataFrame)) == [2.0]


def test_a_sweep_shows_offered_and_achieved_and_goodput():
    rates = Loads(given=(5.0, 20.0), limits=LIMITS)
    assert list(rates.of_round(1, "1a", pd.DataFrame)) == [5.0, 20.0]
    rows = load_rows(rates, pd.concat([queue(5), queue(20)], ignore_index=True))
    below, above = rows
    assert (below.offered_per_s, above.offered_per_s) == pytest.approx((5, 20))
    assert (below.achieved_per_s, above.achieved_per_s) == pytest.approx((5, 10))
    assert below.share == 1 and below.goodput_per_s == pytest.approx(5)
    assert above.share < 0.3 and above.goodput_per_s == pytest.approx(10 * above.share)
    (said,) = load_sentences(rates, rows, {})
    assert said == (
        "1a: throughput peaked at 10 req/s with 20 req/s offered; goodput peaked at 5 req/s with"
        " 5 req/s offered (TTFT at most 500 ms)."
    )


def test_a_sweep_that_never_overtook_the_server_has_no_most():
    rates = Loads(given=(5.0, 8.0), limits=Limits())
    rows = load_rows(rates, pd.concat([queue(5), queue(8)], ignore_index=True))
    (said,) = load_sentences(rates, rows, {})
    assert said == "1a: throughput matched every offered rate, up to 8 req/s."


def test_failed_requests_do_not_meet_limits_and_make_no_rate():
    failed = queue(5).assign(ttft_s=np.nan, tpot_s=np.nan, chunk_s=[()] * 40)
    (row,) = load_rows(Loads(given=(5.0,), limits=LIMITS), failed)
    assert row.share == 0 and isnan(row.achieved_per_s)


def test_an_opponent_is_compared_at_the_rates_that_both_had(sweep, rows):
    plan = sweep(topology="1p1d", rates_per_s=[5.0, 20.0])
    subject, rival = (arm.label for arm in plan.arms[:2])
    frame = pd.concat(
        [
            rows(subject, "cold at 5/s", [0.2, 0.2]),
            rows(rival, "cold at 5/s", [0.1, 0.1]),
            rows(rival, "cold at 20/s", [0.1, 0.1]),
        ]
    )
    found = {(r.pass_name, r.metric): r.ratio.value for r in compare(plan, frame)}
    assert found["cold at 5/s", "ttft_s"] == pytest.approx(0.5)
    assert {name for name, _ in found} == {"cold at 5/s"}


def loop(users, *, arm="1a", round=0, requests=40, serves_per_s=10.0):
    """Requests of users that send the next when one ends, served one after the other."""
    ends_s = (1 + np.arange(requests)) / serves_per_s
    sent_s = np.concatenate([np.zeros(users), ends_s])[:requests]
    return pd.DataFrame(
        {
            "arm": arm,
            "round": round,
            "pass": USERS.pass_name(users),
            "rate_per_s": 0.0,
            "concurrency": users,
            "scheduled_s": sent_s,
            "ttft_s": ends_s - sent_s,
            "tpot_s": 0.01,
            "chunk_s": [(end_s,) for end_s in ends_s],
        }
    )


def test_users_of_a_closed_loop_wait_for_each_other():
    loads = Loads(given=(1.0, 4.0, 8.0), unit=USERS, limits=LIMITS)
    assert str(loads) == "cold at 1 user, cold at 4 users, cold at 8 users"
    rows = load_rows(loads, pd.concat([loop(1), loop(4), loop(8)], ignore_index=True))
    assert [row.users for row in rows] == [1, 4, 8]
    assert all(isnan(row.rate_per_s) and isnan(row.offered_per_s) for row in rows)
    # each waits for all others: 8 users for 0.8 s
    assert [row.ttft_s for row in rows] == pytest.approx([0.1, 0.4, 0.8])
    assert [row.achieved_per_s for row in rows] == pytest.approx([10, 10, 10])
    # of 8 users only the first five requests meet 0.5 s
    assert [row.share for row in rows] == pytest.approx([1, 1, 5 / 40])
    (said,) = load_sentences(loads, rows, {})
    assert said == (
        "1a: throughput peaked at 10 req/s with 1 user; goodput peaked at 10 req/s with 1 user"
        " (TTFT at most 500 ms)."
    )


def test_more_users_may_reach_more_than_the_most_that_were_measured():
    loads = Loads(given=(1.0, 4.0), unit=USERS, limits=Limits())
    rows = [loop(1), loop(4, serves_per_s=20.0)]
    found = load_rows(loads, pd.concat(rows, ignore_index=True))
    assert load_sentences(loads, found, {}) == ["1a: throughput reached 20 req/s with 4 users."]


def test_a_search_finds_the_highest_number_of_users():
    search = Search(limits=LIMITS, first=1.0, bottom=1.0, top=40.0, unit=USERS)
    loads = Loads(limits=LIMITS, search=search, unit=USERS)
    measured = [pd.DataFrame()]
    for number in range(3):
        for users in loads.of_round(number, "1a", lambda: pd.concat(measured)):
            measured.append(loop(int(users), round=number, requests=400))
    rows = pd.concat(measured, ignore_index=True)
    answer = answers(loads, rows)["1a"]
    assert (answer.met, answer.missed, answer.resolved) == (5, 6, True)
    (said,) = load_sentences(loads, load_rows(loads, rows), {"1a": answer})
    assert said.startswith(
        "1a: the highest tested number of users at which 90 % of requests meet TTFT at most 500 ms"
        " is 5 (98 % [98 %, 99 %] met them); the lowest that fails is 6 ("
    )


def test_without_rates_there_is_nothing():
    assert load_rows(None, queue(5)) == () and answers(None, queue(5)) == {}


async def test_a_sweep_over_users_sends_new_prompts_in_closed_loops(attached, vllm):
    plan = attached(concurrencies=[1, 3], requests=8, ttft_limit_ms=5_000.0)
    assert "cold at 1 user, cold at 3 users" in str(plan)
    assert plan.describe_arrivals() == "closed loop, 1, 3 at a time"
    result = await run(plan, echo=lambda _: None)
    gates = {gate["name"]: gate["outcome"] for gate in result.facts["gates"]}
    assert gates["cold was cold"] == gates["every pass ran"] == "PASS"
    assert result.loads["users"].tolist() == [1, 3]
    assert result.points["users"].tolist() == [1, 3]
    for users, rows in result.requests.groupby("concurrency"):
        ends = rows["chunk_s"].map(lambda stamps: stamps[-1]).sort_values().to_numpy()
        # a request is sent when an earlier one has ended
        assert (rows["sent_s"].sort_values().to_numpy()[users:] > ends[: 8 - users]).all()
    found = result.facts["unproven"] or result.facts["finding"]
    assert found.startswith("attached serves ") and found.endswith("users within 5000 ms TTFT")
    assert list(result.load_table()["users"]) == ["1", "3"]
    (row,) = result.facts["decisions"]
    assert (row["load"], row["met"], row["missed"]) == ("users", 3, None)
    assert vllm.counted("local_cache_hit") == 0


async def test_a_sweep_over_rates_sends_new_prompts_at_each(attached, vllm):
    plan = attached(rates_per_s=[40.0, 80.0], requests=4, ttft_limit_ms=5_000.0)
    assert "cold at 40/s, cold at 80/s" in str(plan)
    result = await run(plan, echo=lambda _: None)
    gates = {gate["name"]: gate["outcome"] for gate in result.facts["gates"]}
    assert gates["cold was cold"] == gates["every pass ran"] == "PASS"
    assert "same text" not in gates
    assert result.loads["rate_per_s"].tolist() == [40.0, 80.0]
    assert result.loads["share"].tolist() == [1.0, 1.0]
    found = result.facts["unproven"] or result.facts["finding"]  # a busy machine fails a gate
    assert found.startswith("attached serves ") and "within 5000 ms TTFT" in found
    assert len(result.load_table()) == 2 and len(result.facts["numbers"]) == 3
    # An attached server of this machine is none of the other programs.
    assert "others_cpu_share" not in result.facts["client"]
    assert "CPU use of other programs is unknown" in " ".join(result.doubts)
    assert vllm.counted("local_cache_hit") == 0
    assert result.speedup("ttft").empty  # one arm, in one state at each rate
