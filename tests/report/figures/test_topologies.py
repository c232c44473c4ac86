from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

from tests.report.conftest import text, words
from workbench.report import figures


def of_two_models(frame):
    """The rows of a model `small`, and the same of `large`."""
    both = [
        frame.assign(
            model=name,
            **{side: name + " " + frame[side] for side in ("arm", "baseline_arm") if side in frame},
        )
        for name in ("small", "large")
    ]
    return pd.concat(both, ignore_index=True)


def svg_height(chart):
    return float(ElementTree.fromstring(chart.svg).get("height"))


@pytest.fixture
def swept(summary, comparisons):
    """1p4d and its baseline with and without the store; throughput is compared too."""
    plain = summary[summary["arm"] == "5a lmcache"].assign(arm="5a", connector="none")
    rows = comparisons.iloc[[2]].assign(baseline_arm="5a")
    both = pd.concat([comparisons, rows])
    tps = both.assign(metric="system_tps", ratio=3.0, low=2.0, high=4.0)
    return pd.concat([summary, plain]), pd.concat([both, tps])


def test_the_four_charts_stand_in_one_figure(swept):
    chart = figures.topology_overview(*swept)
    shown = words(chart)
    assert [name for name in shown if name.startswith(("TTFT", "Throughput"))] == [
        "TTFT, ms", "TTFT speed-up over cold", "Throughput, tok/s", "Throughput speed-up over cold",
    ]  # fmt: skip
    assert shown.count("lower is better") == 1 and shown.count("higher is better") == 3
    assert "Store-warm TTFT is 15x faster than cold" in shown
    assert {"3,000", "200", "15.0x", "3.00x"} <= set(shown)
    assert "TTFT, ms: 1p4d lmcache cold 3,000; 1p4d lmcache engine-warm 30.0;" in chart.alt
    assert chart.caption.startswith("Medians with 95 % CI (30 requests in 5 rounds).")


def test_a_baseline_is_a_mark_in_the_column_of_its_topology(swept):
    chart = figures.topology_overview(*swept)
    shown = words(chart)
    assert shown.count("1p4d") == 4 and shown.count("vs 5a") == 4
    assert "5a" not in shown and "5a lmcache" not in shown  # no columns of their own
    assert "aggregated baseline" in shown
    assert "Line and grey box: median and CI of the aggregated baseline." in chart.caption
    alone = figures.topology_overview(swept[0], pd.DataFrame())
    assert {"1p4d", "5a", "5a lmcache"} <= set(words(alone))  # now each has one
    assert "aggregated baseline" not in words(alone)
    assert words(alone).count("not measured") == 2  # no speed-up


def test_a_state_that_only_a_baseline_has_is_not_in_the_key(swept):
    summary, comparisons = swept
    rival = summary[(summary["arm"] == "5a lmcache") & (summary["pass"] == "cold")]
    found = pd.concat([summary, rival.assign(**{"pass": "remote-warm"})])
    assert "remote-warm" not in words(figures.topology_overview(found, comparisons))
    assert "remote-warm" in words(figures.topology_overview(found, pd.DataFrame()))


def test_the_baseline_has_the_same_connector_where_there_is_one(swept):
    summary, comparisons = swept
    slow = summary["arm"].eq("5a") & summary["metric"].eq("ttft_s")
    far = summary.assign(median=summary["median"].mask(slow, 90.0), low=np.nan)
    only = comparisons[comparisons["baseline_arm"] != "5a lmcache"]
    both, alone = (words(figures.topology_overview(far, frame)) for frame in (comparisons, only))
    assert "100" not in both[: both.index("TTFT, s")]
    assert "100" in alone[: alone.index("TTFT, s")]  # the axis reaches to the other one


def test_columns_of_one_topology_are_told_apart_by_their_arm(swept):
    summary, comparisons = swept
    nixl = summary[summary["arm"] == "1p4d lmcache"].assign(arm="1p4d nixl", connector="nixl")
    shown = words(figures.topology_overview(pd.concat([summary, nixl]), comparisons))
    assert {"1p4d lmcache", "1p4d nixl"} <= set(shown)


def test_several_models_stand_below_one_another(swept):
    chart = figures.topology_overview(*map(of_two_models, swept))
    shown = words(chart)
    found = "Store-warm TTFT is 15x faster than cold"
    assert [line for line in shown if found in line] == [f"small: {found}", f"large: {found}"]
    assert shown.count("TTFT, ms") == 2 and shown.count("1p4d") == 8
    assert chart.alt.count("TTFT and throughput by topology") == 2
    assert chart.caption == figures.topology_overview(*swept).caption  # once for both
    height = {name: svg_height(figures.topology_overview(*frames)) for name, frames in
              {"one": swept, "two": map(of_two_models, swept)}.items()}  # fmt: skip
    assert 2 * height["one"] < height["two"] < 2 * height["one"] + 40


def test_what_failed_of_one_model_marks_its_drawing_alone(swept):
    summary, comparisons = map(of_two_models, swept)
    failed = {"same text": ("large 1p4d lmcache",), "client kept up": ()}
    summary.attrs |= {"failed_gates": failed}
    shown = words(figures.topology_overview(summary, comparisons))
    assert [line for line in shown if "do not use" in line] == ["rough, do not use 1p4d lmcache"]
    assert shown.index("rough") < shown.index("rough, do not use 1p4d lmcache")


def test_ttft_of_ten_seconds_and_more_is_in_seconds(summary):
    slow = summary.assign(**{key: 10 * summary[key] for key in ("median", "low", "high")})
    assert "TTFT, s" in words(figures.topology_overview(slow, pd.DataFrame()))


@pytest.mark.parametrize(
    ("judged", "title"),
    [
        ({}, "Store-warm TTFT is 15x faster than cold"),
        (
            {"ratio": [12.0, 15.0, 1.0], "low": [9.0, 0.9, 0.9]},
            "Store-warm TTFT is 12x faster than cold",
        ),
        ({"ratio": 1.01, "low": 0.9, "high": 1.1}, "No significant difference between store-warm"),
        ({"low": np.nan, "high": np.nan}, "Too few rounds to compare store-warm with cold TTFT"),
        ({"ratio": 0.5, "low": 0.4, "high": 0.6}, "TTFT and throughput by topology"),
    ],
)
def test_the_title_says_what_the_intervals_allow(summary, comparisons, judged, title):
    assert title in text(figures.topology_overview(summary, comparisons.assign(**judged)))


def test_hollow_marks_are_explained_where_there_are_any(summary):
    bare = figures.topology_overview(summary.assign(low=None, high=np.nan), pd.DataFrame())
    assert "Hollow marker: no CI (too few requests or rounds)." in bare.caption
    assert "Hollow" not in figures.topology_overview(summary, pd.DataFrame()).caption


def test_ratios_stand_in_rows_with_their_verdict(comparisons):
    chart = figures.speedups(comparisons, "ttft_s")
    assert "not significant" in words(chart)
    assert "TTFT vs aggregated baseline: 1 of 1 not significant" in words(chart)
    assert "1p4d lmcache, cold, vs 5a lmcache: 0.970x [0.930, 1.02]" in chart.alt
    warm = words(figures.speedups(comparisons, "ttft_s", kind="cache-state"))
    assert warm.count("15.0x [14.0, 16.0]") == 2
    assert "not significant" not in warm


@pytest.mark.parametrize(
    ("judged", "title"),
    [
        (
            {"low": 0.4, "high": 0.6, "ratio": [0.5, 0.5, 0.5]},
            "vs aggregated baseline: 3 of 3 lower",
        ),
        ({"low": [1.1, 0.4, 0.9], "high": 2.0, "ratio": [1.5, 0.5, 1.0]}, "1 of 3 higher, 2 not"),
        ({"low": None, "high": None}, "too few rounds to judge"),
    ],
)
def test_the_title_counts_what_the_intervals_decide(comparisons, judged, title):
    rows = comparisons.assign(kind="opponent", metric="system_tps", **judged)
    assert title in text(figures.speedups(rows, "system_tps"))


def test_a_ratio_of_too_few_rounds_says_so(comparisons):
    chart = figures.speedups(comparisons.assign(low=None, high=None, n_rounds=1), "ttft_s")
    assert "too few rounds for a CI" in words(chart)
    assert "95 % CI (1 round," in chart.caption


def test_a_sweep_over_rates_has_no_empty_panel_of_ratios():
    nothing = pd.DataFrame()
    assert "aggregated baseline" in figures.speedups(nothing, "ttft_s", kind="opponent").alt
    nothing.attrs["swept"] = True
    assert figures.speedups(nothing, "ttft_s", kind="opponent") is None


def predicted(topology, metric, value):
    return {"topology": topology, "metric": metric, "value": value, "low": 0.9 * value,
            "high": 1.1 * value}  # fmt: skip


def test_predictions_stand_beside_what_was_measured(swept):
    numbers = [
        predicted("1p4d", "ttft_s", 2.0), predicted("1p4d", "system_tps", 150.0),
        predicted("2p4d", "ttft_s", 1.0), predicted("2p4d", "system_tps", 300.0),
        predicted("4p4d", "", float("nan")),  # refused
    ]  # fmt: skip
    chart = figures.topology_overview(*swept, pd.DataFrame(numbers))
    shown = words(chart)
    assert "cold, predicted" in shown and "2p4d" in shown
    assert "1p4d lmcache cold, predicted 2,000; 2p4d cold, predicted 1,000." in chart.alt
    assert "4p4d" not in chart.alt and "4p4d" not in shown
    assert shown.count("2p4d") == 2  # columns of TTFT and throughput: speed-ups are not predicted
    before = figures.topology_overview(*swept, pd.DataFrame([numbers[2], numbers[0]]))
    assert words(before).index("2p4d") < words(before).index("1p4d")  # in the order asked for
    assert "Thin, hollow marker: prediction with its 91 % prediction interval" in chart.caption
    assert "(30 requests in 5 rounds)" in chart.caption  # of what was measured
    plain = figures.topology_overview(*swept)
    nothing = figures.topology_overview(*swept, pd.DataFrame())
    assert plain.svg == nothing.svg and "predicted" not in plain.caption
