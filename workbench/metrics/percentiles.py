"""Percentiles of any number of requests, from a frame or, without loading it, from its file.

A million requests are read batch by batch: of each only its latencies are kept, and the gaps
between its chunks are counted (see metrics.gaps). The numbers are those that the rows give.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.errors import ResultError
from workbench.metrics.gaps import GapCounts
from workbench.metrics.statistics import quantile_of_sorted

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    from numpy.typing import NDArray

__all__ = ["QUANTILES", "percentiles"]

QUANTILES = (0.5, 0.9, 0.99)
_LATENCIES = ("ttft_s", "tpot_s", "e2e_s")
_BATCH_ROWS = 4096
"""Half a million stamps of answers of 128 chunks: small enough for a processor's cache."""


@dataclass(slots=True)
class _Kind:
    """What has been read of the requests of one kind."""

    latencies: dict[str, list[NDArray[np.float64]]] = field(
        default_factory=lambda: {name: [] for name in _LATENCIES}
    )
    gaps: GapCounts = field(default_factory=GapCounts)


def percentiles(
    requests: pd.DataFrame | Path | str, *, by: Sequence[str] = ("arm", "pass")
) -> pd.DataFrame:
    """p50, p90 and p99 of TTFT, TPOT, E2E and ICL (gaps between chunks) of each kind of request.

    `requests` has latencies: a frame, or the path of a requests.parquet. `by` names the columns
    that tell kinds apart. Failed requests are left out. Columns: those of `by`, metric, quantile,
    value_s, low_s and high_s (95 %, by order statistics; NaN under the number of values that the
    note names), n, note. A metric that nobody has a value of has NaN.

    Raises ResultError for a file that cannot be read or lacks a column.
    """
    import pandas as pd

    kinds: dict[tuple[Any, ...], _Kind] = {}
    for batch in _batches(requests, [*by, "error", *_LATENCIES, "chunk_s"]):
        stamps = _stamps(batch.column("chunk_s"))
        for key, keep in _by_kind(batch, by):
            kind = kinds.setdefault(key, _Kind())
            for name, parts in kind.latencies.items():
                parts.append(batch.column(name).to_numpy(zero_copy_only=False)[keep])
            kind.gaps.add(*stamps, keep)
    table = []
    for key, kind in kinds.items():
        for name, parts in kind.latencies.items():
            values = np.concatenate(parts)
            values = np.sort(values[~np.isnan(values)])  # once, not for each quantile
            table += [(*key, name, q, *_row(quantile_of_sorted(values, q))) for q in QUANTILES]
        table += [(*key, "icl_s", q, *_row(kind.gaps.quantile(q))) for q in QUANTILES]
    columns = [*by, "metric", "quantile", "value_s", "low_s", "high_s", "n", "note"]
    return pd.DataFrame(table, columns=columns)


def _row(found: Any) -> tuple[float, float, float, int, str]:
    return found.value, found.low, found.high, found.n, found.note


def _batches(requests: pd.DataFrame | Path | str, columns: list[str]) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not isinstance(requests, Path | str):
        yield from pa.Table.from_pandas(requests[columns], preserve_index=False).to_batches(
            max_chunksize=_BATCH_ROWS
        )
        return
    words = columns[: columns.index("error") + 1]
    try:
        missing = set(columns) - set(pq.read_schema(requests).names)
        if missing:
            raise ResultError(f"{requests} has no column {', '.join(sorted(missing))}")
        # Buffered, since a file may be one row group: else whole columns are held at once.
        with pq.ParquetFile(requests, buffer_size=2**20, read_dictionary=words) as file:
            yield from file.iter_batches(batch_size=_BATCH_ROWS, columns=columns, use_threads=False)
    except (OSError, pa.ArrowException) as error:
        raise ResultError(f"{requests} cannot be read ({error})") from error


def _by_kind(
    batch: pa.RecordBatch, by: Sequence[str]
) -> Iterator[tuple[tuple[Any, ...], NDArray[np.bool_]]]:
    """The kinds in a batch, and which rows are successes of each."""
    codes, words = _encoded(batch.column("error"))
    ok = np.isin(codes, [code for code, word in enumerate(words) if not word])
    code = np.zeros(batch.num_rows, np.int64)
    for name in by:
        codes, words = _encoded(batch.column(name))
        code = code * len(words) + codes
    for each in dict.fromkeys(code.tolist()):
        same = code == each
        row = int(same.argmax())
        yield tuple(batch.column(name)[row].as_py() for name in by), same & ok


def _encoded(column: Any) -> tuple[NDArray[np.int64], list[Any]]:
    """A code for each row, and what the codes mean; null is the last."""
    import pyarrow as pa

    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    words = column.dictionary.to_pylist()
    codes: NDArray[np.int64] = column.indices.fill_null(len(words)).to_numpy().astype(np.int64)
    return codes, [*words, None]


def _stamps(column: Any) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    """The stamps of a batch one after another, and where each request's begin."""
    import pyarrow as pa

    if pa.types.is_null(column.type.value_type):
        column = column.cast(pa.list_(pa.float64()))  # nobody has a chunk
    offsets = column.offsets.to_numpy()
    return column.flatten().to_numpy(zero_copy_only=False), offsets - offsets[0]
