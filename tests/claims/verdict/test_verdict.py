import re

import pytest

from workbench.claims.registry.claim import UNSTATED, Bound, Evidence
from workbench.claims.registry.registry import read_registry
from workbench.claims.verdict.decision import Interval
from workbench.claims.verdict.verdict import Conditions, Measurement, judge
from workbench.hardware.kv import engine_hit_tokens
from workbench.hardware.machine import repository_root

CLAIMS = read_registry(repository_root() / "params" / "claims").claims
FIXTURES = [claim for claim in CLAIMS.values() if claim.expected_verdict]
H200 = Conditions(platform="cuda", hardware="H200", versions={"vllm": "0.32.0"})
CPU = Conditions(platform="cpu", hardware="2 cores")
TOO_FAST = Bound(limit="prefill_throughput", gpu="H200", model="Qwen3-8B", value=1e6)
FIXTURES_BY_CODE = {
    "impossible": "LLMIR-AVG LLMIR-PEAK LLMIR-TAB-BATCH LLMIR-SCALE LLMIR-ABL LLMIR-MODELS",
    "no_evidence": "LLMIR-VS LLMIR-ATTN-TAB",
    "contradicted_by_source": "LLMIR-MEM LLMIR-BLOCK LLMIR-ATTN LLMIR-QUALITY LLMIR-QUANT"
    " LLMIR-SPEC LLMIR-E2 S003-QUANT S003-VERDICT S004-P2P",
    "underspecified": "S000-L70-TPS S000-GPTOSS",
    "subject_is_measured": "S003-ATTN-SPEEDUP S003-SLIDING S001-LMCACHE-HIT",
    "same_metric_definition": "S003-ATTN-RANGE S003-POOL S003-UNIT-TESTS",
    "same_layer_scope": "S003-KVOPS S003-KVTPUT S003-PEAK",
    "same_batch_and_concurrency": "S003-VLLM-VS-HF-PEAK",
    "unit_and_iteration_accounting": "S003-MEMBW",
    "same_model_and_weights": "S003-SIM",
    "one_factor_changed": "S004-TTFT",
}
COUNT = {"quantifier": "exact", "value": 496, "type": "absolute", "unit": "tokens"}
REASONS = {name: code for code, names in FIXTURES_BY_CODE.items() for name in names.split()}


def measured(low, high, name="all", **fields):
    interval = Interval(estimate=(low + high) / 2, low=low, high=high)
    return Measurement(effects={name: (interval,)}, **fields)


@pytest.mark.parametrize("claim", FIXTURES, ids=lambda claim: claim.id)
def test_expected_verdicts_come_out_for_the_right_reason(claim):
    verdict = judge(claim)
    assert len(FIXTURES) == len(REASONS) == 33
    assert (verdict.verdict, verdict.code) == (claim.expected_verdict, REASONS[claim.id])
    assert verdict.reason.endswith(".") and verdict.needed.endswith(".")


@pytest.mark.parametrize("claim", CLAIMS.values(), ids=lambda claim: claim.id)
def test_statements_and_the_reasons_in_the_table_are_short_sentences(claim):
    assert len(claim.statement.split()) <= 22 and claim.statement[-1] == "."
    first = re.split(r"(?<=[.!?]) (?=[A-Z0-9\"“])", judge(claim).reason)[0]
    assert len(first.split()) <= 15, first


def test_nothing_is_confirmed_by_reading():
    assert {judge(claim).verdict for claim in CLAIMS.values()} == {
        "not_confirmed", "not_comparable", "not_tested",
    }  # fmt: skip


def test_the_credited_hit_was_the_engines_own():
    figures = CLAIMS["S001-LMCACHE-HIT"].figures
    held = engine_hit_tokens(figures["total_tokens"], block_tokens=16)
    assert figures["need_to_load"] == figures["lmcache_hit_tokens"] - held == -240


def test_incomplete_comes_before_unfair(claim):
    vague = claim(comparator=UNSTATED, model=None, checks={"same_dtype": "fail"})
    verdict = judge(vague)
    assert (verdict.gate, verdict.code) == ("G0", "underspecified")
    assert verdict.reason == "The source does not name its baseline and its model."
    assert verdict.failed_checks == ("same_dtype",)


def test_a_speed_in_an_operation_needs_no_model(claim):
    assert judge(claim(level="op", model=None)).verdict == "not_tested"


def ours(**checks):
    return Conditions(platform="cuda", hardware="H200", checks=checks)


@pytest.mark.parametrize(
    ("changed", "conditions", "fields", "gate", "code"),
    [
        ({"evidence": Evidence(kind="constant")}, H200, {}, "G1", "no_evidence"),
        ({"evidence": Evidence(kind="none")}, H200, {}, "G1", "no_evidence"),
        # Our fair run does not repair an unfair one of the source, and our unfair one counts.
        ({"checks": {"same_dtype": "fail"}}, ours(same_dtype="pass"), {}, "G2", "same_dtype"),
        ({}, ours(cache_state_controlled="fail"), {}, "G2", "cache_state_controlled"),
        ({}, H200, {"faults": ("2 % of the requests failed.",)}, "G3", "unreliable_run"),
        ({}, H200, {"bounds": (TOO_FAST,)}, "G3", "unreliable_run"),
        ({}, H200, {}, "G4", "confirmed"),
    ],
)
def test_the_first_gate_that_fires_decides(claim, changed, conditions, fields, gate, code):
    verdict = judge(claim(**changed), conditions, measured(1.9, 2.1, **fields))
    assert (verdict.gate, verdict.code) == (gate, code)
    if "faults" in fields:
        assert verdict.reason == "2 % of the requests failed."
    if "bounds" in fields:
        assert verdict.reason.startswith("Our own number is impossible: 1e+06 tokens/s is")


def test_what_the_source_left_open_our_run_must_settle(claim):
    open_ = claim(checks={"same_dtype": "unknown"})
    assert judge(open_).verdict == "not_tested"
    left = judge(open_, H200, measured(1.9, 2.1))
    assert (left.verdict, left.code) == ("not_comparable", "same_dtype")
    assert left.reason.startswith("Unknown whether both sides use the same")
    assert left.reason.endswith("KV. So.")
    assert judge(open_, ours(same_dtype="pass"), measured(1.9, 2.1)).verdict == "confirmed"


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [(1.9, 2.1, "confirmed"), (1.0, 1.2, "contradicted"), (1.0, 3.0, "inconclusive")],
)
def test_contradicted_and_inconclusive_are_two_words(claim, low, high, word):
    verdict = judge(claim(), H200, measured(low, high))
    assert (verdict.word, verdict.tier) == (word, "gpu")
    assert verdict.versions == {"vllm": "0.32.0"}


def test_a_ratio_may_be_tested_on_another_gpu_and_an_absolute_value_not(claim, effect):
    ratio = judge(claim(hardware="1x A100 80GB SXM"), H200, measured(1.9, 2.1))
    assert ratio.word == "confirmed (other GPU)"
    speed = effect("typical", 100, type="absolute", unit="tokens/s")
    absolute = judge(claim(hardware="1x A100", effects=(speed,)), H200, measured(95, 105))
    assert (absolute.verdict, absolute.code) == ("not_comparable", "hardware")


@pytest.mark.parametrize(
    ("given", "bounds", "word"),
    [
        ({}, (1.9, 2.1), "not comparable"),
        ({"quantifier": "lower", "value": 1.0}, (0.4, 0.5), "confirmed (on CPU)"),
        # A bound at 1 is a direction, any other a size.
        ({"quantifier": "at_most", "value": 1.0}, (0.8, 0.9), "confirmed (on CPU)"),
        ({"quantifier": "at_most", "value": 1.0}, (1.2, 1.3), "contradicted (on CPU)"),
        ({"quantifier": "at_most", "value": 1.5}, (1.0, 1.1), "not comparable"),
        (COUNT, (496, 496), "confirmed (on CPU)"),
    ],
)
def test_a_cpu_judges_directions_and_counts_only(claim, effect, given, bounds, word):
    verdict = judge(claim(effects=(effect(**given),)), CPU, measured(*bounds))
    assert verdict.word == word
    assert (verdict.code == "hardware") == (word == "not comparable")


def test_several_parts_take_the_weakest(claim, effect):
    two = claim(effects=(effect(name="TTFT"), effect("unchanged", 1.0, name="TPOT", margin=0.1)))
    good = {"TTFT": (Interval(estimate=2, low=1.9, high=2.1),)}
    half = judge(two, H200, Measurement(effects=good))
    assert (half.verdict, half.reason) == ("not_tested", "TPOT: Not measured.")
    worse = good | {"TPOT": (Interval(estimate=1.5, low=1.4, high=1.6),)}
    verdict = judge(two, H200, Measurement(effects=worse))
    assert verdict.word == "contradicted"
    assert verdict.parts["TTFT"].code == "confirmed"


def test_an_unknown_gpu_is_a_doubt_and_the_claim_goes_on(claim):
    bound = Bound(limit="memory_bandwidth", gpu="TPU v9", value=99)
    verdict = judge(claim(bounds=(bound,)))
    assert verdict.verdict == "not_tested"
    assert "GPU 'TPU v9' is not in workbench/hardware" in verdict.doubts[0]


def test_what_is_counted_holds_on_any_hardware_and_in_one_run(claim):
    one = Interval(estimate=2, low=2, high=2, runs=1)
    timed = judge(claim(), CPU, Measurement(effects={"all": (one,)}))
    counted = judge(claim(), CPU, Measurement(effects={"all": (one,)}, counted=frozenset({"all"})))
    assert (timed.code, counted.code) == ("hardware", "confirmed")


def test_too_few_launches_of_ours_leave_counts_and_make_times_inconclusive(claim, effect):
    few = Conditions(platform="cpu", hardware="2 cores", checks={"replicated_runs_with_ci": "fail"})
    count = claim(effects=(effect(**COUNT),))
    assert judge(count, few, measured(496, 496)).word == "confirmed (on CPU)"
    falls = claim(effects=(effect("lower", 1.0),), checks={"replicated_runs_with_ci": "unknown"})
    two = Interval(estimate=0.5, low=0.4, high=0.6, runs=2)
    verdict = judge(falls, few, Measurement(effects={"all": (two,)}))
    assert (verdict.word, verdict.code) == ("inconclusive", "too_few_runs")


def test_a_claim_about_another_model_is_a_shape_with_a_doubt_or_nothing(claim, effect):
    named = claim(model="Llama-3.3-70B", hardware="any", effects=(effect("lower", 1.0),))
    here = Conditions(platform="cpu", hardware="2 cores", model="tiny")
    shape = judge(named, here, measured(0.4, 0.5))
    assert shape.word == "confirmed (on CPU)"
    assert shape.doubts == ("The claim is about Llama-3.3-70B; we measured tiny.",)
    gpu = Conditions(platform="cuda", hardware="H200", model="Qwen3-8B")
    assert judge(named, gpu, measured(0.4, 0.5)).code == "same_model_and_weights"
    same = Conditions(platform="cuda", hardware="H200", model="llama-3.3-70b")
    assert judge(named, same, measured(0.4, 0.5)).word == "confirmed"
