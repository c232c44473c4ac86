from __future__ import annotations

from math import isnan
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.errors import ResultError
from workbench.metrics import percentiles as module
from workbench.metrics.latency import icl, latencies
from workbench.metrics.percentiles import QUANTILES, GapCounts, percentiles
from workbench.metrics.statistics import quantile


def answers(requests: int, *, failed: float = 0.1, seed: int = 1) -> pd.DataFrame:
    """Two arms in turns, two passes one after another, answers of 0 to 12 chunks, some failed."""
    draw = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for index in range(requests):
        chunks, sent_s = int(draw.integers(0, 13)), 1e5 + index
        slow = 1 + 300 * (draw.random(chunks) < 0.01)  # now and then some seconds
        rows.append(
            {
                "arm": "ab"[index % 2],
                "pass": "cold" if index < requests / 2 else "warm",
                "error": "reset" if draw.random() < failed else "",
                "sent_s": sent_s,
                "scheduled_s": sent_s,
                "chunk_s": tuple(sent_s + np.cumsum(draw.gamma(2, 0.01, chunks) * slow)),
                "chunk_tokens": (1,) * chunks,
                "output_tokens": chunks,
            }
        )
    return latencies(pd.DataFrame(rows))


@pytest.mark.parametrize("failed", [0.0, 0.1, 0.95])
def test_a_file_read_in_batches_gives_what_the_rows_give(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failed: float
) -> None:
    monkeypatch.setattr(module, "_BATCH_ROWS", 700)  # of 2,000: kinds and batches do not coincide
    frame = answers(2000, failed=failed)
    frame.to_parquet(tmp_path / "requests.parquet")
    found = percentiles(tmp_path / "requests.parquet")
    pd.testing.assert_frame_equal(found, percentiles(frame))
    assert len(found) == 4 * 4 * len(QUANTILES)
    for row in found.to_dict("records"):
        group = frame[(frame["arm"] == row["arm"]) & (frame["pass"] == row["pass"])]
        gaps = row["metric"] == "icl_s"
        true = quantile(icl(group) if gaps else group[row["metric"]], row["quantile"])
        allowed = 1.001e-6 if gaps else 0.0
        seen = (row["value_s"], row["low_s"], row["high_s"])
        assert seen == pytest.approx(
            (true.value, true.low, true.high), abs=allowed, rel=1e-12, nan_ok=True
        )
        assert (row["n"], row["note"]) == (true.n, true.note)


def test_kinds_may_be_any_columns() -> None:
    assert percentiles(answers(40), by=["arm"])["arm"].unique().tolist() == ["a", "b"]


def test_requests_without_a_chunk_have_no_gap_and_no_latency() -> None:
    frame = answers(3).assign(chunk_s=[()] * 3, chunk_tokens=[()] * 3)
    found = percentiles(latencies(frame))
    assert found["value_s"].isna().all()
    assert set(found["note"]) == {"no values"}


def test_failures_alone_are_a_kind_without_numbers() -> None:
    found = percentiles(answers(4, failed=1.1))
    assert found["arm"].unique().tolist() == ["a", "b"]
    assert (found["n"] == 0).all()


def test_no_requests_no_rows() -> None:
    assert percentiles(answers(4).iloc[:0]).empty


def test_a_file_that_is_none_gets_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_text("no")
    pd.DataFrame({"arm": [1]}).to_parquet(tmp_path / "b.parquet")
    for name, sentence in [
        ("a", "cannot be read"),
        ("b", "has no column chunk_s, e2e_s"),
        ("c", "cannot be read"),
    ]:
        with pytest.raises(ResultError, match=sentence):
            percentiles(tmp_path / f"{name}.parquet")


@given(
    answers=st.lists(
        st.lists(st.floats(0, 3), max_size=6).map(lambda gaps: np.cumsum([7.0, *gaps])), max_size=12
    ),
    q=st.sampled_from([0.01, 0.5, 0.9]),
)
def test_counted_gaps_have_the_quantiles_of_the_gaps(answers: list[Any], q: float) -> None:
    gaps = GapCounts()
    for part in (answers[:5], answers[5:]):
        stamps = np.concatenate([*part, np.empty(0)])
        gaps.add(stamps, np.cumsum([0, *map(len, part)]))
    true = quantile(np.concatenate([np.diff(a) for a in answers] or [np.empty(0)]), q)
    found = gaps.quantile(q)
    assert (found.n, found.note) == (true.n, true.note)
    for each in ("value", "low", "high"):
        assert getattr(found, each) == pytest.approx(getattr(true, each), abs=1e-6, nan_ok=True)


def test_merged_reads_are_gaps_of_zero() -> None:
    gaps = GapCounts()
    gaps.add(np.array([5.0, 5.0, 5.0, 9.0]), np.array([0, 3, 4]))
    assert gaps.n == 2
    assert gaps.quantile(0.5).value == 0.0
    assert isnan(gaps.quantile(0.5).low)
