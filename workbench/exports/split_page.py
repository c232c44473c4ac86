"""Predicted splits as lines of text, and as a page with its figure in SVG and PNG files."""

from __future__ import annotations

from collections.abc import Iterator
from math import isfinite
from pathlib import Path
from typing import Any

from workbench.errors import ParameterError
from workbench.experiment.findings.sentences import percent
from workbench.exports.drawings import png_of
from workbench.report.figures import splits as draw_splits
from workbench.report.markup import unbroken
from workbench.report.numbers import number
from workbench.report.templating import fill, labelled
from workbench.whatif.highest_rates import DRAWS, Splits, sentence, verdicts
from workbench.whatif.load_text import share_text
from workbench.whatif.prediction import SATURATED, level

PAGE = "splits.html"
_UNCHECKED = "Predicted, not measured. No held-out run has checked these numbers."


def split_lines(found: Splits) -> Iterator[str]:
    """What `workbench predict --splits` prints."""
    rows = list(_rows(found))
    heads = _heads(found)
    yield sentence(found)
    yield from verdicts(found)
    yield f"{found.load}."
    yield _UNCHECKED
    yield from (f"Doubt: {doubt}" for doubt in found.doubts)
    yield ""
    widths = [max(len(row[n]) for row in [heads, *rows]) for n in range(len(heads) - 1)]
    for row in (heads, *rows):
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        yield "  ".join([*cells, row[-1]]).rstrip()


def write_split_page(found: Splits, file: Path, command: str) -> list[Path]:
    """Write the page, and its figure as SVG and PNG into the same folder; returns the three paths.

    `command` repeats the prediction. Raises ParameterError for a file that cannot be written.
    """
    chart = draw_splits(found.frame(), sentence(found))
    page = fill(
        "splits.html.j2",
        heading=sentence(found),
        profile=found.profile.run_id,
        simulated=found.profile.simulated,
        sentences=[*verdicts(found), f"{found.load}.", _UNCHECKED],
        doubts=found.doubts,
        figure={"svg": labelled(chart.svg, chart.alt), "caption": chart.caption},
        heads=_heads(found),
        rows=[[unbroken(cell) for cell in row] for row in _rows(found)],
        command=command,
        simulations=DRAWS + 1,
        level=level(DRAWS),
        saturated=percent(SATURATED),
        share=share_text(found.params),
    )
    contents = {".html": page.encode(), ".svg": _file_svg(chart.svg), ".png": png_of(chart.svg)}
    paths = []
    for suffix, content in contents.items():
        path = file if suffix == ".html" else file.with_suffix(suffix)
        try:
            path.write_bytes(content)
        except OSError as error:
            raise ParameterError(
                f"{path} cannot be written: {error.strerror} (example: --page splits.html)"
            ) from error
        paths.append(path)
    return paths


def _file_svg(svg: str) -> bytes:
    return f"{svg}\n".encode()


def _heads(found: Splits) -> list[str]:
    currency = found.frame().attrs["currency"]
    costs = [f"{currency} per million output tokens"] if currency else []
    return [f"{found.unit}s", "topology", "highest rate, req/s", "limit", *costs, "note"]


def _rows(found: Splits) -> Iterator[list[str]]:
    """The cells of each topology's row; without a rate, a hyphen and the reason."""
    frame = found.frame()
    for row in frame.to_dict("records"):
        costs = [
            "at most " * row["at_least"] + _with_interval(row, "cost", "cost_low", "cost_high")
        ]
        yield [
            str(row["gpus"]), row["topology"],
            "at least " * row["at_least"] + _with_interval(row, "rate_per_s", "low", "high"),
            row["limited_by"] or "-", *(costs if frame.attrs["currency"] else ()),
            row["refused"] or row["open_end"],
        ]  # fmt: skip


def _with_interval(row: dict[Any, Any], value: str, low: str, high: str) -> str:
    if not row[value] > 0:
        return "-"
    ends = [number(row[end]) if isfinite(row[end]) else "?" for end in (low, high)]
    return f"{number(row[value])} [{', '.join(ends)}]"
