"""Each panel asks for series that real servers have, in PromQL that parses."""

import json
import re
from pathlib import Path

import pytest

from workbench.monitoring.panels import PANELS, Panel, panels_for
from workbench.serve.connectors import CONNECTORS

RECORDED = json.loads((Path(__file__).parent / "recorded_series.json").read_text())
"""Names of the series of real servers, as `make test` meets them; see docs/monitoring.md."""
UNBORN = {
    "lmcache_mp_l1_evicted_chunks_total",
    "lmcache_mp_l1_allocation_failure_chunks_total",
    "lmcache_mp_l2_prefetch_load_completed_chunks_total",
    "vllm:kv_offload_allocation_failure_total",
}
"""Counters of what did not happen while they were recorded: a server exports them later."""
GPU_ONLY = [name for name, connector in CONNECTORS.items() if connector.gpu_only]

QUERIES = [
    pytest.param(panel, query, id=f"{panel.title}: {query.legend}")
    for panel in PANELS
    for query in panel.queries
]


def series_of(expression: str) -> set[str]:
    return {name for name in re.findall(r"([a-zA-Z_:][\w:]*)\{", expression) if name != "up"}


@pytest.mark.parametrize(("panel", "query"), QUERIES)
def test_each_series_is_one_that_real_servers_have(panel, query):
    known = {name for names in RECORDED.values() for name in names} | UNBORN
    asked = series_of(query.filled('role="decode"', "1m"))
    if set(panel.connectors) - set(GPU_ONLY) or not panel.connectors:
        assert asked <= known
    else:
        # LMCache inside vLLM needs a GPU: what is known of it is its connector's record.
        (name,) = panel.connectors
        assert asked <= set(CONNECTORS[name].store.counters.values())


def test_a_counter_that_may_be_missing_counts_as_zero_beside_one_that_is_there():
    """Else a panel of failures has no line, as if nobody looked."""
    for panel in PANELS:
        for query in panel.queries:
            if series_of(query.filled()) & UNBORN:
                assert " or 0 * " in query.expression


@pytest.mark.parametrize(("panel", "query"), QUERIES)
@pytest.mark.parametrize("servers", ["", 'role=~"$role",instance=~".*"'], ids=["all", "chosen"])
def test_each_expression_is_promql(panel, query, servers):
    parser = pytest.importorskip("promql_parser")
    filled = query.filled(servers, "1m")
    assert "$on" not in filled and "rate_interval" not in filled
    parser.parse(filled)  # raises ValueError on a mistake


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel.title)
def test_a_panel_has_lines_with_different_names_and_says_what_they_are(panel):
    legends = [query.legend for query in panel.queries]
    assert legends and len(set(legends)) == len(legends)
    assert panel.description.endswith(".")
    assert len(panel.description.split()) <= 35


def test_titles_are_unique():
    titles = [panel.title for panel in PANELS]
    assert len(set(titles)) == len(titles)


@pytest.mark.parametrize(
    ("connector", "has", "has_not"),
    [
        ("none", "TTFT", "nixl: KV moved"),
        ("nixl", "nixl: time of a transfer", "lmcache: lookups"),
        ("lmcache", "lmcache: hit rate", "lmcache: tiers below memory"),
        ("mooncake-store", "mooncake-store: gets that found their block", "lmcache: fill"),
        ("offload", "offload: KV moved", "offload: fill"),
    ],
)
def test_a_connector_has_the_panels_of_its_own_servers(connector, has, has_not):
    titles = {panel.title for panel in panels_for(connector)}
    assert has in titles and has_not not in titles


def test_tiers_have_panels_where_there_are_tiers():
    def titles(tiers: bool) -> set[str]:
        return {panel.title for panel in panels_for("lmcache", tiers=tiers)}

    assert titles(True) - titles(False) == {
        "lmcache: tiers below memory", "lmcache: chunks not written to tiers",
    }  # fmt: skip


def test_every_subject_of_an_operator_is_there():
    subjects = {panel.subject for panel in PANELS}
    assert subjects >= {"Token ledger", "Latency", "Scheduler", "KV transfers", "Failures"}
    assert {f"KV store: {name}" for name, c in CONNECTORS.items() if c.store} >= {
        subject for subject in subjects if subject.startswith("KV store")
    }


def test_panels_of_one_subject_stand_together():
    order = list(dict.fromkeys(panel.subject for panel in PANELS))
    assert [order.index(panel.subject) for panel in PANELS] == sorted(
        order.index(panel.subject) for panel in PANELS
    )


def by_title(title: str) -> Panel:
    (found,) = [panel for panel in PANELS if panel.title == title]
    return found


def test_the_ledger_shows_each_source_of_each_role():
    computed, own, external = by_title("Prompt tokens by source").queries
    assert computed.filled('instance="a"', "20s") == (
        "sum by (role) (rate(vllm:prompt_tokens_by_source_total"
        '{source="local_compute",instance="a"}[20s]))'
    )
    assert 'source="local_cache_hit"' in own.expression
    assert 'source="external_kv_transfer"' in external.expression
    assert external.legend == "{{role}} external hit"
