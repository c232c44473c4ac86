"""All that a reader of each notebook's page reads, word by word, from runs that never change.

After a change of words: `GOLDEN=write pytest tests/golden`, then read the difference in git.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import nbformat
import pytest
from bs4 import BeautifulSoup
from nbclient import NotebookClient

from tests.exports.notes import check_note
from tests.golden.replay import RECORDED
from tests.metrics.lmcache_log.log_lines import lookup, stored
from workbench.exports.note import write_note
from workbench.hardware.machine import repository_root
from workbench.report.page import write_page

HERE = Path(__file__).parent
PARAMETERS = RECORDED | {
    "environment_check": {},
    "paper_claim_validation": {"engine": "simulated", "tiers": ["source"]},
    "lmcache_hit_analysis": {"log_file": "vllm.log"},  # engine=simulated does not model its tiers
}
_WITH_ROWS = {"pd_sweep", "single_instance_prefix_cache"}
SHOWN = "h1, h2, h3, h4, p, li, tr, summary, figcaption, text, .card, .doubt"
HIDDEN = "script, style, nav, pre, tbody tr:nth-of-type(n + 4)"
"""Not words of ours; and of a table the first rows say how all of them read."""
CHANGING = {r"\b20\d\d-\d\d-\d\d( \d\d:\d\d UTC)?": "DATE", r"/tmp/\S+": "FOLDER"}
"""What is not the same each time, and what stands there instead."""
WORDS_OF_A_LABEL = 3
"""Shorter text in a figure is a name or a number at its axes."""


def page_of(notebook: str, folder: Path) -> Path:
    """The page of a notebook that shows a recorded run, or a log of eight requests."""
    source = nbformat.read(repository_root() / "notebooks" / f"{notebook}.ipynb", as_version=4)
    given = PARAMETERS[notebook] | {"output_dir": str(folder)}
    if "log_file" in given:
        log = folder / str(given["log_file"])
        log.write_text("".join(
            lookup(f"r{n}", 1000, 768, 640, engine=128) + stored(f"r{n}", 256) for n in range(8)
        ))  # fmt: skip
        given["log_file"] = str(log)
    position = next(
        number for number, cell in enumerate(source.cells)
        if "parameters" in cell.metadata.get("tags", [])
    )  # fmt: skip
    setting = "\n".join(f"{name} = {value!r}" for name, value in given.items())
    setting += "\nfrom tests.golden.replay import stand_in\nstand_in()"
    cell = nbformat.v4.new_code_cell(setting)
    cell.metadata["tags"] = ["injected-parameters"]
    source.cells.insert(position + 1, cell)
    NotebookClient(
        source, timeout=120, kernel_name="python3",
        resources={"metadata": {"path": str(repository_root())}},
    ).execute()  # fmt: skip
    executed = folder / f"{notebook}.ipynb"
    nbformat.write(source, executed)
    return write_page(executed)


def text_of(page: Path) -> str:
    """What stands on the page, a line for each heading, sentence, row and caption."""
    soup = BeautifulSoup(page.read_text("utf-8"), "html.parser")
    for hidden in soup.select(HIDDEN):
        hidden.decompose()
    lines = []
    for part in soup.select(SHOWN):
        line = re.sub(r"\s+", " ", part.get_text(" ", strip=True))
        if part.name == "text" and len(line.split()) <= WORDS_OF_A_LABEL:
            continue
        if part.find_parent(["p", "li", "tr", "summary", "figcaption"]) is None:
            lines.append("#" * int(part.name[1:]) + " " + line if part.name[0] == "h" else line)
    text = "\n".join(filter(None, lines)) + "\n"
    for pattern, instead in CHANGING.items():
        text = re.sub(pattern, instead, text)
    return text


@pytest.mark.parametrize("notebook", PARAMETERS)
def test_the_page_reads_as_it_was_approved(notebook: str, tmp_path: Path) -> None:
    page = page_of(notebook, tmp_path)
    now = text_of(page)
    golden = HERE / f"{notebook}.txt"
    if os.environ.get("GOLDEN") == "write":
        golden.write_text(now)
    assert now.splitlines() == golden.read_text().splitlines()
    note = write_note(page.with_suffix(".ipynb"))
    check_note(note, page)
    assert (note.parent / "tables/percentiles.csv").exists() == (notebook in _WITH_ROWS)
