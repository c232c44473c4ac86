from pathlib import Path

import pytest

from workbench.errors import PlanError
from workbench.serve.checks.capacity import Capacity, check_capacity, check_store, hand_out
from workbench.serve.vllm import EngineSettings
from workbench.topology import TensorParallel, Topology

EIGHT = Capacity(devices=tuple("01234567"))


def check(
    topology: str, platform: str, capacity: Capacity, kv_mib: int = 256, args: str = "", **tp: int
) -> None:
    settings = EngineSettings(
        model=Path("/none"), platform=platform, kv_cache_mib=kv_mib, extra_args=tuple(args.split())
    )
    spans = settings.gpus(TensorParallel(**tp))
    check_capacity(Topology.parse(topology), spans, capacity, settings)


@pytest.mark.parametrize(
    ("topology", "platform", "capacity", "more", "sentence"),
    [
        ("4p4d", "cuda", EIGHT, {"prefill": 2}, "4p4d needs 12 GPUs, got 8 "),
        ("1p1d", "cuda", EIGHT, {"decode": 16}, r"decode_tp .* visible GPUs \(8\), got 16"),
        ("1a", "cuda", EIGHT, {"aggregated": 4, "args": "-pp 4"}, r"_tp \(4\) x pipeline and data"),
        # A KV cache of its own size counts.
        ("5a", "cpu", Capacity(free_memory_gb=4.1), {"kv_mib": 512}, r"needs about 5.2 GB"),
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


def test_an_instance_gets_neighbouring_gpus_and_none_twice_until_all_are_in_use():
    tp = TensorParallel(prefill=2)
    assert hand_out(
        Topology.parse("1p3d"), tp, Capacity(devices=("6", "2"), instances_per_gpu=3)
    ) == [("6", "2"), ("6",), ("2",), ("6",)]
