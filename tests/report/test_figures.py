from __future__ import annotations

import re
from collections.abc import Callable
from itertools import combinations
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath

from workbench.report import figures
from workbench.report.figures import Chart
from workbench.report.figures.series import sampled


def words(chart: Chart) -> list[str]:
    """Every text of a figure; parsing it proves that the SVG is well formed."""
    root = ElementTree.fromstring(chart.svg)
    return ["".join(node.itertext()).strip() for node in root.iter() if node.tag.endswith("}text")]


def test_a_chart_shows_itself_with_its_description() -> None:
    data, metadata = Chart(svg="<svg/>", alt="what", caption="how")._repr_mimebundle_()
    assert data == {"image/svg+xml": "<svg/>", "text/plain": "what"}
    assert metadata == {"image/svg+xml": {"alt": "what", "caption": "how"}}


def test_ttft_has_arms_states_unit_and_speed_up(
    summary: pd.DataFrame, comparisons: pd.DataFrame
) -> None:
    chart = figures.ttft_by_topology(summary, comparisons)
    shown = words(chart)
    assert shown.count("15.0x [14.0, 16.0]") == 2
    for text in (
        "TTFT is 15.0 times lower store-warm than cold",
        "1p4d lmcache",
        "5a lmcache",
        "cold",
        "engine-warm",
        "store-warm speed-up",
        "TTFT, ms (log scale)",
    ):
        assert text in shown
    assert "1p4d lmcache store-warm 200 ms" in chart.alt
    assert chart.caption == (
        "Median and 95 % interval of 30 requests in 5 rounds per arm and cache state."
    )


def test_ttft_of_ten_seconds_and_more_is_in_seconds(summary: pd.DataFrame) -> None:
    slow = summary.assign(**{key: 10 * summary[key] for key in ("median", "low", "high")})
    assert "TTFT, s (log scale)" in words(figures.ttft_by_topology(slow, pd.DataFrame()))


def test_an_undecided_speed_up_is_not_a_finding(
    summary: pd.DataFrame, comparisons: pd.DataFrame
) -> None:
    undecided = comparisons.assign(ratio=1.01, low=0.9, high=1.1)
    chart = figures.ttft_by_topology(summary, undecided)
    assert "TTFT: no difference detectable between cold and store-warm" in words(chart)
    mixed = comparisons.assign(low=[0.9, 14, 0.9])
    chart = figures.ttft_by_topology(summary, mixed)
    assert "TTFT is 15.0 times lower store-warm than cold in 1 of 2 arms" in words(chart)


def test_without_an_interval_the_dot_is_hollow_and_the_caption_says_why(
    summary: pd.DataFrame, comparisons: pd.DataFrame
) -> None:
    bare = summary.assign(low=None, high=np.nan)
    chart = figures.ttft_by_topology(bare, comparisons.assign(low=np.nan, high=np.nan))
    assert "Hollow: too few requests for an interval." in chart.caption
    assert "TTFT cold and store-warm: too few rounds to judge a difference" in words(chart)
    assert "15.0x" in words(chart)


def test_tps_starts_at_zero_and_names_both_ends(summary: pd.DataFrame) -> None:
    summary.loc[summary["pass"] == "cold", "median"] = 30.0
    chart = figures.tps_by_topology(summary)
    shown = words(chart)
    assert "0" in shown
    assert any(
        text.startswith("TPS per request is from 30.0 (1p4d lmcache, cold)") for text in shown
    )
    system = words(figures.tps_by_topology(summary, metric="system_tps"))
    assert "output tokens per second of all requests together" in system


def test_a_ratio_whose_interval_holds_one_is_no_difference(comparisons: pd.DataFrame) -> None:
    chart = figures.speedups(comparisons, "ttft_s")
    shown = words(chart)
    assert shown.count("no difference detectable") == 1
    assert "TTFT differs detectably in 2 of 3 comparisons" in shown
    assert "1p4d lmcache, cold, against 5a lmcache: 0.970x [0.930, 1.02]" in chart.alt
    assert "no difference detectable" not in words(
        figures.speedups(comparisons, "ttft_s", kind="cache-state")
    )


def test_a_ratio_of_too_few_rounds_says_so(comparisons: pd.DataFrame) -> None:
    chart = figures.speedups(comparisons.assign(low=None, high=None, n_rounds=1), "ttft_s")
    assert words(chart).count("too few rounds for an interval") == 3
    assert "TTFT: too few rounds to judge 3 comparisons" in words(chart)
    assert "over 1 round," in chart.caption


def test_the_four_panels_have_units_and_count_the_failed(requests: pd.DataFrame) -> None:
    chart = figures.latency_panels(requests)
    shown = words(chart)
    for text in (
        "TTFT, ms (log scale)",
        "TPS, tokens per second of a request",
        "E2E, ms (log scale)",
        "output length, tokens",
        "share of requests at or below",
        "off",
        "cold",
        "warm",
    ):
        assert text in shown
    assert chart.caption == "Requests: 23 off, 24 cold, 24 warm. 1 failed, not drawn."


def test_an_answer_of_one_read_does_not_hide_the_rates_of_the_others(
    requests: pd.DataFrame,
) -> None:
    assert "TPS, tokens per second of a request (log scale)" not in words(
        figures.latency_panels(requests)
    )
    burst = requests.assign(request_tps=[700_000.0, *requests["request_tps"][1:]])
    assert "TPS, tokens per second of a request (log scale)" in words(figures.latency_panels(burst))


def test_lines_are_told_apart_by_arm_where_there_are_several(requests: pd.DataFrame) -> None:
    both = pd.concat([requests, requests.assign(arm="2a none")])
    shown = words(figures.latency_panels(both))
    assert "1a none, cold" in shown
    assert "2a none, warm" in shown


def test_cached_share_gives_the_medians_at_both_ends(requests: pd.DataFrame) -> None:
    chart = figures.ttft_against_cached_share(requests)
    assert re.search(r"\d+ ms with at most 20 % of the prompt cached, 1\d\d ms with", chart.alt)
    assert "cached share of the prompt, %" in words(chart)


def test_hits_are_a_share_of_the_ideal() -> None:
    frame = pd.DataFrame(
        {
            "prompt_tokens": 2048,
            "cached_tokens": [0, 1000, 1000],
            "ideal_tokens": [0, 1250, 1250],
            "pass": ["cold", "warm", "warm"],
        }
    )
    chart = figures.hit_against_ideal(frame)
    assert "Hits are 80.0 % of the ideal reuse: 2,000 of 2,500 tokens" in words(chart)
    assert "up to 2" in chart.caption
    no_reuse = figures.hit_against_ideal(frame[:1])
    assert "0 tokens came from a cache, where no prompt repeats another" in words(no_reuse)


def test_a_slow_start_of_a_pass_is_called_a_warm_up(requests: pd.DataFrame) -> None:
    off = requests[requests["pass"] == "off"]
    assert "No warm-up seen" in figures.requests_over_time(off).alt
    slow = off.assign(ttft_s=off["ttft_s"].where(off["index"] > 4, 4 * off["ttft_s"]))
    assert "Warm-up in off: the first 5 requests have" in figures.requests_over_time(slow).alt
    assert "too short to see a warm-up" in figures.requests_over_time(off[:10]).alt


@pytest.mark.parametrize(
    "figure",
    [
        lambda empty: figures.ttft_by_topology(empty, empty),
        figures.tps_by_topology,
        lambda empty: figures.speedups(empty, "ttft_s"),
        figures.latency_panels,
        figures.ttft_against_cached_share,
        figures.hit_against_ideal,
        figures.requests_over_time,
    ],
)
def test_no_data_is_a_sentence(figure: Callable[[pd.DataFrame], Chart]) -> None:
    chart = figure(pd.DataFrame())
    assert any(text.startswith("No data: ") for text in words(chart))
    assert "No data: " in chart.alt


def test_no_data_names_the_most_frequent_error(requests: pd.DataFrame) -> None:
    failed = requests.assign(error="timeout", ttft_s=np.nan, e2e_s=np.nan)
    assert "none of 72 requests has this value; the most frequent error is timeout." in (
        figures.latency_panels(failed).alt
    )
    silent = requests.assign(cached_tokens=-1)
    assert "the server did not say" in figures.ttft_against_cached_share(silent).alt


def test_one_arm_one_pass_one_request_is_enough(
    summary: pd.DataFrame, requests: pd.DataFrame
) -> None:
    for chart in (
        figures.ttft_by_topology(summary[:1], pd.DataFrame()),
        figures.tps_by_topology(summary[1:2]),
        figures.latency_panels(requests[:1]),
        figures.requests_over_time(requests[:1]),
        figures.ttft_against_cached_share(requests[:1]),
    ):
        assert words(chart)
        assert "No data" not in chart.alt


def test_a_failed_gate_greys_the_figure_and_is_in_its_title(summary: pd.DataFrame) -> None:
    proven = figures.tps_by_topology(summary)
    summary.attrs["failed_gates"] = ["KV moved", "same text"]
    spoiled = figures.tps_by_topology(summary)
    assert "Not proven: gates “KV moved” and 1 more failed." in " ".join(words(spoiled))
    assert spoiled.alt.startswith("Not proven: gates “KV moved” and 1 more failed. ")
    assert "grayscale" in spoiled.svg and "grayscale" not in proven.svg
    drawn = re.findall(r'<g [^>]*id="axes_[^>]*>', spoiled.svg)
    assert any("axes_key" in group for group in drawn)
    assert all("grayscale" in group for group in drawn)


def test_a_busy_machine_greys_no_figure(summary: pd.DataFrame, comparisons: pd.DataFrame) -> None:
    sources = pd.DataFrame(
        {"arm": "1a", "pass": "cold", "role": "aggregated", "round": 0, "sent": 9, "computed": 9.0,
         "engine_hit": 0.0, "external_hit": 0.0}, index=[0],
    )  # fmt: skip
    said = "gate “client kept up” failed."
    for frame in (summary, comparisons, sources):
        frame.attrs["failed_gates"] = ["client kept up"]
    times = figures.tps_by_topology(summary)
    ratios = figures.speedups(comparisons, "ttft_s", kind="cache-state")
    counts = figures.token_sources(sources)
    assert f"Rough: {said}" in " ".join(words(times))
    assert said not in " ".join(words(ratios)) and f"Doubtful: {said}" in ratios.caption
    assert said not in counts.alt + counts.caption
    assert not any("grayscale" in chart.svg for chart in (times, ratios, counts))


def test_a_simulated_frame_marks_its_figures(requests: pd.DataFrame, summary: pd.DataFrame) -> None:
    assert "simulated" not in words(figures.latency_panels(requests))
    requests.attrs["simulated"] = summary.attrs["simulated"] = True
    for chart in (
        figures.latency_panels(requests),
        figures.requests_over_time(requests),
        figures.tps_by_topology(summary),
    ):
        assert "simulated" in words(chart)


def test_no_text_is_clipped_or_overlaps_another(
    summary: pd.DataFrame, comparisons: pd.DataFrame, requests: pd.DataFrame
) -> None:
    long = {"arm": {"1p4d lmcache": "4p4d lmcache gpt-oss-120b tp4", "5a lmcache": "8a none"}}
    summary, comparisons = summary.replace(long), comparisons.replace(long)
    both = pd.concat([requests.assign(arm=arm) for arm in long["arm"].values()])
    for chart in (
        figures.ttft_by_topology(summary, comparisons, title="a title of many words " * 12),
        figures.tps_by_topology(summary),
        figures.speedups(comparisons, "ttft_s"),
        figures.latency_panels(both),
        figures.requests_over_time(both),
        figures.ttft_against_cached_share(both),
        figures.hit_against_ideal(requests.assign(ideal_tokens=requests["ideal_reuse_tokens"])),
    ):
        width = float(ElementTree.fromstring(chart.svg).attrib["width"])
        found = boxes(chart)
        assert [box for box in found if box[0] < -1 or box[1] > width + 1] == []
        for a, b in combinations(found, 2):
            apart = a[1] <= b[0] or b[1] <= a[0] or a[3] <= b[2] or b[3] <= a[2]
            assert apart, (a, b)


def boxes(chart: Chart) -> list[tuple[float, float, float, float, str]]:
    """Left, right, top, bottom of every level text, in the font that it was laid out in."""
    found = []
    for node in ElementTree.fromstring(chart.svg).iter("{http://www.w3.org/2000/svg}text"):
        style = dict(part.split(": ", 1) for part in node.attrib["style"].split("; "))
        text, moved = "".join(node.itertext()), node.get("transform", "")
        if "rotate(-90" in moved or not text.strip():
            continue
        place = re.search(r"translate\((\S+) (\S+)\)", moved)
        x, y = map(float, place.groups() if place else (node.attrib["x"], node.attrib["y"]))
        size = float(style["font-size"].removesuffix("px"))
        font = FontProperties(
            family="DejaVu Sans", size=size, weight=int(style.get("font-weight", 400))
        )
        width = TextPath((0, 0), text, prop=font).get_extents().width
        left = (
            x - {"start": 0, "middle": width / 2, "end": width}[style.get("text-anchor", "start")]
        )
        found.append((left, left + width, y - 0.7 * size, y, text))
    return found


@pytest.fixture(scope="module")
def many() -> pd.DataFrame:
    """200,000 requests of two cache states, one of them rare."""
    draw, n = np.random.default_rng(0), 200_000
    prompt = draw.integers(500, 30_000, n)
    return pd.DataFrame(
        {
            "arm": "1p4d",
            "round": 0,
            "pass": np.where(np.arange(n) < 100, "warm", "cold"),
            "error": "",
            "sent_s": np.arange(n) * 0.01,
            "ttft_s": draw.lognormal(-2, 0.7, n),
            "request_tps": draw.normal(80, 5, n),
            "e2e_s": draw.lognormal(0, 0.4, n),
            "output_tokens": draw.integers(1, 500, n),
            "prompt_tokens": prompt,
            "cached_tokens": (prompt * draw.random(n)).astype(int),
            "ideal_tokens": prompt,
        }
    )


@pytest.mark.parametrize(
    ("figure", "sentence"),
    [
        (figures.latency_panels, "Each line goes through 250 of its requests."),
        (figures.requests_over_time, "Drawn: a sample of 852 of 200,000 requests, the extremes in"),
        (
            figures.ttft_against_cached_share,
            "Drawn: a sample of 852 of 200,000 requests, the extremes in",
        ),
        (figures.hit_against_ideal, "Drawn: token counts rounded to 1,200."),
    ],
)
def test_many_requests_are_drawn_from_reduced_data_and_the_caption_says_so(
    many: pd.DataFrame, figure: Callable[[pd.DataFrame], Chart], sentence: str
) -> None:
    chart = figure(many)
    assert sentence in chart.caption
    assert "199,900 cold" in chart.caption  # what is counted and said rests on all of them
    assert len(chart.svg) < 200_000
    few = figure(many[:300:3])
    assert "sample" not in few.caption and "rounded" not in few.caption and "250" not in few.caption


def test_a_sample_keeps_the_extremes_and_the_rare_state(many: pd.DataFrame) -> None:
    shown, _ = sampled(many, "ttft_s")
    assert {many["ttft_s"].idxmax(), many["ttft_s"].idxmin()} <= set(shown.index)
    assert shown["pass"].value_counts()["warm"] == 100
    assert shown.equals(sampled(many, "ttft_s")[0])


def test_a_figure_is_the_same_each_time_small_and_offline(requests: pd.DataFrame) -> None:
    first, again = (figures.latency_panels(requests).svg for _ in range(2))
    assert first == again
    many = pd.concat([requests] * 100)
    assert len(figures.requests_over_time(many).svg) < 200_000
    assert len(figures.latency_panels(many).svg) < 200_000
    loads = re.findall(r"(?:href|src)=\"(?!#|data:)|url\((?!#)|@import", first)
    assert not loads


def test_drawing_changes_no_style(requests: pd.DataFrame) -> None:
    before = dict(mpl.rcParams)
    figures.latency_panels(requests)
    assert dict(mpl.rcParams) == before
