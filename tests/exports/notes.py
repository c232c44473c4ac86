"""What GitHub makes of a note: CommonMark and its extensions, then its list of allowed HTML."""

from __future__ import annotations

import re
import struct
from pathlib import Path
from xml.etree import ElementTree

import bleach
from bs4 import BeautifulSoup, Tag
from markdown_it import MarkdownIt

GITHUB = MarkdownIt("commonmark").enable(["table", "strikethrough"])
ALLOWED = set(
    "a b blockquote br code dd del details div dl dt em h1 h2 h3 h4 h5 h6 hr i img ins kbd li ol p"
    " pre q s samp strong sub summary sup table tbody td tfoot th thead tr tt ul var".split()
)
"""Elements that GitHub keeps; it takes out ids, classes, styles and every other protocol."""
ATTRIBUTES = {"a": ["href"], "img": ["src", "alt"], "th": ["align"], "td": ["align"]}
NOT_TOLD = "script, style, nav, button, pre, svg, details.code, .where, .tools"
"""Parts of a page that a note leaves out, or that are checked in another way."""


def shown(note: Path) -> BeautifulSoup:
    """The note as GitHub shows it. Raises AssertionError if it would take something out."""
    text = note.read_text("utf-8")
    tokens = [*GITHUB.parse(text)]
    tokens += [child for token in tokens for child in token.children or ()]
    assert [token.content for token in tokens if token.type.startswith("html")] == []
    # markdown-it aligns by a style, GitHub by an attribute
    html = re.sub(r'style="text-align:(\w+)"', r'align="\1"', GITHUB.render(text))
    kept = bleach.clean(html, tags=ALLOWED, attributes=ATTRIBUTES, protocols=["http", "https"])
    whole, left = (BeautifulSoup(each, "html.parser") for each in (html, kept))
    assert str(whole) == str(left)
    return whole


def check_files(note: Path, soup: BeautifulSoup) -> None:
    """Every address of the note leads to a file in its folder; every PNG is twice its SVG."""
    for part in soup(["img", "a"]):
        address = str(part.get("src") or part.get("href"))
        if re.match("https?:", address):
            continue
        assert (note.parent / address).is_file(), address
        drawing = (note.parent / address).with_suffix(".svg")
        if address.endswith(".png") and drawing.exists():
            svg = ElementTree.parse(drawing).getroot()
            size = struct.unpack(">II", (note.parent / address).read_bytes()[16:24])
            twice = (2 * float(svg.get(side, 0)) for side in ("width", "height"))
            assert all(abs(a - b) <= 1 for a, b in zip(size, twice, strict=True))


def plain(part: Tag) -> str:
    """A text without what divides its words."""
    return re.sub(r"\W+", "", part.get_text())


def check_note(note: Path, page: Path) -> BeautifulSoup:
    """A note has every sentence, row and figure of its page. Returns it as it is shown."""
    soup = shown(note)
    check_files(note, soup)
    main = BeautifulSoup(page.read_text("utf-8"), "html.parser").main
    assert main is not None
    for kind, names in (("svg", ["svg"]), ("png", ["svg", "img"])):
        # a figure of several models has a drawing for each inside
        wanted = [drawing for drawing in main(names) if drawing.find_parent("svg") is None]
        assert len([*note.parent.glob(f"images/*.{kind}")]) == len(wanted)
    assert all(image["alt"] for image in soup("img"))
    for part in main.select(NOT_TOLD):
        part.decompose()
    rows = {"|".join(plain(cell) for cell in row(["td", "th"])) for row in soup("tr")}
    for row in main("tr"):
        wanted = "|".join(plain(cell) for cell in row(["td", "th"]))
        assert wanted in rows, wanted
        row.decompose()
    text = plain(soup)
    for part in main(["h1", "h2", "h3", "h4", "p", "li", "figcaption", "dd"]):
        for piece in part.find_all(string=True):
            assert re.sub(r"\W+", "", piece) in text, piece
    return soup
