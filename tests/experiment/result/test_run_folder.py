from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from workbench.errors import ResultError
from workbench.experiment.result.facts import RunFacts
from workbench.experiment.result.result import load_result
from workbench.experiment.result.result_file import read_facts
from workbench.experiment.result.run_folder import (
    EARLIER,
    RunFolder,
    output_root,
    read_frame,
    write_frame,
)
from workbench.hardware.machine import repository_root


def open_folder(tmp_path):
    return RunFolder.open(str(tmp_path), "pd_sweep", "1p4d-3f9a2c")


def facts(finding, status="success"):
    return RunFacts(notebook="pd_sweep", run_id="1p4d-3f9a2c", status=status, finding=finding)


def finish(folder, finding):
    """What a run writes, from its first row to its success."""
    folder.write("requests", pd.DataFrame({"index": [0, 1], "finding": finding}))
    (folder.logs / "store.log").write_text(finding)
    folder.write_facts(facts(finding))
    folder.promote()


def test_a_relative_output_folder_starts_at_the_repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert output_root("outputs") == repository_root() / "outputs"
    assert output_root(str(tmp_path)) == tmp_path


def test_a_run_that_succeeds_is_the_runs_result(tmp_path):
    folder = open_folder(tmp_path)
    assert folder.home == tmp_path / "pd_sweep" / "1p4d-3f9a2c"
    assert folder.attempt.parent == folder.home
    finish(folder, "first")
    assert not folder.attempt.exists()
    assert (folder.home / "logs" / "store.log").read_text() == "first"
    result = load_result(folder.home)
    assert result.run.finding == "first"
    assert list(result.requests["index"]) == [0, 1]


def test_a_better_run_takes_its_place(tmp_path):
    finish(open_folder(tmp_path), "first")
    again = open_folder(tmp_path)
    finish(again, "second")
    result = load_result(again.home)
    assert result.run.finding == "second"
    assert set(result.requests["finding"]) == {"second"}
    assert (again.home / "logs" / "store.log").read_text() == "second"


def test_the_result_that_was_replaced_is_kept_and_notes_of_it_are_not(tmp_path):
    first = open_folder(tmp_path)
    finish(first, "first")
    note = first.home / "report" / "report.md"
    note.parent.mkdir()
    note.touch()
    finish(open_folder(tmp_path), "second")
    (earlier,) = (first.home / EARLIER).iterdir()
    assert read_facts(earlier).finding == "first"
    assert not note.exists()


def test_a_run_that_failed_leaves_the_earlier_result_untouched(tmp_path):
    finish(open_folder(tmp_path), "first")
    failed = open_folder(tmp_path)
    failed.write("requests", pd.DataFrame({"index": [9]}))
    failed.write_facts(facts("it broke", "failed"))
    # No promotion: its rows stay in its own folder.
    result = load_result(failed.home)
    assert result.run.finding == "first"
    assert list(result.requests["index"]) == [0, 1]
    assert load_result(failed.attempt).run.status == "failed"
    assert list(load_result(failed.attempt).requests["index"]) == [9]


def test_rows_that_are_cut_or_gone_are_said_in_a_sentence(tmp_path):
    folder = open_folder(tmp_path)
    finish(folder, "first")
    rows = folder.home / "requests.parquet"
    rows.write_bytes(rows.read_bytes()[:100])
    with pytest.raises(ResultError, match=r"requests\.parquet cannot be read"):
        _ = load_result(folder.home).requests
    rows.unlink()
    with pytest.raises(ResultError, match=r"has no requests\.parquet"):
        _ = load_result(folder.home).requests


def test_runs_at_the_same_time_never_mix_their_files(tmp_path):
    folders = [open_folder(tmp_path) for _ in range(8)]
    assert len({folder.attempt for folder in folders}) == 8
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(finish, folders, "abcdefgh"))
    result = load_result(folders[0].home)
    (rows,) = set(result.requests["finding"])
    log = (result.folder / "logs" / "store.log").read_text()
    assert rows == result.run.finding == log


def test_a_write_that_breaks_off_leaves_the_earlier_file(tmp_path, monkeypatch):
    folder = open_folder(tmp_path)
    folder.write("requests", pd.DataFrame({"index": [1]}))

    def cut(path, frame):
        Path(path).write_bytes(b"PAR1 half of")
        raise OSError("No space left on device")

    monkeypatch.setattr("workbench.experiment.result.run_folder.write_frame", cut)
    with pytest.raises(OSError, match="No space"):
        folder.write("requests", pd.DataFrame({"index": [2]}))
    assert list(pd.read_parquet(folder.attempt / "requests.parquet")["index"]) == [1]


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
