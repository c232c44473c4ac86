import pytest

from workbench.claims.registry.claim import Bound
from workbench.claims.verdict.physics_gate import impossible, unknown_limits


def bound(value=0.0, limit="prefill_throughput", gpu="A100 80GB SXM", model="LLaMA-2-13B", gpus=1):
    named = {"model": model} if model else {}
    return Bound(limit=limit, gpu=gpu, gpus=gpus, value=value, **named)


def test_a_throughput_beyond_the_chip_is_impossible():
    assert "is 4.9 times the prefill ceiling of LLaMA-2-13B" in impossible([bound(58_499)])
    assert impossible([bound(58_499, gpus=8)]) == ""


def test_the_worst_of_several_is_named():
    assert impossible([bound(8_791), bound(88_250)]).startswith("88,250 tokens/s is 7.4 times")


def test_embedding_and_head_do_not_refute_what_is_possible():
    # Qwen2.5-7B: 7.62 billion parameters, of which a prompt token passes 6.53.
    qwen = {"model": "Qwen2.5-7B", "gpu": "H200"}
    assert impossible([bound(989.5e12 / 2 / 6.6e9, **qwen)]) == ""
    assert impossible([bound(989.5e12 / 2 / 6.0e9, **qwen)]) != ""


def test_a_request_alone_cannot_outrun_the_memory():
    batch_1 = {"limit": "decode_throughput", "gpu": "A800 80GB PCIe", "model": "Qwen2.5-7B"}
    assert impossible([bound(93.7, **batch_1)]) == ""
    assert "times the batch-1 decode ceiling of Qwen2.5-7B" in impossible([bound(200, **batch_1)])


def test_a_decoded_token_passes_the_head_but_not_the_embedding():
    # 7.62 billion parameters less 0.545 of the embedding: 4.8 TB/s reads them 339 times.
    alone = {"limit": "decode_throughput", "gpu": "H200", "model": "Qwen2.5-7B"}
    assert impossible([bound(339 * 1.04, **alone)]) == ""
    assert impossible([bound(339 * 1.06, **alone)]) != ""


def test_weights_must_be_resident():
    fit = {"limit": "memory_fit", "model": "LLaMA-2-70B"}
    assert "138 GB, are 1.7 times the memory" in impossible([bound(**fit)])
    assert impossible([bound(**fit, gpus=2)]) == ""


@pytest.mark.parametrize(("tb_s", "broken"), [(1.69, False), (2.0, False), (2.1, True)])
def test_bandwidth_may_exceed_the_data_sheet_by_rounding_only(tb_s, broken):
    copy = bound(tb_s, limit="memory_bandwidth", gpu="A800 80GB PCIe", model="")
    assert bool(impossible([copy])) == broken


def test_no_kernel_computes_faster_than_the_dense_rate():
    assert impossible([bound(900, limit="matrix_rate", gpu="H200", model="")]) == ""
    twice = impossible([bound(1979, limit="matrix_rate", gpu="H200", model="")])
    assert "2.0 times the dense bf16 rate" in twice


def test_a_value_that_is_none_hides_no_other():
    none = bound(float("nan"), limit="matrix_rate", gpu="H200", model="")
    broken = bound(9, limit="memory_bandwidth", gpu="H200", model="")
    assert impossible([none, broken]) == impossible([broken, none]) != ""


def test_what_is_in_no_table_is_said_and_not_guessed():
    unknown = bound(1e9, gpu="TPU v9", model="Nobody-7B")
    assert impossible([unknown]) == ""
    assert unknown_limits([unknown, unknown]) == (
        "GPU 'TPU v9' is not in workbench/hardware/physics.py; its physical limit was not checked",
        "model 'Nobody-7B' is not in workbench/hardware/models.py; its physical limit was not"
        " checked",
    )
