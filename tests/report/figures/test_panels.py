import pandas as pd
import pytest

from workbench.experiment.result.facts import PassTime
from workbench.report.figures import panels


@pytest.fixture
def recorded() -> pd.DataFrame:
    """Two panels of a run of 20 s with two passes; a third one has zeros only."""
    rows = [
        (title, unit, line, 1000.0 + at, value * at)
        for title, unit, line, value in (
            ("Prompt tokens by source", "tokens/s", "decode computed", 10.0),
            ("Prompt tokens by source", "tokens/s", "decode external hit", 100.0),
            ("lmcache: bytes held", "B", "held", 1e6),
            ("Preemptions", "requests/s", "decode", 0.0),
        )
        for at in range(0, 20, 2)
        if at != 10  # one scrape is missing
    ]
    frame = pd.DataFrame(rows, columns=["title", "unit", "line", "unix_s", "value"])
    frame = frame.assign(subject="any", rate_s=8.0)
    frame.attrs["pass_times"] = (
        PassTime(arm="1p1d", round=0, pass_name="cold", from_s=1000.0, to_s=1009.0),
        PassTime(arm="1p1d", round=0, pass_name="store-warm", from_s=1010.0, to_s=1019.5),
    )
    return frame


def test_each_panel_with_data_is_drawn_with_its_unit_and_lines(recorded):
    chart = panels(recorded)
    assert chart.alt.startswith("What Prometheus recorded: 2 panels. ")
    assert "decode external hit 1,800" in chart.alt
    assert "lmcache: bytes held, highest in MB: held 18" in chart.alt
    for text in ("Prompt tokens by source, tokens/s", "lmcache: bytes held, MB", "cold"):
        assert f">{text}<" in chart.svg


def test_what_is_zero_all_the_time_is_named_and_not_drawn(recorded):
    chart = panels(recorded)
    assert "Always zero: Preemptions." in chart.caption
    assert ">Preemptions" not in chart.svg


def test_a_sentence_stands_for_the_figure_where_every_line_is_zero(recorded):
    chart = panels(recorded.assign(value=0.0))
    assert "every line of every panel is zero" in chart.alt


def test_passes_shorter_than_a_rate_are_said_to_blur(recorded):
    assert "blur" not in panels(recorded).caption
    caption = panels(recorded.assign(rate_s=60.0)).caption
    assert "Rates and quantiles are computed over 60 s. The shortest pass took 9 s, so" in caption


def test_a_missing_scrape_is_a_gap_in_the_line(recorded):
    whole = recorded[recorded["line"] == "held"]
    before, after = whole[whole["unix_s"] < 1010], whole[whole["unix_s"] > 1010]

    def strokes(frame: pd.DataFrame) -> int:
        frame.attrs = recorded.attrs
        return panels(frame).svg.count("stroke:#0072b2")

    assert strokes(pd.concat([before, after])) > strokes(before)


def test_a_run_without_a_prometheus_has_no_figure():
    assert panels(pd.DataFrame()) is None
