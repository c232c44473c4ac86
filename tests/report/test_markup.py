from __future__ import annotations

import pytest
from bs4 import BeautifulSoup

from workbench.report.markup import Outline, clean


def test_harmless_html_stays_as_it_is() -> None:
    assert clean("<p>a <b>b</b> 1 &lt; 2</p>", prefix="x-") == "<p>a <b>b</b> 1 &lt; 2</p>"


@pytest.mark.parametrize(
    "fragment",
    [
        '<script src="https://cdn.example/x.js"></script>',
        "<script>fetch('https://example.org')</script>",
        '<img src="https://example.org/a.png">',
        '<img src="//example.org/a.png">',
        '<img srcset="https://example.org/a.png 2x">',
        '<link rel="stylesheet" href="https://example.org/a.css">',
        '<iframe src="https://example.org"></iframe>',
        '<p style="background: url(https://example.org/a.png)">x</p>',
        "<style>@import 'https://example.org/a.css';</style>",
        "<style>b { background: url('//example.org/a.png') }</style>",
        '<svg xmlns="http://www.w3.org/2000/svg"><image xlink:href="http://example.org/a"/></svg>',
        '<svg><rect fill="url(https://example.org#a)"/></svg>',
        '<a href="java\tscript:alert(1)">x</a>',
        '<img src="x" onerror="alert(1)">',
    ],
)
def test_nothing_loads_or_runs(fragment: str) -> None:
    cleaned = clean(fragment, prefix="x-")
    for sign in ("example.org", "cdn.example", "http:", "script", "onerror", "alert"):
        assert sign not in cleaned


def test_a_link_to_another_site_becomes_text_with_its_address() -> None:
    link = '<a href="https://arxiv.org/abs/1">the paper</a>'
    assert clean(link, prefix="") == "<span>the paper (https://arxiv.org/abs/1)</span>"
    assert 'href="#below"' in clean('<a href="#below">below</a>', prefix="x-")


def test_embedded_pictures_and_references_inside_the_fragment_stay() -> None:
    assert "data:image/png;base64,AA" in clean('<img src="data:image/png;base64,AA">', prefix="x-")
    svg = clean(
        '<svg><clipPath id="p1"/><g clip-path="url(#p1)"/><use xlink:href="#p1"/></svg>',
        prefix="x-",
    )
    assert 'id="x-p1"' in svg
    assert 'clip-path="url(#x-p1)"' in svg
    assert 'xlink:href="#x-p1"' in svg


def test_style_rules_follow_the_ids_they_name() -> None:
    cleaned = clean("<style>#t1 > b, #t10 { color: red }</style><p id='t1'></p>", prefix="x-")
    assert "#x-t1 > b, #t10 { color: red }" in cleaned


def test_headings_never_skip_a_level_and_their_ids_never_repeat() -> None:
    outline = Outline()
    cleaned = clean("<h1>A</h1><h4>B</h4><h2>A</h2><h3>B</h3>", prefix="", outline=outline)
    assert cleaned == ('<h2 id="a">A</h2><h3 id="b">B</h3><h2 id="a-2">A</h2><h3 id="b-2">B</h3>')
    assert outline.entries == [("a", "A"), ("a-2", "A")]


def test_a_heading_in_an_output_is_not_a_heading_of_the_page() -> None:
    assert clean("<h1>Shown</h1>", prefix="") == '<p class="strong">Shown</p>'


def test_tables_have_header_cells_with_a_scope_and_may_scroll() -> None:
    cleaned = clean(
        '<style scoped>x</style><table border="1"><thead><tr><th></th><th>sent</th></tr></thead>'
        "<tbody><tr><th>cold</th><td>1</td></tr></tbody></table>",
        prefix="",
    )
    assert cleaned == (
        '<div class="table" tabindex="0"><table><thead><tr><td class="line"></td>'
        '<th scope="col">sent</th></tr></thead><tbody><tr><th class="line" scope="row">cold</th>'
        "<td>1</td></tr></tbody></table></div>"
    )


def test_columns_of_words_read_from_the_left_and_those_of_numbers_do_not() -> None:
    rows = [
        ("1p4d", "20.4 ms [16.8, 24.6]", "QUEUED to SCHEDULED", "+6,552", "2 ms x steps + 3 us"),
        ("", "nan", "", "8x", "9 us x steps of one batch"),
    ]
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    head = "<tr>" + "<th>name</th>" * 5 + "</tr>"
    html = clean(f"<table><thead>{head}</thead><tbody>{body}</tbody></table>", prefix="a-")
    soup = BeautifulSoup(html, "html.parser")
    for row in soup("tr"):
        looks = [cell.get("class", []) for cell in row(["td", "th"])]
        assert looks == [["line"], [], ["words", "line"], [], ["words", "line"]]


def test_a_table_without_a_row_says_so() -> None:
    html = clean(
        "<table><thead><tr><th>arm</th><th>ratio</th></tr></thead><tbody></tbody></table>",
        prefix="a-",
    )
    assert '<tbody><tr><td colspan="2">none</td></tr></tbody>' in html


def test_a_line_never_breaks_within_an_interval():
    html = clean("<table><tr><td>0.74 [0.65, 1.48], n 3</td></tr></table>", prefix="a-")
    assert "0.74 [0.65,\N{NO-BREAK SPACE}1.48], n 3" in html
