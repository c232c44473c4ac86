from __future__ import annotations

import base64
import json

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from tests.exports.notes import check_files, check_note, shown
from tests.report.test_page import EVIL, cell, failing, printed, showing
from workbench import cli
from workbench.errors import ResultError
from workbench.experiment.result.result import MIME
from workbench.exports.note import write_note
from workbench.report import figures
from workbench.report.page import write_page
from workbench.report.tables import table

DOT = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5E"
    "rkJggg=="
)
NAMES = "a|b <c> *d* _e_ `f`"


@pytest.fixture
def whole(result, summary, comparisons):
    """A notebook with text, a figure, a table whose first row is struck out, and the result."""
    rows = summary[["arm", "pass", "median"]].head(3).assign(arm=NAMES)
    rows.attrs = {"failed_gates": {"cold passes were cold": ()}, "shows": ("times",)}
    rows.loc[rows.index[2], "pass"] = "engine-warm"
    return new_notebook(
        cells=[
            new_markdown_cell("# PD sweep\n\nSee [the paper](https://arxiv.org/a) on `1p4d`."),
            cell("result", {MIME: result, "text/plain": "Result(...)"}),
            new_markdown_cell(f"## Where TTFT goes {EVIL}"),
            showing(figures.topology_overview(summary, comparisons)),
            cell("dot", {"image/png": DOT}, **{"image/png": {"alt": "A dot"}}),
            cell("table", {"text/html": table(rows).to_html()}),
            printed("\n".join(f"line {n}" for n in range(40))),
            printed("short"),
            cell("plotly", {"application/vnd.plotly.v1+json": {"data": [], "layout": {}}}),
        ]
    )


def written(tmp_path, notebook, **options):
    source = tmp_path / "out.ipynb"
    nbformat.write(notebook, source)
    return write_note(source, **options)


def test_a_note_has_all_of_its_page_and_github_takes_nothing_out(whole, tmp_path):
    note = written(tmp_path, whole)
    assert note == tmp_path / "out-report" / "report.md"
    soup = check_note(note, write_page(tmp_path / "out.ipynb"))
    assert [img["src"] for img in soup("img")] == [
        "images/01-ttft-and-throughput-by-topology.png", "images/02-a-dot.png",
    ]  # fmt: skip
    assert (note.parent / "images/02-a-dot.png").read_bytes() == base64.b64decode(DOT)
    assert soup.find("a", string="the paper") is None  # the page shows the address as text
    assert "the paper (https://arxiv.org/a)" in soup.get_text()
    assert (note.parent / "text/01.txt").read_text().splitlines()[-1] == "line 39"
    assert "This figure is interactive" in soup.get_text()


def test_the_finding_is_first_then_intervals_and_gates_and_the_repeat_line_is_last(
    whole, result, tmp_path
):
    note = written(tmp_path, whole)
    lines = [line for line in note.read_text().splitlines() if line]
    assert lines[0] == f"# {result['finding']}"
    assert "| **18.1x** | [16.9, 19.4] | TTFT cold / store-warm |" in note.read_text()
    first_figure = next(n for n, line in enumerate(lines) if line.startswith("!["))
    failed = next(n for n, line in enumerate(lines) if line.startswith("- **▲ FAIL**"))
    assert failed < first_figure
    assert lines[-4:] == ["## Repeat it", "```", result["repeat"], "```"]


def test_what_gates_strike_out_is_struck_out_in_the_note(whole, tmp_path):
    soup = shown(written(tmp_path, whole))
    row = next(row for row in soup("tr") if NAMES in row.get_text())
    assert row.td.get_text() == NAMES
    assert row.find("s") is not None


def test_with_an_address_every_file_of_the_note_has_it(whole, tmp_path):
    base = "https://example.org/notes/1"
    soup = shown(written(tmp_path, whole, image_base=f"{base}/"))
    links = [part.get("src") or part["href"] for part in soup(["img", "a"])]
    assert links
    assert all(link.startswith(f"{base}/") for link in links)


def test_an_address_with_a_space_or_bracket_stays_one(whole, tmp_path):
    soup = shown(written(tmp_path, whole, image_base="https://example.org/a b(1)/50%25"))
    links = [part.get("src") or part["href"] for part in soup(["img", "a"])]
    assert links
    assert all(link.startswith("https://example.org/a%20b%281%29/50%25/") for link in links)


def test_a_struck_number_without_an_interval_keeps_its_columns(whole, result, tmp_path):
    card = result["numbers"][0] | {"low": None, "high": None, "spoilt": "struck"}
    card |= {"note": "not valid"}
    whole.cells[1] = cell("result", {MIME: result | {"numbers": [card]}})
    line = f"| ~~18.1x~~ |  | {card['label']} | not valid |"
    assert line in written(tmp_path, whole).read_text()


def test_a_later_note_leaves_no_file_of_an_earlier_one(whole, tmp_path):
    note = written(tmp_path, whole)
    keep = note.parent / "images" / "my-own.png"
    keep.touch()
    whole.cells = whole.cells[:2]
    note = written(tmp_path, whole)
    assert [path.name for path in (note.parent / "images").iterdir()] == ["my-own.png"]
    check_files(note, shown(note))


@pytest.mark.parametrize("word", ["failed", "cancelled"])
def test_a_run_that_did_not_succeed_says_so_and_why(result, tmp_path, word):
    name = {"failed": "LaunchError", "cancelled": "KeyboardInterrupt"}[word]
    cells = [
        new_markdown_cell("# PD sweep"),
        cell("result", {MIME: result | {"finding": "", "status": "started"}}),
        failing(name, "port 80 is | in use\nmore"),
        new_code_cell("never()"),
    ]
    note = written(tmp_path, new_notebook(cells=cells))
    soup = check_note(note, write_page(tmp_path / "out.ipynb"))
    assert soup.h1.get_text() == f"PD sweep: the run {'was ' * (word == 'cancelled')}{word}"
    assert f"{name}: port 80 is | in use" in soup.blockquote.get_text()
    assert "1 more code cell did not run." in soup.get_text()


def test_a_run_folder_has_its_note_with_or_without_a_notebook(whole, result, tmp_path, capsys):
    (tmp_path / "result.json").write_text(json.dumps(result))
    assert cli.main(["report", str(tmp_path), "--format", "md"]) == 0
    note = tmp_path / "report" / "report.md"
    assert capsys.readouterr().out.strip() == str(note)
    soup = shown(note)
    assert soup.h1.get_text() == result["finding"]
    assert soup("img") == []
    nbformat.write(whole, tmp_path / "run.ipynb")
    assert len(shown(write_note(tmp_path))("img")) == 2
    assert write_page(tmp_path) == tmp_path / "report.html"


def test_several_models_have_a_section_each(result, tmp_path):
    row = {
        "topology": "1p4d", "connector": "lmcache", "pass": "cold", "n_requests": 30,
        "n_failed": 0, "n_rounds": 5, "metric": "ttft_s",
    }  # fmt: skip
    ratio = {"value": 2.0, "low": 1.5, "high": 2.5, "rounds": 5, "pairs": 30}
    arms, rows, found, models = [], [], [], []
    for model, seconds in (("big_70b", 2.0), ("small|8b", 0.5)):
        label = f"{model}, 1p4d"
        arms.append({"label": label, "topology": "1p4d", "short_model": model})
        models.append({
            "model": model, "name": f"hub/{model}", "layers": 80, "dtype": "bf16",
            "kv_bytes_per_token": 1.0, "prompt_tokens": 100, "workload_hash": "a",
        })  # fmt: skip
        estimate = {"value": seconds, "low": seconds, "high": seconds, "n": 30}
        rows.append(row | {"arm": label, "estimate": estimate})
        found.append({
            "kind": "cache-state", "metric": "ttft_s", "arm": label, "pass": "store-warm",
            "baseline_arm": label, "baseline_pass": "cold", "ratio": ratio,
            "sentence": f"{label}: 2.0x faster",
        })  # fmt: skip
    facts = result | {"schema": 2, "arms": arms, "summary": rows, "comparisons": found}
    facts |= {"models": models}
    (tmp_path / "result.json").write_text(json.dumps(facts))
    soup = shown(write_note(tmp_path))
    for model, ttft in (("big_70b", "2,000"), ("small|8b", "500")):
        heading = soup.find("h2", string=f"hub/{model}")
        section = heading.find_next_sibling("table")
        assert ttft in section.get_text()
        assert heading.find_next_sibling("ul").li.get_text() == f"{model}, 1p4d: 2.0x faster"


def test_a_folder_without_a_run_is_refused(tmp_path, capsys):
    assert cli.main(["report", str(tmp_path), "--format", "md"]) == 2
    assert "holds none of run.ipynb" in capsys.readouterr().err
    (tmp_path / "result.json").write_text("{")
    with pytest.raises(ResultError):
        write_note(tmp_path)
