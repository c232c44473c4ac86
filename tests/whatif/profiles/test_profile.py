import re
from dataclasses import replace

import pytest

from tests.whatif.known import known_profile, known_run
from workbench.errors import PlanError
from workbench.whatif.profiles.measured_profile import profile_of


@pytest.fixture(scope="module")
def run():
    return known_run()


def test_a_parameter_that_is_newer_than_the_profile_has_its_default():
    older = {k: v for k, v in known_profile().parameters.items() if k != "cores_per_instance"}
    profile = replace(known_profile(), parameters=older)
    assert profile.params({"cores_per_instance": 0}).cores_per_instance == 0
    with pytest.raises(PlanError, match="cores_per_instance must be the profile's 0, got 1"):
        profile.params({"cores_per_instance": 1})


def test_a_profile_of_another_machine_is_refused(run):
    other = replace(profile_of(run), machine={**profile_of(run).machine, "cores": 999})
    with pytest.raises(PlanError, match=r"another machine \(cores 999, here \d+\)"):
        other.params({})


def test_load_may_be_chosen_and_the_engine_may_not():
    profile = known_profile()
    assert profile.params({"rate_per_s": "3", "topology": "2p6d"}).rate_per_s == 3.0
    assert profile.params({"kv_cache_mib": "256"}).kv_cache_mib == 256
    with pytest.raises(PlanError, match=re.escape("kv_cache_mib must be the profile's 256, got")):
        profile.params({"kv_cache_mib": "64"})


def test_the_load_is_the_profiles_unless_it_is_set():
    own = known_profile().parameters | {"prompt_tokens": 2_000, "requests": 12, "shared_share": 0.5}
    profile = replace(known_profile(), parameters=own)
    made = profile.params({"topology": "2p6d", "rate_per_s": 3, "ttft_limit_ms": 500})
    assert (made.workload, made.prompt_tokens, made.requests) == ("short", 2_000, 12)
    assert profile.params({"workload": "shared_prefix"}).shared_share == 0.5
    assert profile.params({"output_tokens": "20000"}).prompt_tokens == 2_000


def test_other_versions_are_doubted():
    profile = replace(known_profile(), versions={"vllm": "0.1", "papermill": "0.1"})
    (doubt,) = profile.doubts
    assert doubt.startswith("Measured with vllm 0.1, here ") and "papermill" not in doubt


@pytest.mark.parametrize(
    ("part", "coefficients", "says"),
    [
        ("prefill", (0.1, 0.0, 0.0), "prefill time does not grow with the prompt"),
        ("decode", (0.1, 0.0, 0.0), "decode step time does not grow with the batch"),
        ("transfer", (0.1, 0.0, 1.0), "transfer time does not grow with the size"),
    ],
)
def test_a_time_that_does_not_grow_is_doubted(part, coefficients, says):
    profile = known_profile()
    flat = replace(getattr(profile, part), coefficients=coefficients)
    (doubt,) = replace(profile, **{part: flat}).doubts
    assert says in doubt


TRACE = {"workload": "trace", "trace_file": "a.jsonl", "prompt_tokens": 4_096, "requests": 40}


@pytest.mark.parametrize(
    ("own", "given", "prompt_tokens", "requests"),
    [
        (TRACE, {}, 4_096, 40),
        (TRACE, {"workload": "trace", "trace_file": "a.jsonl"}, 4_096, 40),
        (TRACE, {"workload": "trace", "trace_file": "other.jsonl"}, 0, 0),
        (TRACE, {"workload": "short"}, 8_000, 40),
        ({}, {"workload": "trace", "trace_file": "a.jsonl"}, 0, 0),
    ],
)
def test_the_lengths_of_a_file_are_its_own(own, given, prompt_tokens, requests):
    """Those of the profile would make a trace shorter."""
    profile = known_profile()
    profile = replace(profile, parameters={**profile.parameters, **own})
    made = profile.params(given)
    assert (made.prompt_tokens, made.requests) == (prompt_tokens, requests)
    assert made.trace_file == given.get("trace_file", own.get("trace_file") if not given else "")
