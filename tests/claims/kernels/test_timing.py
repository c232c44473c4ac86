import pytest

from workbench.claims.kernels import timing
from workbench.claims.kernels.timing import Arm, Clock, expected_s, falls

CPU = Clock(device="cpu")


def compare(**arms):
    return timing.compare(CPU, arms, quantity="time", cell="a")


@pytest.fixture
def work(monkeypatch):
    """Arms whose calls take given seconds of a clock of their own; `.calls` lists their names."""
    now = [0.0]
    calls = []
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])

    def arm(name, *seconds):
        left = list(seconds)

        def call():
            calls.append(name)
            now[0] += left.pop(0) if len(left) > 1 else left[0]

        return Arm(call=call)

    arm.calls = calls
    return arm


def test_warm_up_ends_when_three_windows_agree(work):
    pace = CPU.warm_up(work("cooling", 0.09, 0.03, 0.02, 0.015, 0.0101, 0.01))
    assert pace.steady and pace.count == 1
    assert len(work.calls) == 7  # the third of the 10 ms windows


def test_a_warm_up_that_never_settles_ends_and_says_so(work):
    wild = [0.01, 0.02] * 40
    assert not CPU.warm_up(work("wild", *wild)).steady
    assert len(work.calls) <= 2 + timing.WARM_UP_WINDOWS


def test_warm_up_calls_are_not_in_the_rows(work):
    rows = compare(cold=work("cold", 5.0, 0.01))
    assert {round(row["value"], 6) for row in rows} == {0.01}


def test_arms_take_turns_in_mirrored_order(work):
    rows = compare(a=work("a", 0.01), b=work("b", 0.02))
    order = sorted((row["order"], row["arm"]) for row in rows)
    assert [arm for _, arm in order] == ["a", "b", "b", "a", "a", "b", "b", "a"]


def test_long_calls_are_visited_twice_only(work):
    rows = compare(a=work("a", 0.2), b=work("b", 0.001))
    assert sum(row["arm"] == "a" for row in rows) == 2


def test_the_expected_time_is_about_what_a_comparison_takes(work):
    compare(a=work("a", 0.02), b=work("b", 0.01))
    spent_s = 0.02 * work.calls.count("a") + 0.01 * work.calls.count("b")
    assert expected_s([0.02, 0.01]) == pytest.approx(spent_s, rel=0.35)


def test_a_time_that_falls_while_work_grows_is_found():
    published_ms = [2.39, 0.57, 0.98, 2.1]  # naive, 128 to 1024 tokens, of the A800 document
    assert falls(published_ms) == [0]
    assert falls([1, 1, 2]) == []
