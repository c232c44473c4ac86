from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise

import nbformat
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from workbench.errors import ParameterError, ResultError
from workbench.experiment.result.result import MIME, Result
from workbench.report import figures
from workbench.report.page import render as render_page
from workbench.report.page import result_of, write_page

EVIL = "<script>alert('prompt')</script>"


def cell(source, *data, **metadata):
    """A code cell that showed one bundle per `data`."""
    outputs = [new_output("display_data", bundle, metadata=metadata) for bundle in data]
    return new_code_cell(source, outputs=outputs)


def printed(text, name="stdout"):
    return new_code_cell("print()", outputs=[new_output("stream", name=name, text=text)])


def showing(chart):
    data, metadata = chart._repr_mimebundle_()
    return cell("chart", data, **metadata)


def failing(name, message):
    traceback = [f"\x1b[31mframe {i}\x1b[0m" for i in range(80)]
    error = new_output("error", ename=name, evalue=message, traceback=traceback)
    return new_code_cell("boom()", outputs=[error])


def render(notebook, facts):
    return render_page(notebook, Result.from_bundle(facts, "a test") if facts else None)


def page(*cells, result=None):
    return BeautifulSoup(render(new_notebook(cells=list(cells)), result), "html.parser")


def loads(html):
    """Everything in a page that would reach for another file or host."""
    return re.findall(
        r"""(?:src|href|srcset|poster|data|action)\s*=\s*["']?(?:https?:|//|file:)[^"'>\s]*"""
        r"""|url\(\s*["']?(?!["']?(?:\#|data:))[^)]*|@import[^;]*""",
        html,
    )


@pytest.fixture
def whole(
    result,
    summary,
    comparisons,
    requests,
):
    """A notebook as the workbench makes it: text, printed lines, tables, figures, the result."""
    table = pd.DataFrame({"sent": [679_800]}, index=["cold"])
    return new_notebook(
        cells=[
            new_markdown_cell("# PD sweep\n\nDoes it help? See [the paper](https://arxiv.org/a)."),
            new_code_cell("topology = '1p4d'", metadata={"tags": ["parameters"]}),
            cell("result", {MIME: result, "text/plain": "Result(...)"}),
            new_markdown_cell("## Where TTFT goes down"),
            showing(figures.topology_overview(summary, comparisons)),
            showing(figures.topology_overview(summary, comparisons)),
            showing(figures.speedups(comparisons, "ttft_s")),
            showing(figures.requests_over_time(requests)),
            new_markdown_cell("## Where every token came from"),
            cell("ledger", {"text/html": table._repr_html_(), "text/plain": "table"}),
        ]
    )


def test_a_plain_notebook_is_a_page():
    soup = page(new_markdown_cell("# A title\n\nSome *text*."), printed("hello"))
    assert soup.html["lang"] == "en"
    assert [h.text for h in soup("h1")] == ["A title"]
    assert "hello" in soup.text
    assert "Can this be trusted?" not in soup.text


def test_the_result_is_found_in_the_notebook(whole, result):
    assert result_of(whole) == Result.from_bundle(result, "a test")
    assert result_of(new_notebook()) is None
    later = {**result, "status": "failed"}
    whole.cells.append(cell("again", {MIME: later}))
    assert result_of(whole).run.status == "failed"


def test_the_first_screen_has_finding_numbers_gates_and_doubts(whole, result):
    soup = BeautifulSoup(render(whole, result), "html.parser")
    assert [h.text for h in soup("h1")] == ["A warm KV store cuts TTFT 18 times"]
    kicker = soup.select_one(".kick")
    assert " ".join(kicker.text.split()) == (
        "◆ gates failed PD sweep · 1p4d · lmcache · 2026-11-20 11:02 UTC · 14 min"
    )
    for term in soup("dfn"):
        term.unwrap()
    soup.smooth()
    cards = [" ".join(card.get_text(" ").split()) for card in soup.select(".card")]
    assert cards == [
        "18.1x [16.9, 19.4] TTFT cold / store-warm use with caution ; 5 rounds of 6 pairs",
        "187 ms median TTFT rough",
    ]
    assert [doubt.text for doubt in soup.select(".doubt")] == result["doubts"]


def test_failed_gates_come_first_with_word_shape_and_next_step(result):
    gates = [" ".join(gate.text.split()) for gate in page(result=result).select(".gates li")]
    failed = (
        "Client did not keep up: Another process took 31 % of its core. Effect: do not use p99"
        " or ITL; absolute times are rough; use ratios with caution. Next: close other jobs."
    )
    assert gates == [
        f"▲ FAIL {failed}",
        "◆ INCONCLUSIVE Latency was steady? Too few requests.",
        "● PASS Cold passes were cold: 0 of 679,800 cached.",
    ]


def test_a_gate_of_some_arms_names_them_in_its_effect_and_in_what_is_left(result):
    arms = ["1p1d nixl", "1p2d nixl"]
    gate = {"name": "KV moved", "outcome": "FAIL", "sentence": "so", "arms": arms}
    soup = page(result={**result, "gates": [gate]})
    effect = "Effect: do not use any number of 1p1d nixl and 1p2d nixl; use the text comparison of"
    assert effect in " ".join(soup.select(".gates li")[0].text.split())
    left = soup.find("summary", string="Which numbers can still be used").parent.text
    assert "1p1d nixl, 1p2d nixl: not valid (do not use; struck out or grey): prompt tok" in left
    assert "Not affected: prompt tokens" in left  # of other arms


@pytest.mark.parametrize(
    ("outcomes", "says"),
    [
        ("PASS PASS", "● 2 of 2 gates passed."),
        ("PASS", "● 1 of 1 gates passed."),
        ("PASS INCONCLUSIVE", "◆ 1 of 2 gates passed, 1 undecided."),
        ("PASS FAIL INCONCLUSIVE", "▲ 1 of 3 gates passed, 1 failed, 1 undecided."),
        ("", "No gate was evaluated, so none of these numbers is verified."),
    ],
)
def test_one_line_says_what_all_gates_say_and_those_that_passed_are_folded(result, outcomes, says):
    gates = [
        {"name": "KV moved", "outcome": outcome, "sentence": "so"} for outcome in outcomes.split()
    ]
    soup = page(result={**result, "gates": gates})
    assert soup.find(id="can-this-be-trusted").find_next("p").text == says
    folded = [gate.find_parent("details") is not None for gate in soup.select(".gates li")]
    assert folded == [outcome == "PASS" for outcome in sorted(outcomes.split())]


def test_the_main_figure_stands_on_the_first_screen_and_nowhere_else(whole, result):
    lifted = whole.cells[5]
    lifted.metadata["tags"] = ["main-figure"]
    soup = BeautifulSoup(render(whole, result), "html.parser")
    assert len(soup.select(".main-figure figure")) == 1
    assert len(soup("figure")) == 4
    order = [tag.get("class", [tag.name])[0] for tag in soup.main.find_all(True, recursive=False)]
    assert order[order.index("cards") :][:3] == ["cards", "main-figure", "h2"]
    # without the tag a page of an older notebook keeps it where it was
    del lifted.metadata["tags"]
    assert not BeautifulSoup(render(whole, result), "html.parser").select(".main-figure")


def test_a_folded_figure_unfolds_by_its_title(whole, result):
    folded = whole.cells[6]
    folded.metadata["tags"] = ["folded"]
    soup = BeautifulSoup(render(whole, result), "html.parser")
    (fold,) = soup.select("details.figure")
    assert fold.select_one("figure svg") is not None
    title = fold.summary.text
    assert title and folded.outputs[0].metadata["image/svg+xml"]["alt"].startswith(title)


def test_a_gate_ends_its_sentence_before_the_next_step(result):
    gate = {"name": "KV moved", "outcome": "FAIL", "sentence": "it did not", "next_step": "look"}
    (line,) = page(result={**result, "gates": [gate]}).select(".gates li")
    assert " ".join(line.text.split()) == (
        "▲ FAIL KV was not transferred: it did not. Effect: do not use any number of this"
        " run; use the text comparison with caution. Next: look."
    )


def test_targets_stand_above_the_main_figure_and_an_invalid_one_is_struck_out(whole, result):
    rows = [
        {"target": "store-warm ttft cut >= 60%", "outcome": "met", "value": 72.0, "low": 68.0,
         "high": 75.0, "arm": "1p4d", "pass": "store-warm", "baseline_arm": "1p4d",
         "baseline_pass": "cold", "comparisons": 2, "why": ""},
        {"target": "pd throughput >= 150%", "outcome": "undecided", "value": 210.0, "low": 190.0,
         "high": 230.0, "arm": "1p4d", "pass": "cold", "baseline_arm": "5a",
         "baseline_pass": "cold", "comparisons": 1, "why": "not valid: KV was not transferred"},
    ]  # fmt: skip
    whole.cells.append(cell("again", {MIME: {**result, "targets": rows}}))
    soup = BeautifulSoup(render(whole, {**result, "targets": rows}), "html.parser")
    first, second = soup.select(".targets tbody tr")
    assert [part.get_text() for part in first(["th", "td"])] == [
        "store-warm ttft cut >= 60%",
        "● met",
        "72.0 % [68.0, 75.0]1p4d, store-warm vs cold (the worst of 2)",
    ]
    assert second.s.get_text() == "210 % [190, 230]"
    assert "not valid: KV was not transferred" in second.get_text()
    assert "targets" not in str(page(result=result).select("table[class]"))


def test_the_end_has_limits_command_and_what_a_check_needs(result):
    soup = page(result=result)
    assert "Nothing is said about throughput." in soup.text
    command = soup.find(id="command")
    assert command.text == result["repeat"]
    folded = [details.get_text(" ", strip=True) for details in soup("details")]
    for text in (
        "topology 1p4d rounds 5 interactive no",
        "commit a959cbf with uncommitted changes",
        "vllm 0.32.0",
        "vllm serve tiny --port 8001",
        "outputs/pd_sweep/1p4d-lmcache-3f9a2c",
        "Time to first token",
    ):
        assert any(text in part for part in folded), text


def test_hosts_are_a_table_with_the_instances_that_ran_there(result):
    has = {
        "cpu": "a CPU", "cores": 8, "memory_free_gb": 60.0, "shm_free_gb": 8.0, "gpus": "none",
        "python": "3.11.7", "versions": {"vllm": "0.32.0"}, "model": True,
    }  # fmt: skip
    hosts = [has | {"host": f"host-{n}", "address": f"10.0.0.{n}"} for n in (1, 2, 3)]
    arm = {"label": "1p1d nixl", "hosts": {"prefill-0": "host-1", "decode-0": "host-2"}}
    shown = page(result=result | {"arms": [arm], "hosts": hosts}).text
    assert "host-2 (10.0.0.2)" in shown
    assert "decode-0 (1p1d nixl). a CPU, 8 cores; 60 GB free, 8 GB of shared memory" in shown
    assert "no instance. a CPU" in shown


def test_the_page_is_one_small_file_without_a_network(whole, result):
    whole.cells.append(new_markdown_cell("![a](https://example.org/a.png) https://example.org"))
    html = render(whole, result)
    assert loads(html) == []
    assert "<link" not in html
    assert len(html.encode()) < 600_000


def test_ids_are_unique_and_every_reference_finds_its_own(whole, result):
    html = render(whole, result)
    soup = BeautifulSoup(html, "html.parser")
    ids = Counter(str(tag["id"]) for tag in soup(id=True))
    assert [name for name, n in ids.items() if n > 1] == []
    pointers = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', html)
    assert pointers
    assert {a or b for a, b in pointers} <= set(ids)


def test_every_figure_says_what_it_shows(whole, result):
    found = BeautifulSoup(render(whole, result), "html.parser")("figure")
    assert len(found) == 4
    for figure in found:
        assert figure.svg["role"] == "img"
        assert len(str(figure.svg["aria-label"])) > 40
        assert figure.find("figcaption") is not None
    picture = page(cell("plot", {"image/png": "AAAA"}, **{"image/png": {"alt": "A line"}}))
    assert picture.img["alt"] == "A line"


def test_headings_are_in_order_and_the_contents_lead_to_them(whole, result):
    whole.cells.append(new_markdown_cell("##### Deep\n\n# Shallow"))
    soup = BeautifulSoup(render(whole, result), "html.parser")
    levels = [int(tag.name[1]) for tag in soup(re.compile("^h[1-6]$"))]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b <= a + 1 for a, b in pairwise(levels))
    entries = [link.text for link in soup.select("nav a")]
    assert entries == [h.text for h in soup("h2")]
    assert entries[0] == "Can this be trusted?"
    assert entries[1:3] == ["Where TTFT goes down", "Where every token came from"]


def test_code_is_folded_with_that_of_neighbours_that_show_nothing():
    soup = page(new_code_cell("a = 1"), printed("shown"), new_code_cell("b = 2\nc = 3"))
    folds = soup.select("details.code")
    assert [fold.summary.text for fold in folds if fold.summary] == ["Code, 4 lines"]
    assert not folds[0].has_attr("open")


def test_text_is_never_html(result):
    evil = {**result, "finding": EVIL, "doubts": [EVIL], "repeat": EVIL, "scope": EVIL}
    evil["gates"] = [{"name": EVIL, "outcome": "FAIL", "sentence": EVIL, "next_step": EVIL}]
    evil["parameters"] = {EVIL: EVIL}
    soup = page(
        printed(f"\x1b[31m{EVIL}\x1b[0m"),
        cell("", {"text/plain": EVIL}),
        cell("", {"text/markdown": f"**x** {EVIL}\n\n{EVIL}"}),
        cell("", {"text/html": f"<p>x</p>{EVIL}"}),
        cell("", {"image/png": "AA"}, **{"image/png": {"alt": '"><script>', "caption": EVIL}}),
        failing("ValueError", EVIL),
        result=evil,
    )
    assert all("alert" not in str(script) for script in soup("script"))
    assert EVIL in soup.text


def test_a_failed_notebook_says_why_in_its_first_sentence():
    mark = new_markdown_cell("<span style='color:red'>An Exception was encountered</span>")
    mark.metadata["tags"] = ["papermill-error-cell-tag"]
    soup = page(
        mark,
        new_markdown_cell("# PD sweep"),
        failing("ParameterError", "topology 'p4d' cannot be read\nsecond line"),
        new_markdown_cell("## Never reached"),
        new_code_cell("a"),
        new_code_cell("b"),
    )
    assert [h.text for h in soup("h1")] == ["PD sweep: the run failed"]
    alert = soup.select_one('[role="alert"]')
    assert alert.find("p").text == "ParameterError: topology 'p4d' cannot be read"
    assert "second line" in alert.details.text
    trace = soup.select_one("details.trace")
    assert "frame 79" in trace.text
    assert "\x1b" not in trace.text
    assert not trace.has_attr("open")
    target = alert.select_one('a[href^="#cell"]')
    assert soup.find(id=str(target["href"])[1:]) is not None
    assert "An Exception was encountered" not in soup.text
    assert "Never reached" not in soup.text
    assert "2 more code cells did not run." in soup.text


def test_a_failure_outranks_the_result_but_keeps_its_finding(result):
    soup = page(failing("KeyError", "'x'"), result=result)
    assert soup.select_one(".badge.bad") is not None
    assert [h.text for h in soup("h1")] == [result["finding"]]
    assert "KeyError: 'x'" in soup.text
    stopped = page(failing("KeyboardInterrupt", ""), result=result)
    assert "cancelled" in stopped.select_one(".badge").text


def test_a_cell_that_may_raise_is_no_failure():
    allowed = failing("ValueError", "expected")
    allowed.metadata["tags"] = ["raises-exception"]
    assert page(allowed).select_one('[role="alert"]') is None


def test_a_kernel_that_died_leaves_a_cell_without_a_reply():
    ended = new_code_cell("a", metadata={"execution": {"shell.execute_reply": "2026-11-20"}})
    died = new_code_cell("b", metadata={"execution": {"iopub.execute_input": "2026-11-20"}})
    notebook = new_notebook(
        cells=[ended], metadata={"papermill": {"end_time": "2026-11-20T11:02:00"}}
    )
    assert "◆ not checked" in render(notebook, None)
    notebook.cells.append(died)
    html = render(notebook, None)
    assert 'class="badge bad"' in html
    assert "One cell started and did not finish" in html


@pytest.mark.parametrize("status", ["started", "success", "failed", "cancelled"])
def test_the_status_is_a_word_and_a_shape(result, status):
    badge = page(result={**result, "status": status, "gates": []}).select_one(".badge")
    word = {"started": "unfinished", "success": "not checked", "failed": "run failed"}
    assert re.fullmatch(rf"[●▲◆] {word.get(status, status)}", badge.text)


def test_a_failed_gate_takes_the_success_away(whole, result):
    gates = [{"name": "KV moved", "outcome": "PASS", "sentence": "it did"}]
    sound = BeautifulSoup(render(whole, {**result, "gates": gates}), "html.parser")
    gates = [{**gates[0], "outcome": "FAIL"}]
    spoiled = BeautifulSoup(render(whole, {**result, "gates": gates}), "html.parser")
    badges = [soup.find(class_="badge").text for soup in (sound, spoiled)]
    assert badges == ["● gates passed", "▲ not valid"]
    assert sound.select_one(".card.struck") is None
    assert len(spoiled.select(".card.struck")) == len(result["numbers"])


def test_a_simulated_result_is_marked_above_everything_and_on_each_figure(whole, result):
    assert "Simulated." not in render(whole, result)
    soup = BeautifulSoup(render(whole, {**result, "simulated": True}), "html.parser")
    first = soup.main.find("div")
    assert first.text.startswith("Simulated.")
    assert all("Simulated." in caption.text for caption in soup("figcaption"))


def test_printed_text_is_what_a_terminal_would_have_left():
    soup = page(
        printed(" 10 %\r 50 %\r100 %\nready\r\n\x1b[32mgreen\x1b[0m\n"),
        printed("Kernel is running over TCP without encryption. All of it.\n", name="stderr"),
        printed("\n".join(f"line {i}" for i in range(100))),
    )
    texts = [pre.text for pre in soup.select("pre.stdout")]
    assert texts[0] == "100 %\nready\ngreen"
    assert soup.select("pre.stderr") == []
    folds = [fold.text for fold in soup.select("details.print summary")]
    assert folds == ["Printed text, 3 lines", "Printed text, 100 lines"]


def test_widgets_show_nothing():
    view = {"application/vnd.jupyter.widget-view+json": {"model_id": "a"}, "text/plain": "Slider()"}
    assert "Slider" not in page(cell("w", view)).text


def test_plotly_comes_along_once_and_works_offline():
    pytest.importorskip("plotly")
    figure = {"data": [{"type": "scatter", "y": [1, 2]}], "layout": {"title": {"text": EVIL}}}
    bundle = {"application/vnd.plotly.v1+json": figure, "text/html": "<b>the old twin</b>"}
    html = render(new_notebook(cells=[cell("p", bundle, bundle)]), None)
    assert html.count("Plotly.newPlot(") >= 2
    assert 4_000_000 < len(html) < 5_500_000
    assert EVIL not in html
    assert "the old twin" not in html
    tags = re.findall(r"<(?:script|link|img)[^>]*>", html)
    assert loads("".join(tags)) == []


def test_write_page_stands_beside_the_notebook(tmp_path, whole):
    source = tmp_path / "out.ipynb"
    nbformat.write(whole, source)
    assert write_page(source) == tmp_path / "out.html"
    assert "cuts TTFT 18 times" in (tmp_path / "out.html").read_text(encoding="utf-8")
    elsewhere = tmp_path / "report.html"
    assert write_page(source, elsewhere) == elsewhere


@pytest.mark.parametrize("text", ["not json", "[]", '{"cells": 3}', '{"nbformat": 4}'])
def test_what_is_no_notebook_is_refused_with_a_sentence(tmp_path, text):
    source = tmp_path / "x.ipynb"
    source.write_text(text)
    with pytest.raises(ResultError, match=r"x\.ipynb cannot be read as a notebook"):
        write_page(source)


def test_a_path_without_a_notebook_or_a_run_is_refused(tmp_path):
    for path in (tmp_path / "x.ipynb", tmp_path):
        with pytest.raises(ParameterError, match="Give an executed notebook or a run folder"):
            write_page(path)


def test_a_partial_page_says_so_in_title_band_badge_and_headline(result):
    launches = {"planned": 9, "measured": 4, "planned_rounds": 3, "rounds": 2, "took_s": {}}
    shown = page(result=result | {"status": "started", "launches": launches})
    assert shown.title.get_text().startswith("Partial: ")
    assert shown.h1.get_text().startswith("So far: ")
    band = shown.select_one(".band.partial").get_text()
    assert band.startswith("Partial. 4 of 9 launches have been measured (")
    assert "can still change" in band
    assert "partial: 4 of 9 launches" in shown.select_one(".badge").get_text()
    whole = page(result=result | {"launches": launches | {"measured": 9}})
    assert not whole.select(".band.partial") and "artial" not in whole.title.get_text()
