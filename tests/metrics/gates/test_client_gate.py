import pytest

from workbench.metrics.gates.client_gate import client_kept_up, clock_not_set

WELL = {"loop_lag_p99_s": 0.001, "loop_lag_max_s": 0.001, "thread_cpu_share": 0.1}


@pytest.mark.parametrize(
    ("health", "outcome", "sentence"),
    [
        (WELL, "PASS",
         "Requests were sent and responses read on time (event loop lag 1 ms p99, client 10 % of a"
         " core)"),
        (WELL | {"merged_share": 0.005}, "PASS", "merged reads 0.5 %)"),
        (WELL | {"thread_cpu_share": 0.9}, "FAIL",
         "A client thread used 90 % of a core (limit 60 %)"),
        (WELL | {"lateness_p99_s": 0.02}, "FAIL",
         "Requests were sent 20 ms late (p99, limit 10 ms)"),
        (WELL | {"loop_lag_p99_s": 0.02}, "FAIL",
         "The client's event loop ran 20 ms late (p99, limit 10 ms)"),
        (WELL | {"others_cpu_share": 0.6}, "FAIL",
         "Other programs used 60 % of the CPU (limit 25 %)"),
        (WELL | {"others_cpu_share": 0.3}, "INCONCLUSIVE",
         "(limit 25 %). This may explain the slowest requests"),
        (WELL | {"merged_share": 0.2, "loop_lag_p99_s": 0.02}, "FAIL",
         "; 20 % of tokens shared a socket read with another token (limit 1 %) because the client"
         " read"),
        (WELL | {"merged_share": 0.2}, "INCONCLUSIVE",
         "(limit 1 %). The client read late, or the server batched them"),
        (WELL | {"merged_share": 0.02}, "INCONCLUSIVE", "2 % of tokens shared a socket read"),
        (WELL | {"loop_lag_p99_s": 0.02, "kernel_stamped_share": 1.0}, "INCONCLUSIVE",
         "but the kernel timestamped every read"),
        (WELL | {"loop_lag_max_s": 0.2}, "INCONCLUSIVE",
         "The client's event loop was once 200 ms late (limit 50 ms)"),
        ({}, "INCONCLUSIVE", "The client's health was not recorded"),
    ],
)  # fmt: skip
def test_a_client_that_was_in_the_way_is_not_hidden(health, outcome, sentence):
    gate = client_kept_up(health)
    assert gate.outcome == outcome
    assert sentence in gate.sentence


def test_every_limit_that_was_exceeded_is_told():
    health = {"others_cpu_share": 0.57, "lateness_p99_s": 1.0, "thread_cpu_share": 0.9}
    assert client_kept_up(WELL | health | {"merged_share": 0.91}).sentence == (
        "Other programs used 57 % of the CPU (limit 25 %); requests were sent 1,000 ms late (p99,"
        " limit 10 ms) (also client 90 % of a core)"
    )


@pytest.mark.parametrize(
    ("health", "most_workers", "step"),
    [
        ({"lateness_p99_s": 1.0}, 9, "Free CPU cores for the client"),
        ({"others_cpu_share": 0.6}, 9, "End other programs on this machine"),
        ({"thread_cpu_share": 0.9}, 9, "Use more client processes (client_workers 2), free CPU"),
        ({"thread_cpu_share": 0.9, "workers": 3.0}, 4, "(client_workers 4)"),
        ({"thread_cpu_share": 0.9, "workers": 3.0}, 3, "Free CPU cores"),
    ],
)
def test_what_to_do_next_depends_on_who_was_busy(health, most_workers, step):
    assert step in client_kept_up(health, most_workers=most_workers).next_step


def test_a_clock_that_was_set_fails_a_gate_of_its_own():
    stamped = {"kernel_stamped_share": 1.0, "clock_moved_s": 0.0}
    assert clock_not_set({}) is None
    assert clock_not_set({"clock_moved_s": 0.0}) is None  # no kernel timestamp
    gates = [clock_not_set(stamped | {"clock_moved_s": moved_s}) for moved_s in (0.0005, 0.5)]
    assert [gate and gate.outcome for gate in gates] == ["PASS", "FAIL"]
    assert gates[1] and "jumped by 500 ms" in gates[1].sentence
