import json
import shlex
from dataclasses import replace

import pytest

from tests.whatif.known import known_profile
from workbench.errors import ParameterError
from workbench.experiment.plan.engine_setup import engine_of
from workbench.experiment.plan.offered_load.traffic import workload_of
from workbench.whatif.prediction import predict
from workbench.whatif.profile_plan import SET, profile_params, profile_plan

NIXL = {"engine": "simulated", "connector": "nixl"}


@pytest.fixture
def trace(tmp_path):
    """A trace of prompts of 200 to 6,000 tokens, in blocks of 512."""
    file = tmp_path / "trace.jsonl"
    with file.open("w") as lines:
        for n, tokens in enumerate((6_000, 200, 1_500, 700)):
            ids = [100 * n + block for block in range(-(-tokens // 512))]
            row = {"timestamp": n, "input_length": tokens, "output_length": 8, "hash_ids": ids}
            lines.write(f"{json.dumps(row)}\n")
    return {"workload": "trace", "trace_file": str(file)}


def made(**given):
    return profile_plan(profile_params(NIXL | given))


def lengths(plan):
    return {request.prompt_tokens for request in plan.workload.sample.requests}


def test_the_plan_measures_lengths_and_batches_of_1p1d():
    plan = made(workload="short", prompt_tokens=8_000, concurrency=32)
    assert [str(arm.topology) for arm in plan.arms] == ["1p1d", "1a"]
    split, alone = (arm.passes for arm in plan.arms)
    assert [one.concurrency for one in split] == [1, 2, 4, 2, 4, 8, 16, 32]
    assert [one.concurrency for one in alone] == [1, 4]
    assert len(plan.workload.sample.requests) == 48  # more than are in flight
    assert sorted(lengths(plan)) == [2_000, 3_200, 4_400, 5_600, 6_800, 8_000]
    assert plan.arrivals_in(split[-1]).concurrency == 32
    assert plan.describe_arrivals() == "closed loop, 1 to 32 at a time"


@pytest.mark.parametrize(
    "given",
    [{}, {"workload": "code_generation", "requests": 30}, {"rounds": 1, "topology": "1p1d"}],
)
def test_the_command_repeats_it(given):
    plan = made(**given)
    words = shlex.split(plan.command)
    assert words[:2] == ["workbench", "profile"]
    again = made(**dict(zip(words[3::3], words[4::3], strict=True)))
    assert (again.run_id, again.command) == (plan.run_id, plan.command)
    assert lengths(again) == lengths(plan)


def test_a_profile_of_a_trace_predicts_that_trace(trace):
    plan = made(**trace)
    assert (min(lengths(plan)), len(plan.workload.sample.requests)) == (136, 24)
    assert made(**trace, requests=3).run_id != plan.run_id  # other rows of the file
    ranges = {"tokens": (float(min(lengths(plan))), float(max(lengths(plan))))}
    known = known_profile()
    prefill = replace(known.prefill, ranges=ranges)
    profile = replace(known, parameters=plan.parameters, prefill=prefill)
    params = profile.params({"topology": "1p2d"})
    settings, model, _ = engine_of(params)
    sent = [each.prompt_tokens for each in workload_of(params, settings, model).sample.requests]
    assert (min(sent), max(sent)) == ranges["tokens"]
    assert predict(profile, params, params.topologies[0]).refused == ""


@pytest.mark.parametrize("name", sorted(SET))
def test_what_a_profile_sets_itself_is_refused(name):
    other = {"topology": "2p2d", "arrivals": "poisson", "opponents": False, "measure": "1p2d",
             "rounds": "3", "rates_per_s": "1,2", "concurrencies": "1,2", "working_sets": "2",
             "targets": "ttft cut >= 5%", "link_runs": "a", "gpu_hour_price": "4 USD",
             "search": "True", "predict": "True"}.get(name, "0.5")  # fmt: skip
    with pytest.raises(ParameterError, match=f"^{name}=.* does not apply to workbench profile"):
        made(**{name: other})
