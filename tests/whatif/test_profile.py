import re
from dataclasses import replace

import pytest

from tests.whatif.known import known_profile, known_run
from workbench.errors import PlanError, ResultError
from workbench.params.notebooks import check_params
from workbench.whatif.measured_profile import profile_of
from workbench.whatif.profile import read_profile
from workbench.whatif.profile_plan import profile_plan


@pytest.fixture(scope="module")
def run():
    return known_run()


def test_a_parameter_that_is_newer_than_the_profile_has_its_default():
    older = {k: v for k, v in known_profile().parameters.items() if k != "cores_per_instance"}
    profile = replace(known_profile(), parameters=older)
    assert profile.params({"cores_per_instance": 0}).cores_per_instance == 0
    with pytest.raises(PlanError, match="cores_per_instance must be the profile's 0, got 1"):
        profile.params({"cores_per_instance": 1})


def test_a_profile_is_the_same_after_writing_and_reading(run, tmp_path):
    found = profile_of(run)
    assert read_profile(found.write(tmp_path)) == found


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
    ("change", "says"),
    [
        ({"schema": 99}, "must be a profile of schema 1, got 99"),
        ({"machine": {"ram": 1}}, "damaged profile: machine has no cpu"),
        ({"parameters": {}}, "damaged profile: parameters has no engine"),
        ({"kv_tokens": {"prefill": 9}}, "damaged profile: kv_tokens has no decode"),
        ({"overheads_s": ()}, "damaged profile: overheads_s is empty"),
        ({"block_tokens": 0}, "damaged profile: a step or a block has no tokens"),
    ],
)  # fmt: skip
def test_a_damaged_profile_is_refused(tmp_path, change, says):
    with pytest.raises(ResultError, match=says):
        read_profile(replace(known_profile(), **change).write(tmp_path))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"terms": ("steps", "tokens", "squares")}, "prefill lacks a term or a range"),
        ({"ranges": {}}, "prefill lacks a term or a range"),
        ({"resamples": ()}, "prefill lacks coefficients or points"),
        ({"measured_s": ()}, "prefill lacks coefficients or points"),
    ],
)  # fmt: skip
def test_a_damaged_fit_is_refused(tmp_path, change, says):
    damaged = replace(known_profile(), prefill=replace(known_profile().prefill, **change))
    with pytest.raises(ResultError, match=says):
        read_profile(damaged.write(tmp_path))


def test_the_plan_measures_lengths_and_batches_of_1p1d():
    made = profile_plan(check_params("pd_sweep", {
        "engine": "simulated", "connector": "nixl", "workload": "short", "prompt_tokens": 8_000,
        "concurrency": 32,
    }))  # fmt: skip
    assert [str(arm.topology) for arm in made.arms] == ["1p1d", "1a"]
    split, alone = (arm.passes for arm in made.arms)
    assert [one.concurrency for one in split] == [1, 2, 4, 2, 4, 8, 16, 32]
    assert [one.concurrency for one in alone] == [1, 4]
    assert len(made.workload.sample.requests) == 48  # more than are in flight
    lengths = {request.prompt_tokens for request in made.workload.sample.requests}
    assert sorted(lengths) == [2_000, 3_200, 4_400, 5_600, 6_800, 8_000]
    assert made.arrivals_in(split[-1]).concurrency == 32
