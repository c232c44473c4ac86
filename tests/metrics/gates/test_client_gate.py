import pytest

from workbench.metrics.gates.client_gate import client_kept_up, clock_not_set

WELL = {"loop_lag_p99_s": 0.001, "loop_lag_max_s": 0.001, "thread_cpu_share": 0.1}


@pytest.mark.parametrize(
    ("health", "outcome", "said"),
    [
        (WELL, "PASS", "its busiest thread used 10% of a core"),
        (WELL | {"thread_cpu_share": 0.9}, "FAIL", "90% of a core (limit 60%)"),
        (WELL | {"lateness_p99_s": 0.02}, "FAIL", "0.0200 s late (p99, limit 0.01 s)"),
        (WELL | {"loop_lag_p99_s": 0.02}, "FAIL", "loop ran 0.0200 s late (p99, limit 0.01 s)"),
        (
            WELL | {"others_cpu_share": 0.6},
            "FAIL",
            "other programs used 60% of the CPU (limit 25%)",
        ),
        (
            WELL | {"others_cpu_share": 0.3},
            "INCONCLUSIVE",
            "(limit 25%): they may explain the slowest",
        ),
        (WELL | {"merged_share": 0.2, "loop_lag_p99_s": 0.02}, "FAIL", "20.00% of token arrivals"),
        (WELL | {"merged_share": 0.2}, "INCONCLUSIVE", "or the server or its proxy sent them"),
        (WELL | {"merged_share": 0.02}, "INCONCLUSIVE", "2.00% of token arrivals"),
        (
            WELL | {"loop_lag_p99_s": 0.02, "kernel_stamped_share": 1.0},
            "INCONCLUSIVE",
            "the kernel dated every read all the same",
        ),
        (WELL | {"merged_share": 0.005}, "PASS", "0.50% of token arrivals were merged"),
        (
            WELL | {"loop_lag_max_s": 0.2},
            "INCONCLUSIVE",
            "the client's event loop was once 0.2000 s late (limit 0.05 s)",
        ),
        ({}, "INCONCLUSIVE", "the client's health was not read"),
    ],
)
def test_a_client_that_was_in_the_way_is_not_hidden(health, outcome, said):
    gate = client_kept_up(health)
    assert gate.outcome == outcome
    assert said in gate.sentence


def test_a_clock_that_was_set_fails_a_gate_of_its_own():
    dated = {"kernel_stamped_share": 1.0, "clock_moved_s": 0.0}
    assert clock_not_set({}) is None
    assert clock_not_set({"clock_moved_s": 0.0}) is None  # the kernel dated nothing
    gates = [clock_not_set(dated | {"clock_moved_s": moved_s}) for moved_s in (0.0005, 0.5)]
    assert [gate and gate.outcome for gate in gates] == ["PASS", "FAIL"]
    assert gates[1] and "set by 0.5000 s" in gates[1].sentence


def test_only_others_that_were_there_are_to_be_ended():
    late = WELL | {"lateness_p99_s": 0.02, "others_cpu_share": 0.01}
    assert "cores that the servers leave free" in client_kept_up(late).next_step
    crowded = late | {"others_cpu_share": 0.6}
    assert "end other programs" in client_kept_up(crowded).next_step


def test_every_limit_that_was_passed_is_told_and_what_to_do_next():
    gate = client_kept_up(WELL | {"thread_cpu_share": 0.9, "lateness_p99_s": 1.0})
    assert "late (p99, limit" in gate.sentence
    assert "90% of a core" in gate.sentence
    assert "client_workers 2" in gate.next_step
    busy = {"thread_cpu_share": 0.9, "workers": 3.0}
    assert "client_workers 4" in client_kept_up(busy, most_workers=4).next_step
    assert "client_workers" not in client_kept_up(busy, most_workers=3).next_step
    assert "client_workers" not in client_kept_up({"lateness_p99_s": 1.0}).next_step
