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
REASONS = {
    # id: the right reason, as a code
    "S003-VLLM-VS-HF-PEAK": "same_batch_and_concurrency",
    "S003-ATTN-SPEEDUP": "subject_is_measured",
    "S003-ATTN-RANGE": "same_metric_definition",
    "S003-SLIDING": "subject_is_measured",
    "S003-MEMBW": "unit_and_iteration_accounting",
    "S003-KVOPS": "same_layer_scope",
    "S003-KVTPUT": "same_layer_scope",
    "S003-PEAK": "same_layer_scope",
    "S003-SIM": "same_model_and_weights",
    "S003-POOL": "same_metric_definition",
    "S003-UNIT-TESTS": "same_metric_definition",
    "S003-QUANT": "contradicted_by_source",
    "S003-VERDICT": "contradicted_by_source",
    "S000-L70-TPS": "underspecified",
    "S000-GPTOSS": "underspecified",
    "S001-LMCACHE-HIT": "subject_is_measured",
    "S004-TTFT": "one_factor_changed",
    "S004-P2P": "contradicted_by_source",
    "LLMIR-AVG": "impossible",
    "LLMIR-PEAK": "impossible",
    "LLMIR-VS": "no_evidence",
    "LLMIR-TAB-BATCH": "impossible",
    "LLMIR-MEM": "contradicted_by_source",
    "LLMIR-BLOCK": "contradicted_by_source",
    "LLMIR-SCALE": "impossible",
    "LLMIR-ABL": "impossible",
    "LLMIR-ATTN": "contradicted_by_source",
    "LLMIR-ATTN-TAB": "no_evidence",
    "LLMIR-MODELS": "impossible",
    "LLMIR-QUALITY": "contradicted_by_source",
    "LLMIR-QUANT": "contradicted_by_source",
    "LLMIR-SPEC": "contradicted_by_source",
    "LLMIR-E2": "contradicted_by_source",
}


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


@pytest.mark.parametrize("kind", ["constant", "none"])
def test_a_constant_is_no_evidence(claim, kind):
    verdict = judge(claim(evidence=Evidence(kind=kind)), H200, measured(1.9, 2.1))
    assert (verdict.verdict, verdict.code) == ("not_confirmed", "no_evidence")


def test_our_fair_run_does_not_mend_their_unfair_one(claim):
    unfair = claim(checks={"same_dtype": "fail"})
    ours = Conditions(platform="cuda", hardware="H200", checks={"same_dtype": "pass"})
    assert judge(unfair, ours, measured(1.9, 2.1)).code == "same_dtype"


def test_what_the_source_left_open_our_run_must_settle(claim):
    open_ = claim(checks={"same_dtype": "unknown"})
    assert judge(open_).verdict == "not_tested"
    left = judge(open_, H200, measured(1.9, 2.1))
    assert (left.verdict, left.code) == ("not_comparable", "same_dtype")
    assert left.reason.startswith("Unknown whether weights, activations and KV have the same")
    assert left.reason.endswith("formats. So.")
    settled = Conditions(platform="cuda", hardware="H200", checks={"same_dtype": "pass"})
    assert judge(open_, settled, measured(1.9, 2.1)).verdict == "confirmed"


def test_our_own_unfair_run_gives_no_verdict(claim):
    ours = Conditions(platform="cuda", hardware="H200", checks={"cache_state_controlled": "fail"})
    verdict = judge(claim(), ours, measured(1.9, 2.1))
    assert (verdict.verdict, verdict.code) == ("not_comparable", "cache_state_controlled")


def test_a_run_with_a_failed_gate_is_void(claim):
    verdict = judge(claim(), H200, measured(1.9, 2.1, faults=("2 % of the requests failed.",)))
    assert (verdict.gate, verdict.code) == ("G3", "unreliable_run")
    assert verdict.reason == "2 % of the requests failed."


def test_physics_holds_for_our_own_runs_too(claim):
    bound = Bound(limit="prefill_throughput", gpu="H200", model="Qwen3-8B", value=1e6)
    verdict = judge(claim(), H200, measured(1.9, 2.1, bounds=(bound,)))
    assert verdict.code == "unreliable_run"
    assert verdict.reason.startswith("Our own number is impossible: 1e+06 tokens/s is")


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


def test_a_cpu_judges_shapes_and_counts_only(claim, effect):
    magnitude = judge(claim(), CPU, measured(1.9, 2.1))
    assert (magnitude.verdict, magnitude.code) == ("not_comparable", "hardware")
    falls = claim(effects=(effect("lower", 1.0),))
    assert judge(falls, CPU, measured(0.4, 0.5)).word == "confirmed (on CPU)"
    hits = claim(effects=(effect("exact", 496, type="absolute", unit="tokens"),))
    assert judge(hits, CPU, measured(496, 496)).word == "confirmed (on CPU)"


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
    count = claim(effects=(effect("exact", 496, type="absolute", unit="tokens"),))
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


def test_a_bound_at_one_is_a_direction_and_any_other_a_size(claim, effect):
    direction = claim(effects=(effect("at_most", 1.0),))
    assert judge(direction, CPU, measured(0.8, 0.9)).word == "confirmed (on CPU)"
    assert judge(direction, CPU, measured(1.2, 1.3)).word == "contradicted (on CPU)"
    assert judge(claim(effects=(effect("at_most", 1.5),)), CPU, measured(1, 1.1)).code == "hardware"
