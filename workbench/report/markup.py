"""HTML fragments made fit for the page: offline, harmless, with ids and headings that are its own.

What a notebook shows may load things from a server, repeat an id, or start a heading at any level.
"""

from __future__ import annotations

import re

from bs4 import BeautifulSoup, Tag

_DANGEROUS = ("base", "embed", "form", "iframe", "link", "meta", "object", "script", "title")
_REMOTE = re.compile(r"(?:https?:|//|ftp:|file:|javascript:|vbscript:)", re.IGNORECASE)
_BLANK = re.compile(r"[\x00-\x20]+")
_CSS_LOAD = re.compile(
    r"@import[^;]*;?|url\((?!\s*['\"]?(?:#|data:))[^)]*\)|(?:https?:)?//[^\s'\")]*", re.IGNORECASE
)
_WORDS = ("alt", "aria-label", "title", "value")
_HEADING = re.compile(r"h[1-6]")
_NUMBER = re.compile(
    r"[<>≤≥~±+−-]? ?\d[\d,. ]*(?![\w.])|[\d.]+(?:x|e[+-]?\d+)\b|nan\b|[-–—]$", re.IGNORECASE
)
"""How a cell with a number begins, or one without a value; `1p4d` is a word."""
_WORD, _TALE = re.compile(r"[A-Za-z]+"), 4
"""A cell with this many words counts as text even if it begins with a number."""
_ONE_LINE = 28
"""Names of at most this length are not broken."""
_PANDAS_CLASS = re.compile(
    r"data|dataframe|blank|index_name|(?:col|row)_heading|(?:level|row|col)\d+"
)
_INTERVAL = re.compile(r"(\[[-+\d.,?]+,) (?=[-+\d.,?]+\])")


class Outline:
    """The headings of a page in order: gives each its level, its id, and a line of the contents."""

    def __init__(self) -> None:
        self.entries: list[tuple[str, str]] = []
        """(id, text) of every second-level heading."""
        self._level = 1
        self._ids: set[str] = set()

    def add(self, text: str, level: int) -> tuple[int, str]:
        """The level (2 or deeper, never skipping one) and the id of the next heading."""
        level = max(2, min(level, self._level + 1))
        slug = re.sub(r"\W+", "-", text.lower()).strip("-") or "section"
        name, n = slug, 2
        while name in self._ids:
            name, n = f"{slug}-{n}", n + 1
        self._ids.add(name)
        self._level = level
        if level == 2:
            self.entries.append((name, text))
        return level, name


def clean(fragment: str, *, prefix: str, outline: Outline | None = None) -> str:
    """A fragment without scripts and network addresses, its ids beginning with `prefix`.

    Links to other sites become their text with the address beside it. With an `outline`, headings
    take their place in it; without one (an output, not the author's text) they become bold lines.
    """
    soup = BeautifulSoup(fragment, "html.parser")
    for tag in soup(_DANGEROUS):
        # an SVG's <title> is its alternative text, a page's own stands in its head
        if tag.name != "title" or tag.find_parent("svg") is None:
            tag.decompose()
    for tag in soup("style"):
        if tag.has_attr("scoped"):  # pandas' alignment of its tables, which the page has its own of
            tag.decompose()
        else:
            tag.string = _CSS_LOAD.sub("", tag.decode_contents())
    for tag in soup(True):
        _keep_offline(tag)
    _drop_unused_names(soup)
    _own_ids(soup, prefix)
    for heading in soup(_HEADING):
        _place(heading, outline)
    for table in soup("table"):
        _make_readable(soup, table)
    return str(soup)


def _keep_offline(tag: Tag) -> None:
    address = str(tag.get("href", ""))
    if tag.name == "a" and re.match(r"\s*https?:", address, re.IGNORECASE):
        tag.name = "span"
        if address not in tag.get_text():
            tag.append(f" ({address})")
    for name, value in list(tag.attrs.items()):
        text = " ".join(value) if isinstance(value, list) else str(value)
        if name == "style":
            tag[name] = _CSS_LOAD.sub("", text)
        elif name.startswith(("on", "xmlns")) or name == "srcset":
            del tag[name]
        elif name not in _WORDS and _REMOTE.match(_BLANK.sub("", text)):  # browsers skip blanks too
            del tag[name]
        elif "url(" in text:
            tag[name] = _CSS_LOAD.sub("", text)


def _drop_unused_names(soup: BeautifulSoup) -> None:
    """Drop what pandas writes into every cell for styles that it does not have: half of a table."""
    styles = " ".join(tag.decode_contents() for tag in soup("style"))
    used = set(re.findall(r"[#.]([\w-]+)", styles))
    for cell in soup(["table", "td", "th"]):
        if str(cell.get("id", "")).startswith("T_") and cell["id"] not in used:
            del cell["id"]
        kept = [
            name
            for name in cell.get_attribute_list("class")
            if name and (name in used or not _PANDAS_CLASS.fullmatch(name))
        ]
        if kept:
            cell["class"] = " ".join(kept)
        else:
            cell.attrs.pop("class", None)


def _own_ids(soup: BeautifulSoup, prefix: str) -> None:
    """Prefix every id of the fragment and whatever points to it."""
    if not (ids := {str(tag["id"]) for tag in soup(id=True)}):
        return
    either = "|".join(sorted(map(re.escape, ids), key=len, reverse=True))
    pointer = re.compile(rf"#({either})(?![\w-])")
    for tag in soup(True):
        for name, value in tag.attrs.items():
            if name in ("id", "for", "aria-labelledby", "aria-describedby", "headers"):
                words = str(value).split() if isinstance(value, str) else value
                tag[name] = " ".join(prefix + word if word in ids else word for word in words)
            elif isinstance(value, str) and "#" in value:
                tag[name] = pointer.sub(rf"#{prefix}\1", value)
        if tag.name == "style":
            tag.string = pointer.sub(rf"#{prefix}\1", tag.decode_contents())


def _place(heading: Tag, outline: Outline | None) -> None:
    for anchor in heading("a", class_="anchor-link"):
        anchor.decompose()
    heading.attrs.pop("id", None)
    if outline is None:
        heading.name = "p"
        heading["class"] = "strong"
        return
    level, heading["id"] = outline.add(heading.get_text().strip(), int(heading.name[1]))
    heading.name = f"h{level}"


def unbroken(text: str) -> str:
    """The text, in which a line may break before an interval, but not within it."""
    return _INTERVAL.sub("\\1\N{NO-BREAK SPACE}", text)


def _make_readable(soup: BeautifulSoup, table: Tag) -> None:
    """Header cells get their scope, words the left side, and a wide table scrolls.

    The frame of 1995 goes. A table without a row says so.
    """
    table.attrs.pop("border", None)
    for cell in table("th"):
        in_head = cell.find_parent("thead") is not None
        if cell.get_text().strip():
            cell["scope"] = "col" if in_head else "row"
        else:
            cell.name = "td"
    for row in table("tr"):
        row.attrs.pop("style", None)  # pandas' alignment
    for interval in table.find_all(string=_INTERVAL):
        interval.replace_with(unbroken(interval))
    if not table.find(rowspan=True) and not table.find("td", colspan=True):
        _align_words(table)
    table.wrap(soup.new_tag("div", attrs={"class": "table", "tabindex": "0"}))


def _align_words(table: Tag) -> None:
    """Mark columns of words: they read from the left, and names stay on one line.

    The first column reads from the left in any case. A body without a row says `none`.
    """
    head, body = table.find("thead"), table.find("tbody")
    if head is None or body is None:
        return
    above, rows = ([row.find_all(["td", "th"]) for row in part("tr")] for part in (head, body))
    if not rows:
        width = max(map(len, above), default=1)
        body.append(BeautifulSoup(f'<tr><td colspan="{width}">none</td></tr>', "html.parser"))
    for position, cells in enumerate(zip(*rows, strict=False)):
        said = [text for cell in cells if (text := cell.get_text().strip())]
        tales = sum(len(_WORD.findall(text)) >= _TALE for text in said)
        if not said or (any(map(_NUMBER.match, said)) and 2 * tales <= len(said)):
            continue
        look = ["words"] * (position > 0) + ["line"] * (max(map(len, said)) <= _ONE_LINE)
        for cell in (*(row[position] for row in above if len(row) > position), *cells):
            if look:
                cell["class"] = [*filter(None, cell.get_attribute_list("class")), *look]
