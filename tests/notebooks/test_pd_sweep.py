"""`papermill notebooks/pd_sweep.ipynb` as typed, on real servers with short prompts."""

import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.runs import BUSY, not_passed
from workbench.report.page import write_page

QUICK = "-p prompt_tokens 3000 -p requests 2 -p output_tokens 8"


@pytest.mark.parametrize("rounds", [1, pytest.param(2, marks=pytest.mark.long)])
def test_1p1d_over_lmcache_with_its_opponents(found: Any, tmp_path: Path, rounds: int) -> None:
    facts = found("pd_sweep", f"-p topology 1p1d -p rounds {rounds} {QUICK}")
    assert facts["status"] == "success"
    assert set(not_passed(facts)) <= BUSY  # other programs may keep it busy
    assert [arm["label"] for arm in facts["arms"]] == ["1p1d lmcache", "2a", "2a lmcache"]

    folder = next((tmp_path / "pd_sweep").iterdir())
    rows = pd.read_parquet(folder / "requests.parquet")
    assert len(rows) == rounds * 2 * (3 + 2 + 4)  # rounds, requests, passes of the three arms
    assert rows["error"].eq("").all()
    # A warm store is faster than computing 3,000 tokens, in every round.
    median = rows.pivot_table(index=["arm", "round"], columns="pass", values="ttft_s")
    assert (median["cold"] > median["engine-warm"]).all()

    page = write_page(tmp_path / "out.ipynb").read_text()
    assert len(page) < 600_000
    assert not re.search(r"""(src|href)=["']?https?:|url\(["']?https?:""", page)
    assert "KV was transferred" in page and "papermill notebooks/pd_sweep.ipynb" in page


def test_open_loop_and_a_shared_prefix(found: Any) -> None:
    facts = found(
        "pd_sweep",
        "-p engine simulated -p topology 2a -p connector none -p rounds 1 -p requests 8"
        " -p workload shared_prefix -p shared_share 0.5 -p prompt_tokens 1024 -p output_tokens 4"
        " -p rate_per_s 5",
    )
    assert "Poisson" in facts["workload"]["arrivals"]
    assert facts["workload"]["ideal_reuse"] == pytest.approx(7 / 16)  # seven of eight share half


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("-p topology p4d", "topology must be like 1p4d (1 prefill, 4 decode instances)"),
        ("-p topology 100p100d", "topology must be one with at most 16 instances"),
        ("-p promt_tokens 5", "did you mean 'prompt_tokens'?"),
        ("-y 'rounds: three'", "rounds must be an integer, got 'three' (example: -p rounds 3)"),
        ("-p model /no/such/folder", "model must be an existing folder with config.json"),
    ],
)
def test_bad_input_is_one_sentence_before_anything_starts(
    papermill: Any, tmp_path: Path, arguments: str, sentence: str
) -> None:
    done = papermill("pd_sweep", arguments)
    assert done.returncode != 0
    assert sentence in done.stderr.strip().splitlines()[-1]
    assert not (tmp_path / "pd_sweep").exists()


def test_predictions_stand_on_the_page_of_what_was_measured(found: Any, tmp_path: Path) -> None:
    facts = found(
        "pd_sweep",
        "-p engine simulated -p connector nixl -p topology 1p2d,2p1d -p predict True"
        " -p measure 1p2d -p opponents False -p rounds 1 -p workload short -p requests 6"
        " -p prompt_tokens 2000 -p output_tokens 8",
    )
    assert [arm["label"] for arm in facts["arms"]] == ["1p2d nixl"]
    page = write_page(tmp_path / "out.ipynb").read_text()
    assert ">Predictions</h2>" in re.sub(r"<h2[^>]*>", ">", page)
    if facts["fits"]:  # other programs may keep it from a profile, and then it says so
        assert {row["topology"] for row in facts["predictions"]} == {"1p2d", "2p1d"}
        assert {row["topology"] for row in facts["held_out"]} == {"1p2d"}
    else:
        assert facts["profile"].startswith("No predictions: ") and facts["profile"] in page
