"""The hit analysis on rows, counters and logs whose answer is known."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from workbench.errors import ParameterError, PlanError, ResultError
from workbench.experiment.hits.hit_analysis import hit_analysis
from workbench.experiment.hits.hit_findings import ratios, tiers
from workbench.experiment.hits.hit_rows import (
    credited,
    explained,
    pass_counts,
    served_tokens,
    store_logs,
)
from workbench.experiment.hits.hit_sentences import cards, headline, sentences
from workbench.experiment.plan import arms
from workbench.experiment.plan.hit_plan import CACHE_OFF, DISK, MAIN, NO_STORE, SMALL
from workbench.experiment.plan.plan import ExperimentPlan, run_id
from workbench.params.notebooks import LMCacheHitAnalysis, check_params

Plan = Callable[..., ExperimentPlan]


@pytest.fixture
def hits(machine_has: Callable[..., None]) -> Plan:
    return lambda **params: arms.plan(LMCacheHitAnalysis(**params))


# --- the plan ---


def test_the_arms_differ_in_one_thing_each(hits: Plan) -> None:
    plan = hits()
    by_label = {arm.label: arm for arm in plan.arms}
    assert list(by_label) == [
        NO_STORE, MAIN, CACHE_OFF, "chunk 64", "chunk 128", "chunk 512", SMALL, DISK,
    ]  # fmt: skip
    assert [p.name for p in by_label[MAIN].passes] == [
        "cold", "engine-warm", "50% in LMCache", "store-warm",
    ]  # fmt: skip
    assert by_label[CACHE_OFF].settings is not None
    assert not by_label[CACHE_OFF].settings.prefix_caching
    assert [by_label[f"chunk {n}"].chunk_tokens for n in (64, 128, 512)] == [64, 128, 512]
    assert by_label["chunk 64"].may_fail and not by_label[MAIN].may_fail
    assert by_label[SMALL].store_gb < 0.01 < by_label[MAIN].store_gb
    lines = str(plan)
    assert lines.count("--chunk-size 64") == 1
    assert lines.count('"base_path": "disk"') == 1
    assert lines.count("--block-size 64") == len(plan.arms)


def test_prompts_of_each_length_take_turns_and_share_nothing(hits: Plan) -> None:
    workload = hits(prompt_tokens=[40, 300], requests=3).workload.build("salt")
    assert [r.prompt_tokens for r in workload.requests] == [40, 300] * 3
    assert {r.ideal_reuse_tokens for r in workload.requests} == {0}
    assert len({r.prompt_ids[:16].tobytes() for r in workload.requests}) == 6


def test_a_store_that_is_not_too_small_is_a_doubt(hits: Plan) -> None:
    assert not hits().doubts
    assert "nothing will be evicted" in hits(small_store_mb=500).doubts[0]
    assert "evicted blocks" in hits(kv_cache_mib=16, small_store_mb=1).doubts[0]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"engine": "simulated"}, "tiers are not pretended"),
        ({"engine": "attach"}, "base_url is ''"),
        ({"engine": "attach", "base_url": "http://x", "log_file": "a"}, "two different analyses"),
        ({"prompt_tokens": [8]}, r"prompt_tokens is \[8\]: it takes different numbers of at least"),
        ({"prompt_tokens": []}, "prompt_tokens is"),
        ({"chunk_tokens": [64, 64]}, "chunk_tokens is"),
        ({"shares": [1.0]}, "each is between 0 and 1"),
        ({"prompt_tokens": [30_000]}, "do not fit context_tokens"),
    ],
)
def test_bad_parameters_are_one_sentence(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ParameterError, match=sentence):
        check_params("lmcache_hit_analysis", given)


async def test_the_chunk_of_a_running_store_is_asked_of_it(
    hits: Plan, unused_tcp_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", "/none.pem")  # of no concern to a store without TLS

    async def status(_: web.Request) -> web.Response:
        return web.json_response({"is_healthy": True, "chunk_size": 512})

    app = web.Application()
    app.router.add_get("/status", status)
    attach = {"engine": "attach", "base_url": "http://127.0.0.1:1"}
    urls = ["http://127.0.0.1:1"]
    async with TestServer(app) as server:
        url = str(server.make_url(""))
        plan = await asyncio.to_thread(lambda: hits(**attach, decode_urls=urls, lmcache_url=url))
    (arm,) = plan.arms
    assert (arm.connector, arm.chunk_tokens) == ("lmcache", 512)
    assert [p.name for p in arm.passes] == ["cold", "engine-warm", "store-warm"]
    silent = hits(**attach, decode_urls=urls, lmcache_url=f"http://127.0.0.1:{unused_tcp_port}")
    assert "does not say how long its chunk is" in silent.doubts[-1]


def test_a_log_has_no_plan(hits: Plan) -> None:
    with pytest.raises(PlanError, match="nothing is measured"):
        hits(log_file="vllm.log")


# --- who served a token ---

HEAD = "[2026-11-21 10:42:29,019] LMCache INFO:"


def store_log(*events: str) -> str:
    place = "(engine_driven_transfer.py:514:lmcache)"
    lines = ["TokenHasher initialized: chunk_size=256, hash_algorithm=blake3", *events]
    return "".join(f"{HEAD} {event} {place}\n" for event in lines)


def found(request: str, l1: int, l2: int = 0) -> str:
    return (
        f"Prefetch request completed (L1+L2): {l1 + l2}/{l1 + l2} retained keys ({l1} L1, {l2} L2)"
        f" in 1.4 ms (external_request_id=cmpl-{request}-0-82e63193, prefetch_request_id=1)"
    )


def requests(arm: str, name: str, rows: list[tuple[str, int, int]], *, ttft_s: float = 0.1,
             round: int = 0) -> pd.DataFrame:  # fmt: skip
    """Rows of (request id, prompt tokens, cached tokens), one after the other."""
    return pd.DataFrame(
        [
            {"arm": arm, "round": round, "pass": name, "index": i, "request_id": request,
             "prompt_tokens": prompt, "cached_tokens": cached, "error": "",
             "ideal_reuse_tokens": 0 if name == "cold" else prompt - 1, "sent_s": float(i),
             "ttft_s": ttft_s * (1 + i)}
            for i, (request, prompt, cached) in enumerate(rows)
        ]
    )  # fmt: skip


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """The log of one store: request a was in the engine, b in L1, c on the disk, d nowhere."""
    folder = tmp_path / "logs" / "round-0" / "lmcache"
    folder.mkdir(parents=True)
    (folder / "store.log").write_text(
        store_log(
            found("a", 1),
            found("b", 3),
            "Retrieved 768 tokens in 0.004 seconds",
            found("c", 1, 2),
            "Retrieved 768 tokens in 0.009 seconds",
            "Stored 512 tokens in 0.003 seconds",
        )
    )
    return tmp_path


def test_every_token_is_served_by_one(run_folder: Path) -> None:
    sent = requests("lmcache", "again", [("a", 400, 384), ("b", 900, 768), ("c", 768, 767),
                                         ("d", 900, 0)])  # fmt: skip
    served = served_tokens(sent, store_logs(run_folder, sent)).set_index("request_id")
    rows = served[["engine", "l1", "l2", "computed"]].to_dict("index")
    assert rows["a"] == {"engine": 384, "l1": 0, "l2": 0, "computed": 16}
    assert rows["b"] == {"engine": 0, "l1": 768, "l2": 0, "computed": 132}
    # All of c's 768 tokens were found, and the last one is computed all the same.
    assert rows["c"] == {"engine": 0, "l1": 255, "l2": 512, "computed": 1}
    assert rows["d"] == {"engine": 0, "l1": 0, "l2": 0, "computed": 900}
    assert served["need"].to_dict() == {"a": 256 - 384, "b": 768, "c": 767, "d": 0}
    assert served["idle"].to_dict() == {"a": 256, "b": 0, "c": 0, "d": 0}


def test_need_to_load_is_explained_for_each_sign(run_folder: Path) -> None:
    sent = requests("lmcache", "again", [("a", 400, 384), ("b", 900, 768)])
    said = explained(served_tokens(sent, store_logs(run_folder, sent)))
    assert said[0].endswith("256 - 384 = -128, so nothing was loaded and LMCache earns no credit.")
    assert "which LMCache is credited with" in said[1]


def test_without_a_store_only_the_engine_serves(tmp_path: Path) -> None:
    sent = requests("no store", "engine-warm", [("a", 400, 384)])
    (row,) = served_tokens(sent, store_logs(tmp_path, sent)).to_dict("records")
    assert (row["engine"], row["l1"], row["computed"]) == (384, 0, 16)
    assert isnan(row["need"])


@pytest.mark.parametrize(
    ("loaded", "engine", "served_by"),
    [(0, 384, "engine"), (384, 0, "l1"), (100, 284, None), (np.nan, np.nan, None)],
)
def test_without_a_log_the_counters_of_a_pass_say_who_served(
    tmp_path: Path, loaded: float, engine: float, served_by: str | None
) -> None:
    sent = requests("attached", "again", [("a", 400, 384)])
    counts = pd.DataFrame(
        [{"arm": "attached", "round": 0, "pass": "again", "loaded": loaded, "engine": engine,
          "claimed_l1": loaded, "claimed_l2": 0.0}]
    )  # fmt: skip
    (row,) = credited(served_tokens(sent, store_logs(tmp_path, sent)), counts).to_dict("records")
    for tier in ("engine", "l1", "l2"):
        if served_by is None:
            assert isnan(row[tier])
        else:
            assert row[tier] == (384 if tier == served_by else 0)


def test_a_failed_request_serves_nobody(run_folder: Path) -> None:
    sent = requests("lmcache", "again", [("a", 400, 384), ("b", 900, -1)])
    sent.loc[1, "error"] = "reset"
    assert list(served_tokens(sent, store_logs(run_folder, sent))["request_id"]) == ["a"]


# --- counters ---


def counters(*changes: tuple[str, str, str, float, float]) -> pd.DataFrame:
    """Readings before and after of (instance, series, labels, before, after)."""
    return pd.DataFrame(
        [
            {"arm": "lmcache", "round": 0, "pass": "cold", "when": when, "instance": instance,
             "series": series, "labels": labels, "value": value}
            for instance, series, labels, *values in changes
            for when, value in zip(("before", "after"), values, strict=True)
        ]
    )  # fmt: skip


SOURCE = "vllm:prompt_tokens_by_source_total"


def test_counters_of_a_pass_are_differences() -> None:
    (row,) = pass_counts(
        counters(
            ("aggregated-0", SOURCE, "engine=0,source=local_compute", 5, 105),
            ("aggregated-0", SOURCE, "engine=0,source=external_kv_transfer", 0, 40),
            ("store", "lmcache_mp_lookup_hit_tokens_total", "", 10, 60),
        )
    ).to_dict("records")
    assert (row["computed"], row["loaded"], row["claimed"]) == (100, 40, 50)
    assert isnan(row["engine"])  # a series that the engine does not have
    assert row["evicted_chunks"] == 0  # the store exports it from its first eviction on


def test_a_restarted_server_has_no_count() -> None:
    (row,) = pass_counts(
        counters(
            ("aggregated-0", SOURCE, "source=local_compute", 500, 100),
            ("store", "lmcache_mp_lookup_hit_tokens_total", "", 60, 10),
        )
    ).to_dict("records")
    assert isnan(row["computed"]) and isnan(row["claimed"])


# --- findings ---

PROMPTS = [("a", 400, 0), ("b", 4000, 0)]


@pytest.fixture
def measured() -> pd.DataFrame:
    """Three rounds: cold takes 100 and 200 ms, 10 % more with LMCache, loading takes 20 and 40."""
    parts = []
    for number in range(3):
        slow = 1 + 0.001 * number
        for arm, name, ttft_s, cached in (
            (NO_STORE, "cold", 0.1, 0), (MAIN, "cold", 0.11, 0), (MAIN, "store-warm", 0.02, 0.8),
            (MAIN, "50% in LMCache", 0.1 / slow**9, 0.4), ("chunk 512", "store-warm", 0.03, 0.5),
        ):  # fmt: skip
            rows = requests(
                arm, name, [(f"{n}{arm}{name}", p, int(cached * p)) for n, p, _ in PROMPTS],
                ttft_s=ttft_s * slow, round=number,
            )  # fmt: skip
            parts.append(rows)
    return pd.concat(parts, ignore_index=True)


def as_served(rows: pd.DataFrame) -> pd.DataFrame:
    """All cached tokens came from L1."""
    cached = rows["cached_tokens"].astype(float)
    return rows.assign(
        engine=0.0, l1=cached, l2=0.0, computed=rows["prompt_tokens"] - cached, held=cached,
        idle=0.0, ideal=rows["ideal_reuse_tokens"],
    )  # fmt: skip


def test_ratios_are_paired_by_prompt(measured: pd.DataFrame) -> None:
    rows = ratios(measured, as_served(measured), {MAIN: 256, "chunk 512": 512})
    by_key = {(r["what"], r["arm"], r["pass"], r["prompt_tokens"]): r for r in rows}
    cost = by_key["storing", MAIN, "cold", 0]
    assert cost["ratio"] == pytest.approx(1 / 1.1, rel=1e-3)
    assert cost["low"] < cost["ratio"] < cost["high"] < 1
    loading = by_key["loading", MAIN, "store-warm", 4000]
    assert loading["ratio"] == pytest.approx(5, rel=1e-3)
    assert loading["loaded_share"] == 0.8
    assert by_key["chunk", "chunk 512", "store-warm", 0]["loaded_share"] == pytest.approx(0.5)
    assert not [r for r in rows if r["what"] == "disk"]  # no such arm was measured


def test_sentences_say_what_intervals_carry(measured: pd.DataFrame) -> None:
    rows = ratios(measured, as_served(measured), {MAIN: 256, "chunk 512": 512})
    said = sentences(rows, [])
    assert headline(rows).startswith(
        "Loading a 4,000-token prompt from LMCache answers 5 times sooner than computing it"
    )
    assert any("loading beats recomputing at every measured length" in s for s in said)
    assert any("Break-even, 50% in LMCache: not reached" in s for s in said)
    assert any(s.startswith("LMCache changes cold TTFT by +10.0 %") for s in said)
    assert any("it pays once 12.5% of such prompts come back" in s for s in said)
    assert [card.label for card in cards(rows, [])] == [
        "TTFT computed / loaded, 4,000 tokens", "cold TTFT added by LMCache",
    ]  # fmt: skip


def test_two_rounds_judge_nothing(measured: pd.DataFrame) -> None:
    few = measured[measured["round"] < 2]
    rows = ratios(few, as_served(few), {MAIN: 256, "chunk 512": 512})
    assert "in too few rounds for an interval" in headline(rows)
    assert any("not judged, too few rounds" in s for s in sentences(rows, []))
    assert any("TTFT is not judged" in s for s in sentences(rows, []))


def test_a_hit_that_the_engine_had_too_is_claimed_and_not_credited() -> None:
    served = as_served(requests(MAIN, "engine-warm", [("a", 400, 384)]))
    served = served.assign(engine=384.0, l1=0.0, held=256.0, idle=256.0)
    counts = pd.DataFrame([{"arm": MAIN, "round": 0, "pass": "engine-warm", "requested": 256.0,
                            "claimed": 256.0}])  # fmt: skip
    (row,) = tiers(served, counts)
    assert (row["hit_share"], row["claimed_share"], row["idle"]) == (0.96, 1.0, 256)
    assert (
        "claims 256 hits for them (100% of what it was asked), and loaded 0"
        in sentences([], [row])[0]
    )
    assert cards([], [row])[0].value == 100


# --- a log that exists ---

IN_PROCESS = (
    f"{HEAD} Reqid: a, Total tokens 497, LMCache hit tokens: 256, need to load: -240 (x.py:1)\n"
    f"{HEAD} Reqid: b, Total tokens 900, LMCache hit tokens: 768, need to load: 640 (x.py:1)\n"
)


async def test_a_log_becomes_a_result(tmp_path: Path) -> None:
    log = tmp_path / "vllm.log"
    log.write_text(IN_PROCESS)
    params = LMCacheHitAnalysis(log_file=str(log), output_dir=str(tmp_path))
    analysis = hit_analysis(params)
    assert "nothing is started" in str(analysis)
    result = await analysis.run(echo=lambda _: None)
    facts = json.loads((result.folder / "result.json").read_text())
    assert facts["status"] == "success"
    assert facts["finding"].startswith("LMCache served 45.8% of 1,397 prompt tokens")
    assert "256 - 496 = -240, so nothing was loaded" in facts["explained"][0]
    assert any("1 of them print a negative need to load" in s for s in facts["sentences"])
    assert facts["gates"][0]["outcome"] == "PASS"
    assert list(result.served["l1"]) == [0, 640]
    assert result.hits.empty and result.ratios_table.empty
    assert list(result.tiers_table["computed"]) == ["133"]


def log_result(folder: Path, text: str, **more: Any) -> Any:
    """The result of a log with this text."""
    (folder / "server.log").write_text(text)
    params = LMCacheHitAnalysis(log_file=str(folder / "server.log"), output_dir=str(folder), **more)
    return asyncio.run(hit_analysis(params).run(echo=lambda _: None))


def test_hits_that_did_not_arrive_are_not_served(tmp_path: Path) -> None:
    """No reason is invented: the engine held nothing of these prompts."""
    result = log_result(
        tmp_path,
        "".join(
            f"{HEAD} Reqid: {name}, Total tokens 2774, LMCache hit tokens: 2560, need to load: 2560"
            f" (x.py:1)\n(Worker_TP1 pid=9) {HEAD.replace('INFO', 'ERROR')} Num retrieved tokens:"
            " 0, num expected tokens: 2560 (x.py:2)\n"
            for name in "abcd"
        ),
    )
    facts = result.facts
    assert facts["finding"].startswith("LMCache served 0.0% of 11,096 prompt tokens")
    said = " ".join([*facts["sentences"], *facts["explained"]])
    assert "LMCache found 10,240 tokens to load, and 0 of them arrived" in said
    assert "since the engine held" not in said
    assert "The engine held" not in said
    assert any("4 retrievals failed: 10,240 tokens" in doubt for doubt in facts["doubts"])
    assert any("“Num retrieved tokens: 0, num expected" in doubt for doubt in facts["doubts"])
    assert result.tiers_table["computed"].tolist() == ["11,096"]
    assert facts["numbers"][-1]["label"] == "LMCache hits that did not arrive"
    assert facts["numbers"][-1]["value"] == 100


def test_several_logs_are_one_result(tmp_path: Path) -> None:
    for name in ("prefill", "decode"):
        (tmp_path / f"{name}.log").write_text(IN_PROCESS)
    files = f"{tmp_path}/prefill.log, {tmp_path}/decode.log"
    params = LMCacheHitAnalysis(log_file=files, output_dir=str(tmp_path))
    analysis = hit_analysis(params)
    assert str(analysis).count("log (0.0 MB)") == 2
    result = asyncio.run(analysis.run(echo=lambda _: None))
    assert result.facts["finding"].startswith("LMCache served 45.8% of 2,794 prompt tokens")
    assert result.facts["run_id"].startswith("log-prefill-decode-")


def test_a_log_passes_through_no_client_so_it_has_no_gate_on_one(tmp_path: Path) -> None:
    gates = log_result(tmp_path, IN_PROCESS).facts["gates"]
    assert [gate["name"] for gate in gates] == ["the log is whole"]


@pytest.mark.parametrize(
    ("text", "span"),
    [
        ("INFO 11-07 11:03:05 [x.py:1] Reqid: a, Total tokens 900, LMCache hit tokens: 768, need to"
         " load: 640\n", "LMCache's, 11-07 11:03:05 to 11:03:05 on the log's clock."),
        ("Reqid: a, Total tokens 900, LMCache hit tokens: 768, need to load: 640\n",
         "LMCache's; no line has a time."),
        (f"{HEAD} Stored 256 tokens in 0.1 seconds (x.py:1)\n",
         "LMCache's, 2026-11-21 10:42:29 to 10:42:29 on the log's clock."),
    ],
)  # fmt: skip
def test_a_log_tells_the_times_that_it_has(tmp_path: Path, text: str, span: str) -> None:
    result = log_result(tmp_path, text)
    assert result.facts["scope"].endswith(span)
    assert "NaT" not in json.dumps(result.facts, default=str)
    assert len(result.tiers_table) == ("Reqid" in text)


def test_a_server_before_its_first_hit_tells_what_it_stored(tmp_path: Path) -> None:
    result = log_result(tmp_path, f"{HEAD} Stored 256 tokens in 0.1 seconds (x.py:1)\n" * 3)
    assert result.facts["finding"] == "LMCache stored 768 tokens and loaded 0"
    assert result.tiers_table.empty and result.served.empty


def test_keys_of_several_workers_are_counted_once(tmp_path: Path) -> None:
    place = "(x.py:1)\n"
    text = f"{HEAD} LMCache server config: chunk_size=256, l1_size_gb=60 {place}"
    for n in range(3):
        text += (
            f"{HEAD} Prefetch request completed (L1+L2): 12/44 retained keys (12 L1, 0 L2) in 0.5"
            f" ms (external_request_id=r{n}, prefetch_request_id=-1) {place}"
        )
        text += f"{HEAD} Retrieved 768 tokens in 0.013 seconds {place}" * 4
    for ranks in (0, 4):
        facts = log_result(tmp_path, text, log_ranks=ranks).facts
        assert facts["finding"] == (
            "LMCache found 2,304 tokens in 3 lookups and loaded 2,304 (100.0% of them)"
        )
        assert any("is 4 keys in this log" in sentence for sentence in facts["sentences"])
    assert facts["repeat"].endswith("-p log_ranks 4")
    wrong = log_result(tmp_path, text, log_ranks=3).facts
    assert any("log_ranks is wrong" in doubt for doubt in wrong["doubts"])


async def test_a_log_with_many_cut_lines_fails_its_gate(tmp_path: Path) -> None:
    log = tmp_path / "vllm.log"
    log.write_text(IN_PROCESS + IN_PROCESS[:80])
    params = LMCacheHitAnalysis(log_file=str(log), output_dir=str(tmp_path))
    result = await hit_analysis(params).run(echo=lambda _: None)
    # No request passed through a client, so no client is judged.
    assert [gate["name"] for gate in result.facts["gates"]] == ["the log is whole"]
    assert result.facts["gates"][0]["outcome"] == "FAIL"
    assert result.facts["finding"] == (
        "Not proven: lines of the log were cut (gate “the log is whole”)"
    )
    assert {card["spoilt"] for card in result.facts["numbers"]} == {"struck"}
    said = "Not proven: gate “the log is whole” failed. "
    assert all(sentence.startswith(said) for sentence in result.facts["sentences"])


@pytest.mark.parametrize("text", ["", "GET / 200\n"])
async def test_a_log_with_nothing_in_it_is_one_sentence(tmp_path: Path, text: str) -> None:
    log = tmp_path / "other.log"
    log.write_text(text)
    params = LMCacheHitAnalysis(log_file=str(log), output_dir=str(tmp_path))
    with pytest.raises(ResultError, match=r"other.log: .*looked for") as refused:
        await hit_analysis(params).run(echo=lambda _: None)
    assert "\n" not in str(refused.value)
    assert not list(tmp_path.glob("lmcache_hit_analysis/*/result.json"))


async def test_a_log_of_the_mp_generation_gives_no_rate(run_folder: Path) -> None:
    log = run_folder / "logs" / "round-0" / "lmcache" / "store.log"
    params = LMCacheHitAnalysis(log_file=str(log), output_dir=str(run_folder))
    result = await hit_analysis(params).run(echo=lambda _: None)
    assert result.facts["finding"] == (
        "LMCache found 1,792 tokens in 3 lookups and loaded 1,536 (85.7% of them)"
    )
    assert any("256 of the tokens found were not retrieved" in s for s in result.facts["sentences"])
    assert result.tiers_table["prompt"].tolist() == ["not known"]
    assert np.isnan(result.served["engine"]).all()


def test_a_log_that_has_grown_is_another_run(tmp_path: Path) -> None:
    log = tmp_path / "vllm.log"
    log.write_text(IN_PROCESS)
    params = LMCacheHitAnalysis(log_file=str(log))
    before = run_id(params)
    assert before.startswith("log-vllm-")
    log.write_text(IN_PROCESS * 2)
    assert run_id(params) != before
