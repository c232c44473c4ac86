from __future__ import annotations

import io
from xml.etree import ElementTree

import matplotlib.image
import numpy as np
import pytest
from bs4 import BeautifulSoup

from workbench.exports.drawings import png_of, svg_text
from workbench.report import figures
from workbench.report.markup import clean

NAMESPACE = "{http://www.w3.org/2000/svg}"


def pixels(png):
    return matplotlib.image.imread(io.BytesIO(png))


def elements(svg):
    """Names, attributes and texts, without what the page adds."""
    return [
        (node.tag, {k: v for k, v in node.attrib.items() if k != "id" and "#" not in v}, node.text)
        for node in ElementTree.fromstring(svg).iter()
    ]


def test_a_drawing_leaves_the_page_as_it_came(summary, comparisons):
    chart = figures.topology_overview(summary, comparisons)
    page = BeautifulSoup(clean(chart.svg, prefix="part1-"), "html.parser")
    assert elements(svg_text(page.svg)) == elements(chart.svg)


def test_names_that_html_writes_small_get_their_capitals():
    page = BeautifulSoup(
        '<svg viewbox="0 0 9 9"><lineargradient gradientunits="userSpaceOnUse"/></svg>',
        "html.parser",
    )
    root = ElementTree.fromstring(svg_text(page.svg))
    assert root.attrib == {"viewBox": "0 0 9 9"}
    assert root[0].tag == f"{NAMESPACE}linearGradient"
    assert root[0].attrib == {"gradientUnits": "userSpaceOnUse"}


def test_a_png_is_twice_the_size_on_white_and_has_the_text():
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" width="60" height="20">{}</svg>'
    )  # fmt: skip
    empty = pixels(png_of(svg.format("")))
    assert empty.shape[:2] == (40, 120)
    assert np.all(empty == 1)
    text = '<text x="2" y="15" font-family="system-ui, sans-serif" font-size="14">TTFT</text>'
    assert np.mean(pixels(png_of(svg.format(text)))[..., 0] < 0.5) > 0.03


def test_what_is_no_drawing_is_an_error():
    with pytest.raises(ValueError):
        png_of("<p>no drawing</p>")
