import asyncio
import json
import os
from dataclasses import replace

import pandas as pd
import pytest

from workbench.errors import DeploymentError, ResultError
from workbench.experiment.plan.arm import Pass
from workbench.experiment.result.facts import SCHEMA
from workbench.experiment.result.result import load_result
from workbench.experiment.run.progress import read_standing
from workbench.experiment.run.run import run
from workbench.serve import deployed


@pytest.fixture
def said():
    return []


def only_attempt(tmp_path, run_id):
    (attempt,) = (tmp_path / "pd_sweep" / run_id).glob("attempt-*")
    return load_result(attempt)


async def test_a_run_writes_rows_and_what_they_say(attached, vllm, said, tmp_path):
    plan = attached(rounds=3)
    result = await run(plan, echo=said.append)
    assert result.facts["status"] == "success"
    assert result.folder == tmp_path / "pd_sweep" / plan.run_id
    assert not list(result.folder.glob("attempt-*"))

    read = load_result(result.folder)
    rows = read.requests
    assert len(rows) == 3 * 2 * 2  # rounds x passes x requests
    assert rows.groupby(["round", "pass"]).size().tolist() == [2] * 6
    assert (rows["error"] == "").all() and (rows["ttft_s"] > 0).all()
    assert read.facts["parameters"] == plan.parameters
    assert read.facts["schema"] == SCHEMA
    outcomes = {g["name"]: g["outcome"] for g in read.facts["gates"]}
    assert outcomes.pop("client kept up")  # as busy as this machine is
    assert outcomes.pop("clock was not set")  # as often as somebody sets it
    assert outcomes == dict.fromkeys(
        (
            "every pass ran",
            "no failures",
            "cold was cold",
            "engine-warm was engine-warm",
            "the ledger closes",
            "output counts equal",
            "nothing impossible",
            "same text",
            "cached tokens plausible",
        ),
        "PASS",
    )
    (arm,) = read.facts["arms"]
    assert (arm["label"], arm["command_lines"]) == ("attached", [vllm.url])
    counters = pd.read_parquet(result.folder / "counters.parquet")
    assert set(counters["when"]) == {"before", "after"}
    for name in read.facts["files"].values():
        assert (result.folder / name).is_file()


async def test_progress_is_one_line_for_each_pass(attached, said):
    plan = attached()
    result = await run(plan, echo=said.append)
    first, cold, warm, last = said
    name, start = read_standing(first)
    assert name == f"pd_sweep {plan.run_id}"
    assert start is not None and (start.done, start.total) == (0, 2)
    (cold, after_cold), (warm, after_warm) = read_standing(cold), read_standing(warm)
    assert after_cold is not None and (after_cold.done, after_cold.total) == (1, 2)
    assert after_warm is not None and (after_warm.done, after_warm.left_s) == (2, 0)
    assert cold.split()[:4] == ["round", "1/1", "attached", "cold"]
    assert warm.split()[:4] == ["round", "1/1", "attached", "engine-warm"]
    assert "TTFT" in cold and cold.endswith(" tok/s")
    assert last.startswith("success after") and last.endswith(str(result.folder))


async def test_a_run_that_is_part_of_another_leaves_progress_to_it(attached, said):
    await run(attached(), echo=said.append, progress=False)
    assert [read_standing(line)[1] for line in said] == [None] * 4


async def test_a_warm_pass_hits_what_the_cold_one_left(attached):
    result = await run(attached(), echo=lambda _: None)
    hits = result.requests.groupby("pass")["cached_tokens"].max()
    assert hits.to_dict() == {"cold": 0, "engine-warm": 384}  # 3 blocks of 500 tokens


async def test_every_round_and_rerun_has_new_prompts_and_arms_of_a_round_the_same(attached, vllm):
    await run(attached(rounds=2), echo=lambda _: None)
    # Two passes a round ask the same two prompts; the engine is reset before each cold pass.
    assert len(vllm.prompts) == 8
    assert vllm.counted("local_cache_hit") == 4 * 384
    await run(attached(rounds=2), echo=lambda _: None)
    assert not set(vllm.prompts[:8]) & set(vllm.prompts[8:])


async def test_caches_are_emptied_before_what_has_to_find_them_empty(attached, vllm):
    vllm.written_chunks = [0, 4, 4]
    await run(attached(lmcache_url=vllm.url, requests=1), echo=lambda _: None)
    assert vllm.asked[1:] == [
        "POST /reset_prefix_cache", "POST /cache/clear", "POST /v1/completions",  # cold
        "POST /v1/completions",  # engine-warm
        "POST /reset_prefix_cache", "POST /v1/completions",  # store-warm
    ]  # fmt: skip


async def test_unknown_servers_are_not_reset_and_that_is_a_doubt(attached, vllm):
    result = await run(attached(decode_urls=[]), echo=lambda _: None)
    assert "POST /reset_prefix_cache" not in vllm.asked
    assert "Engine caches could not be reset before a cold pass" in " ".join(result.doubts)
    gates = dict(zip(result.gates["name"], result.gates["outcome"], strict=True))
    assert gates["cold was cold"] == "INCONCLUSIVE"


async def test_a_server_that_answers_errors_gives_failed_records_and_a_failed_gate(
    attached, vllm, said
):
    vllm.fails = {2}  # the second request of the cold pass
    result = await run(attached(), echo=said.append)
    assert result.requests["error"].tolist() == ["", "http_500", "", ""]
    gates = dict(zip(result.gates["name"], result.gates["outcome"], strict=True))
    assert gates["no failures"] == "FAIL"
    assert result.facts["finding"].startswith("Not valid: ")
    assert all("not valid" in number["note"] for number in result.facts["numbers"])
    assert read_standing(said[1])[0].endswith("1 of 2 failed")


async def test_a_run_without_one_success_has_failed(attached, vllm, said, tmp_path):
    vllm.fails = set(range(100))
    plan = attached()
    with pytest.raises(DeploymentError, match="all 4 requests failed; first error: http_500"):
        await run(plan, echo=said.append)
    result = only_attempt(tmp_path, plan.run_id)
    assert (result.facts["status"], result.facts["finding"]) == ("failed", "No request succeeded")
    assert set(result.requests["error"]) == {"http_500"}
    assert not (tmp_path / "pd_sweep" / plan.run_id / "result.json").exists()


async def test_rows_that_make_no_sense_are_kept(attached, monkeypatch, tmp_path):
    def stumble(*_, **__):
        raise ZeroDivisionError("by a clock that stood still")

    plan = attached()
    monkeypatch.setattr("workbench.experiment.run.run_facts.conclude", stumble)
    with pytest.raises(ResultError, match=r"by a clock that stood still.*the rows are in"):
        await run(plan, echo=lambda _: None)
    result = only_attempt(tmp_path, plan.run_id)
    assert result.facts["status"] == "failed"
    assert len(result.requests) == 4


async def test_an_interrupt_keeps_what_was_measured(attached, vllm, said, tmp_path):
    plan = attached(requests=3)
    vllm.hangs_after = 4  # the cold pass, and one request of the next
    running = asyncio.create_task(run(plan, echo=said.append))
    await asyncio.wait_for(vllm.hanging.wait(), 10)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    result = only_attempt(tmp_path, plan.run_id)
    assert result.facts["status"] == "cancelled"
    rows = result.requests
    assert rows.groupby("pass").size().to_dict() == {"cold": 3, "engine-warm": 3}
    assert rows["error"].tolist() == ["", "", "", "", "cancelled", "cancelled"]
    assert said[-1].startswith("cancelled after")
    # What the interrupt cut off has not failed.
    assert "no failures" not in result.run.failed_gates
    assert [row.n_failed for row in result.run.summary] == [0] * 10
    assert not (tmp_path / "pd_sweep" / plan.run_id / "result.json").exists()


async def test_a_server_that_goes_away_ends_the_run_with_what_was_measured(
    attached, vllm, said, tmp_path
):
    plan = attached(rounds=3)
    vllm.models_left = 2  # it answers in the first two rounds
    with pytest.raises(DeploymentError, match="attached server failed after round 2 of 3"):
        await run(plan, echo=said.append)
    result = only_attempt(tmp_path, plan.run_id)
    assert result.facts["status"] == "failed"
    assert set(result.requests["round"]) == {0, 1}
    assert result.facts["finding"]


async def test_a_run_in_which_no_pass_could_begin_has_failed(attached, vllm, monkeypatch, tmp_path):
    monkeypatch.setattr(deployed, "RESET_TIMEOUT_S", 0.0)
    vllm.goes_wrong("reset_refused")
    plan = attached()
    warm_only = replace(plan.arms[0], passes=(Pass(name="store-warm", state="store-warm"),))
    plan = replace(plan, arms=(warm_only,))
    with pytest.raises(DeploymentError, match=r"no pass could be measured; .* refuses to reset"):
        await run(plan, echo=lambda _: None)
    assert only_attempt(tmp_path, plan.run_id).facts["finding"] == "Nothing was measured"


async def test_a_failed_rerun_leaves_the_good_result(attached, vllm, tmp_path):
    plan = attached()
    good = await run(plan, echo=lambda _: None)
    before = (good.folder / "result.json").read_bytes()
    vllm.models_left = 0
    with pytest.raises(DeploymentError):
        await run(plan, echo=lambda _: None)
    assert (good.folder / "result.json").read_bytes() == before
    assert len(load_result(good.folder).requests) == 4


async def test_two_runs_at_the_same_time_do_not_collide(attached, tmp_path):
    plan = attached()
    one, two = await asyncio.gather(*(run(plan, echo=lambda _: None) for _ in range(2)))
    assert one.folder == two.folder
    assert len(load_result(one.folder).requests) == 4
    assert not list(one.folder.glob("attempt-*"))


async def test_files_are_reserved_for_the_highest_rate_before_servers_start(attached, monkeypatch):
    asked = []

    def reserve(in_flight):
        asked.append(in_flight)
        raise RuntimeError("that is all")

    monkeypatch.setattr("workbench.experiment.run.run.reserve_files", reserve)
    plan = attached(rates_per_s=[1.0, 1000.0], requests=20, timeout_s=1.0)
    with pytest.raises(RuntimeError):
        await run(plan, echo=lambda _: None)
    assert asked == [20]


async def test_a_key_from_the_environment_lets_in_and_is_written_nowhere(
    attached, vllm, said, monkeypatch, tmp_path
):
    vllm.key = "sk-not-to-be-seen"
    monkeypatch.setenv("OPENAI_API_KEY", vllm.key)
    plan = attached(lmcache_url=f"{vllm.url}/store")
    result = await run(plan, echo=said.append)
    assert set(result.requests["error"]) == {""}
    assert result.requests["cached_tokens"].max() == 384  # counters and resets were let in too
    assert vllm.keys["/store/metrics"] == ""  # another's server
    assert vllm.key not in f"{plan} {said} {result.facts}"
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(files) > 4
    assert not [file.name for file in files if vllm.key.encode() in file.read_bytes()]


async def test_a_killed_run_leaves_a_mark_that_it_had_started(attached, vllm, tmp_path):
    plan = attached()
    vllm.hangs_after = 0
    running = asyncio.create_task(run(plan, echo=lambda _: None))
    await asyncio.wait_for(vllm.hanging.wait(), 10)
    (attempt,) = (tmp_path / "pd_sweep" / plan.run_id).glob("attempt-*")
    assert json.loads((attempt / "result.json").read_text())["status"] == "started"
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert os.listdir(attempt / "logs") == []
