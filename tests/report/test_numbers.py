from __future__ import annotations

from math import inf, nan

import pytest

from workbench.report.numbers import duration, interval, moment, number, quantity


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (18.1, "18.1"),
        (18.0, "18.0"),
        (0.97, "0.970"),
        (0.9996, "1.00"),
        (1.015, "1.01"),
        (3284.0, "3,280"),
        (22_660.0, "22,700"),
        (679_800, "679,800"),
        (0, "0"),
        (0.0, "0"),
        (-2.5, "-2.50"),
        (0.00123, "0.00123"),
        (0.0000123, "1.23e-05"),
    ],
)
def test_a_number_has_three_significant_digits_and_a_count_has_all(value: float, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize("value", [None, nan, inf])
def test_what_is_not_known_is_never_zero(value: float | None) -> None:
    assert number(value) == "unknown"
    assert quantity(value, "s") == "unknown"


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.2841, "s", "284 ms"),
        (9.99, "s", "9,990 ms"),
        (10.0, "s", "10.0 s"),
        (18.1, "x", "18.1x"),
        (2.6, "%", "2.60 %"),
        (5, "", "5"),
    ],
)
def test_times_are_milliseconds_below_ten_seconds(value: float, unit: str, text: str) -> None:
    assert quantity(value, unit) == text


def test_an_interval_has_the_unit_of_its_value() -> None:
    assert interval(16.9, 19.4, "x", 18.1) == "[16.9, 19.4]"
    assert interval(0.178, 0.198, "s", 0.187) == "[178, 198]"
    assert interval(9.5, 11.0, "s", 10.2) == "[9.50, 11.0]"
    assert interval(nan, 19.4, "x", 18.1) == interval(None, None, "x", 18.1) == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(45.4, "45 s"), (847.0, "14 min"), (4320.0, "1 h 12 min"), (None, ""), (nan, "")],
)
def test_duration(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_moment_names_its_time_zone_and_leaves_other_text_alone() -> None:
    assert moment("2026-11-20T11:02:13+00:00") == "2026-11-20 11:02 UTC"
    assert moment("2026-11-20T11:02:13+08:00") == "2026-11-20 11:02 UTC+08:00"
    assert moment("yesterday") == "yesterday"
    assert moment(None) == ""
