"""The figure of a sweep over connectors."""

import pandas as pd
import pytest

from tests.report.conftest import text, words
from workbench.report import figures


def measured(arm, state, ttft_s, tps, kv_bytes):
    topology, _, connector = arm.partition(" ")
    role = "subject" if topology == "1p2d" else "opponent"
    sample = {"n_requests": 30, "n_rounds": 5, "gpus": 3}
    metrics = {"ttft_s": ttft_s, "system_tps": tps, "kv_bytes_per_token": kv_bytes}
    return [
        {"arm": arm, "topology": topology, "connector": connector or "none", "role": role,
         "pass": state, "metric": metric, "value": value, "low": 0.9 * value,
         "high": 1.1 * value, **sample}
        for metric, value in metrics.items()
    ]  # fmt: skip


@pytest.fixture
def found():
    return pd.DataFrame([
        *measured("1p2d lmcache", "cold", 0.3, 100.0, 754.0),
        *measured("1p2d nixl", "cold", 0.2, 120.0, 768.0),
        *measured("3a", "cold", 0.25, 130.0, 0.0),
        *measured("1p2d lmcache", "store-warm", 0.05, 300.0, 1508.0),
        *measured("1p2d mooncake-store", "store-warm", 0.051, 310.0, 1500.0),
    ])  # fmt: skip


def test_each_state_lists_its_connectors_with_their_numbers(found):
    chart = figures.connectors(found)
    shown = words(chart)
    assert shown.count("cold") == shown.count("store-warm") == 1
    assert shown.count("1p2d lmcache") == 2 and shown.count("1p2d nixl") == 1
    assert {"300 ms", "120 tok/s", "768 B", "1,510 B", "0 B"} <= set(shown)
    assert {"1p2d", "3a, aggregated baseline"} <= set(shown)
    assert {"TTFT, ms", "lower is better", "KV loaded, B", "per prompt token"} <= set(shown)
    assert "Each arm has 3 GPUs (on a CPU: instances)." in chart.caption
    assert "cold: 1p2d lmcache TTFT 300 ms; 1p2d nixl TTFT 200 ms;" in chart.alt


def test_the_title_names_a_connector_only_where_intervals_do_not_overlap(found):
    title = "1p2d: cold TTFT is lowest with nixl; no connector has a clearly lower store-warm TTFT"
    assert title in text(figures.connectors(found))
    unknown = found.assign(low=float("nan"), high=float("nan"))
    chart = figures.connectors(unknown)
    assert "TTFT and throughput by connector, 1p2d" in text(chart)
    assert "Hollow marker: no CI" in chart.caption


def test_unknown_bytes_leave_their_column_empty(found):
    hub = found.assign(value=found["value"].mask(found["metric"] == "kv_bytes_per_token"))
    shown = words(figures.connectors(hub))
    assert "768 B" not in shown and "300 ms" in shown


def test_one_connector_has_the_figure_of_topologies_instead():
    assert figures.connectors(pd.DataFrame()) is None
