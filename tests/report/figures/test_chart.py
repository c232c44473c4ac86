"""What holds for every figure: it says what failed gates take, is offline, and reads well."""

import re
from importlib import resources
from itertools import combinations
from xml.etree import ElementTree

import matplotlib as mpl
import pandas as pd
import pytest
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.ft2font import LoadFlags

from tests.report.conftest import text, words
from workbench.report import figures
from workbench.report.figures.chart import Chart, draw
from workbench.report.figures.marks import RED, looks


def test_a_chart_shows_itself_with_its_description():
    data, metadata = Chart(svg="<svg/>", alt="what", caption="how")._repr_mimebundle_()
    assert data == {"image/svg+xml": "<svg/>", "text/plain": "what"}
    assert metadata == {"image/svg+xml": {"alt": "what", "caption": "how"}}


@pytest.mark.parametrize(
    "figure",
    [
        lambda empty: figures.topology_overview(empty, empty),
        lambda empty: figures.speedups(empty, "ttft_s"),
        figures.latency_panels,
        figures.ttft_against_cached_share,
        figures.hit_against_ideal,
        figures.requests_over_time,
        figures.token_sources,
        figures.hits_by_tier,
        figures.cost_of_storing,
        figures.break_even,
        figures.chunk_effect,
    ],
)
def test_no_data_is_a_sentence(figure):
    chart = figure(pd.DataFrame())
    assert "No data: " in text(chart)
    assert "No data: " in chart.alt


def test_one_arm_one_pass_one_request_is_enough(summary, requests):
    for chart in (
        figures.topology_overview(summary[:1], pd.DataFrame()),
        figures.latency_panels(requests[:1]),
        figures.requests_over_time(requests[:1]),
        figures.ttft_against_cached_share(requests[:1]),
    ):
        assert "No data" not in chart.alt


@pytest.mark.parametrize(
    ("gates", "shows", "badge", "said"),
    [
        (["KV moved", "same text"], ("times",), "do not use", "Times are not valid (do not use): "),
        (["client kept up"], ("times",), "rough", "Times are rough (order of magnitude only): "),
        (
            ["client kept up"],
            ("ratios",),
            "",
            "Use ratios with caution: client did not keep up (see doubts).",
        ),
        (["client kept up"], ("counts",), "", ""),
    ],
)
def test_a_failed_gate_takes_only_the_kinds_of_number_that_it_touches(gates, shows, badge, said):
    chart = draw(
        lambda figure: figure.subplots(2, 1),
        title="Found",
        body_px=200,
        alt="What.",
        keys=looks(["cold"]),
        shows=shows,
        attrs={"failed_gates": gates},
    )
    assert "Found" in words(chart)  # the reason stands in the caption, not in the title
    assert {"do not use", "rough"} & set(words(chart)) == ({badge} if badge else set())
    assert chart.alt.startswith(said) and chart.caption.startswith(said)
    assert bool(chart.caption) == bool(said)
    # both axes and the key
    assert chart.svg.count("grayscale") == (3 if badge == "do not use" else 0)


def test_a_gate_of_one_arm_names_it_and_greys_nothing():
    labels = ["1p1d", "1p1d nixl", "vs 1p1d nixl", "1p1d nixl, cold", "1p1d nixl2"]
    labels += ["2p2d, cold\nvs 1p1d nixl", "1p1d nixl, cold\nvs 2a"]
    axes = []

    def paint(figure):
        axes.append(figure.subplots())
        axes[0].set_yticks(range(7), labels)

    chart = draw(
        paint,
        title="Found",
        body_px=200,
        alt="What.",
        shows=["times"],
        attrs={"failed_gates": {"KV moved": ("1p1d nixl",), "client kept up": ()}},
    )
    assert {"rough", "do", "not", "use", "1p1d", "nixl"} <= {
        part.strip(",") for word in words(chart) for part in word.split()
    }
    assert "grayscale" not in chart.svg
    coloured = [label.get_color() == RED for label in axes[0].get_yticklabels()]
    assert coloured == [False, True, True, True, False, True, True]
    assert chart.caption == (
        "Times are rough (order of magnitude only): client did not keep up. 1p1d nixl: Times are"
        " not valid (do not use): KV was not transferred."
    )


def test_a_simulated_frame_marks_its_figures(comparisons):
    assert "simulated" not in words(figures.speedups(comparisons, "ttft_s"))
    comparisons.attrs["simulated"] = True
    assert "simulated" in words(figures.speedups(comparisons, "ttft_s"))


def test_no_text_is_clipped_or_overlaps_another(summary, comparisons, requests):
    long = {"arm": {"1p4d lmcache": "4p4d lmcache gpt-oss-120b tp4", "5a lmcache": "8a none"}}
    summary, comparisons = summary.replace(long), comparisons.replace(long)
    summary.attrs |= {"simulated": True, "failed_gates": ["client kept up"]}
    both = pd.concat([requests.assign(arm=arm) for arm in long["arm"].values()])
    eight = [summary.assign(arm=f"{n}p{n}d", topology=f"{n}p{n}d") for n in range(1, 9)]
    for chart in (
        figures.topology_overview(summary, comparisons),
        figures.topology_overview(pd.concat(eight), pd.DataFrame()),
        figures.speedups(comparisons, "ttft_s"),
        figures.latency_panels(both, note="a title of many words " * 12),
        figures.requests_over_time(both),
        figures.ttft_against_cached_share(both),
        figures.hit_against_ideal(requests.assign(ideal_tokens=requests["ideal_reuse_tokens"])),
    ):
        width = float(ElementTree.fromstring(chart.svg).attrib["width"])
        found = boxes(chart)
        assert [box for box in found if box[0] < -1 or box[1] > width + 1 or box[2] < -3] == []
        for a, b in combinations(found, 2):
            apart = a[1] <= b[0] or b[1] <= a[0] or a[3] <= b[2] or b[3] <= a[2]
            assert apart, (a, b)


def boxes(chart: Chart) -> list[tuple[float, float, float, float, str]]:
    """Left, right, top, bottom of every level text, in the font that it was laid out in."""
    found = []
    for node in ElementTree.fromstring(chart.svg).iter("{http://www.w3.org/2000/svg}text"):
        style = dict(part.split(":", 1) for part in node.attrib["style"].split(";"))
        line, moved = "".join(node.itertext()), node.get("transform", "")
        if "rotate(-90" in moved or not line.strip():
            continue
        place = re.search(r"translate\((\S+) (\S+)\)", moved)
        x, y = map(float, place.groups() if place else (node.attrib["x"], node.attrib["y"]))
        size = float(style["font-size"].removesuffix("px"))
        weight = int(style.get("font-weight", 400))
        font = get_font(findfont(FontProperties(family="DejaVu Sans", weight=weight)))
        font.set_size(size, 72)
        font.set_text(line, flags=LoadFlags.NO_HINTING)
        width = font.get_width_height()[0] / 64
        left = (
            x - {"start": 0, "middle": width / 2, "end": width}[style.get("text-anchor", "start")]
        )
        found.append((left, left + width, y - 0.7 * size, y, line))
    return found


def test_a_figure_is_the_same_each_time_and_offline_and_changes_no_style(requests):
    before = dict(mpl.rcParams)
    first, again = (figures.latency_panels(requests).svg for _ in range(2))
    assert first == again
    assert dict(mpl.rcParams) == before
    assert not re.findall(r"(?:href|src)=\"(?!#|data:)|url\((?!#)|@import|<style", first)


def test_a_dark_page_knows_our_drawings():
    chart = draw(lambda figure: figure.subplots(), title="Found", body_px=100, alt="What.")
    drawn_as = ElementTree.fromstring(chart.svg).attrib["class"]
    page = resources.files("workbench.report").joinpath("templates/page.css").read_text()
    assert f".drawing > .{drawn_as} {{ filter" in page


def test_names_that_share_a_figure_never_look_alike():
    names = ["cold", "store-warm", *(f"other {n}" for n in range(18))]
    found = looks(names)
    assert len({(look.colour, look.marker) for look in found.values()}) == len(names)
    assert found["cold"] == looks(["cold"])["cold"]
