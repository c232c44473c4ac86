"""HTML of a page as Markdown that GitHub and HackMD show without loss: no tag of HTML is left.

Plain pipe tables, one line a row; text that Markdown would read as markup is escaped.
"""

from __future__ import annotations

import re
from typing import Any

from bs4 import BeautifulSoup, Tag
from markdownify import ATX, MarkdownConverter

_LONG_RUN = re.compile(r"`{3,}")
_MARKS = re.compile(
    r"""[\\`*|~$]                    # code, emphasis, columns, struck text, formulas
    | (?<![^\W_]) _ | _ (?![^\W_])  # emphasis; within a word it is none
    | < (?=[A-Za-z/!?])             # a tag
    | & (?=\#?\w+;)                 # an entity
    | : (?=[\w+-]+:)                # an emoji
    | \[ (?=[\^!] | [ xX]\])        # a footnote, an alert, a box to tick
    | \] (?=[(:])                   # a link""",
    re.VERBOSE,
)
"""What Markdown, as GitHub extends it, would take for markup."""
_BEGIN = re.compile(
    r"^(\s*) (?: ([-+](?=\s|$) | [-=]+\s*$ | > | \#{1,6}(?=\s|$)) | (\d{1,9}) (?=[.)](?:\s|$)) )",
    re.VERBOSE,
)
"""What it would take for a list, a line, a quote or a heading as a block begins."""
_CELL_END, _ROW_END = "\0", "\1"
_NUMBER = re.compile(r"[~*]*[<>≤≥±+−-]? ?\d[\d.,]* ?\S{0,3}(?: \[.*\])?[~*]*|-")


def markdown(html: BeautifulSoup | Tag) -> str:
    """The Markdown of some HTML, ending in one line break.

    Ids and classes have no meaning in it, so links within the page become their text.
    """
    text = str(_Converter().convert_soup(html)).replace("\N{NO-BREAK SPACE}", " ")
    return text.strip("\n") + "\n"


def inline(text: str, *, in_cell: bool = False) -> str:
    """A plain text as Markdown that shows just that text; in a cell of a table no block begins."""
    escaped = _MARKS.sub(lambda mark: f"{mark[0][:-1]}\\{mark[0][-1]}", text)
    if in_cell:
        return escaped
    return _BEGIN.sub(lambda at: f"{at[1]}\\{at[2]}" if at[2] else f"{at[0]}\\", escaped)


class _Converter(MarkdownConverter):
    """markdownify, with what GitHub's dialect and tables in one line need."""

    class Options:
        heading_style = ATX
        bullets = "-"
        autolinks = False
        wrap = True
        wrap_width = None

    def escape(self, text: str, parent_tags: set[str]) -> str:
        return inline(text, in_cell="td" in parent_tags)

    def convert_a(self, el: Tag, text: str, parent_tags: set[str]) -> str:
        address = str(el.get("href", "#"))
        return text if address.startswith("#") else f"[{text.strip()}]({address})"

    def convert_br(self, el: Tag, text: str, parent_tags: set[str]) -> str:
        return " · " if "_inline" in parent_tags else "\\\n"

    def convert_dl(self, el: Tag, text: str, parent_tags: set[str]) -> str:
        return f"\n\n{text.strip()}\n\n"

    def convert_dt(self, el: Tag, text: str, parent_tags: set[str]) -> str:
        return f"\n- **{text.strip()}**: "

    def convert_dd(self, el: Tag, text: str, parent_tags: set[str]) -> str:
        return " ".join(text.split())

    def convert_img(self, el: Tag, text: str, parent_tags: set[str]) -> str:
        alt = inline(" ".join(str(el.get("alt", "")).split()))
        return f"![{alt}]({el['src']})"

    def convert_pre(self, el: Tag, text: str, parent_tags: set[str]) -> str:
        told = el.get_text().strip("\n")
        fence = "`" * max(3, *(len(run) + 1 for run in _LONG_RUN.findall(told)), 0)
        return f"\n\n{fence}\n{told}\n{fence}\n\n" if told else ""

    def convert_summary(self, el: Tag, text: str, parent_tags: set[str]) -> str:
        return f"\n\n**{' '.join(text.replace('**', '').split())}**\n\n" if text.strip() else ""

    def convert_td(self, el: Tag, text: str, parent_tags: set[str]) -> str:
        spans = str(el.get("colspan", "1"))
        return " ".join(text.split()) + _CELL_END * (int(spans) if spans.isdigit() else 1)

    convert_th = convert_td

    def convert_tr(self, el: Tag, text: str, parent_tags: set[str]) -> str:
        return f"{text}{_ROW_END}"

    def convert_caption(self, el: Tag, text: str, parent_tags: set[str]) -> str:
        return ""

    def convert_table(self, el: Tag, text: str, parent_tags: set[str]) -> str:
        rows = [row.strip().split(_CELL_END)[:-1] for row in text.split(_ROW_END)[:-1]]
        width = max(map(len, rows), default=0)
        if not width:
            return ""
        if el.find("thead") is None:  # a table of Markdown has a header in any case
            rows.insert(0, [])
        rows = [row + [""] * (width - len(row)) for row in rows]
        columns = [[row[n] for row in rows[1:] if row[n]] for n in range(width)]
        aligned = [n > 0 and _numeric(cells) for n, cells in enumerate(columns)]
        rows.insert(1, ["--:" if right else "---" for right in aligned])
        caption = el.find("caption")
        above = f"{inline(' '.join(caption.get_text().split()))}\n\n" if caption else ""
        return f"\n\n{above}{_lines(rows)}\n\n"


def _lines(rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _numeric(cells: list[str]) -> bool:
    """Whether most cells of a column are numbers, which stand on the right."""
    return 2 * sum(bool(_NUMBER.fullmatch(cell)) for cell in cells) > len(cells)


def tag(name: str, *children: Any, **attributes: str) -> Tag:
    """A new element with its children, which are elements or text."""
    made = BeautifulSoup("", "html.parser").new_tag(name, attrs=attributes)
    made.extend(children)
    return made
