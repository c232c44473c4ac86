"""Progress is counted in passes; the time left is told from passes that have been measured here."""

from math import isnan, nan

import pytest

from workbench.experiment.run.progress import ANY_LOAD, Progress, Standing, read_standing, spell_s


class Clock:
    now_s = 100.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def two_arms(clock):
    """Two rounds of two arms with a cold and a warm pass each: eight passes."""
    passes = [(n, arm, name) for n in (0, 1) for arm in "ab" for name in ("cold", "warm")]
    return Progress(passes, planned_s=300.0, clock=clock)


def measure(progress, clock, number, arm, *, cold_s, warm_s):
    for name, took_s in (("cold", cold_s), ("warm", warm_s)):
        clock.now_s += took_s
        standing = progress.pass_ended(number, arm, name)
    progress.launch_ended(number, arm)
    return standing


def test_before_the_first_launch_has_ended_the_plan_says_what_is_left(two_arms, clock):
    assert two_arms.standing == Standing(done=0, total=8, elapsed_s=0.0, left_s=300.0)
    clock.now_s += 30
    assert two_arms.pass_ended(0, "a", "cold").left_s == 270.0


@pytest.mark.parametrize(
    ("planned_s", "once_s", "said"),
    [
        (300.0, 0.0, "will take about 6:40 instead of 5:00."),
        (300.0, 60.0, ""),  # what is loaded once is expected of no later launch
        (390.0, 0.0, ""),
        (nan, 0.0, ""),
    ],
)
def test_a_first_launch_that_shows_another_duration_is_told_once(
    planned_s, once_s, said, two_arms, clock
):
    two_arms.planned_s, two_arms.once_s = planned_s, once_s
    measure(two_arms, clock, 0, "a", cold_s=90, warm_s=10)
    assert two_arms.standing.left_s == 3 * (90 - once_s + 10)
    assert two_arms.replanned.endswith(said) and bool(two_arms.replanned) == bool(said)
    measure(two_arms, clock, 0, "b", cold_s=90, warm_s=10)
    assert two_arms.replanned == ""


def test_then_passes_of_this_machine_say_it(two_arms, clock):
    measure(two_arms, clock, 0, "a", cold_s=20, warm_s=2)
    # Arm b has not run: its passes are taken to be as long as those of a.
    assert two_arms.standing == Standing(done=2, total=8, elapsed_s=22.0, left_s=3 * 22.0)
    measure(two_arms, clock, 0, "b", cold_s=40, warm_s=4)
    assert two_arms.standing.left_s == 22.0 + 44.0
    measure(two_arms, clock, 1, "b", cold_s=44, warm_s=4)
    measure(two_arms, clock, 1, "a", cold_s=20, warm_s=2)
    assert two_arms.standing == Standing(done=8, total=8, elapsed_s=136.0, left_s=0.0)


def test_what_a_plan_cannot_tell_is_said_to_be_unknown(clock):
    progress = Progress([(0, "a", "cold")], planned_s=nan, clock=clock)
    assert isnan(progress.standing.left_s)
    assert str(progress.standing) == "[0/1 passes, 0:00 elapsed, no estimate yet]"


def test_a_plan_that_was_overrun_is_believed_no_longer(two_arms, clock):
    clock.now_s += 301
    assert isnan(two_arms.standing.left_s)


def test_a_launch_that_ended_early_or_was_left_out_waits_for_nothing(two_arms):
    two_arms.pass_ended(0, "a", "cold")
    two_arms.launch_ended(0, "a")  # its server ended by itself
    assert two_arms.standing.total == 7
    two_arms.launch_ended(0, "b", left_out=True)  # in this round and all others
    assert two_arms.standing.total == 3


def test_a_search_is_expected_to_try_some_rates_and_may_try_more_or_less(clock):
    progress = Progress([(0, "a", ANY_LOAD)] * 3 + [(0, "b", ANY_LOAD)] * 3, clock=clock)
    for rate in (1, 2, 4, 8):
        standing = progress.pass_ended(0, "a", f"cold at {rate}/s")
    assert (standing.done, standing.total) == (4, 7)
    progress.pass_ended(0, "b", "cold at 1/s")
    progress.launch_ended(0, "b")
    assert (progress.standing.done, progress.standing.total) == (5, 5)


@pytest.mark.parametrize("left_s", [0.0, 250.0, 3_723.0, nan])
def test_a_printed_line_can_be_read_back(left_s):
    standing = Standing(done=4, total=36, elapsed_s=31.0, left_s=left_s)
    line, read = read_standing(f"round 1/3  1p4d lmcache  cold  TTFT 4400 ms  {standing}")
    assert line == "round 1/3  1p4d lmcache  cold  TTFT 4400 ms"
    assert read is not None
    assert (read.done, read.total, read.elapsed_s, read.unit) == (4, 36, 31.0, "passes")
    assert read.left_s == left_s or isnan(left_s)


@pytest.mark.parametrize("line", ["", "[1/2]", "success after 4 s", "a [1/2 passes] line"])
def test_other_lines_say_nothing_of_it(line):
    assert read_standing(line) == (line, None)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (59.6, "1:00"), (245, "4:05"), (3_723, "1:02:03"), (-3, "0:00"), (nan, "")],
)
def test_a_time_is_spelled_as_on_a_clock(seconds, text):
    assert spell_s(seconds) == text
