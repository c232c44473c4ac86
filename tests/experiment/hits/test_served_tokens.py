"""Who served each prompt token, on rows, store logs and counters whose answer is known."""

from __future__ import annotations

from math import isnan
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.experiment.hits.hit_rows import requests
from tests.metrics.lmcache_log.log_lines import MP_LINES, line, prefetch
from workbench.experiment.hits.need_to_load import LEVELS, explained
from workbench.experiment.hits.served_tokens import credited, pass_counts, served, store_logs


def found(request: str, l1: int, l2: int = 0) -> str:
    return prefetch(f"cmpl-{request}-0-82e63193", l1 + l2, l1 + l2, l2=l2)


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """The log of one store: request a was in the engine, b in L1, c on the disk, d nowhere."""
    folder = tmp_path / "logs" / "round-0" / "lmcache"
    folder.mkdir(parents=True)
    (folder / "store.log").write_text(
        "".join(
            [
                MP_LINES[0],
                found("a", 1),
                found("b", 3),
                line("Retrieved 768 tokens in 0.004 seconds"),
                found("c", 1, 2),
                line("Retrieved 768 tokens in 0.009 seconds"),
                line("Stored 512 tokens in 0.003 seconds"),
            ]
        )
    )
    return tmp_path


def test_every_token_is_served_by_one(run_folder: Path) -> None:
    sent = requests(
        "lmcache", "again", [("a", 400, 384), ("b", 900, 768), ("c", 768, 767), ("d", 900, 0)]
    )
    rows = served(sent, store_logs(run_folder, sent)).set_index("request_id")
    assert rows[["engine", "l1", "l2", "computed", "need", "idle"]].T.to_dict("list") == {
        "a": [384, 0, 0, 16, 256 - 384, 256],
        "b": [0, 768, 0, 132, 768, 0],
        # All of c's 768 tokens were found, and the last one is computed all the same.
        "c": [0, 255, 512, 1, 767, 0],
        "d": [0, 0, 0, 900, 0, 0],
    }


def test_need_to_load_is_explained_for_each_sign(run_folder: Path) -> None:
    sent = requests("lmcache", "again", [("a", 400, 384), ("b", 900, 768)])
    said = explained(served(sent, store_logs(run_folder, sent)))
    assert said[: len(LEVELS)] == [*LEVELS]
    assert "256 - 384 = -128. Nothing was loaded" in said[-2]
    assert "All 768 were loaded" in said[-1]


def test_without_a_store_only_the_engine_serves(tmp_path: Path) -> None:
    sent = requests("no store", "engine-warm", [("a", 400, 384)])
    (row,) = served(sent, store_logs(tmp_path, sent)).to_dict("records")
    assert (row["engine"], row["l1"], row["computed"]) == (384, 0, 16)
    assert isnan(row["need"])


@pytest.mark.parametrize(
    ("loaded", "engine", "served_by"),
    [(0, 384, "engine"), (384, 0, "l1"), (100, 284, None), (np.nan, np.nan, None)],
)
def test_without_a_log_the_counters_of_a_pass_say_who_served(
    loaded: float, engine: float, served_by: str | None
) -> None:
    sent = requests("attached", "again", [("a", 400, 384)])
    counts = pd.DataFrame(
        [{"arm": "attached", "round": 0, "pass": "again", "loaded": loaded, "engine": engine,
          "claimed_l1": loaded, "claimed_l2": 0.0}]
    )  # fmt: skip
    (row,) = credited(served(sent, {}), counts).to_dict("records")
    for tier in ("engine", "l1", "l2"):
        if served_by is None:
            assert isnan(row[tier])
        else:
            assert row[tier] == (384 if tier == served_by else 0)


def test_a_failed_request_serves_nobody(run_folder: Path) -> None:
    sent = requests("lmcache", "again", [("a", 400, 384), ("b", 900, -1)])
    sent.loc[1, "error"] = "reset"
    assert list(served(sent, store_logs(run_folder, sent))["request_id"]) == ["a"]


# --- counters ---


def counters(*changes: tuple[str, str, str, float, float]) -> pd.DataFrame:
    """Readings before and after of (instance, series, labels, before, after)."""
    return pd.DataFrame(
        [
            {"arm": "lmcache", "round": 0, "pass": "cold", "when": when, "instance": instance,
             "series": series, "labels": labels, "value": value}
            for instance, series, labels, *values in changes
            for when, value in zip(("before", "after"), values, strict=True)
        ]
    )  # fmt: skip


SOURCE = "vllm:prompt_tokens_by_source_total"


def test_counters_of_a_pass_are_differences() -> None:
    (row,) = pass_counts(
        counters(
            ("aggregated-0", SOURCE, "engine=0,source=local_compute", 5, 105),
            ("aggregated-0", SOURCE, "engine=0,source=external_kv_transfer", 0, 40),
            ("store", "lmcache_mp_lookup_hit_tokens_total", "", 10, 60),
        )
    ).to_dict("records")
    assert (row["computed"], row["loaded"], row["claimed"]) == (100, 40, 50)
    assert isnan(row["engine"])  # a series that the engine does not have
    assert row["evicted_chunks"] == 0  # the store exports it from its first eviction on


def test_a_restarted_server_has_no_count() -> None:
    (row,) = pass_counts(
        counters(
            ("aggregated-0", SOURCE, "source=local_compute", 500, 100),
            ("store", "lmcache_mp_lookup_hit_tokens_total", "", 60, 10),
        )
    ).to_dict("records")
    assert isnan(row["computed"]) and isnan(row["claimed"])
