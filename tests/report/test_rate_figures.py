import pandas as pd
import pytest

from workbench.report.figures import cache_size, rates, speedups


@pytest.fixture
def swept() -> pd.DataFrame:
    row = {"arm": "1p1d", "share": 1.0, "ttft_s": 0.02, "ttft_low_s": 0.018, "ttft_high_s": 0.03}
    rows = [
        row | {"offered_per_s": 2.0, "achieved_per_s": 2.0, "goodput_per_s": 2.0},
        row | {"offered_per_s": 8.0, "achieved_per_s": 5.0, "goodput_per_s": 1.0, "share": 0.2},
    ]
    return pd.DataFrame(rows)


def test_rates_say_what_was_achieved_of_what_was_offered(swept: pd.DataFrame) -> None:
    chart = rates(swept)
    assert chart is not None
    assert "Answers end at 5 a second at most (1p1d, with 8 offered)" in chart.alt
    assert "1p1d at 8/s: TTFT 20.0 ms, 5 achieved, 20% within the limits" in chart.alt


def test_answers_that_keep_up_have_shown_no_end(swept: pd.DataFrame) -> None:
    chart = rates(swept[:1])
    assert chart is not None
    assert chart.alt.startswith("Answers keep up with 2 requests a second (1p1d)")


def test_without_limits_there_is_no_goodput(swept: pd.DataFrame) -> None:
    with_limits = rates(swept)
    swept.attrs["limited"] = False
    without = rates(swept)
    assert with_limits is not None and "goodput" in with_limits.caption
    assert without is not None and "goodput" not in without.caption
    assert "within the limits" not in without.alt


def test_a_sweep_over_rates_has_no_empty_panel_of_ratios() -> None:
    nothing = pd.DataFrame()
    chart = speedups(nothing, "ttft_s", kind="opponent")
    assert chart is not None and "beside as many aggregated instances" in chart.alt
    nothing.attrs["swept"] = True
    assert speedups(nothing, "ttft_s", kind="opponent") is None


def test_rates_at_which_nothing_ended_can_be_drawn(swept: pd.DataFrame) -> None:
    nothing = swept.assign(achieved_per_s=float("nan"), goodput_per_s=0.0, ttft_s=float("nan"))
    chart = rates(nothing)
    assert chart is not None and "not known" in chart.alt


def test_without_rates_or_sharing_there_is_no_figure(swept: pd.DataFrame) -> None:
    assert rates(swept.iloc[:0]) is None
    assert cache_size(pd.DataFrame({"cache_tokens": [], "hit_rate": []})) is None


def test_the_cache_that_is_enough_is_the_title() -> None:
    frame = pd.DataFrame({"cache_tokens": [128, 1280, 12_800], "hit_rate": [0.1, 0.78, 0.8]})
    frame.attrs |= {"ideal_reuse": 0.85, "requests": 40, "block_tokens": 128, "workload": "batch"}
    chart = cache_size(frame)
    assert chart is not None
    assert chart.alt.endswith(
        "One cache of 1280 tokens could serve 78% of the prompt tokens of batch."
    )
