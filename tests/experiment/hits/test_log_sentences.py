"""The result of a log that exists: what is counted, what is in doubt, and why, in words."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any, get_args

import pytest

from tests.metrics.lmcache_log.log_lines import (
    MP_LINES,
    line,
    lookup,
    prefetch,
    read,
    retrieved,
    short,
    stored,
)
from workbench.errors import ResultError
from workbench.experiment.hits.hit_analysis import hit_analysis
from workbench.experiment.hits.log_sentences import doubt
from workbench.experiment.hits.need_to_load import LEVELS, explained
from workbench.experiment.hits.served_tokens import log_tokens
from workbench.metrics.lmcache_log.log_summary import Cause, LogDoubt
from workbench.params.notebooks import LMCacheHitAnalysis
from workbench.params.run_id import run_id

IN_PROCESS = lookup("a", 497, 256, -240) + lookup("b", 900, 768, 640)
TWO_KINDS = short(0, 2560), line("Cannot retrieve", level="ERROR")


def result_of(folder: Path, *lines: str, **more: Any) -> Any:
    """The result of a log with these lines."""
    log = folder / "server.log"
    log.write_text("".join(lines))
    params = LMCacheHitAnalysis(log_file=str(log), output_dir=str(folder), **more)
    return asyncio.run(hit_analysis(params).run(echo=lambda _: None))


async def test_a_log_becomes_a_result(tmp_path: Path) -> None:
    log = tmp_path / "vllm.log"
    log.write_text(IN_PROCESS)
    analysis = hit_analysis(LMCacheHitAnalysis(log_file=str(log), output_dir=str(tmp_path)))
    assert "No servers are started" in str(analysis)
    result = await analysis.run(echo=lambda _: None)
    facts = json.loads((result.folder / "result.json").read_text())
    assert facts["status"] == "success"
    assert facts["finding"].startswith("LMCache served at most 45.8 % of prompt tokens")
    assert len(facts["explained"]) == len(LEVELS) + 2
    assert any("(1 logged a negative need to load)" in s for s in facts["sentences"])
    # No request passed through a client, so none is judged.
    assert [(gate["name"], gate["outcome"]) for gate in facts["gates"]] == [
        ("the log is whole", "PASS")
    ]
    assert list(result.served["l1"]) == [0, 640]
    assert result.hits.empty and result.ratios_table.empty
    assert list(result.tiers_table["computed"]) == ["133"]


def test_hits_that_did_not_arrive_are_not_served(tmp_path: Path) -> None:
    """No reason is invented: the engine held nothing of these prompts."""
    lines = [lookup(name, 2774, 2560, 2560) + short(0, 2560) for name in "abcd"]
    result = result_of(tmp_path, *lines)
    facts = result.facts
    assert facts["finding"].startswith("LMCache served 0 % of prompt tokens")
    said = " ".join([*facts["sentences"], *facts["explained"]])
    assert "0 of 10,240 needed tokens were loaded" in said
    assert "engine already" not in said
    assert result.tiers_table["computed"].tolist() == ["11,096"]
    assert facts["numbers"][-1]["label"] == "of the LMCache-hit tokens were not loaded"
    assert facts["numbers"][-1]["value"] == 100


def test_several_logs_are_one_result(tmp_path: Path) -> None:
    for name in ("prefill", "decode"):
        (tmp_path / f"{name}.log").write_text(IN_PROCESS)
    files = f"{tmp_path}/prefill.log, {tmp_path}/decode.log"
    analysis = hit_analysis(LMCacheHitAnalysis(log_file=files, output_dir=str(tmp_path)))
    assert str(analysis).count(" bytes)") == 2
    result = asyncio.run(analysis.run(echo=lambda _: None))
    assert "Of 2,794 prompt tokens" in result.facts["sentences"][0]
    assert result.facts["run_id"].startswith("log-prefill-decode-")


@pytest.mark.parametrize(
    ("text", "span"),
    [
        ("INFO 11-07 11:03:05 [x.py:1] Reqid: a, Total tokens 900, LMCache hit tokens: 768, need to"
         " load: 640\n", "Log time: 11-07 11:03:05 to 11:03:05."),
        ("Reqid: a, Total tokens 900, LMCache hit tokens: 768, need to load: 640\n",
         "The lines have no timestamps."),
        (stored("", 256), "Log time: 2026-11-21 10:42:29 to 10:42:29."),
    ],
)  # fmt: skip
def test_a_log_tells_the_times_that_it_has(tmp_path: Path, text: str, span: str) -> None:
    result = result_of(tmp_path, text)
    assert (
        f": 1 of 1 lines are LMCache lines that could be parsed. {span} " in result.facts["scope"]
    )
    assert "NaT" not in json.dumps(result.facts, default=str)
    assert len(result.tiers_table) == ("Reqid" in text)


def test_a_server_before_its_first_hit_tells_what_it_stored(tmp_path: Path) -> None:
    result = result_of(tmp_path, line("Stored 256 tokens in 0.1 seconds") * 3)
    assert result.facts["finding"] == "LMCache stored 768 tokens and loaded 0 tokens"
    assert result.tiers_table.empty and result.served.empty


def test_keys_of_several_workers_are_counted_once(tmp_path: Path) -> None:
    lines = [line("LMCache server config: chunk_size=256, l1_size_gb=60")]
    for n in range(3):
        lines += [prefetch(f"r{n}", 12, 44), line("Retrieved 768 tokens in 0.013 seconds") * 4]
    for ranks in (0, 4):
        facts = result_of(tmp_path, *lines, log_ranks=ranks).facts
        assert "2,304 tokens in 3 lookups and loaded 2,304 tokens (100 %)" in facts["finding"]
        assert any("256-token chunk has 4 keys" in sentence for sentence in facts["sentences"])
    assert facts["repeat"].endswith("-p log_ranks 4")


def test_the_mp_generation_gives_no_rate(tmp_path: Path) -> None:
    result = result_of(tmp_path, *MP_LINES, prefetch("b", 2, 2))
    assert "23,040 tokens in 2 lookups and loaded 22,528 tokens (97.8 %)" in result.facts["finding"]
    assert any("512 of the tokens found were not" in s for s in result.facts["sentences"])
    assert "88" not in result.facts["explained"][-2]
    assert result.tiers_table["prompt"].tolist() == ["unknown"]
    assert result.served["engine"].isna().all()


def test_a_log_with_many_cut_lines_fails_its_gate(tmp_path: Path) -> None:
    facts = result_of(tmp_path, IN_PROCESS, IN_PROCESS[:110]).facts
    assert facts["gates"][0]["outcome"] == "FAIL"
    assert facts["finding"].startswith("Not valid")
    assert {card["spoilt"] for card in facts["numbers"]} == {"struck"}
    assert all(sentence.startswith("Not valid") for sentence in facts["sentences"])


@pytest.mark.parametrize("text", ["", "GET / 200\n"])
def test_a_log_with_nothing_in_it_is_one_sentence(tmp_path: Path, text: str) -> None:
    with pytest.raises(ResultError, match=r"server.log: .*Expected INFO lines") as refused:
        result_of(tmp_path, text)
    assert "\n" not in str(refused.value)
    assert not list(tmp_path.glob("lmcache_hit_analysis/*/result.json"))


def test_a_log_that_has_grown_is_another_run(tmp_path: Path) -> None:
    log = tmp_path / "vllm.log"
    log.write_text(IN_PROCESS)
    params = LMCacheHitAnalysis(log_file=str(log))
    before = run_id(params)
    assert before.startswith("log-vllm-")
    log.write_text(IN_PROCESS * 2)
    assert run_id(params) != before


# --- doubts ---


@pytest.mark.parametrize("cause", get_args(Cause))
def test_every_cause_of_doubt_has_a_sentence(cause: Cause) -> None:
    log = read(IN_PROCESS)
    said = doubt(log, LogDoubt(cause=cause, count=1234, tokens=5678))
    assert said.endswith(".") and "{" not in said
    assert len(said.split()) <= 25 + 12 * ("Expected INFO" in said)  # an error quotes log lines


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ((lookup("a", 2774, 2560, 2560), short(0, 2560)), "1 retrieval failed: 2,560 tokens"),
        ((lookup("a", 2774, 2560, 2560), *TWO_KINDS), "3 errors, for example: “The number of"),
        ((lookup("a", 900, 0, 0), lookup("a", 900, 0, 0, at="2026-11-21 12:00:00,000")),
         "1 request id occurred again"),
        ((line("chunk_size=256,"), line("chunk_size=128,"), *MP_LINES), "chunks of 128, 256"),
        ((line("chunk_size=256,"), prefetch("a", 12, 44)), "-p log_ranks 4"),
        ((b"\xff" * 3, lookup("a", 900, 0, 0)), "3 byte sequences"),
    ],
)  # fmt: skip
def test_a_doubt_has_its_numbers(lines: tuple[str, ...], words: str) -> None:
    log = read(*lines)
    said = [doubt(log, found) for found in log.doubts]
    assert any(words in sentence for sentence in said), said


# --- need to load ---


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ((lookup("a", 497, 256, -240),), "256 - 496 = -240. Nothing was loaded, because"),
        ((lookup("a", 497, 256, 0, engine=496),), "256 - 496 = -240 (logged as 0). Nothing"),
        ((lookup("a", 2005, 1792, 1664, engine=128), retrieved("a", 1664, 1664)),
         "All 1,664 were loaded; 213 tokens"),
        ((lookup("a", 900, 0, 0),), "0 - 0 = 0. Nothing was loaded; 900 tokens were computed"),
        ((lookup("a", 256, 256, 255),), "256 - 0 - 1 (the last token is always computed) = 255"),
        ((lookup("a", 2005, 1792, 1664, engine=128),), "assumed to have been loaded; 213 tokens"),
        ((lookup("a", 2774, 2560, 2560), short(0, 2560)), "None of these tokens were loaded"),
        ((lookup("a", 2774, 2560, 2560), short(1024, 2560)), "Only 1,024 of these tokens"),
        ((lookup("a", 2774, 2560, 2560), lookup("b", 2774, 2560, 2560),
          retrieved("b", 2560, 2560)), "No log line confirms the load"),
        (MP_LINES, "22,528 tokens (20,480 in L1, 2,048 in L2)"),
        (MP_LINES[2:3], "88 keys (80 in L1, 8 in L2)"),
    ],
)  # fmt: skip
def test_need_to_load_is_explained(lines: tuple[str, ...], words: str) -> None:
    assert words in " ".join(explained(log_tokens(read(*lines))))


def test_a_load_too_small_to_be_worth_it_is_explained() -> None:
    text = "Reqid: a, Total tokens 600, LMCache hit tokens: 512, but need to load: 128"
    said = explained(log_tokens(read(line(f"{text} < min_retrieve 256, skip retrieve"))))
    assert "below LMCache's min_retrieve" in said[-1]
