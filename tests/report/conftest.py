"""Invented results and frames, small enough to read, for the pages and figures under test."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest


def words(chart):
    """Every line of text of a figure; parsing it proves that the SVG is well formed."""
    root = ElementTree.fromstring(chart.svg)
    return ["".join(node.itertext()).strip() for node in root.iter() if node.tag.endswith("}text")]


def text(chart):
    """All texts in one, so that a title which was wrapped is found whole."""
    return " ".join(words(chart))


@pytest.fixture
def result():
    """A result.json of the first schema, so that pages of earlier runs are tried too."""
    return {
        "schema": 1,
        "notebook": "pd_sweep",
        "run_id": "1p4d-lmcache-3f9a2c",
        "status": "success",
        "started_at": "2026-11-20T11:02:00+00:00",
        "finished_at": "2026-11-20T11:16:00+00:00",
        "duration_s": 840.0,
        "measuring_s": 512.0,
        "simulated": False,
        "parameters": {"topology": "1p4d", "rounds": 5, "interactive": False},
        "machine": {
            "cpu": "a CPU",
            "gpus": [],
            "versions": {"vllm": "0.32.0"},
            "git_commit": "a959cbf",
            "git_dirty": True,
        },
        "finding": "A warm KV store cuts TTFT 18 times",
        "scope": "Tiny model on a CPU: ratios are shapes, not promises.",
        "numbers": [
            {
                "label": "TTFT cold / store-warm",
                "value": 18.1,
                "unit": "x",
                "low": 16.9,
                "high": 19.4,
                "note": "5 rounds of 6 pairs",
            },
            {"label": "median TTFT", "value": 0.187, "unit": "s", "low": None, "high": None},
        ],
        "gates": [
            {"name": "cold was cold", "outcome": "PASS", "sentence": "0 of 679,800 cached."},
            {"name": "steady state", "outcome": "INCONCLUSIVE", "sentence": "Too few requests."},
            {
                "name": "client kept up",
                "outcome": "FAIL",
                "sentence": "Another process took 31 % of its core.",
                "next_step": "close other jobs",
            },
        ],
        "doubts": ["30 requests per arm are too few for p99."],
        "limits": ["Nothing is said about throughput."],
        "arms": [
            {
                "label": "1p4d lmcache",
                "topology": "1p4d",
                "connector": "lmcache",
                "role": "subject",
                "gpus": 5,
                "command_lines": ["vllm serve tiny --port 8001"],
            }
        ],
        "repeat": "papermill notebooks/pd_sweep.ipynb out.ipynb -p topology 1p4d",
        "workload": {"name": "shared-document", "requests": 30},
        "files": {"requests": "requests.parquet"},
        "folder": "outputs/pd_sweep/1p4d-lmcache-3f9a2c",
    }


@pytest.fixture
def summary():
    """Two arms, three cache states: cold 3 s, engine-warm 30 ms, store-warm 200 ms."""
    medians = {"cold": 3.0, "engine-warm": 0.03, "store-warm": 0.2}
    return pd.DataFrame(
        {
            "arm": arm,
            "topology": arm.split()[0],
            "connector": "lmcache",
            "pass": state,
            "metric": metric,
            "median": value,
            "low": 0.9 * value,
            "high": 1.1 * value,
            "n_requests": 30,
            "n_failed": 0,
            "n_rounds": 5,
        }
        for arm in ("1p4d lmcache", "5a lmcache")
        for state, ttft_s in medians.items()
        for metric, value in (("ttft_s", ttft_s), ("request_tps", 40.0), ("system_tps", 80.0))
    )


@pytest.fixture
def comparisons():
    """Store-warm is 15 times faster than cold; 1p4d and 5a do not differ when cold."""
    shared = {"metric": "ttft_s", "n_rounds": 5, "n_pairs": 30, "sentence": ""}
    warm = {"kind": "cache-state", "pass": "store-warm", "baseline_pass": "cold"}
    rows: list[dict[str, Any]] = [
        {**shared, **warm, "arm": arm, "baseline_arm": arm, "ratio": 15.0, "low": 14, "high": 16}
        for arm in ("1p4d lmcache", "5a lmcache")
    ]
    rows.append(
        {
            **shared,
            "kind": "opponent",
            "arm": "1p4d lmcache",
            "pass": "cold",
            "baseline_arm": "5a lmcache",
            "baseline_pass": "cold",
            "ratio": 0.97,
            "low": 0.93,
            "high": 1.02,
        }
    )
    return pd.DataFrame(rows)


@pytest.fixture
def requests():
    """One instance, 3 passes of 24 requests; cold halves its cached prompts; one request failed."""
    random = np.random.default_rng(7)
    rows = [
        {
            "arm": "1a none",
            "pass": state,
            "round": 0,
            "index": i,
            "sent_s": 100.0 + 0.5 * i,
            "prompt_tokens": 2048,
            "cached_tokens": cached,
            "ideal_reuse_tokens": cached,
            "output_tokens": int(random.integers(100, 200)),
            "ttft_s": (0.8 - 0.7 * cached / 2048) * random.lognormal(0, 0.1),
            "request_tps": 50 * random.lognormal(0, 0.1),
            "e2e_s": 4 * random.lognormal(0, 0.1),
            "error": "",
        }
        for state in ("off", "cold", "warm")
        for i in range(24)
        for cached in [{"off": 0, "cold": 1024 * (i % 2), "warm": 2032}[state]]
    ]
    frame = pd.DataFrame(rows)
    frame.loc[5, ["ttft_s", "request_tps", "e2e_s"]] = np.nan
    frame.loc[5, "error"] = "timeout"
    return frame
