"""Cases whose answer is known without a simulation."""

from dataclasses import replace

import numpy as np
import pytest

from tests.whatif.known import COSTS
from workbench.topology import Topology
from workbench.whatif.model.closed_form import closed_form
from workbench.whatif.model.simulation import Load, plain_load, simulate

ONE, AGGREGATED = Topology.parse("1p1d"), Topology.parse("1a")


def decode_s(steps: int, context: int, costs=COSTS) -> float:
    return sum(costs.decode_s(1, context + step) for step in range(steps))


def test_a_lone_request_takes_the_sum_of_its_parts():
    row = simulate(ONE, plain_load([5_000], [32], [1.0]), COSTS).requests.iloc[0]
    assert row["prefill_queue_s"] == 0
    assert row["prefill_compute_s"] == pytest.approx(COSTS.prefill_s(5_000))
    assert row["transfer_queue_s"] == pytest.approx(COSTS.transfer_of(5_000))
    assert row["decode_step_s"] == pytest.approx(decode_s(1, 4_999))
    parts = ["prefill_compute_s", "transfer_queue_s", "decode_step_s"]
    assert row["ttft_s"] == pytest.approx(row[parts].sum())
    assert row["tpot_s"] == pytest.approx(decode_s(31, 5_000) / 31)


def test_an_aggregated_instance_computes_and_decodes_itself():
    row = simulate(AGGREGATED, plain_load([5_000], [32], [0.0]), COSTS).requests.iloc[0]
    assert row["ttft_s"] == pytest.approx(COSTS.prefill_s(5_000))
    assert row["tpot_s"] == pytest.approx(decode_s(31, 5_001) / 31)


def test_a_prompt_stalls_the_decoding_of_an_aggregated_instance_only():
    load = plain_load([2_048, 2_048], [64, 64], [0.0, 0.3])
    together = simulate(AGGREGATED, load, COSTS).requests["tpot_s"].iloc[0]
    split = simulate(ONE, load, COSTS).requests["tpot_s"].iloc[0]
    assert together > split + 0.8 * COSTS.prefill_s(2_000) / 63


def test_requests_go_to_instances_by_index():
    load = plain_load([4_000] * 4, [2] * 4, [0.0] * 4)
    queued = simulate(Topology.parse("2p1d"), load, COSTS).requests["prefill_queue_s"]
    # 0 and 1 find an idle instance, 2 and 3 wait behind them.
    assert (queued.iloc[:2] == 0).all() and (queued.iloc[2:] > 0).all()
    assert queued.iloc[2] == queued.iloc[3]


def test_a_wait_is_that_of_pollaczek_and_khinchine():
    prompts = np.random.default_rng(1).integers(1_000, 8_000, 400)
    load = plain_load(prompts, [8] * 400, np.arange(400.0))
    services_s = [COSTS.prefill_s(int(n)) for n in prompts]
    rate = 0.5 / np.mean(services_s)
    found = closed_form(ONE, load, COSTS, rate_per_s=rate, poisson=True)
    assert found.utilisation == pytest.approx(0.5) and found.bottleneck == "prefill queue"
    assert found.wait_s == pytest.approx(rate * np.mean(np.square(services_s)) / (2 * 0.5))
    assert found.simulated_wait_s == pytest.approx(found.wait_s, rel=0.12)
    assert not found.differs
    assert replace(found, wait_s=2 * found.wait_s).differs


def test_steps_taken_together_end_as_single_steps_do():
    """A second request that joins while the first decodes waits for the step in progress only."""
    load = plain_load([1_024, 1_024], [200, 2], [0.0, 0.5])
    rows = simulate(ONE, load, COSTS).requests
    longest_s = COSTS.decode_s(1, 1_300)
    transfer_s = COSTS.transfer_of(1_024)
    assert 0 < rows["transfer_queue_s"].iloc[1] <= transfer_s + 2 * longest_s
    single_s = rows["ttft_s"].iloc[0]
    assert rows["e2e_s"].iloc[0] - single_s > decode_s(199, 1_024)
    alone = simulate(ONE, plain_load([1_024], [200], [0.0]), COSTS).requests["e2e_s"].iloc[0]
    # The second one adds its share to two steps of the first.
    added_s = 2 * (COSTS.sequence_s + 1_025 * COSTS.kv_token_s)
    assert rows["e2e_s"].iloc[0] - alone == pytest.approx(added_s, rel=0.1)


def test_decode_takes_blocks_before_the_pull_and_makes_others_wait():
    room = replace(COSTS, kv_tokens=COSTS.kv_tokens | {"decode": 9_000})
    load = plain_load([4_000] * 3, [100] * 3, [0.0] * 3)
    rows = simulate(ONE, load, room).requests
    # Two prompts fit; the third is admitted when the first has ended.
    ended_s = rows["sent_s"] + rows["e2e_s"]
    first_s = rows["sent_s"] + rows["ttft_s"]
    assert first_s.iloc[2] > ended_s.iloc[0] + COSTS.transfer_of(4_000)
    assert first_s.iloc[1] < ended_s.iloc[0]


def test_prefill_holds_blocks_until_the_pull():
    tight = COSTS.kv_tokens | {"prefill": 4_500, "decode": 4_500}
    load = plain_load([4_000] * 3, [100] * 3, [0.0] * 3)
    held = simulate(ONE, load, replace(COSTS, kv_tokens=tight)).requests
    freed = simulate(ONE, load, replace(COSTS, kv_tokens=tight, holds=False)).requests
    # Decode has room for one: the second prompt stays on prefill, where the third then waits.
    assert held["prefill_queue_s"].iloc[2] > 1.0 > freed["prefill_queue_s"].iloc[2]


def test_a_request_is_preempted_when_blocks_run_out_and_still_ends():
    tight = replace(COSTS, kv_tokens=COSTS.kv_tokens | {"decode": 17 * 128})
    found = simulate(ONE, plain_load([1_000, 1_000], [300, 300], [0.0, 0.0]), tight)
    assert 1 <= found.preemptions <= 3 and found.stuck == 0
    assert found.requests["e2e_s"].iloc[1] > found.requests["e2e_s"].iloc[0]
    roomy = simulate(ONE, plain_load([1_000, 1_000], [300, 300], [0.0, 0.0]), COSTS)
    assert roomy.preemptions == 0


def test_a_closed_loop_has_so_many_requests_in_flight():
    n = 20
    load = Load(
        prompt_tokens=np.full(n, 2_000), cached_tokens=np.zeros(n, np.int64),
        moved_tokens=np.full(n, 2_000),
        output_tokens=np.full(n, 16), offsets_s=None, concurrency=3,
        overheads_s=np.full((n, 4), 0.001),
    )  # fmt: skip
    rows = simulate(ONE, load, COSTS).requests
    begins, ends = rows["sent_s"].to_numpy(), (rows["sent_s"] + rows["e2e_s"]).to_numpy()
    flying = [int(((begins <= t) & (ends > t)).sum()) for t in begins]
    assert max(flying) == 3 and min(flying[2:]) == 3


def test_the_same_input_gives_the_same_output():
    rng = np.random.default_rng(3)
    load = plain_load(rng.integers(1_000, 8_000, 200), rng.integers(1, 64, 200),
                      np.cumsum(rng.exponential(0.1, 200)))  # fmt: skip
    one, two = (simulate(Topology.parse("2p3d"), load, COSTS) for _ in range(2))
    assert one.requests.equals(two.requests) and one.stuck == 0


def test_cached_tokens_are_not_computed():
    load = replace(plain_load([4_000], [2], [0.0]), cached_tokens=np.array([3_000]))
    row = simulate(ONE, load, COSTS).requests.iloc[0]
    assert row["prefill_compute_s"] == pytest.approx(COSTS.prefill_s(1_000, 3_000))
