"""Links between hosts: rows of this run and of earlier ones, and where a split becomes faster."""

import json
from collections.abc import Callable
from dataclasses import replace
from math import isnan, nan
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from workbench.errors import PlanError
from workbench.experiment.findings.crossing import Crossing
from workbench.experiment.findings.link_findings import (
    crossing_text,
    earlier_links,
    link_rows,
    link_sentences,
)
from workbench.experiment.plan.arms import plan
from workbench.experiment.plan.plan import ExperimentPlan
from workbench.experiment.result.facts import RunFacts
from workbench.experiment.result.finding_rows import Comparison, LinkRow, SummaryRow
from workbench.experiment.result.result_file import to_plain
from workbench.metrics.counters import TokenSources, TransferCounters
from workbench.metrics.passes import PassCounters
from workbench.metrics.statistics import Estimate, Ratio
from workbench.params.pd_sweep import PdSweep
from workbench.records import LinkRate

GIVEN: dict[str, Any] = {"engine": "simulated", "topology": "1p1d", "connector": "nixl"}
ARM, BASELINE = "1p1d nixl", "2a"


@pytest.fixture(scope="module")
def made() -> ExperimentPlan:
    return plan(PdSweep(**GIVEN))


def near(value: float) -> Estimate:
    return Estimate(value=value, low=0.98 * value, high=1.02 * value, n=20)


def summary(arm: str, seconds: float) -> SummaryRow:
    return SummaryRow(
        arm=arm, topology="", connector="", pass_name="cold", n_requests=20, n_failed=0,
        n_rounds=5, metric="ttft_s", estimate=near(seconds),
    )  # fmt: skip


def comparison(made: ExperimentPlan) -> Comparison:
    return Comparison(
        kind="opponent", metric="ttft_s", arm=made.arms[0].label, pass_name="cold",
        baseline_arm=BASELINE, baseline_pass="cold", sentence="",
        ratio=Ratio(value=0.8, low=0.78, high=0.82, rounds=5, pairs=20),
    )  # fmt: skip


def counted(arm: str, **given: Any) -> PassCounters:
    return PassCounters(
        arm=arm, round=0, pass_name="cold", requests_sent=4, prompt_tokens_sent=4000,
        kv_bytes_per_token=768.0,
        sources={"decode": TokenSources(computed=0.0, engine_hit=0.0, external_hit=4000.0)},
        **given,
    )  # fmt: skip


def rows(made: ExperimentPlan, *passes: PassCounters, compared: bool = True) -> tuple[LinkRow, ...]:
    arm = made.arms[0].label
    rates = [
        (arm, LinkRate(sender="10.0.0.1", receiver="10.0.0.2", bit_s=0.19e9), True),
        (arm, LinkRate(sender="10.0.0.2", receiver="10.0.0.1", bit_s=0.18e9), False),
        (arm, LinkRate(sender="10.0.0.1", receiver="10.0.0.2", bit_s=0.20e9), True),
    ]
    parts = pd.DataFrame(
        {"arm": [arm] * 2 + [BASELINE], "pass": "cold", "transfer_queue_s": [0.25, 0.27, 0.0]}
    )
    return link_rows(
        made, "run-1", [summary(arm, 1.25), summary(BASELINE, 1.0)],
        [comparison(made)] * compared, passes, rates, parts,
    )  # fmt: skip


def test_a_row_has_rate_bytes_transfer_and_both_sides(made: ExperimentPlan) -> None:
    row, e2e = rows(made, counted(made.arms[0].label))
    assert (row.metric, row.baseline_arm) == ("ttft_s", BASELINE)
    assert row.gbit_s == pytest.approx(0.195)
    assert (row.gbit_low, row.gbit_high) == pytest.approx((0.18, 0.20))
    assert row.kv_bytes == 1000 * 768
    assert row.transfer.value == pytest.approx(0.26)
    assert (row.value.value, row.baseline.value, row.ratio.value) == (1.25, 1.0, 0.8)
    assert (e2e.metric, e2e.baseline_arm) == ("e2e_s", "")  # no comparison was given


def test_what_the_connector_counted_is_what_moved(made: ExperimentPlan) -> None:
    moved = TransferCounters(bytes_moved=8e6, transfers=4, failed=0, expired=0)
    row, _ = rows(made, counted(made.arms[0].label, transfers=moved))
    assert row.kv_bytes == 2e6


def test_without_an_opponent_the_link_has_a_row_but_no_crossing(made: ExperimentPlan) -> None:
    alone = rows(made, counted(made.arms[0].label), compared=False)
    assert [row.baseline_arm for row in alone] == ["", ""]
    assert isnan(alone[0].ratio.value) and alone[0].transfer.value == pytest.approx(0.26)
    assert link_sentences(alone) == []


def test_the_sentence_names_the_crossing_and_what_was_measured(made: ExperimentPlan) -> None:
    slow, _ = rows(made, counted(made.arms[0].label))
    fast = replace(
        slow, gbit_s=0.95, ratio=Ratio(value=1.1, low=1.05, high=1.15, rounds=5, pairs=20)
    )
    (said,) = link_sentences([slow, fast])
    assert said.startswith(f"TTFT of {slow.arm} over {BASELINE}: the split is faster above 0.")
    assert said.endswith("(measured at 0.195, 0.950 Gbit/s).")


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (
            Crossing(gbit_s=nan, low=nan, high=nan, kind="unclear"),
            "unclear, because the split was faster",
        ),
        (
            Crossing(gbit_s=float("inf"), low=nan, high=nan, kind="never"),
            "slower on any link, even",
        ),
        (Crossing(gbit_s=float("inf"), low=2, high=float("inf"), kind="never"), "not decided: "),
        (Crossing(gbit_s=0, low=0, high=0, kind="always"), "the split is faster on any link"),
        (
            Crossing(gbit_s=0.5, low=0.4, high=float("inf"), kind="extrapolated"),
            "above 0.500 Gbit/s [0.400, no link] (not measured)",
        ),
        (
            Crossing(gbit_s=0.5, low=nan, high=nan, kind="measured"),
            "above 0.500 Gbit/s [no CI: too few rounds]",
        ),
    ],
)
def test_each_kind_of_crossing_has_words(found: Crossing, said: str) -> None:
    assert said in crossing_text(found)


@pytest.fixture
def earlier(made: ExperimentPlan, tmp_path: Path) -> Callable[..., Path]:
    """Writes the result of a run with a link, with changed parameters."""

    def write(links: bool = True, **changed: Any) -> Path:
        found = rows(made, counted(made.arms[0].label)) if links else ()
        facts = RunFacts(
            notebook="pd_sweep", run_id="run-1", status="success", links=found,
            parameters=made.parameters | changed,
        )  # fmt: skip
        folder = tmp_path / "run-1"
        folder.mkdir(exist_ok=True)
        (folder / "result.json").write_text(json.dumps(to_plain(facts)))
        return folder

    return write


def with_runs(*folders: Path) -> ExperimentPlan:
    return plan(PdSweep(**GIVEN, link_runs=[*map(str, folders)]))


def test_rows_of_earlier_runs_are_taken_once(earlier: Callable[..., Path]) -> None:
    folder = earlier(rounds=9, output_dir="elsewhere")  # these may differ
    found = earlier_links(with_runs(folder, folder))
    assert [row.run_id for row in found] == ["run-1", "run-1"]
    assert {row.metric for row in found} == {"ttft_s", "e2e_s"}
    assert earlier_links(plan(PdSweep(**GIVEN))) == ()


@pytest.mark.parametrize(
    ("links", "changed", "said"),
    [
        (True, {"prompt_tokens": 77}, "prompt_tokens=77, and this run has prompt_tokens=0"),
        (False, {}, "which moved no KV between hosts"),
    ],
)
def test_an_earlier_run_that_does_not_fit_is_refused(
    earlier: Callable[..., Path], links: bool, changed: dict[str, Any], said: str
) -> None:
    with pytest.raises(PlanError, match=said) as error:
        earlier_links(with_runs(earlier(links, **changed)))
    assert "(example: " in str(error.value) and str(error.value).startswith("link_runs must")


def test_an_earlier_run_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"result\.json does not exist"):
        earlier_links(with_runs(tmp_path / "none"))
