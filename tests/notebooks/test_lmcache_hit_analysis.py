"""The hit analysis as a user types it: a live run, and logs."""

from pathlib import Path
from typing import Any

from tests.runs import outcomes


def test_a_live_run_reconciles_the_stores_log_with_the_engines_counters(
    found: Any, tmp_path: Path
) -> None:
    facts = found(
        "lmcache_hit_analysis",
        "-p rounds 1 -p requests 1 -p prompt_tokens 900,2900 -p chunk_tokens 100,256"
        " -p small_store_mb 2",
    )
    assert outcomes(facts)["cold was cold"] == outcomes(facts)["same text"] == "PASS"
    # LMCache itself says that a chunk of 100 tokens does not fit blocks of 64.
    assert any("chunk 100 was skipped: " in doubt for doubt in facts["doubts"])
    assert not any("LMCache's log shows" in doubt for doubt in facts["doubts"])
    rows = {(r["arm"], r["pass"]): r for r in facts["tiers"]}
    warm = rows["lmcache", "engine-warm"]
    assert warm["engine"] > 0 and warm["l1"] == 0
    assert warm["idle"] == warm["counted_claimed"] == 256 * (3 + 11)
    assert rows["lmcache", "store-warm"]["l1"] == 256 * (3 + 11)
    assert rows["lmcache, engine cache off", "store-warm"]["l1"] == 256 * (3 + 11)
    assert rows["lmcache, L2 on disk", "disk-warm"]["l2"] == 256 * (3 + 11)
    assert rows["lmcache, small L1", "asked again"]["l1"] < 256 * (3 + 11)
    assert any("768 - 896 = -128. Nothing was loaded" in s for s in facts["explained"])
    # The disk tier's files went with its server.
    assert not list(tmp_path.glob("lmcache_hit_analysis/*/disk"))


def test_a_log_starts_nothing(found: Any, tmp_path: Path) -> None:
    log = tmp_path / "vllm.log"
    head = "(EngineCore_DP0 pid=7) [2026-01-20 21:21:58,711] LMCache INFO:"
    log.write_text(
        f"{head} Reqid: cmpl-1, Total tokens 497, LMCache hit tokens: 256, need to load: -240 (x)\n"
    )
    facts = found("lmcache_hit_analysis", f"-p log_file {log}")
    assert "256 - 496 = -240. Nothing was loaded" in " ".join(facts["explained"])
    assert facts["arms"] == []


def test_a_log_of_another_program_is_one_sentence(papermill: Any, tmp_path: Path) -> None:
    (tmp_path / "access.log").write_text('127.0.0.1 "GET / HTTP/1.1" 200\n')
    done = papermill("lmcache_hit_analysis", f"-p log_file {tmp_path}/access.log")
    assert done.returncode != 0
    assert "None of its 1 lines is an LMCache line" in done.stderr
    assert "Traceback" not in done.stderr.split("ResultError")[-1]
