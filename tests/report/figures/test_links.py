"""The figure of links: the crossing in title and text, and lines that are dashed where nothing was
measured."""

import re

import pandas as pd
import pytest

from workbench.experiment.result.finding_rows import LinkRow
from workbench.experiment.result.result_tables import link_frame, link_table
from workbench.metrics.statistics import Estimate, Ratio
from workbench.report.figures import links

KV_BYTES = 6_000_000.0


def row(
    gbit_s: float, metric: str, base_s: float, baseline_s: float, *, rounds: int = 5
) -> LinkRow:
    transfer_s = 8e-9 * KV_BYTES / gbit_s
    value_s = base_s + transfer_s
    ratio, known = baseline_s / value_s, rounds > 1

    def near(seconds: float) -> Estimate:
        return Estimate(value=seconds, low=0.98 * seconds, high=1.02 * seconds, n=40)

    return LinkRow(
        run_id=f"run-{gbit_s:g}", arm="1p1d nixl", baseline_arm="2a", metric=metric,
        gbit_s=gbit_s, gbit_low=0.98 * gbit_s, gbit_high=gbit_s, kv_bytes=KV_BYTES,
        transfer=near(transfer_s), value=near(value_s), baseline=near(baseline_s),
        ratio=Ratio(
            value=ratio, low=0.97 * ratio if known else float("nan"),
            high=1.03 * ratio if known else float("nan"), rounds=rounds, pairs=40,
        ),
    )  # fmt: skip


def measured(*rates: float, ttft: tuple[float, float] = (0.9, 1.0), **given: int) -> pd.DataFrame:
    """A split whose TTFT is `ttft[0]` without the transfer, over baselines of `ttft[1]`."""
    rows = [
        made
        for rate in rates
        for made in (row(rate, "ttft_s", *ttft, **given), row(rate, "e2e_s", 3.5, 4.0, **given))
    ]
    return link_frame(rows)


def test_the_crossing_between_two_measured_links_is_the_title():
    chart = links(measured(0.19, 0.95))
    # 6 MB in the 100 ms that the split saves
    assert re.search(
        r"TTFT: the split is faster above 0\.480 Gbit/s \[0\.\d+, 0\.\d+\]\. ", chart.alt
    )
    assert chart.alt.count("(not measured)") == 1
    assert "E2E: the split is faster above 0.0960 Gbit/s" in chart.caption
    assert "(not measured)" in chart.caption  # E2E is faster on both links


def test_from_one_link_the_crossing_is_not_measured():
    chart = links(measured(0.19))
    assert "the split is faster above 0.480 Gbit/s" in chart.alt and "(not measured)" in chart.alt


def test_a_split_that_is_slower_without_its_transfer_is_slower_on_any_link():
    chart = links(measured(0.19, 0.95, ttft=(1.2, 1.0)))
    assert "TTFT: the split is slower on any link" in chart.caption
    assert chart.alt.startswith("1p1d nixl over 2a, E2E: the split is faster above")


def test_without_rounds_there_is_no_interval():
    chart = links(measured(0.19, 0.95, rounds=1))
    assert "faster above 0.480 Gbit/s [no CI: too few rounds]." in chart.alt


def test_only_what_is_beyond_measured_links_is_dashed():
    both, one = (links(measured(*rates)).svg for rates in ((0.19, 0.95), (0.19,)))
    assert both.count("stroke-dasharray") >= 8
    # TTFT of both and two speed-ups have one stretch more, which is solid
    assert len(re.findall("<path", both)) > len(re.findall("<path", one))


def test_without_hosts_there_is_no_figure_and_no_table():
    assert links(link_frame(())) is None
    assert link_table(()).empty


def test_the_table_has_the_transfer_beside_what_its_bytes_need():
    (line,) = link_table([row(0.19, "ttft_s", 0.9, 1.0)]).to_dict("records")
    assert line["bytes / rate, ms"] == "253"
    assert line["KV transfer + decode queue, ms"].startswith("253")
    assert line["link, Gbit/s"] == "0.190 [0.186, 0.190]"


@pytest.mark.parametrize("unknown", ["kv_bytes", "ratio"])
def test_a_run_that_knows_no_bytes_or_ratio_is_left_out(unknown):
    frame = measured(0.19, 0.95)
    frame.loc[frame["gbit_s"] > 0.5, unknown] = float("nan")
    assert "(not measured)" in links(frame).alt
