"""Quiet or busy: from the CPU of other programs and from timers, and never green without either."""

from math import nan

import pytest

from workbench.experiment.run.quiet import Quiet, quietness, timing_gates, watch_machine
from workbench.metrics.gates.gate_table import gate_row


@pytest.mark.parametrize(
    ("others", "lag_s", "answer"),
    [
        (0.03, 0.0004, "quiet"),
        (0.25, 0.01, "quiet"),  # as much as is allowed
        (0.51, 0.0004, "busy"),
        (0.03, 0.011, "busy"),
        (nan, 0.0004, "not known"),
        (0.03, nan, "not known"),
        (nan, 0.5, "busy"),
    ],
)
def test_what_was_seen_is_quiet_busy_or_not_known(others, lag_s, answer):
    assert quietness(timing_gates(Quiet(others_cpu_share=others, loop_lag_p99_s=lag_s))) == answer


def test_without_a_check_nothing_is_known():
    assert quietness([]) == "not known"


def test_a_busy_machine_is_told_with_its_numbers():
    others, lag = timing_gates(Quiet(others_cpu_share=0.51, loop_lag_p99_s=0.0312))
    assert others.sentence == "Other programs use 51% of the CPU (limit 25%)"
    assert lag.sentence == "A timer fires 31.2 ms late (p99, limit 10 ms)"


@pytest.mark.parametrize("name", ["other programs", "loop lag"])
def test_it_takes_what_a_late_client_takes_and_no_count(name):
    assert gate_row(name).takes == gate_row("client kept up").takes
    assert "counts" not in gate_row(name).takes


async def test_this_machine_can_be_watched():
    seen = await watch_machine(0.15)
    assert 0 <= seen.others_cpu_share <= 1
    assert seen.loop_lag_p99_s > 0
