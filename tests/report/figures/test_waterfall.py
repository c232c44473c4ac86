from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pandas as pd
import pytest

from tests.report.conftest import text, words
from workbench.metrics.waterfall.waterfall import PARTS
from workbench.report import figures
from workbench.report.figures import Chart


def split(
    arm: str, state: str, ttft_ms: tuple[float, ...], **shares: float
) -> list[dict[str, object]]:
    """Requests whose TTFT is divided by the shares given; 1 ms of each is residual."""
    return [
        {
            "arm": arm,
            "round": 0,
            "pass": state,
            "index": index,
            **dict.fromkeys(PARTS, 0.0),
            **{name: share * (ms - 1) / 1000 for name, share in shares.items()},
            "residual_s": 0.001,
            "ttft_s": ms / 1000,
            "note": "",
        }
        for index, ms in enumerate(ttft_ms)
    ]


@pytest.fixture
def waterfall() -> pd.DataFrame:
    """A split and an aggregated arm; cold is forty times as long as engine-warm."""
    return pd.DataFrame(
        split("1p1d nixl", "cold", (3001, 2501, 2001), prefill_compute_s=0.9, transfer_queue_s=0.1)
        + split("1p1d nixl", "engine-warm", (81, 71, 61), stream_s=0.6, decode_step_s=0.4)
        + split("2a", "cold", (2201, 2101, 2301), prefill_compute_s=1.0)
        + split("2a", "engine-warm", (41, 42, 43), stream_s=1.0)
    )


def bars(chart: Chart, colour: str) -> list[float]:
    """Widths in px of the bars of a colour, from the top."""
    found = []
    root = ElementTree.fromstring(chart.svg)
    above = {child: parent for parent in root.iter() for child in parent}
    for path in root.iter("{http://www.w3.org/2000/svg}path"):
        style = path.get("style") or above[path].get("style", "")
        corners = re.match(r"M(\S+) \S+H(\S+)V\S+H\1z$", path.get("d", ""))
        if corners and f"fill:{colour}" in style:
            found.append(float(corners[2]) - float(corners[1]))
    return found


def test_each_state_has_a_panel_with_the_median_and_the_slowest_request(waterfall):
    chart = figures.ttft_waterfall(waterfall)
    shown = words(chart)
    assert {
        "cold",
        "engine-warm",
        "time since the client sent the request, ms",
        "prefill compute",
        "KV transfer + decode queue",
        "untimed residual",
        "2,500 ms (1.00 ms)",
        "71.0 ms (1.00 ms)",
        "81.0 ms (1.00 ms)",
    } < set(shown)
    assert shown.count("1p1d nixl, median") == shown.count("2a, slowest") == 2
    assert "prefill queue" not in shown  # no bar has it
    assert "Prefill compute takes 90 % of cold TTFT (1p1d nixl)" in shown


def test_a_p99_that_would_be_the_clients_is_withheld_with_its_reason() -> None:
    many = pd.DataFrame(split("2a", "cold", tuple(range(2001, 2401)), prefill_compute_s=1.0))
    assert "2a, p99" in words(figures.ttft_waterfall(many))
    many.attrs["no_p99"] = "client did not keep up: requests were sent 0.5 s late (p99)"
    chart = figures.ttft_waterfall(many)
    assert "2a, p99" not in words(chart)
    assert "No slow request is shown: client did not keep up. On the right" in chart.caption


def test_bars_are_as_long_as_their_parts(waterfall):
    cold = waterfall[waterfall["pass"] == "cold"]
    *compute, _key = bars(figures.ttft_waterfall(cold), "#d55e00")
    # Split: median 2501 ms and slowest 3001 ms, nine tenths of each; aggregated: 2201 and 2301.
    assert len(compute) == 4
    per_ms = compute[0] / (0.9 * 2500)
    assert compute == pytest.approx(
        [per_ms * ms for ms in (2250, 2700, 2200, 2300)], rel=0.01, abs=0.5
    )


def test_the_panels_of_cold_and_warm_have_axes_of_their_own(waterfall):
    chart = figures.ttft_waterfall(waterfall)
    assert {"3000", "80"} <= set(words(chart))
    stream = bars(chart, "#9adbc5")
    assert max(stream) > 100  # 48 ms would be 5 px beside 3 s


def test_the_sample_and_its_tail_are_said(waterfall):
    assert figures.ttft_waterfall(waterfall).caption == (
        "Shown: the request with the median TTFT and the slowest request (a p99 needs 368"
        " requests). On the right: TTFT, and in brackets its untimed residual (hatched), mostly"
        " the hop from client to proxy."
    )
    many = pd.DataFrame(split("2a", "cold", tuple(range(100, 500)), prefill_compute_s=1.0))
    chart = figures.ttft_waterfall(many)
    assert "2a, p99" in words(chart)
    assert "and the p99 request. On the right" in chart.caption


def test_legs_that_were_sent_at_once_are_told(waterfall):
    waterfall["at_once"] = waterfall["arm"].eq("1p1d nixl")
    assert (
        ". 1p1d nixl: prefill and decode got the request at once and decode waited, so KV transfer"
        " + decode queue includes both API servers. On the right"
    ) in figures.ttft_waterfall(waterfall).caption


def test_what_is_not_split_is_left_out_and_counted(waterfall):
    unknown = waterfall["pass"] == "cold"
    waterfall.loc[unknown, [*PARTS, "residual_s"]] = math.nan
    waterfall.loc[unknown, "note"] = "the decode instance sent no timing"
    chart = figures.ttft_waterfall(waterfall)
    assert "cold" not in words(chart)
    assert chart.caption.endswith(
        "6 of 12 requests have no complete waterfall, because the decode instance sent no timing."
    )
    none = figures.ttft_waterfall(waterfall[unknown])
    assert "No data: 6 of 6 requests have no complete waterfall, because" in text(none)


def test_the_alternative_text_has_the_median_request_in_numbers(waterfall):
    alt = figures.ttft_waterfall(waterfall).alt
    assert (
        "1p1d nixl cold: prefill compute 2,250 ms, KV transfer + decode queue 250 ms, untimed"
        " residual 1.00 ms." in alt
    )
