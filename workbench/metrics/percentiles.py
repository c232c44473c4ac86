"""Percentiles of any number of requests, from a frame or, in batches, from its file.

Of a million requests only the latencies are kept in memory. The gaps between chunks (127 million
for 128 chunks each) are counted in bins of 1 us, which is the precision of their quantiles.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import floor, nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.errors import ResultError
from workbench.metrics.statistics import Estimate, interval_ranks, needed_n, quantile_of_sorted

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    from numpy.typing import NDArray

QUANTILES = (0.5, 0.9, 0.99)
_LATENCIES = ("ttft_s", "tpot_s", "e2e_s")
_BATCH_ROWS = 4096
"""Half a million stamps of answers of 128 chunks: small enough for a processor's cache."""


_BIN_S = 1e-6
_BINS = 1_000_000
"""Gaps below 1 s are counted; longer ones, of which there are few, are kept as they are."""


class GapCounts:
    """How often each gap occurred."""

    def __init__(self) -> None:
        self._counts = np.zeros(_BINS, np.int64)
        self._long_s: list[NDArray[np.float64]] = []
        self.n = 0

    def add(
        self,
        stamps_s: NDArray[np.float64],
        offsets: NDArray[np.integer],
        keep: NDArray[np.bool_] | None = None,
    ) -> None:
        """Count the gaps of some requests, or of those where `keep` is true.

        `stamps_s` are their chunks' stamps one after another; request i has those from
        `offsets[i]` to `offsets[i + 1]`, as Arrow stores a list column.
        """
        if len(stamps_s) < 2:
            return
        gaps_s = np.diff(stamps_s)
        # Between the last chunk of one request and the first of the next is no gap. Cutting it out
        # would copy all, so it counts as a gap of 0 that is subtracted afterwards.
        none = np.zeros(len(gaps_s), bool)
        none[offsets[(offsets > 0) & (offsets < len(stamps_s))] - 1] = True
        if keep is not None and not keep.all():
            none |= np.repeat(~keep, np.diff(offsets))[:-1]
        gaps_s[none] = 0.0
        bins = (gaps_s * (1 / _BIN_S) + 0.5).astype(np.int64)
        np.maximum(bins, 0, out=bins)
        if int(bins.max()) >= _BINS:
            long = bins >= _BINS
            self._long_s.append(gaps_s[long])
            bins = bins[~long]
        counts = np.bincount(bins)
        self._counts[: len(counts)] += counts
        self._counts[0] -= np.count_nonzero(none)
        self.n += len(none) - np.count_nonzero(none)

    def quantile(self, q: float) -> Estimate:
        """The q-quantile with its 95 % interval, as `statistics.quantile` gives it.

        The interval assumes independent gaps. Those of one response are not quite, so it is too
        narrow for few requests with many chunks.
        """
        if not self.n:
            return Estimate(value=nan, low=nan, high=nan, n=0, note="no values")
        until = np.cumsum(self._counts)
        long_s = np.sort(np.concatenate([*self._long_s, np.empty(0)]))

        def at(rank: int) -> float:
            """The value of that rank, from 1."""
            if rank > until[-1]:
                return float(long_s[rank - int(until[-1]) - 1])
            return int(np.searchsorted(until, rank)) * _BIN_S

        place = (self.n - 1) * q
        below, above = at(floor(place) + 1), at(min(floor(place) + 2, self.n))
        value = below + (place - floor(place)) * (above - below)
        ranks = interval_ranks(self.n, q)
        if ranks is None:
            note = f"needs {needed_n(q)}, has {self.n}"
            return Estimate(value=value, low=nan, high=nan, n=self.n, note=note)
        return Estimate(value=value, low=at(ranks[0]), high=at(ranks[1]), n=self.n)


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
    note names), n, note. A metric without values is NaN.

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


def _row(found: Estimate) -> tuple[float, float, float, int, str]:
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
    """A code for each row, and the values of the codes; null is the last."""
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
        column = column.cast(pa.list_(pa.float64()))  # no request has a chunk
    offsets = column.offsets.to_numpy()
    return column.flatten().to_numpy(zero_copy_only=False), offsets - offsets[0]
