from __future__ import annotations

import json

import nbformat
import pytest
from bs4 import BeautifulSoup

from workbench.errors import ResultError
from workbench.experiment.result.result_file import from_plain
from workbench.report.index import runs_of, write_index
from workbench.report.outcome import outcome_of


def add(outputs, name, result, *, report=True):
    folder = outputs / "pd_sweep" / name
    folder.mkdir(parents=True)
    text = result if isinstance(result, str) else json.dumps(result)
    (folder / "result.json").write_text(text)
    if report:
        (folder / "report.html").write_text("report")


def test_the_newest_run_is_first(tmp_path, result):
    for day in ("19", "21", "20"):
        add(tmp_path, f"run-{day}", {**result, "started_at": f"2026-11-{day}T11:02:00+00:00"})
    assert [run.run_id for run in runs_of(tmp_path / "pd_sweep")] == ["run-21", "run-20", "run-19"]


def test_a_run_shows_outcome_finding_gates_and_link(tmp_path, result):
    add(tmp_path, "run one", {**result, "simulated": True})
    soup = BeautifulSoup(write_index(tmp_path).read_text(encoding="utf-8"), "html.parser")
    row = soup.select_one("tbody tr")
    cells = [cell.get_text(" ", strip=True) for cell in row("td")]
    assert cells == [
        "◆ gates failed",
        "Simulated. A warm KV store cuts TTFT 18 times run one",
        "▲ 1 of 3 gates passed, 1 failed, 1 undecided",
        "2026-11-20 11:02 UTC 14 min",
    ]
    assert row.a["href"] == "pd_sweep/run%20one/report.html"


@pytest.mark.parametrize("text", ["{broken", "[]", '{"gates": 3}', '{"duration_s": "long"}'])
def test_a_broken_result_is_listed_with_the_reason(tmp_path, text):
    add(tmp_path, "broken", text)
    (run,) = runs_of(tmp_path / "pd_sweep")
    assert run.outcome.word == "unreadable"
    assert run.finding.startswith("result.json cannot be read: ")
    assert run.link.endswith("broken/report.html")


@pytest.mark.parametrize(
    ("facts", "word"),
    [
        ({"gates": [], "unproven": "found"}, "not valid"),
        ({"outcome": {"word": "ready, busy", "severity": "unsure"}}, "ready, busy"),
    ],
)
def test_the_index_says_the_same_as_the_page(tmp_path, result, facts, word):
    add(tmp_path, "one", result | facts)
    (run,) = runs_of(tmp_path / "pd_sweep")
    assert run.outcome == outcome_of(from_plain(result | facts, "a test"))
    assert run.outcome.word == word


def test_a_run_that_could_not_be_carried_out_says_why_and_links_its_own_page(tmp_path, result):
    folder = tmp_path / "pd_sweep" / "one"
    folder.mkdir(parents=True)
    cell = nbformat.v4.new_code_cell("result = await wb.run(plan)")
    cell.outputs = [nbformat.v4.new_output("error", ename="LaunchError", evalue="no room\nlog")]
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), folder / "run.failed.ipynb")
    (folder / "report.failed.html").touch()
    (run,) = runs_of(tmp_path / "pd_sweep")
    assert (run.outcome.word, run.finding) == ("run failed", "LaunchError: no room")
    assert run.link == "pd_sweep/one/report.failed.html"
    (folder / "run.failed.ipynb").write_text("cut")
    (run,) = runs_of(tmp_path / "pd_sweep")
    assert run.finding == "The notebook ended before its last cell."
    # The page is of a notebook whose figures failed behind a good measurement.
    (folder / "result.json").write_text(json.dumps(result | {"finding": "PD halves TTFT"}))
    (run,) = runs_of(tmp_path / "pd_sweep")
    assert run.outcome.word == "run failed"
    (folder / "report.html").touch()
    (run,) = runs_of(tmp_path / "pd_sweep")
    assert run.finding == "PD halves TTFT"


def test_a_run_that_wrote_no_result_is_listed(tmp_path):
    (tmp_path / "pd_sweep" / "early").mkdir(parents=True)
    (run,) = runs_of(tmp_path / "pd_sweep")
    assert run.finding.startswith("result.json is missing")
    assert run.link == ""


def test_the_notebooks_stand_in_the_order_in_which_they_run(tmp_path):
    for name in ("somebody_elses", "paper_claim_validation", "pd_sweep", "environment_check"):
        (tmp_path / name / "one").mkdir(parents=True)
    soup = BeautifulSoup(write_index(tmp_path).read_text(encoding="utf-8"), "html.parser")
    assert [heading.text for heading in soup("h2")] == [
        "environment_check", "pd_sweep", "paper_claim_validation", "somebody_elses"
    ]  # fmt: skip


def test_text_is_escaped_and_nothing_is_loaded(tmp_path, result):
    add(tmp_path, "evil", {**result, "finding": "<script>alert(1)</script>"})
    html = write_index(tmp_path).read_text(encoding="utf-8")
    assert "<script" not in html
    assert "http" not in html


@pytest.mark.parametrize("rendered", [True, False])
def test_an_unfinished_run_is_listed_as_partial_with_its_page_so_far(tmp_path, result, rendered):
    attempt = tmp_path / "pd_sweep" / "a-run" / "attempt-1"
    (attempt / "so-far").mkdir(parents=True)
    launches = {"planned": 9, "measured": 4, "planned_rounds": 3, "rounds": 2, "took_s": {}}
    times = [{"arm": "1p4d", "round": 0, "pass": "cold", "from_s": 0.0, "to_s": 1.0}]
    result |= {"status": "started", "launches": launches, "pass_times": times}
    (attempt / "result.json").write_text(json.dumps(result))
    (attempt.parent / "run.failed.ipynb").write_text("{}")  # its kernel was killed
    if rendered:
        (attempt / "so-far" / "report.html").write_text("x")
    (run,) = runs_of(tmp_path / "pd_sweep")
    assert run.outcome.word == "partial: 4 of 9 launches"
    assert run.finding == "So far: A warm KV store cuts TTFT 18 times"
    assert run.link == ("pd_sweep/a-run/attempt-1/so-far/report.html" if rendered else "")


def test_an_empty_folder_has_an_index_and_a_missing_one_an_error(tmp_path):
    (tmp_path / ".gitkeep").touch()
    assert "No runs yet." in write_index(tmp_path).read_text(encoding="utf-8")
    with pytest.raises(ResultError, match="is not a folder"):
        write_index(tmp_path / "nowhere")


def soup_of(folder):
    return BeautifulSoup(write_index(folder).read_text(encoding="utf-8"), "html.parser")


def run_of(result, day, value, *, vllm="0.32.0", **facts):
    card = result["numbers"][0] | {"value": value, "low": value - 1, "high": value + 1}
    machine = result["machine"] | {"versions": {"vllm": vllm}, "kernel": f"6.1.{day}"}
    passed = [result["gates"][0]]
    return {**result, "started_at": f"2026-11-{day:02}T11:02:00+00:00", "machine": machine,
            "numbers": [card], "gates": passed, **facts}  # fmt: skip


def test_runs_can_be_filtered_by_what_differs_between_them(tmp_path, result):
    add(tmp_path, "one", run_of(result, 1, 18.0))
    arms = [result["arms"][0] | {"topology": "2p2d"}, {"label": "4a", "role": "opponent"}]
    other = run_of(result, 2, 17.0, arms=arms, parameters={"topology": "2p2d"})
    add(tmp_path, "two", other | {"engine": {"model": "hub/llama"}, "unproven": "found"})
    soup = soup_of(tmp_path)
    offered = {
        pick["data-name"]: [option.text for option in pick("option")]
        for pick in soup.select(".filters select")
    }
    assert offered == {
        "topology": ["all", "1p4d", "2p2d"], "outcome": ["all", "gates passed", "not valid"]
    }  # fmt: skip
    rows = {row.select_one(".kick").text: row for row in soup.select("tr[data-outcome]")}
    assert [rows["two"][f"data-{name}"] for name in ("model", "topology", "outcome")] == [
        "llama", "2p2d", "not valid"
    ]  # fmt: skip
    assert soup.select_one(".filters").has_attr("hidden")  # without the script all rows are shown
    assert not any(row.has_attr("hidden") for row in rows.values())


def test_equal_runs_have_a_line_over_time_and_others_have_none(tmp_path, result):
    for day, value, vllm in ((3, 19.0, "0.32.0"), (1, 15.0, "0.31.0"), (2, 16.0, "0.31.0")):
        add(tmp_path, f"run-{day}", run_of(result, day, value, vllm=vllm))
    add(tmp_path, "other", run_of(result, 4, 11.0, parameters={"topology": "1p4d", "rounds": 9}))
    failed = run_of(result, 5, 99.0, gates=[{"name": "cold passes were cold", "outcome": "FAIL",
                                             "sentence": "Warm."}])  # fmt: skip
    add(tmp_path, "not-valid", failed)
    (chart,) = soup_of(tmp_path).select(".over-time")
    assert chart.b.text == "1p4d, lmcache, a CPU: TTFT cold / store-warm"
    assert chart.figcaption.text == (
        "3 runs with the same parameters, machine and workload: 15.0x to 19.0x (scale: 14.0x to"
        " 20.0x). Versions differ: vllm 0.31.0 to 0.32.0."
    )
    points = [point.title.text for point in chart.select("g")]
    assert points == [
        "2026-11-01 11:02 UTC 15.0x [14.0, 16.0]",
        "2026-11-02 11:02 UTC 16.0x [15.0, 17.0]",
        "2026-11-03 11:02 UTC 19.0x [18.0, 20.0] vllm 0.31.0 to 0.32.0",
    ]
    heights = [float(circle["cy"]) for circle in chart.select("circle")]
    assert heights == sorted(heights, reverse=True)
    assert len(chart.select(".new")) == 1


def test_a_copied_folder_is_no_second_run(tmp_path, result):
    for name, day in (("one", 1), ("copy", 1), ("two", 2)):
        add(tmp_path, name, run_of(result, day, 15.0 + day))
    (chart,) = soup_of(tmp_path).select(".over-time")
    assert "2 runs" in chart.figcaption.text
    assert len(chart.select("circle")) == 2


def test_a_result_that_a_rerun_replaced_is_a_point_too(tmp_path, result):
    add(tmp_path, "one", run_of(result, 2, 16.0))
    earlier = tmp_path / "pd_sweep" / "one" / "earlier"
    earlier.mkdir()
    (earlier / "20261101-110200.json").write_text(json.dumps(run_of(result, 1, 15.0)))
    (earlier / "20261031-110200.json").write_text("{broken")
    (chart,) = soup_of(tmp_path).select(".over-time")
    assert "2 runs" in chart.figcaption.text
    assert "Only the date differs." in chart.figcaption.text


def test_500_runs_are_a_light_page(tmp_path, result):
    for n in range(500):
        run = run_of(result, 1 + n % 28, 10.0 + n % 5, parameters={"seed": n // 10})
        add(tmp_path, f"run-{n}", run)
    page = write_index(tmp_path)
    assert page.stat().st_size < 1_000_000
    assert len(soup_of(tmp_path).select(".over-time")) == 50
