"""A report as a folder with report.md, its images and tables: a progress note for GitHub or HackMD.

It is made from the HTML page, so it says the same: finding, intervals and open gates come first,
the command that repeats the run last. Code cells, tooltips and the contents are left out.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

from bs4 import BeautifulSoup, Tag

from workbench.experiment.result.result import Result
from workbench.exports.drawings import FOLDER as IMAGES
from workbench.exports.drawings import save_drawings
from workbench.exports.markdown import markdown, tag
from workbench.exports.sheets import BOOK, save_tables
from workbench.exports.sheets import FOLDER as TABLES
from workbench.report.page import read_executed, render
from workbench.report.tables import table

NOTE = "report.md"
TEXTS = "text"
_LONG_TEXT_LINES = 12
_ONLY_IN_A_BROWSER = "script, style, nav, button, details.code, .where, .tools"
_IN_AN_ADDRESS = "/:?#[]@!$&'*+,;=%~"
"""Kept as they are; Markdown would end an address at a space, bracket or quote mark."""
_STYLED = re.compile(r"([^{}]+)\{([^{}]*)\}")


def write_note(path: str | Path, *, image_base: str = "") -> Path:
    """Write the note of an executed notebook or a run folder; returns the path of report.md.

    Its folder is `report` in a run folder, else `NAME-report` beside NAME.ipynb. `image_base` is
    the address under which that folder is published: links to images and tables are then absolute.

    Raises as `workbench.report.page.read_executed` does.
    """
    found = read_executed(path)
    source = found.source
    name = "report" if found.in_run_folder else f"{source.stem}-report"
    folder = source.with_name(name)
    _clear(folder)
    soup = BeautifulSoup(render(found.notebook, found.result, found.card), "html.parser")
    page = soup.main
    assert page is not None
    _mark_styles(page)
    for part in page.select(_ONLY_IN_A_BROWSER):
        part.decompose()
    for word in page("dfn"):
        word.unwrap()
    _reshape(page)
    if found.result is not None:
        _add_models(page, found.result)
    _reorder(page)
    _save_texts(page, folder)
    save_drawings(page, folder)
    if found.result is not None:
        _add_files(page, save_tables(found.result, folder, near=source))
    if image_base:
        _make_absolute(page, quote(image_base.rstrip("/"), safe=_IN_AN_ADDRESS))
    target = folder / NOTE
    target.write_text(markdown(page), encoding="utf-8")
    return target


def _clear(folder: Path) -> None:
    """Remove the files of an earlier note, which may have had others."""
    for pattern in (f"{IMAGES}/[0-9][0-9]-*", f"{TEXTS}/[0-9][0-9].txt", f"{TABLES}/*.csv"):
        for old in folder.glob(pattern):
            old.unlink()
    folder.mkdir(parents=True, exist_ok=True)


def _mark_styles(page: Tag) -> None:
    """Strike out and embolden what a table's style sheet does: Markdown has no other way."""
    cells = {str(cell["id"]): cell for cell in page(["td", "th"], id=True)}
    for sheet in page("style"):
        for names, rule in _STYLED.findall(sheet.get_text()):
            mark = "s" if "line-through" in rule else "b" if "bold" in rule else ""
            for name in re.findall(r"#([\w-]+)", names) if mark else ():
                cell = cells.get(name)
                if cell is not None and cell.get_text().strip():
                    cell.append(tag(mark, *list(cell.contents)))


def _reshape(page: Tag) -> None:
    """Turn colours and boxes of the page into quotes, bold words, lists and a table."""
    for part in page.select(".band, .error"):
        part.name = "blockquote"
    for part in page.select(".badge, span.gate, dd > .verdict, .verdict-line, p.strong"):
        part.extend([tag("b", *list(part.contents))])
    for part in page.select("h3 > small, .tag"):
        part.insert(0, "(")
        part.append(")")
    for badge in page.select(".kick > .badge"):
        badge.insert_after(" · ")
    for verdict in page.select("summary > .verdict, dd > .verdict"):
        verdict.append(":")
    for doubt in page.select(".doubt"):
        doubt.wrap(tag("ul"))
        doubt.name = "li"
    for first in page.select("ul:has(> .doubt)"):
        while isinstance(after := first.find_next_sibling(), Tag) and after.select_one("li.doubt"):
            first.extend(list(after.contents))
            after.decompose()
    cards = page.select_one(".cards")
    if cards is not None:
        rows = [_card_row(card) for card in cards.select(".card")]
        heads = ("number", "95 % CI", "what", "note")
        head = tag("thead", tag("tr", *(tag("th", name) for name in heads)))
        cards.replace_with(tag("table", head, tag("tbody", *rows)))


def _card_row(card: Tag) -> Tag:
    value, bounds = card.find("b"), card.select_one(".ci")
    struck = "struck" in card.get_attribute_list("class")
    parts = (value, bounds, card.find("div"), card.find("small"))
    texts = [" ".join(part.get_text().split()) if part else "" for part in parts]
    cells: list[str | Tag] = [tag("b", texts[0]), *texts[1:]]
    if struck:
        cells[:2] = [tag("s", texts[0]), tag("s", texts[1]) if texts[1] else ""]
    return tag("tr", *(tag("td", cell) for cell in cells))


def _add_models(page: Tag, result: Result) -> None:
    """A section for each model where a run has several: its medians and ratios."""
    run = result.run
    before = page.find("h2", string=re.compile("What this does not show|Repeat it|Parameters,"))
    if before is None:
        return
    for model in run.models:
        arms = {arm.label for arm in run.arms if arm.short_model == model.model}
        summary = tuple(row for row in run.summary if row.arm in arms)
        found = tuple(row for row in run.comparisons if {*row.arms} <= arms)
        own = replace(result, run=replace(run, summary=summary, comparisons=found))
        metrics = dict.fromkeys(row.metric.removesuffix("_s") for row in summary)
        shown = table(own.medians(*metrics)) if summary else None
        before.insert_before(tag("h2", model.name))
        if shown is not None:
            html = BeautifulSoup(shown.to_html(), "html.parser")
            _mark_styles(html)
            for sheet in html("style"):
                sheet.decompose()
            before.insert_before(html)
        if said := [row.sentence for row in found if row.sentence]:
            before.insert_before(tag("ul", *(tag("li", sentence) for sentence in said)))


def _reorder(page: Tag) -> None:
    """First the finding, numbers, open gates and main figure; the line that repeats it last."""
    if page.h1 is not None:
        page.insert(0, page.h1)
    figure, line = page.select_one(".main-figure"), page.select_one(".verdict-line")
    if figure is not None and line is not None:
        after = line.find_next_sibling()
        open_gates = isinstance(after, Tag) and "gates" in after.get_attribute_list("class")
        (after if open_gates and after else line).insert_after(figure)
    command = page.select_one(".repeat")
    if command is not None:
        heading = command.find_previous_sibling("h2")
        page.extend([part for part in (heading, command) if part is not None])


def _save_texts(page: Tag, folder: Path) -> None:
    """Put long printed texts and tracebacks, which the page folds, into files."""
    for number, details in enumerate(page.select("details.print, details.trace"), 1):
        texts, summary = details.find_all("pre"), details.find("summary")
        text = "\n".join(part.get_text() for part in texts)
        if summary is None or text.count("\n") < _LONG_TEXT_LINES:
            continue
        name = f"{TEXTS}/{number:02}.txt"
        (folder / TEXTS).mkdir(exist_ok=True)
        (folder / name).write_text(text.strip("\n") + "\n", encoding="utf-8")
        details.replace_with(tag("p", tag("a", summary.get_text(), href=name)))


def _add_files(page: Tag, files: dict[str, str]) -> None:
    """The links to the tables as files, before the line that repeats the run."""
    book, *tables = files
    link = tag("a", book, href=book)
    parts: list[str | Tag] = [link, " has all tables, one sheet each. As CSV: "]
    for name in tables:
        comma = ", " if name != tables[-1] else "."
        parts += [tag("a", Path(name).stem, href=name), f" ({files[name]}){comma}"]
    section = [tag("h2", "Tables as files"), tag("p", *parts)]
    command = page.select_one(".repeat")
    heading = command.find_previous_sibling("h2") if command is not None else None
    if heading is not None:
        heading.insert_before(*section)
    else:
        page.extend(section)


def _make_absolute(page: Tag, base: str) -> None:
    for part in page(["a", "img"]):
        name = "src" if part.name == "img" else "href"
        address = str(part.get(name, ""))
        if address.startswith((f"{IMAGES}/", f"{TABLES}/", f"{TEXTS}/", BOOK)):
            part[name] = f"{base}/{address}"
