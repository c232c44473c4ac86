from pathlib import Path

import pytest

from workbench.errors import PlanError
from workbench.serve.capacity import Capacity, check_capacity, check_store, hand_out
from workbench.serve.vllm import EngineSettings
from workbench.topology import TensorParallel, Topology

EIGHT = Capacity(devices=tuple("01234567"))


def check(topology: str, platform: str, capacity: Capacity, kv_mib: int = 256, **tp: int) -> None:
    settings = EngineSettings(model=Path("/none"), platform=platform, kv_cache_mib=kv_mib)
    check_capacity(Topology.parse(topology), TensorParallel(**tp), capacity, settings)


@pytest.mark.parametrize(
    ("topology", "platform", "capacity", "more", "sentence"),
    [
        ("100p100d", "cpu", EIGHT, {}, "100p100d has 200 instances and a CPU machine takes at"),
        ("4p4d", "cuda", EIGHT, {"prefill": 2}, "4p4d needs 12 GPUs and 8 are visible"),
        ("1p1d", "cuda", EIGHT, {"decode": 16}, "decode_tp is 16 and 8 GPUs are visible"),
        ("1a", "cuda", Capacity(), {}, "0 GPUs are visible"),
        (
            "5a", "cpu", Capacity(free_memory_gb=3.0), {},
            r"needs about 4.0 GB \(5 .* 0.8 GB\) and 3.0 GB are free",
        ),
        # A KV space of its own size counts.
        ("5a", "cpu", Capacity(free_memory_gb=4.1), {"kv_mib": 512}, r"needs about 5.2 GB \(5"),
        # Sharing a GPU does not make two of it for one instance.
        (
            "1a", "cuda", Capacity(devices=("0",), instances_per_gpu=2), {"aggregated": 2},
            "aggregated_tp is 2 and 1 GPUs are visible",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_with_the_numbers(topology, platform, capacity, more, sentence):
    with pytest.raises(PlanError, match=sentence):
        check(topology, platform, capacity, **more)


def test_what_fits_is_not_refused():
    check("4p4d", "cuda", EIGHT)
    check("5a", "cpu", Capacity(free_memory_gb=4.1))
    check("5a", "cpu", Capacity(free_memory_gb=3.0), kv_mib=32)
    check("100p100d", "simulated", Capacity())
    check_store(1.0, Capacity(free_shm_gb=1.0))


def test_a_store_that_shared_memory_cannot_hold_is_refused():
    with pytest.raises(PlanError, match=r"store_gb is 2 and /dev/shm has 1.0 GB free"):
        check_store(2.0, Capacity(free_shm_gb=1.0))


def test_an_instance_gets_neighbouring_gpus_and_none_twice_until_all_are_in_use():
    tp = TensorParallel(prefill=2)
    assert hand_out(
        Topology.parse("1p3d"), tp, Capacity(devices=("6", "2"), instances_per_gpu=3)
    ) == [("6", "2"), ("6",), ("2",), ("6",)]
