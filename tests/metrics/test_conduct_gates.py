from math import nan

import numpy as np
import pandas as pd
import pytest

from workbench.metrics import conduct_gates as gates
from workbench.metrics.counters import NixlCounters
from workbench.metrics.passes import PassCounters

PLANNED = [("1p1d", 0, "cold"), ("1p1d", 0, "engine-warm")]


def test_every_planned_pass_has_to_be_measured():
    assert gates.every_pass_ran(PLANNED, PLANNED).outcome == "PASS"
    short = gates.every_pass_ran(PLANNED, PLANNED[:1], ["decode-0 refuses to reset"])
    assert short.outcome == "FAIL"
    assert short.sentence == (
        "1 of 2 passes were not measured, first 1p1d, round 0, engine-warm: decode-0 refuses to"
        " reset"
    )


def test_a_refused_reset_is_not_forgotten():
    assert gates.caches_emptied([]).outcome == "PASS"
    refused = gates.caches_emptied(["1p1d, round 1, cold: decode-0 refuses", "another"])
    assert refused.outcome == "FAIL"
    assert refused.sentence == "1p1d, round 1, cold: decode-0 refuses (and 1 more like it)"


def nixl_pass(**values) -> PassCounters:
    counted = {"bytes_moved": 1e6, "transfers": 3.0, "failed": 0.0, "expired": 0.0} | values
    return PassCounters(
        arm="1p1d",
        round=0,
        pass_name="cold",
        connector="nixl",
        requests_sent=3,
        prompt_tokens_sent=3000,
        nixl=NixlCounters(**counted),
    )


@pytest.mark.parametrize(
    ("values", "outcome"),
    [
        ({}, "PASS"),
        ({"failed": 1.0}, "FAIL"),
        ({"expired": 2.0}, "FAIL"),
        ({"failed": nan}, "INCONCLUSIVE"),
    ],
)
def test_a_lost_transfer_is_seen_where_vllm_hides_it(values, outcome):
    assert gates.no_failed_transfers([nixl_pass(**values)]).outcome == outcome


def answered(tpot_s: dict[str, list[float]]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Requests and legs of one pass, whose instances needed these times per token."""
    rows = [(url, tpot) for url, values in tpot_s.items() for tpot in values]
    keys = {"arm": "1p2d", "round": 0, "pass": "cold"}
    ids = [str(number) for number in range(len(rows))]
    requests = pd.DataFrame({"request_id": ids, "tpot_s": [t for _, t in rows], "error": ""})
    legs = pd.DataFrame({"request_id": ids, "decode_instance": [url for url, _ in rows]})
    return requests.assign(**keys), legs.assign(**keys)


def test_one_slow_instance_is_found_among_its_siblings():
    alike = answered({"a": [0.004] * 3, "b": [0.005] * 3})
    assert gates.instances_alike(*alike).outcome == "PASS"
    slow = gates.instances_alike(*answered({"a": [0.004] * 3, "b": [0.016] * 3, "c": [0.004] * 3}))
    assert slow.outcome == "FAIL"
    assert "answering instance 1 needed 16.0 ms per token at best" in slow.sentence


def test_an_instance_that_shared_a_core_for_a_moment_is_not_slow():
    moment = answered({"a": [0.004] * 3, "b": [0.004, 0.04, 0.04]})
    assert gates.instances_alike(*moment).outcome == "PASS"


def test_too_few_answers_compare_nothing():
    assert gates.instances_alike(*answered({"a": [0.004] * 3, "b": [0.1] * 2})) is None


WELL = {"loop_lag_p99_s": 0.001, "loop_lag_max_s": 0.001, "thread_cpu_share": 0.1}


@pytest.mark.parametrize(
    ("health", "outcome", "said"),
    [
        (WELL, "PASS", "its busiest thread took 10% of a core"),
        (WELL | {"thread_cpu_share": 0.9}, "FAIL", "90% of a core, where 60% is allowed"),
        (WELL | {"lateness_p99_s": 0.02}, "FAIL", "0.0200 s late (p99), where 0.01 s is allowed"),
        (WELL | {"loop_lag_p99_s": 0.02}, "FAIL", "loop came 0.0200 s late (p99)"),
        (WELL | {"others_cpu_share": 0.6}, "FAIL", "other programs took 60% of the machine's"),
        (WELL | {"others_cpu_share": 0.3}, "INCONCLUSIVE", "where 25% is allowed: the slowest"),
        (WELL | {"clock_moved_s": 0.5}, "FAIL", "the time of day was set by 0.5000 s"),
        (WELL | {"merged_share": 0.2, "loop_lag_p99_s": 0.02}, "FAIL", "20.00% of the gaps"),
        (WELL | {"merged_share": 0.2}, "INCONCLUSIVE", "or the server or its proxy sent them"),
        (WELL | {"merged_share": 0.02}, "INCONCLUSIVE", "2.00% of the gaps"),
        (
            WELL | {"loop_lag_p99_s": 0.02, "kernel_stamped_share": 1.0},
            "INCONCLUSIVE",
            "reads were dated by the kernel all the same",
        ),
        (WELL | {"merged_share": 0.005}, "PASS", "0.50% of the gaps between chunks are nothing"),
        (WELL | {"loop_lag_max_s": 0.2}, "INCONCLUSIVE", "kept waiting for more than 0.05 s once"),
        ({}, "INCONCLUSIVE", "the client's health was not read"),
    ],
)
def test_a_client_that_was_in_the_way_is_not_hidden(health, outcome, said):
    gate = gates.client_kept_up(health)
    assert gate.outcome == outcome
    assert said in gate.sentence


def test_only_others_that_were_there_are_to_be_ended():
    late = WELL | {"lateness_p99_s": 0.02, "others_cpu_share": 0.01}
    assert "cores that the servers leave free" in gates.client_kept_up(late).next_step
    crowded = late | {"others_cpu_share": 0.6}
    assert "end other programs" in gates.client_kept_up(crowded).next_step


def test_every_limit_that_was_passed_is_told_and_what_to_do_next():
    gate = gates.client_kept_up(WELL | {"thread_cpu_share": 0.9, "lateness_p99_s": 1.0})
    assert "late (p99)" in gate.sentence
    assert "90% of a core" in gate.sentence
    assert "client_workers 2" in gate.next_step
    busy = {"thread_cpu_share": 0.9, "workers": 3.0}
    assert "client_workers 4" in gates.client_kept_up(busy, most_workers=4).next_step
    assert "client_workers" not in gates.client_kept_up(busy, most_workers=3).next_step
    assert "client_workers" not in gates.client_kept_up({"lateness_p99_s": 1.0}).next_step


def a_pass(ttft_s: np.ndarray) -> pd.DataFrame:
    n = len(ttft_s)
    return pd.DataFrame(
        {
            "arm": "1a",
            "round": 0,
            "pass": "cold",
            "error": "",
            "scheduled_s": range(n),
            "prompt_tokens": 1000,
            "ideal_reuse_tokens": 0,
            "ttft_s": ttft_s,
        }
    )


def test_a_queue_that_grows_is_no_steady_state():
    noise = np.random.default_rng(0).normal(1, 0.05, 60)
    assert gates.steady(a_pass(noise)).outcome == "PASS"
    growing = gates.steady(a_pass(noise + np.linspace(0, 2, 60)))
    assert growing.outcome == "FAIL"
    assert "in the first third to" in growing.sentence
    assert gates.steady(a_pass(noise[:19])) is None


def test_requests_that_differ_by_themselves_are_no_drift():
    ordered = a_pass(np.linspace(0.1, 2, 60))
    assert gates.steady(ordered).outcome == "FAIL"
    assert gates.steady(ordered.assign(ideal_reuse_tokens=range(60))) is None


def rows(**values) -> pd.DataFrame:
    clean = {
        "error": "",
        "ttft_s": 0.1,
        "e2e_s": 0.2,
        "usage_prompt_tokens": 1000,
        "prompt_tokens": 1000,
        "cached_tokens": 896,
        "output_tokens": 8,
        "max_tokens": 8,
    }
    return pd.DataFrame([clean | values])


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({"ttft_s": -0.1}, "a first token before the request was sent"),
        ({"e2e_s": 0.05}, "a last token before the first"),
        ({"usage_prompt_tokens": 999}, "another prompt length"),
        ({"cached_tokens": 1001}, "more cached tokens"),
        ({"output_tokens": 9}, "more output tokens"),
    ],
)
def test_a_row_that_cannot_be_is_found(values, what):
    assert gates.possible(rows()).outcome == "PASS"
    assert gates.possible(rows(cached_tokens=-1, usage_prompt_tokens=-1)).outcome == "PASS"
    found = gates.possible(rows(**values))
    assert found.outcome == "FAIL"
    assert what in found.sentence
