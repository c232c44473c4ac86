import re
from dataclasses import replace

import pytest

from tests.whatif.known import COSTS, FRONT_S, known_profile, known_run
from workbench.errors import PlanError, ResultError
from workbench.params.notebooks import check_params
from workbench.whatif.profile import profile_of, read_profile
from workbench.whatif.profile_plan import profile_plan


@pytest.fixture(scope="module")
def run():
    return known_run()


def test_a_profile_finds_the_costs_of_the_run(run):
    found = profile_of(run)
    costs = found.costs()
    for tokens in (1_000, 4_000, 8_000):
        assert costs.prefill_s(tokens) == pytest.approx(COSTS.prefill_s(tokens), rel=0.01)
        assert costs.transfer_of(tokens) == pytest.approx(COSTS.transfer_of(tokens), rel=0.2)
    for batch in (1, 4, 8):
        true_s = COSTS.decode_s(batch, batch * 4_000)
        assert costs.decode_s(batch, batch * 4_000) == pytest.approx(true_s, rel=0.05)
    assert found.overheads_s[0][1] == pytest.approx(FRONT_S, abs=1e-6)
    assert found.kv_tokens["decode"] == 268_435_456 // 768
    assert found.prefill.ranges == {"tokens": (1_000.0, 8_000.0)}
    assert found.transfer.residual < 0.3


def test_a_profile_is_the_same_after_writing_and_reading(run, tmp_path):
    found = profile_of(run)
    assert read_profile(found.write(tmp_path)) == found


def test_the_engines_log_says_the_kv_space(run, tmp_path):
    logs = tmp_path / "logs" / "round-0" / "1p1d-nixl"
    logs.mkdir(parents=True)
    (logs / "decode-0.log").write_text(
        "INFO Chunked prefill is enabled with max_num_batched_tokens=4096.\n"
        "INFO GPU KV cache size: 123,456 tokens\n"
    )
    found = profile_of(replace(run, folder=tmp_path))
    assert found.kv_tokens["decode"] == 123_456 and found.step_tokens == 4_096
    assert found.kv_tokens["prefill"] == 268_435_456 // 768


def test_a_run_that_is_too_small_gives_no_profile(run):
    rows = run.requests
    one = rows[rows["prompt_tokens"].isin([1_000, 8_000])]
    with pytest.raises(ResultError, match="at least 3 prompt lengths, got 2"):
        profile_of(replace(run, frames=run.frames | {"requests": one}))
    alone = rows[rows["pass"] == "cold, 1"]
    with pytest.raises(ResultError, match="at least 3 decode batches, got 1"):
        profile_of(replace(run, frames=run.frames | {"requests": alone}))
    untimed = rows.assign(engine_metrics="")
    with pytest.raises(ResultError, match="cannot give a profile: the decode instance sent no"):
        profile_of(replace(run, frames=run.frames | {"requests": untimed}))


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


def test_the_plan_measures_lengths_and_batches_of_1p1d():
    made = profile_plan(check_params("pd_sweep", {
        "engine": "simulated", "connector": "nixl", "workload": "short", "prompt_tokens": 8_000,
        "concurrency": 32,
    }))  # fmt: skip
    assert [str(arm.topology) for arm in made.arms] == ["1p1d", "1a"]
    split, alone = (arm.passes for arm in made.arms)
    assert [one.concurrency for one in split] == [1, 2, 4, 2, 4, 8, 16, 32]
    assert [one.concurrency for one in alone] == [1]
    lengths = {request.prompt_tokens for request in made.workload.sample.requests}
    assert sorted(lengths) == [2_000, 3_200, 4_400, 5_600, 6_800, 8_000]
    assert made.arrivals_in(split[-1]).concurrency == 32
