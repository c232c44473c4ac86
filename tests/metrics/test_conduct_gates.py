from dataclasses import replace
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
        "1 of 2 passes were not measured, first 1p1d, round 1, engine-warm: decode-0 refuses to"
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


def test_kv_that_expired_between_two_passes_is_told_too():
    late = replace(nixl_pass(), expired_before=2.0)
    gate = gates.no_failed_transfers([nixl_pass(), late])
    assert gate.outcome == "FAIL"
    assert gate.sentence == f"before {late.label}: the KV of 2 prompts expired"


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
