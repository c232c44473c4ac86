from __future__ import annotations

import pandas as pd
import pyarrow.parquet as pq
import pytest

from workbench.experiment.result.frame_file import read_frame, write_frame


@pytest.mark.parametrize("stamps", [[(1.0, 2.5), ()], [(), ()]])
def test_a_frame_comes_back_as_it_was(tmp_path, stamps):
    frame = pd.DataFrame({"arm": ["a", "a"], "chunk_s": stamps, "chunk_tokens": [(1, 2), ()]})
    write_frame(tmp_path / "f.parquet", frame.set_index(frame.index + 5))
    read = read_frame(tmp_path / "f.parquet")
    assert list(read["arm"]) == ["a", "a"]
    for name in ("chunk_s", "chunk_tokens"):
        assert [tuple(row) for row in read[name]] == list(frame[name])


def test_stamps_are_split_into_their_bytes_and_words_into_a_dictionary(tmp_path):
    write_frame(tmp_path / "f.parquet", pd.DataFrame({"arm": ["a"], "chunk_s": [(1.0, 2.0)]}))
    group = pq.read_metadata(tmp_path / "f.parquet").row_group(0)
    encodings = {group.column(n).path_in_schema: group.column(n).encodings for n in (0, 1)}
    assert "BYTE_STREAM_SPLIT" in encodings["chunk_s.list.element"]
    assert "RLE_DICTIONARY" in encodings["arm"]


def test_an_empty_frame_is_a_file_too(tmp_path):
    write_frame(tmp_path / "f.parquet", pd.DataFrame(columns=["arm", "chunk_s"]))
    assert read_frame(tmp_path / "f.parquet").empty
