"""All tables of a result as CSV files and as sheets of one XLSX file; numbers are not rounded.

Every list and mapping of result.json becomes a table, so none has to be named here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.errors import ResultError
from workbench.experiment.result.result import Result
from workbench.metrics.gates.gate_effects import spoil
from workbench.metrics.gates.gate_table import KINDS, Kind
from workbench.metrics.waterfall.waterfall import summarise
from workbench.params.price import Price
from workbench.report.outcome import with_frames

if TYPE_CHECKING:
    import pandas as pd

FOLDER = "tables"
BOOK = "report.xlsx"
_SHOWS: Mapping[str, tuple[Kind, ...]] = {
    "summary": ("times",),
    "waterfall": ("times",),
    "comparisons": ("ratios",),
    "targets": ("ratios",),
    "ratios": ("ratios",),
    "sizes": ("ratios",),
    "links": ("times", "ratios"),
    "rates": ("times",),
    "searches": ("times",),
    "points": ("times",),
    "held_out": ("times",),
    "decisions": ("times",),
    "energy": ("times",),
    "token_sources": ("counts",),
    "ledger": ("counts",),
    "store_tiers": ("counts",),
}
"""The kinds of number in a table; `_kinds` knows those that differ by row."""
_PLAIN = frozenset((
    *"about arms client clocks doubts engine explained files fits gates hosts launches".split(),
    *"launches_s limits machine models parameters pass_times platforms predictions".split(),
    *"own_errors questions sentences sessions time_spent workload".split(),
))  # fmt: skip
"""Tables without a number that a failed gate could take away; sentences say it themselves."""
_USE = {"struck": "do not use", "rough": "rough", "doubt": "use with caution", "": ""}
_UNITS = {
    "per_s": "1/s", "gbit_s": "Gbit/s", "tps": "tokens/s", "ms": "ms", "s": "s", "gb": "GB",
    "bytes": "bytes", "tokens": "tokens", "pct": "%", "w": "W",
}  # fmt: skip
"""Units by the end of a field's name, longest first."""
_UNNAMED = {
    ("links", "transfer"): "s",
    ("links", "value"): "s",
    ("links", "baseline"): "s",
    ("links", "gbit_low"): "Gbit/s",
    ("links", "gbit_high"): "Gbit/s",
    ("energy", "joules"): "J",
    ("energy", "seconds"): "s",
    ("points", "energy"): "J/output token",
    ("points", "energy_above_idle"): "J/output token",
    ("points", "output_cost"): "{currency} per million output tokens",
    ("points", "total_cost"): "{currency} per million tokens",
}
"""Units of numbers whose field does not name it."""
_ENDS = ("value", "low", "high")
"""Of an estimate: these have its unit."""
_TAIL_FROM = 0.99
"""Quantiles from here on are tails."""
_NOT_IN_A_SHEET = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")


def save_tables(result: Result, folder: Path, *, near: Path) -> dict[str, str]:
    """Write every table of a result into `folder`; returns what each file is, by its name.

    `near` is the notebook that shows the result: the run's rows may lie beside it.
    """
    tables = tables_of(with_frames(result, near))
    (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    files = {BOOK: "every table below, one sheet each"}
    for name, frame in tables.items():
        file = f"{FOLDER}/{name}.csv"
        frame.to_csv(folder / file, index=False)
        files[file] = f"{len(frame)} row{'s' * (len(frame) != 1)}"
    _write_book(tables, folder / BOOK)
    return files


def tables_of(result: Result) -> dict[str, pd.DataFrame]:
    """The tables of a result by name; units are in the headers, an unknown value is an empty cell.

    Where gates failed, a column `use` says which rows must not be used, or are rough.
    """
    import pandas as pd

    facts = result.facts
    about = {name: value for name, value in facts.items() if not isinstance(value, list | dict)}
    found = {"about": _mapping(about)}
    for name, value in facts.items():
        if isinstance(value, dict) and value:
            found[name] = _mapping(value)
        elif isinstance(value, list) and value:
            plain = not isinstance(value[0], dict)
            found[name] = pd.DataFrame({name: value}) if plain else _records(value)
    if "summary" in found:
        found["summary"] = _by_metric(found["summary"], "estimate.value")
    if "fits" in found:
        found["fits"] = found["fits"].explode(["measured_s", "fitted_s"])
    if "requests" in result.frames:
        found["percentiles"] = result.percentiles
        with suppress(ResultError):  # without legs there is no waterfall, but all else
            found["waterfall"] = summarise(result.waterfall()).rename(
                columns={"median": "median_s", "low": "low_s", "high": "high_s"}
            )
    price = Price.parse(str(result.run.parameters.get("gpu_hour_price") or ""))
    currency = price.currency if price else ""
    return {
        name: _with_units(name, _with_use(name, frame, result), currency).map(_cell)
        for name, frame in found.items()
        if len(frame)
    }


def _records(rows: list[dict[str, Any]]) -> pd.DataFrame:
    import pandas as pd

    return pd.json_normalize(rows, max_level=1)


def _mapping(value: Mapping[str, Any]) -> pd.DataFrame:
    import pandas as pd

    flat = {} if not value else pd.json_normalize(dict(value), max_level=1).iloc[0].to_dict()
    return pd.DataFrame({"name": list(flat), "value": list(flat.values())}, dtype=object)


def _by_metric(long: pd.DataFrame, value: str) -> pd.DataFrame:
    """A row per arm and pass: a metric's name has its unit, so each gets columns of its own."""
    stem = value.rpartition(".")[0]
    keys = [name for name in long if name != "metric" and not str(name).startswith(f"{stem}.")]
    ends = {"value": "median", "low": "low", "high": "high"}
    wide = long[keys].drop_duplicates().reset_index(drop=True)
    for metric, rows in long.groupby("metric", sort=False):
        named = {
            f"{stem}.{end}": re.sub(r"(_s|_tps)$", rf"_{word}\1", str(metric))
            for end, word in ends.items()
        }
        wide = wide.merge(rows[[*keys, *named]].rename(columns=named), on=keys, how="left")
    return wide


def _with_use(name: str, frame: pd.DataFrame, result: Result) -> pd.DataFrame:
    failed = result.run.failed_gates
    if not failed or name in _PLAIN:
        return frame

    def use(row: Mapping[Any, Any]) -> str:
        arms, passes = (
            {str(row[key]) for key in (what, f"baseline_{what}") if row.get(key)}
            | {*(row.get(plural) or ())}
            for what, plural in (("arm", "arms"), ("pass", "passes"))
        )
        low = row.get("ratio.low", row.get("low", 0.0))
        interval = low is not None and low == low
        does = spoil(failed, *_kinds(name, row), arms=arms, passes=passes, interval=interval)
        return f"{_USE[does.effect]}: {does.why}" if does.effect else ""

    return frame.assign(use=[use(row) for row in frame.to_dict("records")])


def _kinds(table: str, row: Mapping[Any, Any]) -> tuple[Kind, ...]:
    """The kinds of number in a row, as the page has them."""
    if table == "numbers":
        return (row["rests_on"],) if row.get("rests_on") else ()
    if table == "percentiles":
        tail = row["quantile"] >= _TAIL_FROM or row["metric"] == "icl_s"
        return ("times", "tails") if tail else ("times",)
    return _SHOWS.get(table, tuple(KINDS))


def _with_units(table: str, frame: pd.DataFrame, currency: str) -> pd.DataFrame:
    return frame.rename(columns={name: _header(table, str(name), currency) for name in frame})


def _header(table: str, name: str, currency: str) -> str:
    """`ttft_median_s` as `ttft median (s)`, `user_tps.value` as `user value (tokens/s)`."""
    stem, _, last = name.partition(".")
    if last not in _ENDS:
        stem, last = name, ""
    unit = _UNNAMED.get((table, stem), "").format(currency=currency).strip()
    for end, known in _UNITS.items():
        if not unit and stem != end and stem.endswith(f"_{end}"):
            stem, unit = stem.removesuffix(f"_{end}"), known
    said = f"{stem} {last}".strip().replace("_", " ").replace(".", " ")
    return f"{said} ({unit})" if unit else said


def _cell(value: Any) -> Any:
    """Numbers and truth values as they are; lists and mappings as text."""
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        value = "\n".join(value)
    if isinstance(value, list | dict):
        value = json.dumps(value, ensure_ascii=False)
    return _NOT_IN_A_SHEET.sub("", value) if isinstance(value, str) else value


def _write_book(tables: Mapping[str, pd.DataFrame], path: Path) -> None:
    import pandas as pd
    from openpyxl.utils import get_column_letter

    with pd.ExcelWriter(path, engine="openpyxl") as book:
        for name, frame in tables.items():
            frame.to_excel(book, sheet_name=name[:31], index=False, freeze_panes=(1, 0))
            sheet = book.sheets[name[:31]]
            for row in sheet.iter_rows():
                for cell in row:
                    if cell.data_type == "f":  # a text that begins with `=` is no formula
                        cell.data_type = "s"
            for position, header in enumerate(frame.columns, 1):
                longest = max([len(header), *(len(str(v)) for v in frame[header].head(200))])
                width = min(60, longest + 2)
                sheet.column_dimensions[get_column_letter(position)].width = width
