"""Frames as parquet files, written so that a million requests can be read back in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

__all__ = ["GROUP_ROWS", "read_frame", "write_frame", "write_options"]

GROUP_ROWS = 100_000
BULKY = ("chunk_s", "chunk_tokens", "text")
"""What is not read from a file of more than GROUP_ROWS rows: stamps and texts stay there."""


def write_frame(path: Path, frame: pd.DataFrame) -> None:
    """Write a frame without its index."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pandas(frame, preserve_index=False)
    pq.write_table(table, path, row_group_size=GROUP_ROWS, **write_options(table.schema))


def write_options(schema: pa.Schema) -> dict[str, object]:
    """How `pyarrow.parquet` shall write such a table.

    Stamps are split into the bytes that change and those that hardly do: of a million answers of
    128 chunks the file is a third smaller, and read with 0.7 s less CPU (2026-11-25).
    """
    import pyarrow as pa

    stamps: list[str] = []
    others: list[str] = []
    for name, kind in zip(schema.names, schema.types, strict=True):
        path = f"{name}.list.element" if pa.types.is_list(kind) else name
        (stamps if kind == pa.list_(pa.float64()) else others).append(path)
    split = dict.fromkeys(stamps, "BYTE_STREAM_SPLIT")
    return {"compression": "zstd", "use_dictionary": others, "column_encoding": split or None}


def read_frame(path: Path) -> pd.DataFrame:
    """Read a frame; one of more than GROUP_ROWS rows without the BULKY columns."""
    import pandas as pd
    import pyarrow.parquet as pq

    about = pq.read_metadata(path)
    if about.num_rows <= GROUP_ROWS:
        return pd.read_parquet(path)
    names = about.schema.to_arrow_schema().names
    return pd.read_parquet(path, columns=[name for name in names if name not in BULKY])
