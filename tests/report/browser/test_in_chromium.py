"""The pages as a reader meets them: in Chromium, on a desk and a phone, dark, and on paper.

The runs are recordings (tests/golden) and a small log, so that no test depends on the machine.
"""

from __future__ import annotations

import io
import shutil
import statistics
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import nbformat
import pytest

from tests.golden.test_golden import PARAMETERS, page_of
from workbench.experiment.result.result import Result
from workbench.report.glossary import GLOSSARY
from workbench.report.index import write_index
from workbench.report.page import render

CHROMIUM = shutil.which("chromium")
DESK, PHONE = {"width": 1280, "height": 900}, {"width": 360, "height": 740}

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium"),
    pytest.mark.alone,  # one process makes the pages once
]


@pytest.fixture(scope="session")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The page of each notebook, and their index."""
    folder = tmp_path_factory.mktemp("pages")
    with ThreadPoolExecutor(2) as two:
        done = {name: two.submit(page_of, name, folder) for name in PARAMETERS}
    made = {name: page.result() for name, page in done.items()}
    return made | {"index": write_index(folder)}


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install -e .[dev]")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


Open = Callable[..., Any]


@pytest.fixture
def show(browser: Any, pages: dict[str, Path]) -> Iterator[Open]:
    """`show(page, window)` opens a notebook's page, or a file; it may load and break nothing."""
    wrong: list[str] = []
    contexts = []

    def opened(page: str | Path, window: dict[str, int] = DESK, **context: Any) -> Any:
        contexts.append(browser.new_context(viewport=window, **context))
        tab = contexts[-1].new_page()
        tab.set_default_timeout(10_000)
        tab.on("pageerror", lambda error: wrong.append(str(error)))
        tab.on("console", lambda said: said.type == "error" and wrong.append(said.text))
        tab.on(
            "request", lambda asked: wrong.append(asked.url) if asked.url[:4] == "http" else None
        )
        tab.goto((pages[page] if isinstance(page, str) else page).as_uri())
        return tab

    yield opened
    for context in contexts:
        context.close()
    assert wrong == []


@pytest.fixture
def failed_page(result: dict[str, Any], tmp_path: Path) -> Path:
    """A page whose gates passed, failed, and could not be decided; one table, struck in part."""
    table = (
        "<table><thead><tr><th>arm</th><th>TTFT, ms</th></tr></thead><tbody>"
        '<tr><td>1p4d | a</td><td>1,234</td></tr><tr><td>5a, "b"</td>'
        '<td style="text-decoration: line-through">9</td></tr></tbody></table>'
    )
    shown = nbformat.v4.new_output("display_data", {"text/html": table})
    cell = nbformat.v4.new_code_cell("table", outputs=[shown])
    text = nbformat.v4.new_markdown_cell("## Times\n\nEach arm in each round.")
    page = tmp_path / "page.html"
    notebook = nbformat.v4.new_notebook(cells=[text, cell])
    page.write_text(render(notebook, Result.from_bundle(result, "a test")))
    return page


@pytest.mark.parametrize("notebook", PARAMETERS)
def test_the_answer_stands_on_the_first_screen(show: Open, notebook: str) -> None:
    tab = show(notebook)
    for part in ("h1", ".card >> nth=0", ".cards"):
        box = tab.locator(part).bounding_box()
        assert box["y"] + box["height"] < DESK["height"], part
    figure = tab.locator(".main-figure, .claims-wide").first.bounding_box()
    assert figure["y"] < DESK["height"] - 200


def test_a_filter_of_the_index_leaves_the_runs_that_fit(show: Open) -> None:
    tab = show("index")
    rows = tab.locator("tr[data-outcome]")
    assert tab.locator(".filters output").inner_text() == f"{rows.count()} runs"
    tab.select_option("select[data-name=notebook]", "pd_sweep")
    assert tab.locator("h2:visible").all_inner_texts() == ["pd_sweep"]
    assert tab.locator("tr[data-outcome]:visible").count() == 1
    tab.select_option("select[data-name=notebook]", "")
    assert tab.locator("tr[data-outcome]:visible").count() == rows.count() > 1


@pytest.mark.parametrize("window", [PHONE, {"width": 800, "height": 900}, DESK], ids=str)
@pytest.mark.parametrize("notebook", [*PARAMETERS, "index"])
def test_no_page_scrolls_sideways(show: Open, notebook: str, window: dict[str, int]) -> None:
    tab = show(notebook, window)
    tab.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    wide = tab.evaluate(
        "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    )
    assert wide[0] <= wide[1]


@pytest.mark.parametrize("notebook", PARAMETERS)
def test_paper_cuts_nothing_off(show: Open, notebook: str) -> None:
    tab = show(notebook, {"width": 700, "height": 1000})
    tab.emulate_media(media="print")
    tab.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    cut = tab.evaluate(
        "[...document.querySelectorAll('main *')].filter((part) => part.checkVisibility()"
        " && part.getBoundingClientRect().right > 701).map((part) => part.outerHTML.slice(0, 200))"
    )
    assert cut == []


OVERLAPS = """() => {
  const found = [];
  const compare = (nodes, inset) => {
    const boxes = nodes.filter((node) => node.textContent.trim()).map((node) => {
      const { left, right, top, bottom } = node.getBoundingClientRect();
      const slack = inset * (bottom - top);
      return [left + 1, right - 1, top + slack, bottom - slack, node.textContent.trim()];
    }).filter(([left, right]) => right > left);
    boxes.forEach((a, i) => boxes.slice(i + 1).forEach((b) => {
      if (a[0] < b[1] && b[0] < a[1] && a[2] < b[3] && b[2] < a[3]) found.push([a[4], b[4]]);
    }));
  };
  document.querySelectorAll("figure svg").forEach(
    (svg) => compare([...svg.querySelectorAll("text")], 0.25));
  document.querySelectorAll(".card").forEach((card) => compare([...card.children], 0));
  document.querySelectorAll(".runs tr").forEach(
    (row) => compare([...row.querySelectorAll("td > *")], 0.1));
  compare([...document.querySelectorAll("main > *")], 0.001);
  return found;
}"""


@pytest.mark.parametrize("notebook", [*PARAMETERS, "index"])
def test_no_text_lies_over_another(show: Open, notebook: str) -> None:
    tab = show(notebook)
    tab.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    assert tab.evaluate(OVERLAPS) == []


CONTRAST = """() => {
  const parts = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((value) => value / 255)
    .map((value) => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4)
    .reduce((sum, value, i) => sum + value * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const colour = parts(getComputedStyle(at).backgroundColor);
      if (colour.length < 4 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  const found = [];
  document.querySelectorAll("main *, nav *, .tip").forEach((node) => {
    if (node.closest("svg, script") || !node.checkVisibility()) return;
    if (![...node.childNodes].some((part) => part.nodeType === 3 && part.data.trim())) return;
    const style = getComputedStyle(node);
    const [a, b] = [light(parts(style.color)), light(behind(node))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) found.push([node.className, node.textContent.trim().slice(0, 40), ratio]);
  });
  return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("notebook", [*PARAMETERS, "index"])
def test_text_can_be_read_in_both_schemes(show: Open, notebook: str, scheme: str) -> None:
    tab = show(notebook, color_scheme=scheme)
    tab.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    assert tab.evaluate(CONTRAST) == []
    ground = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    bright = statistics.mean(int(part) for part in ground[4:-1].split(","))
    assert (bright > 128) == (scheme == "light")


@pytest.mark.parametrize("notebook", PARAMETERS)
def test_a_page_is_small_and_its_figures_say_what_they_show(
    show: Open, notebook: str, pages: dict[str, Path]
) -> None:
    assert pages[notebook].stat().st_size < 600_000
    unnamed = show(notebook).evaluate(
        "[...document.querySelectorAll('.drawing > *')].filter((drawing) =>"
        " (drawing.ariaLabel ?? drawing.alt ?? '').length < 20).map((drawing) => drawing.outerHTML)"
    )
    assert unnamed == []


def test_a_figure_is_saved_as_svg_and_png(show: Open) -> None:
    tab = show("pd_sweep", color_scheme="dark")
    saved = {}
    for kind in ("SVG", "PNG"):
        with tab.expect_download() as waiting:
            tab.get_by_label(f"Save figure 1 as {kind}").click()
        download = waiting.value
        saved[kind] = download.suggested_filename, Path(download.path()).read_bytes()
    name, svg = saved["SVG"]
    assert name.startswith("pd_sweep-") and name.endswith("-figure-1.svg")
    drawing = ElementTree.fromstring(svg)
    assert drawing.tag == "{http://www.w3.org/2000/svg}svg" and len([*drawing.iter()]) > 20
    name, png = saved["PNG"]
    assert name.endswith("-figure-1.png")
    from matplotlib.image import imread

    picture = imread(io.BytesIO(png))
    assert picture.shape[1] == 2 * float(drawing.attrib["width"])
    assert picture[0, 0, :3].tolist() == [1, 1, 1]  # white, also from a dark page
    assert picture[..., :3].std() > 0.05  # something is drawn


COPIED = {
    "Markdown": '| arm | TTFT, ms |\n| --- | --- |\n| 1p4d \\| a | 1,234 |\n| 5a, "b" | ~~9~~ |\n',
    "CSV": 'arm,"TTFT, ms"\n1p4d | a,"1,234"\n"5a, ""b""",not valid: 9\n',
}


@pytest.mark.parametrize("clipboard", [True, False])
def test_a_table_is_copied_as_markdown_and_csv(
    show: Open, failed_page: Path, clipboard: bool
) -> None:
    tab = show(failed_page)
    if not clipboard:  # as on a page that came over plain HTTP
        tab.evaluate("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    tab.evaluate("document.body.append(document.createElement('textarea'))")
    for kind, expected in COPIED.items():
        tab.get_by_label(f"Copy this table as {kind}").first.click()
        tab.get_by_text("Copied", exact=True).wait_for()
        box = tab.locator("body > textarea")
        box.fill("")
        box.focus()
        tab.keyboard.press("Control+V")
        assert box.input_value() == expected
        tab.get_by_label(f"Copy this table as {kind}").first.wait_for()


def test_the_command_is_copied(show: Open, failed_page: Path, result: dict[str, Any]) -> None:
    tab = show(failed_page)
    tab.evaluate("navigator.clipboard.writeText = async (text) => { window.copied = text; }")
    tab.get_by_label("Copy the command").click()
    assert tab.evaluate("window.copied") == result["repeat"]


@pytest.mark.parametrize("window", [DESK, PHONE], ids=["desk", "phone"])
def test_a_glossary_word_is_explained_by_keyboard_and_touch(
    show: Open, failed_page: Path, window: dict[str, int]
) -> None:
    tab = show(failed_page, window, has_touch=True)
    tip = tab.locator(".tip")
    for word in tab.locator("dfn:visible").all():
        sentence = GLOSSARY[word.get_attribute("aria-describedby").removeprefix("term-")]
        word.focus()
        assert tip.inner_text() == sentence
        box = tip.bounding_box()
        assert 0 <= box["x"] and box["x"] + box["width"] <= window["width"]
        tab.keyboard.press("Escape")
        assert not tip.is_visible()
        word.tap()
        assert tip.inner_text() == sentence
        tab.locator("h1").tap()
        assert not tip.is_visible()


def test_all_that_can_be_pressed_is_reached_by_tab_and_shows_it(
    show: Open, failed_page: Path
) -> None:
    tab = show(failed_page)
    wanted = tab.evaluate(
        "[...document.querySelectorAll('a, button, summary, dfn, .table')]"
        ".filter((node) => node.checkVisibility()).length"
    )
    seen = 0
    for _ in range(wanted):
        tab.keyboard.press("Tab")
        seen += tab.evaluate(
            "document.activeElement !== document.body"
            " && getComputedStyle(document.activeElement).outlineStyle !== 'none'"
        )
    assert seen == wanted


def test_the_list_of_sections_follows_the_reader_on_a_desk_and_is_not_on_a_phone(
    show: Open,
) -> None:
    tab = show("pd_sweep")
    nav = tab.get_by_role("navigation", name="Sections")
    before = nav.bounding_box()
    for link in (nav.locator("a").nth(3), nav.locator("a").first):
        link.click()
        tab.wait_for_function("(link) => link.matches('[aria-current]')", arg=link.element_handle())
        assert nav.locator("[aria-current]").count() == 1
    assert nav.bounding_box() == before
    main = tab.locator("main").bounding_box()
    assert before["x"] + before["width"] <= main["x"] + 24
    assert not show("pd_sweep", PHONE).locator("nav").is_visible()


def test_paper_has_failed_gates_and_parameters_and_no_buttons(
    show: Open, failed_page: Path
) -> None:
    tab = show(failed_page)
    tab.emulate_media(media="print")
    tab.evaluate("dispatchEvent(new Event('beforeprint'))")
    gates = tab.locator(".gates li")
    assert [gate.is_visible() for gate in gates.all()] == [True] * 3  # those that passed, too
    assert tab.get_by_text("close other jobs").is_visible()
    assert tab.get_by_role("rowheader", name="topology").is_visible()
    assert not any(button.is_visible() for button in tab.locator("button, nav").all())
    tab.evaluate("dispatchEvent(new Event('afterprint'))")
    assert not gates.last.is_visible()


def test_parts_of_the_claims_are_folded_and_all_are_on_paper(show: Open) -> None:
    tab = show("paper_claim_validation")
    rows = tab.locator(".claims tbody tr")
    shown = (
        "[...document.querySelectorAll('.claims tbody tr')]"
        ".filter((row) => row.checkVisibility()).length"
    )
    folded = tab.locator("details.claims-part:not([open])").last
    before = tab.evaluate(shown)
    assert 10 < before < rows.count()
    folded.locator("summary").click()
    assert before < tab.evaluate(shown) < rows.count()
    tab.emulate_media(media="print")
    tab.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert tab.evaluate(shown) == rows.count()
    assert tab.get_by_text("our number").first.is_visible()


def test_a_long_table_is_shown_in_full_on_request_and_on_paper(show: Open) -> None:
    tab = show("pd_sweep")
    button = tab.get_by_role("button", name="Show all").first
    rows = int((button.text_content() or "").split()[2])
    table = button.locator("xpath=../preceding-sibling::div[1]//tbody").element_handle()
    shown = "(body) => [...body.rows].filter((row) => row.checkVisibility()).length"
    assert table.evaluate(shown) == 12 < rows
    tab.emulate_media(media="print")
    assert table.evaluate(shown) == rows
    tab.emulate_media(media="screen")
    button.click()
    assert table.evaluate(shown) == rows
