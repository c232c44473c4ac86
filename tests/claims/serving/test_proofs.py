import pandas as pd
import pytest

from workbench.claims.serving.proofs import faults, proofs

LINE = "vllm --model m --served-model-name w --port {port} --max-model-len 4096 {more}"


def gate(name, outcome="PASS"):
    return {"name": name, "outcome": outcome, "sentence": "so it is", "next_step": ""}


def arm(label, more="--enable-prefix-caching", *, topology="1a", instances=1, port=20000):
    line = LINE.format(port=port, more=more)
    return {"label": label, "topology": topology, "instances": instances, "gpus": instances,
            "command_lines": [line]}  # fmt: skip


def rows(*, rounds=5, in_turns=True):
    """Two arms with two requests a round; by turns one of them goes first."""
    found = []
    for number in range(rounds):
        first = number % 2 if in_turns else 0
        for place, label in enumerate(("on", "off")[:: -1 if first else 1]):
            for index in range(2):
                found.append({"arm": label, "pass": "cold", "round": number, "index": index,
                              "prompt_tokens": 500 + index,
                              "sent_s": 100 * number + 10 * place + index})  # fmt: skip
    return pd.DataFrame(found)


OFF = arm("off", "--no-enable-prefix-caching", port=20007)
BOTH = (arm("on"), OFF)


def proved(gates=(), arms=BOTH, frame=None):
    facts = {"gates": list(gates), "arms": list(arms)}
    return proofs(facts, rows() if frame is None else frame, value="on", baseline="off")


def test_gates_prove_checks_and_nothing_is_proved_without_one():
    assert "cache_state_controlled" not in proved()
    assert proved([gate("cold was cold")])["cache_state_controlled"] == "pass"
    mixed = [gate("cold was cold"), gate("the ledger closes", "INCONCLUSIVE")]
    assert proved(mixed)["cache_state_controlled"] == "unknown"
    assert proved([*mixed, gate("caches were emptied", "FAIL")])["cache_state_controlled"] == "fail"
    assert proved([gate("same text", "FAIL")])["output_quality_checked"] == "fail"


def test_rows_prove_rounds_equal_prompts_and_turns():
    good = proved()
    assert good["replicated_runs_with_ci"] == good["interleaved_run_order"] == "pass"
    assert good["same_batch_and_concurrency"] == "pass"
    few = proved(frame=rows(rounds=3, in_turns=False))
    assert few["replicated_runs_with_ci"] == few["interleaved_run_order"] == "fail"
    other = rows()
    other.loc[0, "prompt_tokens"] = 9
    assert proved(frame=other)["same_batch_and_concurrency"] == "fail"


@pytest.mark.parametrize(
    ("other", "failed"),
    [
        (OFF, set()),
        (arm("off", "--enable-prefix-caching --kv-transfer-config x"), set()),
        (arm("off"), {"one_factor_changed"}),  # nothing differs
        (arm("off", "--no-enable-prefix-caching --kv-transfer-config x"), {"one_factor_changed"}),
        (
            arm("off", "--no-enable-prefix-caching --block-size 16"),
            {"one_factor_changed", "same_engine_knobs"},
        ),
        (
            arm("off", "--no-enable-prefix-caching --dtype float32"),
            {"one_factor_changed", "same_engine_knobs", "same_dtype"},
        ),
        (arm("off", "--no-enable-prefix-caching", instances=2), {"same_gpu_count_or_per_gpu"}),
    ],
)
def test_command_lines_prove_what_differs(other, failed):
    found = proved(arms=(arm("on"), other))
    assert {name for name, state in found.items() if state == "fail"} == failed


def test_roles_with_the_connector_that_they_need_are_one_factor():
    split = arm("on", "--enable-prefix-caching --kv-transfer-config x", topology="1p1d",
                instances=2)  # fmt: skip
    alone = arm("off", topology="2a", instances=2)
    assert proved(arms=(split, alone))["one_factor_changed"] == "pass"


def test_pretended_engines_prove_no_knobs():
    quiet = {**arm("on"), "command_lines": ["simulated --port 1"]}
    found = proved(arms=(quiet, {**quiet, "label": "off"}))
    assert "same_engine_knobs" not in found and "one_factor_changed" not in found


def test_a_gate_voids_what_the_table_says_that_it_strikes():
    late = gate("client kept up", "FAIL") | {"sentence": "9 ms late; and more"}
    facts = {"gates": [late, gate("no failures")], "client": {"thread_cpu_share": 0.1}}
    assert faults(facts, timed=True) == faults(facts, timed=False) == ()  # the intervals hold it
    facts["gates"] = [gate("steady state", "FAIL")]
    assert faults(facts, timed=True) == ("Gate 'steady state' failed: so it is.",)
    assert faults(facts, timed=False) == ()
    facts["gates"] = [gate("cold was cold", "FAIL")]
    assert faults(facts, timed=True) == faults(facts, timed=False) != ()


def test_a_client_without_a_core_to_spare_hides_differences_and_spoils_no_count():
    late = gate("client kept up", "FAIL") | {"sentence": "9 ms late; and more"}
    facts = {"gates": [late], "client": {"thread_cpu_share": 0.9}}
    assert faults(facts, timed=True) == ("Gate 'client kept up' failed: 9 ms late.",)
    assert faults(facts, timed=False) == ()


def test_a_time_of_day_that_was_set_spoils_times_and_no_counts():
    facts = {"gates": [gate("clock was not set", "FAIL")]}
    assert faults(facts, timed=True) == ("Gate 'clock was not set' failed: so it is.",)
    assert faults(facts, timed=False) == ()
