from __future__ import annotations

import pytest
from bs4 import BeautifulSoup
from hypothesis import given
from hypothesis import strategies as st

from tests.exports.notes import GITHUB
from workbench.exports.markdown import inline, markdown

NASTY = [
    "a|b", "<script>alert(1)</script>", "*bold*", "_em_", "ttft_s of 1p4d", "`code`", "a \\| b",
    "[link](https://example.org)", "![picture](x.png)", "&lt;", "~~gone~~", "$x^2$", ":warning:",
    "# no heading", "- no list", "+ no list", "3. no list", "> no quote", "---", "===", "[x] done",
    "[^1]", "a\\", "*", "5 < 6 > 4", "__init__", "2 * 3 * 4", "100 %", "| a | b |", "<!-- x -->",
]  # fmt: skip


def md(html):
    return markdown(BeautifulSoup(html, "html.parser"))


def shown(html):
    return BeautifulSoup(GITHUB.render(md(html)), "html.parser")


@pytest.mark.parametrize("text", NASTY)
def test_a_name_survives_in_a_sentence_a_list_a_heading_and_a_table(text):
    said = BeautifulSoup("<p></p><h2></h2><ul><li></li></ul><b></b>", "html.parser")
    for part in said(["p", "h2", "li", "b"]):
        part.string = text
    cell = BeautifulSoup("<table><thead><tr><th>a</th></tr></thead></table>", "html.parser")
    cell.table.append(BeautifulSoup("<tr><td></td></tr>", "html.parser"))
    cell.td.string = text
    soup = shown(str(said) + str(cell))
    assert [p.get_text() for p in soup(["p", "h2", "li", "strong", "td"])] == [text] * 6
    assert soup(["em", "del", "img", "script", "a", "hr", "blockquote"]) == []


@given(st.text(st.characters(codec="ascii", categories=("L", "N", "P", "S")), min_size=1))
def test_any_text_survives_in_a_table(text):
    soup = BeautifulSoup(
        GITHUB.render(f"| {inline(text, in_cell=True)} |\n| --- |\n"), "html.parser"
    )
    assert soup.th.get_text() == text


def test_names_with_an_underscore_stay_readable():
    assert inline("ttft_s is [16.9, 19.4] ms, +3 %") == "ttft_s is [16.9, 19.4] ms, +3 %"


def test_a_table_is_one_line_a_row_with_numbers_on_the_right():
    text = md(
        "<table><caption>Rows of <b>two</b></caption><thead><tr><th>arm</th><th>TTFT</th>"
        "<th>note</th></tr></thead><tbody><tr><td>1p4d</td><td>18.1 [16.9, 19.4]</td>"
        "<td>a<br>b</td></tr><tr><td>5a</td><td>-</td><td></td></tr></tbody></table>"
    )
    assert text.splitlines() == [
        "Rows of two",
        "",
        "| arm | TTFT | note |",
        "| --- | --: | --- |",
        "| 1p4d | 18.1 [16.9, 19.4] | a · b |",
        "| 5a | - |  |",
    ]


def test_a_table_without_a_header_keeps_its_first_row():
    soup = shown(
        "<table><tr><th>cpu</th><td>EPYC</td></tr><tr><th>cores</th><td>2</td></tr></table>"
    )
    assert [cell.get_text() for cell in soup.tbody(["td"])] == ["cpu", "EPYC", "cores", "2"]


def test_code_with_fences_stays_one_block():
    soup = shown("<pre>```\n<b>x</b> | *y*\n````\n</pre>")
    assert [block.get_text() for block in soup("pre")] == ["```\nx | *y*\n````\n"]


def test_links_within_the_page_become_text_and_others_stay():
    assert md('<p><a href="#gates">gates</a> <a href="a_b.csv">a_b</a></p>') == (
        "gates [a_b](a_b.csv)\n"
    )


def test_definitions_are_a_list():
    assert md("<dl><dt>TTFT</dt><dd>time to\n first token</dd><dt>leg</dt><dd>one</dd></dl>") == (
        "- **TTFT**: time to first token\n- **leg**: one\n"
    )
