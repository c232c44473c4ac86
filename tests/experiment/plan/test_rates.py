from math import isnan

import numpy as np
import pandas as pd
import pytest

from workbench.experiment.findings.compare import compare
from workbench.experiment.findings.rate_findings import answers, rate_rows, rate_sentences
from workbench.experiment.plan.rates import Rates
from workbench.experiment.plan.search import Limits, Search
from workbench.experiment.run.run import run

LIMITS = Limits(ttft_s=0.5, share=0.9)
SEARCH = Search(limits=LIMITS, first_per_s=2.0, bottom_per_s=0.1, top_per_s=50.0)


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
    search = Search(limits=LIMITS, first_per_s=1.0, bottom_per_s=0.1, top_per_s=20.0)
    assert Rates(limits=LIMITS, search=search).expected == (1, 2, 4, 8, 16, 20, 20)
    assert Rates(limits=LIMITS, given=(3.0, 5.0)).expected == (3.0, 5.0)


def test_a_search_finds_where_the_queue_begins_to_grow():
    rates = Rates(limits=LIMITS, search=SEARCH)
    rows = searched(rates, requests=400)
    answer = answers(rates, rows)["1a"]
    assert answer.resolved, answer.reason
    # The n-th request at rate r waits n (1/10 - 1/r) s: 360 of 400 wait up to 0.4 s at 10.11.
    assert 9.0 <= answer.met_per_s <= 10.11 <= answer.missed_per_s <= 1.3 * answer.met_per_s
    (said,) = rate_sentences(rates, rate_rows(rates, rows), {"1a": answer})
    assert said.startswith(
        "1a: the highest tested rate at which 90 % of requests meet TTFT at most 500 ms is"
        f" {answer.met_per_s:g} req/s (100 % ["
    )


def test_every_round_repeats_the_rates_of_the_first():
    rows = searched(Rates(limits=LIMITS, search=SEARCH))
    tried = [list(dict.fromkeys(part["rate_per_s"])) for _, part in rows.groupby("round")]
    assert tried[0] == tried[1] == tried[2] and len(tried[0]) > 3


def test_a_rate_that_cannot_be_measured_ends_the_search():
    rates = Rates(limits=LIMITS, search=SEARCH)
    assert list(rates.of_round(0, "1a", pd.DataFrame)) == [2.0]


def test_a_sweep_shows_offered_and_achieved_and_goodput():
    rates = Rates(given=(5.0, 20.0), limits=LIMITS)
    assert list(rates.of_round(1, "1a", pd.DataFrame)) == [5.0, 20.0]
    rows = rate_rows(rates, pd.concat([queue(5), queue(20)], ignore_index=True))
    below, above = rows
    assert (below.offered_per_s, above.offered_per_s) == pytest.approx((5, 20))
    assert (below.achieved_per_s, above.achieved_per_s) == pytest.approx((5, 10))
    assert below.share == 1 and below.goodput_per_s == pytest.approx(5)
    assert above.share < 0.3 and above.goodput_per_s == pytest.approx(10 * above.share)
    (said,) = rate_sentences(rates, rows, {})
    assert said == (
        "1a: throughput peaked at 10 req/s with 20 req/s offered; goodput peaked at 5 req/s with"
        " 5 req/s offered (TTFT at most 500 ms)."
    )


def test_a_sweep_that_never_overtook_the_server_has_no_most():
    rates = Rates(given=(5.0, 8.0), limits=Limits())
    rows = rate_rows(rates, pd.concat([queue(5), queue(8)], ignore_index=True))
    (said,) = rate_sentences(rates, rows, {})
    assert said == "1a: throughput matched every offered rate, up to 8 req/s."


def test_failed_requests_do_not_meet_limits_and_make_no_rate():
    failed = queue(5).assign(ttft_s=np.nan, tpot_s=np.nan, chunk_s=[()] * 40)
    (row,) = rate_rows(Rates(given=(5.0,), limits=LIMITS), failed)
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


def test_without_rates_there_is_nothing():
    assert rate_rows(None, queue(5)) == () and answers(None, queue(5)) == {}


async def test_a_sweep_over_rates_sends_new_prompts_at_each(attached, vllm):
    plan = attached(rates_per_s=[40.0, 80.0], requests=4, ttft_limit_ms=5_000.0)
    assert "cold at 40/s, cold at 80/s" in str(plan)
    result = await run(plan, echo=lambda _: None)
    gates = {gate["name"]: gate["outcome"] for gate in result.facts["gates"]}
    assert gates["cold was cold"] == gates["every pass ran"] == "PASS"
    assert "same text" not in gates
    assert result.rates["rate_per_s"].tolist() == [40.0, 80.0]
    assert result.rates["share"].tolist() == [1.0, 1.0]
    found = result.facts["unproven"] or result.facts["finding"]  # a busy machine fails a gate
    assert found.startswith("attached serves ") and "within 5000 ms TTFT" in found
    assert len(result.rate_table()) == 2 and len(result.facts["numbers"]) == 3
    # An attached server of this machine is none of the other programs.
    assert "others_cpu_share" not in result.facts["client"]
    assert "CPU use of other programs is unknown" in " ".join(result.doubts)
    assert vllm.counted("local_cache_hit") == 0
    assert result.speedup("ttft").empty  # one arm, in one state at each rate
