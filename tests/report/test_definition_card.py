from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_notebook, new_output

from workbench.experiment.result.result import MIME, Result
from workbench.metrics.latency import latencies
from workbench.records import RequestRecord, to_frame
from workbench.report.definition_card import definition_card
from workbench.report.page import write_page

FACTS: dict[str, Any] = {
    "schema": 2, "notebook": "pd_sweep", "run_id": "r", "status": "success",
    "started_at": "2026-11-20T11:02:00+00:00",
}  # fmt: skip
RESULT = Result.from_bundle(FACTS, "a test")


def request(index, first_s):
    """Five tokens in five chunks, 0.1 s apart, the first `first_s` after sending."""
    return RequestRecord(
        index=index,
        request_id=f"r{index}",
        prompt_tokens=100,
        ideal_reuse_tokens=0,
        max_tokens=5,
        scheduled_s=0.0,
        sent_s=0.0,
        chunk_s=tuple(first_s + 0.1 * n for n in range(5)),
        output_tokens=5,
        stream_end_s=first_s + 0.5,
    )


@pytest.fixture
def run(tmp_path):
    """A run's folder: two cold requests (1 s to the first token) and three warm ones (0.5 s)."""
    import pandas as pd

    cold = to_frame([request(n, 1.0) for n in range(2)], arm="1a", **{"pass": "cold"})
    warm = to_frame([request(n, 0.5) for n in range(3)], arm="1a", **{"pass": "engine-warm"})
    latencies(pd.concat([cold, warm])).to_parquet(tmp_path / "requests.parquet")
    (tmp_path / "result.json").write_text(json.dumps(FACTS))
    return tmp_path


def test_the_page_of_a_run_shows_the_card_in_its_appendix(run):
    import nbformat

    output = new_output("display_data", {MIME: FACTS | {"folder": str(run)}})
    nbformat.write(new_notebook(cells=[new_code_cell("r", outputs=[output])]), run / "run.ipynb")
    page = BeautifulSoup(write_page(run / "run.ipynb").read_text(), "html.parser")
    rows = page.select("table.definitions tbody tr")
    shown = {row.th.text: [td.b.text if td.b else "" for td in row.select("td")] for row in rows}
    assert shown == {
        "TTFT": ["500 ms"] * 4,
        "TPOT": ["100 ms", "100 ms", "180 ms", ""],
        "ICL": ["100 ms", "", "", "100 ms"],
        "ITL": ["", "100 ms", "100 ms", "100 ms"],
        "E2E": ["900 ms", "900 ms", "1,000 ms", "900 ms"],
        "requests": ["3"] * 4,
    }
    assert "Medians of 3 requests (arm 1a, engine-warm pass)" in page.text
    assert "vllm/benchmarks/serve.py: calculate_metrics" in page.text
    assert "are those of vLLM bench 0.32.0 and 0.33.0, GuideLLM 0.8.1 (or 0.3.1" in page.text


def test_a_kind_without_a_name_is_a_kind(run):
    import pandas as pd

    frame = pd.read_parquet(run / "requests.parquet").assign(workload=None)
    frame.to_parquet(run / "requests.parquet")
    found = definition_card(RESULT, run / "run.ipynb")
    assert (found["of"], found["sent"]) == ("arm 1a, engine-warm pass", 3)


def test_a_folder_that_moved_is_found_beside_the_notebook(run):
    found = definition_card(replace(RESULT, folder=Path("/nowhere")), run / "run.ipynb")
    assert found["sent"] == 3


@pytest.mark.parametrize("broken", ["absent", "cut off", "of a later run", "without rows"])
def test_without_the_requests_of_this_run_there_is_no_card(run, broken):
    frame = run / "requests.parquet"
    if broken == "absent":
        frame.unlink()
    elif broken == "cut off":
        frame.write_bytes(frame.read_bytes()[:100])
    elif broken == "of a later run":
        (run / "result.json").write_text(json.dumps(FACTS | {"started_at": "2026-11-21"}))
    else:
        to_frame([]).to_parquet(frame)
    assert definition_card(RESULT, run / "run.ipynb") is None


def test_of_many_requests_the_first_are_taken_and_the_card_says_so(run, monkeypatch):
    monkeypatch.setattr("workbench.report.definition_card.MOST_ROWS", 4)
    card = definition_card(RESULT, run / "run.ipynb")
    assert card["of"] == "arm 1a, cold pass, of the first 4 requests of 5"
    assert card["sent"] == 2
