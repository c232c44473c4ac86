import pytest

from workbench.metrics.client_gate import client_kept_up

WELL = {"loop_lag_p99_s": 0.001, "loop_lag_max_s": 0.001, "thread_cpu_share": 0.1}


@pytest.mark.parametrize(
    ("health", "outcome", "said"),
    [
        (WELL, "PASS", "its busiest thread took 10% of a core"),
        (WELL | {"thread_cpu_share": 0.9}, "FAIL", "90% of a core, where 60% is allowed"),
        (WELL | {"lateness_p99_s": 0.02}, "FAIL", "0.0200 s late (p99), where 0.01 s is allowed"),
        (WELL | {"loop_lag_p99_s": 0.02}, "FAIL", "loop came 0.0200 s late (p99)"),
        (WELL | {"others_cpu_share": 0.6}, "FAIL", "other programs took 60% of the machine's"),
        (WELL | {"others_cpu_share": 0.3}, "INCONCLUSIVE", "where 25% is allowed: the slowest"),
        (WELL | {"clock_moved_s": 0.5}, "FAIL", "the time of day was set by 0.5000 s"),
        (WELL | {"merged_share": 0.2, "loop_lag_p99_s": 0.02}, "FAIL", "20.00% of the gaps"),
        (WELL | {"merged_share": 0.2}, "INCONCLUSIVE", "or the server or its proxy sent them"),
        (WELL | {"merged_share": 0.02}, "INCONCLUSIVE", "2.00% of the gaps"),
        (
            WELL | {"loop_lag_p99_s": 0.02, "kernel_stamped_share": 1.0},
            "INCONCLUSIVE",
            "reads were dated by the kernel all the same",
        ),
        (WELL | {"merged_share": 0.005}, "PASS", "0.50% of the gaps between chunks are nothing"),
        (WELL | {"loop_lag_max_s": 0.2}, "INCONCLUSIVE", "kept waiting for more than 0.05 s once"),
        ({}, "INCONCLUSIVE", "the client's health was not read"),
    ],
)
def test_a_client_that_was_in_the_way_is_not_hidden(health, outcome, said):
    gate = client_kept_up(health)
    assert gate.outcome == outcome
    assert said in gate.sentence


def test_only_others_that_were_there_are_to_be_ended():
    late = WELL | {"lateness_p99_s": 0.02, "others_cpu_share": 0.01}
    assert "cores that the servers leave free" in client_kept_up(late).next_step
    crowded = late | {"others_cpu_share": 0.6}
    assert "end other programs" in client_kept_up(crowded).next_step


def test_every_limit_that_was_passed_is_told_and_what_to_do_next():
    gate = client_kept_up(WELL | {"thread_cpu_share": 0.9, "lateness_p99_s": 1.0})
    assert "late (p99)" in gate.sentence
    assert "90% of a core" in gate.sentence
    assert "client_workers 2" in gate.next_step
    busy = {"thread_cpu_share": 0.9, "workers": 3.0}
    assert "client_workers 4" in client_kept_up(busy, most_workers=4).next_step
    assert "client_workers" not in client_kept_up(busy, most_workers=3).next_step
    assert "client_workers" not in client_kept_up({"lateness_p99_s": 1.0}).next_step
