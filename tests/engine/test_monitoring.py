"""Every panel has an answer: a real Prometheus reads real servers during a run of each connector.

Panels without data after a rename are the most frequent complaint about dashboards.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.monitoring.prometheus_server import INTERVAL_S, prometheus
from tests.runs import not_passed
from workbench.experiment.plan.arms import plan
from workbench.experiment.run.run import run
from workbench.hardware.interpreter import interpreter
from workbench.monitoring.panels import Panel, panels_for
from workbench.monitoring.query import Query
from workbench.params.pd_sweep import PdSweep
from workbench.report.figures import panels
from workbench.serve.connectors import connector

pytestmark = pytest.mark.asyncio(loop_scope="session")

SIZES = {"prompt_tokens": 1500, "output_tokens": 24, "requests": 14, "concurrency": 2}
RUNS: list[dict[str, Any]] = [
    {"connector": "lmcache", "topology": "1p1d", "store_tiers": ["memory", "disk"]},
    {"connector": "nixl", "topology": "1p1d"},
    {"connector": "mooncake-store", "topology": "1p1d"},
    {"connector": "offload", "topology": "1a"},
]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(scope="module")
def url(outputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with prometheus(tmp_path_factory.mktemp("prometheus"), outputs) as started:
        yield started


def silent(panel: Panel, lines: set[str]) -> list[str]:
    """Queries of a panel that none of these lines comes from."""

    def matches(query: Query, line: str) -> bool:
        return bool(re.fullmatch(re.sub(r"\\{\\{\w+\\}\\}", ".*", re.escape(query.legend)), line))

    return [
        f"{panel.title}: {query.legend}"
        for query in panel.queries
        if not any(matches(query, line) for line in lines)
    ]


@pytest.mark.parametrize("given", RUNS, ids=lambda given: given["connector"])
async def test_every_panel_of_a_connector_has_an_answer(
    given: dict[str, Any], url: str, outputs: Path, one_launcher: None
) -> None:
    if not connector(given["connector"]).installed(interpreter()):
        pytest.skip("needs make setup MOONCAKE=1")
    params = PdSweep(**SIZES, **given, rounds=1, opponents=False, output_dir=str(outputs),
                     prometheus_url=url)  # fmt: skip
    result = await run(plan(params), echo=lambda _: None)
    shown = result.panels
    lines = shown.groupby("title")["line"].agg(set).to_dict()
    wanted = panels_for(
        given["connector"], tiers="store_tiers" in given, prefill=given["topology"] == "1p1d"
    )
    assert [s for panel in wanted for s in silent(panel, lines.get(panel.title, set()))] == []
    assert shown["rate_s"].unique() == pytest.approx([4 * INTERVAL_S], rel=0.2)
    # What was counted does not depend on who watches.
    assert "the ledger closes" not in not_passed(result.facts)
    seen = shown[shown["line"] == "decode external hit" if "p" in given["topology"] else
                 shown["line"] == "aggregated computed"]  # fmt: skip
    assert seen["value"].max() > 0
    assert not list((outputs / "prometheus").iterdir())
    figure = panels(shown)
    assert figure is not None and len(figure.svg) < 200_000
    assert {one["pass"] for one in result.facts["pass_times"]} <= {*result.requests["pass"]}
