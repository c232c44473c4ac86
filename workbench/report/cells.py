"""A notebook's cells as parts of the page: the author's text, what each cell showed, the code.

nbconvert renders Markdown, ANSI colours and code; everything else is decided here, one rule per
MIME type. Printed text and code are folded, and neighbouring cells share a fold for their code.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from html import escape
from itertools import accumulate
from typing import Any

from nbconvert.filters import Highlight2HTML, ansi2html
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbconvert.preprocessors import CoalesceStreamsPreprocessor

from workbench.experiment.result.result import MIME
from workbench.report.markup import Outline, clean
from workbench.report.outcome import failure_of
from workbench.report.templating import labelled, linked

_PLOTLY = "application/vnd.plotly.v1+json"
_WIDGET = "application/vnd.jupyter.widget-view+json"
_LEFT_OUT = {"papermill-error-cell-tag", "lab-only"}
"""Tags of cells that the page leaves out: papermill's, and what its first screen shows."""
_MAIN_FIGURE = "main-figure"
"""The tag of the cell whose output stands on the first screen."""
_FOLDED = "folded"
"""The tag of a cell whose figure is folded; the line to unfold it is the figure's title."""
_NOISE = "Kernel is running over TCP without encryption"
_LONG_TEXT = 10_000
"""A printed text of more characters is shown without its middle."""
_CLOSED = re.compile("></(?:path|use|rect)>")
_OPEN_LINES = 24
"""A longer value of a cell is folded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendered:
    """The cells of a notebook as HTML."""

    main_figure: str
    """What the cells tagged `main-figure` showed; empty where there are none."""
    body: str
    """Everything else, in the notebook's order."""


def render_cells(
    notebook: Any, outline: Outline, *, simulated: bool = False, doubts: str = ""
) -> Rendered:
    """The cells up to the one that failed; headings go into the outline.

    `doubts` is the id of the heading of the doubts, for captions that point there.

    The notebook's first heading of level 1 is left out: it is the page's own title.
    """
    failure = failure_of(notebook)
    last = failure.cell if failure else len(notebook.cells)
    page = _Page(outline=outline, simulated=simulated, doubts=doubts)
    for position, cell in enumerate(notebook.cells[: last + 1]):
        tags = set(cell.metadata.get("tags", []))
        if _LEFT_OUT & tags:
            continue
        if cell.cell_type == "markdown":
            page.text(cell.source, cell.get("attachments", {}))
        elif cell.cell_type == "code":
            cell, _ = CoalesceStreamsPreprocessor().preprocess_cell(cell, {}, position)
            page.code(
                cell.source,
                cell.outputs,
                position,
                lifted=_MAIN_FIGURE in tags,
                folded=_FOLDED in tags,
            )
    page.fold_code()
    left = sum(cell.cell_type == "code" for cell in notebook.cells[last + 1 :])
    if left:
        page.parts.append(f'<p class="sub">{_count(left, "more code cell")} did not run.</p>')
    return Rendered(main_figure="\n".join(page.lifted), body="\n".join(page.parts))


@dataclass(slots=True, kw_only=True)
class _Page:
    """The parts written so far, and what the next ones need to know."""

    outline: Outline
    simulated: bool
    doubts: str
    parts: list[str] = field(default_factory=list)
    lifted: list[str] = field(default_factory=list)
    """What goes to the first screen."""
    pending: list[str] = field(default_factory=list)
    """Code that waits for its fold."""
    showed: bool = False
    """Whether an output stands before the code that waits."""
    titled: bool = False
    plotly_loaded: bool = False
    figures: int = 0
    fragments: int = 0

    def text(self, source: str, attachments: Any) -> None:
        self.fold_code()
        if not self.titled and source.lstrip().startswith("# "):
            self.titled = True
            source = source.lstrip().partition("\n")[2]
        if source.strip():
            html = self._clean(_markdown(source, attachments=attachments), outline=self.outline)
            self.parts.append(f'<div class="text">{html}</div>')

    def code(self, source: str, outputs: Any, position: int, *, lifted: bool, folded: bool) -> None:
        """What the cell showed, then its code, folded with that of neighbours that show nothing."""
        shown = "".join(self._outputs(outputs))
        if shown and folded:
            shown = _folded(_title_of(outputs), shown, "figure")
        if shown and self.showed and not lifted:
            self.fold_code()
        if shown:
            part = f'<div class="shown" id="cell-{position}">{shown}</div>'
            (self.lifted if lifted else self.parts).append(part)
            self.showed = self.showed or not lifted
        if source.strip():
            self.pending.append(source)

    def fold_code(self) -> None:
        if self.pending:
            lines = sum(source.count("\n") + 1 for source in self.pending)
            html = "".join(_highlighted(source) for source in self.pending)
            self.parts.append(_folded(f"Code, {_count(lines, 'line')}", html, "code"))
            self.pending.clear()
        self.showed = False

    def _outputs(self, outputs: Any) -> Iterator[str]:
        for output in outputs:
            match output["output_type"]:
                case "stream":
                    yield _printed(output["text"], output["name"], open_lines=0)
                case "error":
                    lines = "\n".join(output["traceback"])
                    yield _folded("Traceback", f"<pre>{ansi2html(lines)}</pre>", "trace")
                case _:
                    yield self._bundle(output["data"], output.get("metadata", {}))

    def _bundle(self, data: Any, metadata: Any) -> str:
        """The richest form of an output that a page without a kernel and a network can show."""
        if MIME in data or _WIDGET in data:
            return ""
        if _PLOTLY in data:
            return self._figure(self._plotly(data[_PLOTLY]), metadata.get(_PLOTLY, {}))
        if "image/svg+xml" in data:
            svg = _CLOSED.sub("/>", self._clean(_svg(data["image/svg+xml"])))
            words = metadata.get("image/svg+xml", {})
            return self._figure(labelled(svg, _alt(words)), words)
        for mime in ("image/png", "image/jpeg", "image/gif", "image/webp"):
            if mime in data:
                words = metadata.get(mime, {})
                source = f"data:{mime};base64,{''.join(str(data[mime]).split())}"
                picture = f'<img src="{source}" alt="{escape(_alt(words))}">'
                return self._figure(picture, words)
        if "text/html" in data:
            return self._clean(data["text/html"])
        if "text/markdown" in data:
            html = _markdown(data["text/markdown"], trusted=False)
            return self._clean(html, outline=self.outline)
        return _printed(str(data.get("text/plain", "")), "result")

    def _clean(self, fragment: str, outline: Outline | None = None) -> str:
        self.fragments += 1
        return clean(fragment, prefix=f"part{self.fragments}-", outline=outline)

    def _figure(self, drawing: str, words: Any) -> str:
        self.figures += 1
        caption = linked(str(words.get("caption", "")), self.doubts)
        mark = '<b class="mark">Simulated.</b> ' if self.simulated else ""
        below = f"<figcaption>{mark}{caption}</figcaption>" if mark or caption else ""
        return f'<figure><div class="drawing">{drawing}</div>{below}</figure>'

    def _plotly(self, figure: Any) -> str:
        try:
            from plotly.io import to_html
        except ImportError:
            return "<p>Open the notebook to see this figure: plotly is not installed here.</p>"
        html = to_html(
            {"data": figure.get("data", []), "layout": figure.get("layout", {})},
            config={"displaylogo": False, "responsive": True, "showSendToCloud": False},
            full_html=False,
            include_plotlyjs=not self.plotly_loaded,
            include_mathjax=False,
            div_id=f"plotly-{self.figures}",
            validate=False,
        )
        self.plotly_loaded = True
        return str(html)


def _markdown(source: str, *, trusted: bool = True, attachments: Any = None) -> str:
    """Markdown as HTML; HTML inside it stays HTML only where the notebook's author wrote it."""
    renderer = IPythonRenderer(
        escape=not trusted, exclude_anchor_links=True, attachments=attachments
    )
    return str(MarkdownWithMath(renderer=renderer).render(source))


def _highlighted(source: str) -> str:
    return str(Highlight2HTML(pygments_lexer="ipython3")(source))


def _svg(text: str | list[str]) -> str:
    svg = "".join(text)
    return svg[max(svg.find("<svg"), 0) :]


def _alt(words: Any) -> str:
    return str(words.get("alt") or words.get("caption") or "A figure without a description.")


def _title_of(outputs: Any) -> str:
    """The first sentence of a figure's alternative text."""
    texts = [_alt(output.get("metadata", {}).get("image/svg+xml", {})) for output in outputs]
    return texts[0].partition(".")[0]


def _printed(text: str, name: str, *, open_lines: int = _OPEN_LINES) -> str:
    """Printed text as a terminal would leave it: what a carriage return overwrote is gone."""
    lines = [line.rstrip("\r").rpartition("\r")[2] for line in text.rstrip().split("\n")]
    lines = [line for line in lines if _NOISE not in line]
    if not any(line.strip() for line in lines):
        return ""
    total = len(lines)
    html = f'<pre class="{escape(name)}">{ansi2html(chr(10).join(_shortened(lines)))}</pre>'
    if total <= open_lines:
        return html
    return _folded(f"Printed text, {_count(total, 'line')}", html, "print")


def _shortened(lines: list[str]) -> list[str]:
    """The first and the last lines of a very long text, with a line on what is left out."""
    if sum(map(len, lines)) <= _LONG_TEXT:
        return lines
    first, last = (
        next(n for n, so_far in enumerate(accumulate(map(len, part)), 1) if so_far > _LONG_TEXT / 3)
        for part in (lines, lines[::-1])
    )
    if (left := len(lines) - first - last) < 1:
        return lines
    note = f"... {_count(left, 'line')} left out here; the executed notebook has them ..."
    return [*lines[:first], note, *lines[-last:]]


def _folded(summary: str, html: str, kind: str) -> str:
    return f'<details class="{kind}"><summary>{escape(summary)}</summary>{html}</details>'


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"
