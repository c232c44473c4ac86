"""One request, or one lookup of a log, as HTML: waterfall, token sources, timestamps, log lines."""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from html import escape
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from workbench.errors import ResultError
from workbench.experiment.result.result import Result
from workbench.experiment.result.run_folder import BULKY
from workbench.report.figures.marks import GREEN, VERMILION
from workbench.report.figures.tokens import TIERS
from workbench.report.figures.waterfall import AREAS, NAMES

_MOST_LINES = 60
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
"""Terminal colour codes, which servers also write into their logs."""
_STAMPS = {
    "scheduled_s": "scheduled by the client",
    "sent_s": "sent by the client",
    "received_s": "received by the proxy",
    "prefill_sent_s": "prefill request sent by the proxy",
    "prefill_done_s": "prefill request done",
    "decode_sent_s": "decode request sent by the proxy",
    "decode_head_s": "headers of the decode response at the proxy",
    "decode_first_byte_s": "first byte at the proxy",
    "head_s": "response headers at the client",
    "first_s": "first token at the client",
    "last_s": "last token at the client",
    "stream_end_s": "end of the response",
}
_SERVED = {
    "engine": "engine prefix cache",
    "l1": "LMCache memory (L1)",
    "l2": "LMCache L2",
    "computed": "computed",
}
LOADING = {
    "retrieved": "retrieved",
    "some ranks": "retrieved by some ranks",
    "silent": "hit without a retrieval",
    "looked up": "retrievals are not logged",
}
"""What the log says of loading, by `arrival` of a lookup."""
_LOOKUP = {
    "engine": "engine", "at": "time", "prompt_tokens": "prompt tokens",
    "asked_tokens": "looked up, tokens", "engine_hit_tokens": "engine hit, tokens",
    "lmcache_hit_tokens": "LMCache hit, tokens", "need_to_load": "need to load, tokens",
    "loaded_tokens": "loaded, tokens", "arrival": "loading",
    "stored_tokens": "stored, tokens", "seconds": "retrieval, ms", "gb_per_s": "retrieval, GB/s",
    "lookup_s": "lookup, ms", "lookups": "times looked up",
}  # fmt: skip


def request_page(result: Result, key: pd.Series[Any]) -> str:
    """A request of a run; `key` has its arm, round, pass, index and request_id."""
    one = _row(result, "requests", key)
    legs = _row(result, "legs", key)
    if one.empty:
        raise ResultError(f"{result.folder} has no request {key['request_id']!r} any more")
    row = one.iloc[0]
    parts = replace(result, frames={"requests": one, "legs": legs}).waterfall().iloc[0]
    aggregated = bool(len(legs)) and not legs.iloc[0]["prefill_instance"]
    logs = result.folder / "logs"
    launch = logs / f"round-{key['round']}" / str(key["arm"]).replace(" ", "-")
    files = sorted((launch if launch.is_dir() else logs).rglob("*.log"))
    where = f"{key['arm']}, {key['pass']}, round {key['round'] + 1}, request {key['index']}"
    return _page(
        f"{where} ({row['request_id']})",
        {
            f"TTFT {_ms(row['ttft_s'])}": _waterfall(parts, aggregated),
            f"Source of {int(row['prompt_tokens']):,} prompt tokens": _sources(result, row, key),
            "Timestamps": _stamps(row, legs, aggregated),
            "Lines of the servers' logs": _lines(files, str(row["request_id"])),
        },
    )


def lookup_page(row: pd.Series[Any], paths: Sequence[Path]) -> str:
    """A lookup of an LMCache log; `row` is one of `LogSummary.requests`."""
    computed = row["prompt_tokens"] - row["engine_hit_tokens"] - row["loaded_tokens"]
    tokens = [
        ("engine prefix cache", row["engine_hit_tokens"], TIERS["engine"].colour),
        ("LMCache", row["loaded_tokens"], TIERS["l1"].colour),
        ("computed", computed, TIERS["computed"].colour),
    ]
    values = row.to_dict() | {
        "seconds": 1000 * row["seconds"],
        "lookup_s": 1000 * row["lookup_s"],
        "arrival": LOADING.get(row["arrival"]),
    }
    shown = {label: _plain(values[name]) for name, label in _LOOKUP.items() if _known(values[name])}
    return _page(
        f"{row['request_id'] or 'a lookup without a request id'}",
        {
            "Token sources": _bar(tokens, "tokens"),
            "Values": _table(shown.items()),
            "Lines of the log": _lines(paths, str(row["request_id"])),
        },
    )


def naming_lines(path: Path, name: str) -> list[str]:
    """The lines of a file with this request id, which must not be part of a longer number."""
    needle, found = name.encode(), list[str]()
    if not needle or not path.is_file() or not path.stat().st_size:
        return found
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        at = text.find(needle)
        while at >= 0:
            behind = text[at + len(needle) : at + len(needle) + 1]
            before = text[at - 1 : at] if at else b""
            end = text.find(b"\n", at)
            end = len(text) if end < 0 else end
            if not behind.isdigit() and not before.isalnum():
                line = text[text.rfind(b"\n", 0, at) + 1 : end]
                found.append(_COLOUR.sub("", line.decode("utf-8", "replace").rstrip("\r")))
                at = end
            else:
                at += 1
            at = text.find(needle, at)
    return found


def _row(result: Result, name: str, key: pd.Series[Any]) -> pd.DataFrame:
    """The row of a request in a frame; of a large file its stamps too, read for it alone."""
    try:
        frame: pd.DataFrame = getattr(result, name)
    except ResultError:
        if name == "requests":
            raise
        frame = result.requests.iloc[:0]
    same = frame["request_id"].to_numpy() == key["request_id"]
    at = np.flatnonzero(same)
    found = frame.iloc[at]
    right = (found["arm"] == key["arm"]) & (found["round"] == key["round"])
    right &= found["pass"] == key["pass"]
    at, found = at[right.to_numpy(bool)], found[right]
    lacks = [column for column in BULKY if column not in found] if name == "requests" else []
    if len(at) and lacks:
        import pyarrow.parquet as pq

        file, start = pq.ParquetFile(result.folder / f"{name}.parquet"), 0
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if at[0] < start + rows:
                more = file.read_row_group(group, columns=lacks).slice(int(at[0]) - start, 1)
                extra = {column: [more[column][0].as_py()] for column in lacks}
                return pd.DataFrame(found.iloc[:1].assign(**extra))
            start += rows
    return pd.DataFrame(found.iloc[:1])


def _one_role(text: str, aggregated: bool) -> str:
    """The text without a role where one instance has both: `API server`, not `prefill API server`.

    An aggregated instance's times are in the columns of a PD split.
    """
    return re.sub(r"\b(prefill|decode) ", "", text) if aggregated else text


def _waterfall(parts: pd.Series[Any], aggregated: bool) -> str:
    if parts["note"]:
        return f"<p>Not split into parts: {escape(str(parts['note']))}.</p>"
    joined = _one_role(str(parts["joined"]), aggregated)
    joined = f"<p>{escape(joined)}</p>" if joined else ""
    shown = [
        (_one_role(NAMES[name], aggregated), 1000 * parts[name], area.colour)
        for name, area in AREAS.items()
    ]
    return _bar([part for part in shown if part[1]], "ms") + joined


def _sources(result: Result, row: pd.Series[Any], key: pd.Series[Any]) -> str:
    prompt, cached = float(row["prompt_tokens"]), float(row["cached_tokens"])
    tokens = [("cached", cached, GREEN), ("computed", prompt - cached, VERMILION)]
    if "served" in result.frames:
        served = result.frames["served"]
        mine = served[
            (served["request_id"] == key["request_id"])
            & (served["arm"] == key["arm"])
            & (served["round"] == key["round"])
            & (served["pass"] == key["pass"])
        ]
        if len(mine) and mine[[*_SERVED]].notna().any(axis=None):
            known = mine.iloc[0]
            tokens = [(label, known[name], TIERS[name].colour) for name, label in _SERVED.items()]
    if cached < 0:
        return "<p>The server did not report cached tokens.</p>"
    said = _bar(tokens, "tokens")
    expected = float(row.get("expected_cached_tokens", -1))
    ideal = f"An infinite cache would have served {expected:,.0f} tokens; " if expected >= 0 else ""
    return f"{said}<p>{ideal}the server reported {cached:,.0f} cached tokens.</p>"


def _stamps(row: pd.Series[Any], legs: pd.DataFrame, aggregated: bool) -> str:
    chunks = np.asarray(row["chunk_s"], dtype=float)
    first = {"first_s": chunks[0], "last_s": chunks[-1]} if len(chunks) else {}
    stamps: dict[Any, Any] = {
        **(legs.iloc[0].to_dict() if len(legs) else {}),
        **row.to_dict(),
        **first,
    }
    timed = {
        _one_role(label, aggregated): stamps.get(name, np.nan) for name, label in _STAMPS.items()
    }
    known = {label: float(at) for label, at in timed.items() if _known(at)}
    rows = [(f"{1000 * (at - row['sent_s']):+,.2f} ms", label) for label, at in known.items()]
    rows.sort(key=lambda one: float(one[0].removesuffix(" ms").replace(",", "")))
    gaps = 1000 * np.diff(chunks)
    said = f"{len(chunks):,} chunks"
    if len(gaps):
        said += (
            f", gaps between them {np.median(gaps):,.2f} ms (median), {gaps.max():,.2f} ms (max)"
        )
    where = ""
    if len(legs):
        leg = legs.iloc[0]
        hosts = [_one_role(f"{role} {leg[f'{role}_instance']}", aggregated)
                 for role in ("prefill", "decode") if leg[f"{role}_instance"]]  # fmt: skip
        many = "s" * (len(hosts) > 1)
        where = f"<p>Instance{many}: {escape(', '.join(hosts))}.</p>" if hosts else ""
    return _table(rows, head=("since it was sent", "event")) + f"<p>{said}.</p>{where}"


def _lines(paths: Sequence[Path], name: str) -> str:
    found = [(path.name, line) for path in paths for line in naming_lines(path, name)]
    if not found and not any(path.is_file() and path.stat().st_size for path in paths):
        return "<p>The servers' logs are empty or missing. Simulated servers write no log.</p>"
    if not found:
        return (
            "<p>No log line has this request id. vLLM logs requests with"
            " <code>-p engine_args --enable-log-requests</code>.</p>"
        )
    text = "\n".join(f"{escape(file)}: {escape(line)}" for file, line in found[:_MOST_LINES])
    more = f"<p>{len(found) - _MOST_LINES:,} more lines.</p>" if len(found) > _MOST_LINES else ""
    return f"<pre tabindex='0'>{text}</pre>{more}"


def _page(title: str, sections: Mapping[str, str]) -> str:
    inside = "".join(
        f"<section><h4>{escape(head)}</h4>{body}</section>" for head, body in sections.items()
    )
    return f"<div class='wb-one'><h3>{escape(title)}</h3>{inside}</div>"


def _bar(parts: Iterable[tuple[str, float, str]], unit: str) -> str:
    """Parts of a whole (name, value, colour) as one bar, and a table with their numbers."""
    known = [(escape(name), float(value), colour) for name, value, colour in parts if _known(value)]
    if not known:
        return "<p>Not recorded.</p>"
    whole = sum(value for _, value, _ in known if value > 0)
    digits = 2 if unit == "ms" else 0
    bars = "".join(
        f"<span style='width:{100 * value / whole:.3f}%;background:{colour}' title='{name}'></span>"
        for name, value, colour in known
        if value > 0
    )
    rows = "".join(
        f"<tr><td><i style='background:{colour}'></i>{name}</td>"
        f"<td class='wb-number'>{value:,.{digits}f} {unit}</td></tr>"
        for name, value, colour in known
    )
    return f"<div class='wb-bar' aria-hidden='true'>{bars}</div><table>{rows}</table>"


def _table(rows: Iterable[tuple[str, str]], head: tuple[str, str] | None = None) -> str:
    top = f"<tr><th>{head[0]}</th><th>{head[1]}</th></tr>" if head else ""
    body = "".join(f"<tr><td>{escape(a)}</td><td>{escape(b)}</td></tr>" for a, b in rows)
    return f"<table>{top}{body}</table>"


def _known(value: Any) -> bool:
    return value is not None and value == value and value != ""


def _plain(value: Any) -> str:
    return f"{value:,.6g}" if isinstance(value, float) else str(value)


def _ms(seconds: float) -> str:
    return "unknown" if isnan(seconds) else f"{1000 * seconds:,.1f} ms"
