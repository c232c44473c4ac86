"""What can be explored: requests of a run, or lookups of an LMCache log, as rows of one form."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from workbench.errors import ResultError
from workbench.experiment.hits.served_tokens import log_tokens
from workbench.experiment.result.result import Result, load_result
from workbench.explorer.one_request import LOADING, lookup_page, request_page
from workbench.metrics.lmcache_log.log_summary import LogSummary, read_log
from workbench.report import figures
from workbench.report.outcome import outcome_of

_KEYS = ("arm", "round", "pass", "index", "request_id")
_REQUEST = (
    *_KEYS, "sent_s", "ttft_s", "tpot_s", "e2e_s", "prompt_tokens", "cached_tokens", "error",
)  # fmt: skip
_TIMES = {"ttft_s": "TTFT, ms", "tpot_s": "TPOT, ms", "e2e_s": "E2E latency, ms"}
_TOKENS = {
    "lmcache_hit_tokens": "LMCache hit, tokens",
    "loaded_tokens": "loaded from LMCache, tokens",
    "need_to_load": "need to load, tokens",
    "engine_hit_tokens": "engine hit, tokens",
}
_DURATIONS = {"lookup_s": "lookup, ms", "seconds": "retrieval, ms"}


@dataclass(frozen=True, slots=True, kw_only=True)
class LogFiles:
    """One or more LMCache logs."""

    paths: tuple[Path, ...]
    summary: LogSummary


What = Result | LogFiles


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Rows to explore, in one order for all arrays.

    `rows` has arm, pass, request_id, x, and share in percent (NaN if unknown).
    """

    title: str
    what: str
    """`requests` or `lookups`."""
    rows: pd.DataFrame
    metrics: Mapping[str, np.ndarray[Any, np.dtype[np.float64]]]
    """By label with unit; the first is the one to begin with."""
    x_label: str
    share_label: str
    numbered: Mapping[str, np.ndarray[Any, np.dtype[np.int64]]]
    """The numbers that tell the rows of a series apart, such as round and request."""
    name: Callable[[int], str]
    """Which row it is, for lists."""
    page: Callable[[int], str]
    """Everything about one row, as HTML."""
    notes: tuple[str, ...] = ()
    """Sentences: why the rows may not be used, and how many are not drawn."""
    arm: str = "Arms"
    """What the values of the column `arm` are."""
    state: str = "Passes"
    """What the values of the column `pass` are."""


def what_is(
    what: What | Path | str | Sequence[Result | Path | str], other: Result | Path | str | None
) -> list[What]:
    """One or two results, or logs. Raises ResultError and ParameterError for what is none."""
    given = list(what) if isinstance(what, Sequence) and not isinstance(what, str) else [what]
    given += [other] if other is not None else []
    logs = [one for one in given if not isinstance(one, Result | LogFiles) and not _is_run(one)]
    if logs and len(logs) == len(given):
        return [_logs([Path(str(log)) for log in logs])]
    if logs or not 1 <= len(given) <= 2:
        raise ResultError(
            "explore takes one or two results or run folders, or LMCache logs, got"
            f" {', '.join(_said(one) for one in given)} (example: wb.explore(result))"
        )
    return [_of_log(load_result(_folder(str(one))) if _is_run(one) else one) for one in given]


def source_of(what: What) -> Source:
    """The rows of a result or log. Raises ResultError for a result without requests."""
    return _lookups(what) if isinstance(what, LogFiles) else _requests(what)


def static_figures(found: Sequence[What]) -> Iterator[figures.Chart]:
    """The figures that replace the widgets without a front end."""
    for what in found:
        if isinstance(what, LogFiles):
            yield figures.served_over_requests(log_tokens(what.summary))
        elif has_requests(what):
            yield figures.requests_over_time(what.requests)


def has_requests(result: Result) -> bool:
    """Whether a result has rows of its own."""
    return "requests" in result.frames or (result.folder / "requests.parquet").exists()


def without_requests(result: Result) -> str:
    """What to explore instead of a result of checks or claims, as Markdown."""
    runs = sorted(path.parent for path in result.folder.glob("runs/**/result.json"))
    lines = [f"- `wb.explore({str(run)!r})`" for run in runs]
    told = "They are in the runs that it made:" if runs else "Nothing was measured."
    return "\n".join([f"This result has no requests of its own. {told}", "", *lines])


def _is_run(one: Any) -> bool:
    if not isinstance(one, str | Path):
        return False
    path = Path(one)
    return path.name == "result.json" or not (path.is_file() or (path.suffix and not path.is_dir()))


def _folder(one: str) -> Path:
    """The folder of a run; of one that has not finished, the newest attempt with a result."""
    path = Path(one)
    if (path / "result.json").exists():
        return path
    attempts = sorted(path.glob("attempt-*/result.json"))
    return attempts[-1].parent if attempts else path


def _said(one: Any) -> str:
    return str(one.folder) if isinstance(one, Result) else repr(str(one))


def _logs(paths: Sequence[Path], ranks: int = 0) -> LogFiles:
    return LogFiles(paths=tuple(paths), summary=read_log(list(paths), ranks=ranks))


def _of_log(result: Any) -> What:
    """The log itself where a result is the analysis of one."""
    names = str(result.run.parameters.get("log_file") or "")
    if not names:
        return result  # type: ignore[no-any-return]
    whole = Path(names)
    paths = [whole] if whole.exists() else [Path(name.strip()) for name in names.split(",")]
    return _logs(paths, int(result.run.parameters.get("log_ranks") or 0))


def _requests(result: Result) -> Source:
    rows = _read(result)
    ok = rows["error"].fillna("").eq("") & rows["ttft_s"].notna()
    failed = int((~ok).sum())
    left_out = f"Failed requests are not drawn ({failed:,})." if failed else ""
    rows = rows[ok].reset_index(drop=True)
    split = rows["arm"].astype(str).str.contains(r"\b\d+p\d+d\b").any()
    handed_over = (
        "In a PD split, the cached share includes KV that prefill has just computed and handed"
        " over: a cold request may show 100 %."
    ) * bool(split)
    began = rows.groupby(["arm", "round", "pass"], sort=False)["sent_s"].transform("min")
    cached = rows["cached_tokens"].astype(float).where(rows["cached_tokens"] >= 0)
    shown = rows[["arm", "pass", "request_id"]].assign(
        x=rows["sent_s"] - began, share=100 * cached / rows["prompt_tokens"]
    )
    keys = rows[[*_KEYS]]

    def name(position: int) -> str:
        row = keys.iloc[position]
        return f"{row['arm']}, {row['pass']}, round {row['round'] + 1}, request {row['index']}"

    return Source(
        title=result.run.run_id + (" (simulated)" if result.run.simulated else ""),
        what="requests",
        rows=shown,
        metrics={
            label: 1000 * rows[name].to_numpy(float)
            for name, label in _TIMES.items()
            if rows[name].notna().any()
        },
        x_label="sent, s after its pass began",
        share_label="cached share, %",
        numbered={
            "round": rows["round"].to_numpy(np.int64) + 1,
            "request": rows["index"].to_numpy(np.int64),
        },
        name=name,
        page=lambda position: request_page(result, keys.iloc[position]),
        notes=tuple(
            f"{one.rstrip('.')}." for one in (_unsure(result), left_out, handed_over) if one
        ),
    )


def _unsure(result: Result) -> str:
    """How the run ended, and what its failed gates take away; empty if it ended and none failed."""
    outcome = outcome_of(result.run)
    if not result.run.failed_gates and result.run.status == "success":
        return ""
    said = f"{outcome.word.capitalize()}: {outcome.why}"
    failed = [gate.sentence for gate in result.run.gates if gate.outcome == "FAIL"]
    return " ".join((said, *failed))


def _read(result: Result) -> pd.DataFrame:
    """The columns that are drawn; from the file without the stamps, which may be gigabytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = result.folder / "requests.parquet"
    if not path.exists():
        return result.requests[[*_REQUEST]]
    try:
        frame: pd.DataFrame = pq.read_table(path, columns=[*_REQUEST]).to_pandas()
        return frame
    except (OSError, pa.ArrowException) as error:
        raise ResultError(f"{path} cannot be read ({error})") from error


def _lookups(log: LogFiles) -> Source:
    rows = log.summary.requests
    at = (rows["at"] - rows["at"].min()).dt.total_seconds()
    timed = bool(at.notna().any())
    tokens = rows["prompt_tokens"].fillna(rows["asked_tokens"])
    writer = rows["engine"].astype(str).where(rows["engine"].notna(), "log")
    loading = rows["arrival"].map(LOADING)
    loading[loading.isna()] = "unknown"
    loading[rows["need_to_load"] <= 0] = "nothing to load"
    if loading.nunique() == 1:
        loading[:] = "lookups"
    shown = pd.DataFrame(
        {
            "arm": writer.replace("", "log"),
            "pass": loading,
            "request_id": rows["request_id"].astype(str),
            "x": at if timed else np.arange(len(rows), dtype=float),
            "share": 100 * rows["lmcache_hit_tokens"] / tokens,
        }
    )
    metrics = {label: rows[name].to_numpy(float) for name, label in _TOKENS.items()}
    metrics |= {label: 1000 * rows[name].to_numpy(float) for name, label in _DURATIONS.items()}
    known = {label: values for label, values in metrics.items() if not np.isnan(values).all()}
    return Source(
        title=", ".join(path.name for path in log.paths),
        what="lookups",
        rows=shown,
        metrics=known,
        x_label="s after the first lookup" if timed else "lookup, in the order of the log",
        share_label="LMCache hit, % of the prompt",
        numbered={"lookup": np.arange(1, len(rows) + 1)},
        name=lambda position: f"lookup {position + 1}: {rows['request_id'].iloc[position]}",
        page=lambda position: lookup_page(rows.iloc[position], log.paths),
        arm="Engines",
        state="Loading",
    )
