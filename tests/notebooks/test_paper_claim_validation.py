"""The referee as a user types it, on real servers; 40 s of measuring where nothing else runs."""

from pathlib import Path
from typing import Any

from tests.runs import outcomes
from workbench.report.page import write_page

MEASURED = (
    "VLLM-APC", "VLLM-APC-COST", "OWN-HIT-TOKENS", "OWN-SAME-TEXT", "OWN-TTFT-MONOTONE",
    "OWN-TOKEN-IDENTITY", "OWN-EQUAL-ARMS",
)  # fmt: skip


def test_two_rounds_judge_the_exact_claims_on_the_real_engine(found: Any, tmp_path: Path) -> None:
    # One recipe: the rest of the budget is for a busy machine.
    facts = found(
        "paper_claim_validation",
        "-p time_budget_s 120 -p rounds 2 -p tiers source,serving"
        f" -p claims a800_results,{','.join(MEASURED)}",
    )
    claims = {row["id"]: row for row in facts["claims"]}
    measured = [row for row in claims.values() if row["measured"]]
    assert {row["id"] for row in measured} == set(MEASURED)
    for exact in ("OWN-HIT-TOKENS", "OWN-SAME-TEXT", "OWN-TOKEN-IDENTITY"):
        assert claims[exact]["verdict"] == "confirmed (on CPU)", claims[exact]["reason"]
    # Two launches an arm give numbers, and never a verdict on a time.
    assert claims["VLLM-APC-COST"]["kind"] in ("inconclusive", "not-comparable")
    assert claims["VLLM-APC-COST"]["number"][0]["estimate"] > 0
    judged = [row for row in claims.values() if row["kind"] != "not-tested"]
    assert len(judged) >= 10 + len(MEASURED)
    assert all(row["skipped"] for row in claims.values() if row["kind"] == "not-tested")
    assert outcomes(facts)["rules agree with their fixtures"] == "PASS"
    page = write_page(tmp_path / "out.ipynb").read_text("utf-8")
    assert 'id="claim-VLLM-APC-COST"' in page and "2.00x to 2.35x" in page


def test_an_unknown_claim_is_one_sentence(papermill: Any) -> None:
    done = papermill("paper_claim_validation", "-p claims VLLM-APCC")
    assert done.returncode != 0
    assert "did you mean 'VLLM-APC'" in done.stderr
    assert "Traceback" not in done.stderr.split("ParameterError")[-1]
