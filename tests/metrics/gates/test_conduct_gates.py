from dataclasses import replace
from math import nan

import numpy as np
import pandas as pd
import pytest

from workbench.metrics.counters import NixlCounters, TokenSources
from workbench.metrics.gates import conduct_gates as gates
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
        pulls=True,
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


def test_on_a_busy_machine_an_instance_is_slow_only_beyond_what_other_programs_make():
    twice = answered({"a": [0.004] * 3, "b": [0.010] * 3, "c": [0.004] * 3})
    assert gates.instances_alike(*twice).outcome == "FAIL"
    unsure = gates.instances_alike(*twice, busy=True)
    assert unsure.outcome == "INCONCLUSIVE"
    assert unsure.sentence.endswith("other programs may be the reason")
    assert unsure.next_step.startswith("end other programs")
    far = answered({"a": [0.004] * 3, "b": [0.016] * 3, "c": [0.004] * 3})
    assert gates.instances_alike(*far, busy=True).outcome == "FAIL"


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


def test_on_a_busy_machine_a_drift_counts_only_beyond_what_other_programs_make():
    noise = np.random.default_rng(0).normal(1, 0.05, 60)
    doubled = a_pass(noise + np.linspace(0, 1, 60))
    assert gates.steady(doubled).outcome == "FAIL"
    assert gates.steady(doubled, busy=True).outcome == "INCONCLUSIVE"
    queue = a_pass(noise + np.linspace(0, 9, 60))
    assert gates.steady(queue, busy=True).outcome == "FAIL"


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


def streams(gaps_s: list[float], *, arm: str = "1a", **facts) -> pd.DataFrame:
    """Answers of 12 tokens, each with one gap between its chunks; 0 is one chunk."""
    stamps = [tuple(1.0 + g * i for i in range(12 if g else 1)) for g in gaps_s]
    rows = pd.DataFrame({"chunk_s": stamps, "arm": arm, "error": "", "max_tokens": 12})
    rows["e2e_s"] = [s[-1] for s in stamps]
    return rows.assign(**({"output_tokens": 12} | facts))


def test_a_stream_that_is_one_passes():
    gate = gates.streamed(streams([0.01] * 4))
    assert (gate.outcome, gate.sentence) == (
        "PASS",
        "the tokens of 4 of 4 answers came one after another",
    )
    assert gates.streamed(streams([0.01], max_tokens=4, output_tokens=4)) is None
    assert gates.streamed(streams([])) is None


@pytest.mark.parametrize("gap_s", [0, 1e-6])
def test_a_stream_that_was_buffered_fails_and_says_what_ttft_is(gap_s):
    mixed = pd.concat([streams([0.01] * 6), streams([gap_s] * 3, arm="gateway")])
    gate = gates.streamed(mixed)
    assert gate.outcome == "FAIL"
    assert gate.sentence == (
        "the stream was buffered: TTFT equals E2E in 3 of 3 answers of gateway, which came in one"
        " piece"
    )


def test_bursts_are_told_from_one_piece():
    bursts = streams([0.01] * 3)
    bursts["chunk_s"] = [tuple(1.0 + i // 6 for i in range(12))] * 3
    gate = gates.streamed(bursts)
    assert gate.outcome == "FAIL"
    assert "3 of 3 answers of 1a came in bursts" in gate.sentence


def test_a_client_that_was_disturbed_may_have_gathered_them_itself():
    late = gates.streamed(streams([0] * 3), disturbed=True)
    assert late.outcome == "INCONCLUSIVE"
    assert late.sentence.endswith("; or the client gathered them, which other programs disturbed")
    assert gates.streamed(streams([0] * 10), disturbed=True).outcome == "FAIL"
    assert gates.streamed(streams([0.01] * 3), disturbed=True).outcome == "PASS"


def test_a_moment_that_gathers_some_answers_is_no_gateway():
    some = gates.streamed(streams([0.01] * 3 + [0] * 5))
    assert (some.outcome, some.sentence) == (
        "PASS",
        "the tokens of 3 of 8 answers came one after another",
    )


def test_short_answers_that_all_came_in_one_piece_may_have_been_buffered():
    short = {"max_tokens": 4, "output_tokens": 4}
    gate = gates.streamed(streams([0] * 3, **short))
    assert gate.outcome == "INCONCLUSIVE"
    assert gate.sentence == (
        "3 of 3 answers of 1a came in one piece; whether the stream was buffered, answers of 8"
        " tokens would show"
    )
    assert gates.streamed(streams([0, 0.01, 0.01], **short)) is None
    assert gates.streamed(streams([0] * 3, max_tokens=4, output_tokens=1)) is None


def test_one_chunk_of_tokens_that_nobody_counts_is_not_known():
    gate = gates.streamed(streams([0] * 3, output_tokens=-1))
    assert gate.outcome == "INCONCLUSIVE"
    assert gate.sentence == (
        "3 of 3 answers came in one chunk, and the server does not count its tokens"
    )


def told(cached: int, sources: dict[str, TokenSources], *, name: str = "cold", ideal: int = 0):
    """The gate for three prompts of 1,000 tokens, of each of which so many are called cached."""
    rows = {"arm": "1a", "round": 0, "pass": name, "error": "", "cached_tokens": [cached] * 3}
    counted = PassCounters(
        arm="1a",
        round=0,
        pass_name=name,
        requests_sent=3,
        prompt_tokens_sent=3000,
        ideal_reuse_tokens=ideal,
        sources=sources,
    )
    return gates.cached_plausible(pd.DataFrame(rows | {"prompt_tokens": 1000}), [counted])


COMPUTED = TokenSources(computed=3000, engine_hit=0, external_hit=0)
FETCHED = TokenSources(computed=3, engine_hit=0, external_hit=2997)


def test_a_new_prompt_that_is_called_cached_is_not_believed():
    unseen = told(1000, {})
    assert (unseen.outcome, unseen.sentence) == (
        "FAIL",
        "1a, round 1, cold: answers call 3,000 of 3,000 prompt tokens cached, where new prompts"
        " can find 0",
    )
    assert "cached_tokens" in unseen.next_step
    counted = told(1000, {"aggregated": COMPUTED})
    assert "where the instances count 0" in counted.sentence


@pytest.mark.parametrize(
    ("cached", "sources", "ideal"),
    [
        (0, {}, 0),
        (16, {}, 0),  # a template's first block, or a token that all prompts begin with
        (600, {}, 1800),
        (999, {"aggregated": FETCHED}, 0),  # not cold, which is another gate's to say
        (999, {"prefill": COMPUTED, "decode": FETCHED}, 0),
        (0, {"prefill": COMPUTED, "decode": FETCHED}, 0),  # NIXL: fetched is not called cached
    ],
)
def test_what_can_be_passes(cached, sources, ideal):
    assert told(cached, sources, ideal=ideal).outcome == "PASS"


def test_what_cannot_be_judged_is_not():
    hidden = {"prefill": TokenSources(), "decode": TokenSources()}
    assert told(999, hidden) is None  # KV that was fetched is called cached there
    assert told(-1, {}) is None
    assert told(1000, {}, name="engine-warm") is None
