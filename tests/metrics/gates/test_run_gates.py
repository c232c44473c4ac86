from dataclasses import replace
from math import nan

import numpy as np
import pandas as pd
import pytest

from workbench.metrics.counters import TokenSources, TransferCounters
from workbench.metrics.gates import run_gates as gates
from workbench.metrics.passes import PassCounters

PLANNED = [("1p1d", 0, "cold"), ("1p1d", 0, "engine-warm")]


def test_every_planned_pass_has_to_be_measured():
    assert gates.every_pass_ran(PLANNED, PLANNED).outcome == "PASS"
    short = gates.every_pass_ran(PLANNED, PLANNED[:1], ["decode-0 refuses to reset"])
    assert short.outcome == "FAIL"
    assert short.sentence == (
        "1 of 2 passes were not measured. First: 1p1d, round 1, engine-warm (decode-0 refuses to"
        " reset)"
    )


def test_a_refused_reset_is_not_forgotten():
    assert gates.caches_emptied([]).outcome == "PASS"
    refused = gates.caches_emptied(["Decode-0 refused the reset", "another"])
    assert refused.outcome == "FAIL"
    assert refused.sentence == "Decode-0 refused the reset (and 1 more case)"


def nixl_pass(**values) -> PassCounters:
    counted = {"bytes_moved": 1e6, "transfers": 3.0, "failed": 0.0, "expired": 0.0} | values
    return PassCounters(
        arm="1p1d",
        round=0,
        pass_name="cold",
        pulls=True,
        requests_sent=3,
        prompt_tokens_sent=3000,
        transfers=TransferCounters(**counted),
    )


@pytest.mark.parametrize(
    ("values", "outcome"),
    [
        ({}, "PASS"),
        ({"failed": 1.0}, "FAIL"),
        ({"expired": 2.0}, "FAIL"),
        ({"failed": nan}, "INCONCLUSIVE"),
        ({"expired": nan}, "INCONCLUSIVE"),
        ({"failed": 1.0, "expired": nan}, "FAIL"),
    ],
)
def test_a_lost_transfer_is_seen_where_vllm_hides_it(values, outcome):
    assert gates.no_failed_transfers([nixl_pass(**values)]).outcome == outcome


def test_kv_that_expired_between_two_passes_is_told_too():
    late = replace(nixl_pass(), expired_before=2.0)
    gate = gates.no_failed_transfers([nixl_pass(), late])
    assert gate.outcome == "FAIL"
    assert gate.sentence == f"The KV of 2 prompts expired before {late.label}"


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
    assert "Instance 1 took 16.0 ms per token at best" in slow.sentence


def test_an_instance_that_shared_a_core_for_a_moment_is_not_slow():
    moment = answered({"a": [0.004] * 3, "b": [0.004, 0.04, 0.04]})
    assert gates.instances_alike(*moment).outcome == "PASS"


@pytest.mark.parametrize(
    ("slow_s", "others_share", "outcome"),
    [
        (0.010, 0.0, "FAIL"),
        (0.010, 0.3, "INCONCLUSIVE"),  # processes take turns
        (0.016, 0.3, "FAIL"),
        (0.016, 0.85, "INCONCLUSIVE"),  # at a load of 10 on 2 cores one is slow by any factor
        (0.160, 0.5, "FAIL"),
    ],
)
def test_on_a_busy_machine_other_programs_may_be_the_reason(slow_s, others_share, outcome):
    slow = answered({"a": [0.004] * 3, "b": [slow_s] * 3, "c": [0.004] * 3})
    gate = gates.instances_alike(*slow, others_share=others_share)
    assert gate.outcome == outcome
    if outcome == "INCONCLUSIVE":
        assert (
            f"Other programs may be the reason ({100 * others_share:.0f} % of the CPU)"
            in gate.sentence
        )
        assert gate.next_step.startswith("End other programs")


def test_too_few_answers_compare_nothing():
    assert gates.instances_alike(*answered({"a": [0.004] * 3, "b": [0.1] * 2})) is None


def a_pass(ttft_s: np.ndarray) -> pd.DataFrame:
    constant = {"arm": "1a", "round": 0, "pass": "cold", "error": ""}
    constant |= {"prompt_tokens": 1000, "ideal_reuse_tokens": 0}
    return pd.DataFrame({"scheduled_s": range(len(ttft_s)), "ttft_s": ttft_s}).assign(**constant)


NOISE = np.random.default_rng(0).normal(1, 0.05, 60)


@pytest.mark.parametrize(
    ("grown_s", "others_share", "outcome"),
    [
        (0, 0.0, "PASS"),
        (1, 0.0, "FAIL"),
        (1, 0.3, "INCONCLUSIVE"),
        (9, 0.3, "FAIL"),
        (9, 0.85, "INCONCLUSIVE"),
    ],
)
def test_a_queue_that_grows_is_no_steady_state(grown_s, others_share, outcome):
    growing = a_pass(NOISE + np.linspace(0, grown_s, 60))
    gate = gates.steady(growing, others_share=others_share)
    assert gate.outcome == outcome
    assert ("Median TTFT grew from" in gate.sentence) == bool(grown_s)


def test_too_few_requests_show_no_drift():
    assert gates.steady(a_pass(NOISE[:19])) is None


def test_requests_that_differ_by_themselves_are_no_drift():
    ordered = a_pass(np.linspace(0.1, 2, 60))
    assert gates.steady(ordered).outcome == "FAIL"
    assert gates.steady(ordered.assign(ideal_reuse_tokens=range(60))) is None


def rows(**values) -> pd.DataFrame:
    clean = {
        "arm": "1a",
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
        ({"ttft_s": -0.1}, "a first token before they were sent"),
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
    assert found.arms == ("1a",)


def streams(gaps_s: list[float], *, arm: str = "1a", **facts) -> pd.DataFrame:
    """Answers of 12 tokens, each with one gap between its chunks; 0 is one chunk."""
    stamps = [tuple(1.0 + g * i for i in range(12 if g else 1)) for g in gaps_s]
    rows = pd.DataFrame({"chunk_s": stamps, "arm": arm, "error": "", "max_tokens": 12})
    rows["e2e_s"] = [s[-1] for s in stamps]
    return rows.assign(**({"output_tokens": 12} | facts))


def test_a_stream_that_is_one_passes():
    gate = gates.streamed(streams([0.01] * 4))
    assert gate.outcome == "PASS"
    assert gate.sentence == "4 of 4 responses arrived token by token"
    assert gates.streamed(streams([0.01], max_tokens=4, output_tokens=4)) is None
    assert gates.streamed(streams([])) is None


@pytest.mark.parametrize("gap_s", [0, 1e-6])
def test_a_stream_that_was_buffered_fails_and_says_what_ttft_is(gap_s):
    mixed = pd.concat([streams([0.01] * 6), streams([gap_s] * 3, arm="gateway")])
    gate = gates.streamed(mixed)
    assert gate.outcome == "FAIL"
    assert gate.sentence == (
        "3 of 3 responses of gateway arrived in one piece. The stream was buffered, so TTFT equals"
        " E2E"
    )


def test_bursts_are_told_from_one_piece():
    bursts = streams([0.01] * 3)
    bursts["chunk_s"] = [tuple(1.0 + i // 6 for i in range(12))] * 3
    gate = gates.streamed(bursts)
    assert gate.outcome == "FAIL"
    assert gate.sentence.startswith("3 of 3 responses of 1a arrived in bursts.")


SHORT = {"max_tokens": 4, "output_tokens": 4}


@pytest.mark.parametrize(
    ("rows", "disturbed", "outcome", "sentence"),
    [
        (streams([0] * 3), True, "INCONCLUSIVE",
         "arrived in one piece. The stream was buffered, or the busy client read late"),
        (streams([0] * 10), True, "FAIL", "10 of 10 responses"),
        (streams([0.01] * 3), True, "PASS", ""),
        # A moment that merges some responses is no gateway.
        (streams([0.01] * 3 + [0] * 5), False, "PASS", "3 of 8 responses arrived"),
        (streams([0] * 3, **SHORT), False, "INCONCLUSIVE",
         "in one piece. Detecting a buffered stream takes responses of 8 tokens"),
        (streams([0] * 3, output_tokens=-1), False, "INCONCLUSIVE",
         "3 of 3 responses arrived in one chunk without a token count"),
    ],
)  # fmt: skip
def test_a_stream_is_called_buffered_only_where_that_is_sure(rows, disturbed, outcome, sentence):
    gate = gates.streamed(rows, disturbed=disturbed)
    assert gate.outcome == outcome
    assert sentence in gate.sentence


def test_responses_of_a_few_tokens_cannot_show_it():
    assert gates.streamed(streams([0, 0.01, 0.01], **SHORT)) is None
    assert gates.streamed(streams([0] * 3, max_tokens=4, output_tokens=1)) is None


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
        "Responses report 3,000 of 3,000 cold prompt tokens as cached, but new prompts can hit 0"
        " (1a, round 1, cold)",
    )
    assert "cached_tokens" in unseen.next_step
    counted = told(1000, {"aggregated": COMPUTED})
    assert "but the instances counted 0 (" in counted.sentence


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
