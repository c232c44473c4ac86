import pytest

from workbench.claims.registry.claim import Bound
from workbench.claims.verdict.physics_gate import impossible, unknown_limits

QWEN = {"model": "Qwen2.5-7B", "gpu": "H200"}
ALONE = {"limit": "decode_throughput", "model": "Qwen2.5-7B"}
FIT = {"limit": "memory_fit", "model": "LLaMA-2-70B"}
COPY = {"limit": "memory_bandwidth", "gpu": "A800 80GB PCIe"}
RATE = {"limit": "matrix_rate", "gpu": "H200"}


def bound(value=0.0, **changed):
    fields = {"limit": "prefill_throughput", "gpu": "A100 80GB SXM", "model": "LLaMA-2-13B"}
    return Bound(**fields | {"value": value} | changed)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            bound(58_499),
            "is 4.9x the compute-bound prefill limit of LLaMA-2-13B on one A100 80GB SXM",
        ),
        (bound(58_499, gpus=8), ""),
        # Qwen2.5-7B: 7.62 billion parameters, of which a prompt token passes 6.53.
        (bound(989.5e12 / 2 / 6.6e9, **QWEN), ""),
        (bound(989.5e12 / 2 / 6.0e9, **QWEN), "limit"),
        # A request alone cannot outrun the memory.
        (bound(93.7, gpu="A800 80GB PCIe", **ALONE), ""),
        (
            bound(200, gpu="A800 80GB PCIe", **ALONE),
            "the bandwidth-bound decode limit at batch 1 of Qwen2.5-7B",
        ),
        # A decoded token passes the head but not the embedding: 4.8 TB/s read them 339 times.
        (bound(339 * 1.04, gpu="H200", **ALONE), ""),
        (bound(339 * 1.06, gpu="H200", **ALONE), "limit"),
        # Weights must be resident.
        (bound(**FIT), "(138 GB) are 1.7x the memory"),
        (bound(**FIT, gpus=2), ""),
        # A data sheet may be exceeded by rounding only.
        (bound(1.69, **COPY), ""),
        (bound(2.0, **COPY), ""),
        (bound(2.1, **COPY), "TB/s is 1.1x the bandwidth"),
        (bound(900, **RATE), ""),
        (bound(1979, **RATE), "2.0x the dense bf16 rate of one H200"),
    ],
)
def test_a_number_beyond_the_hardware_is_impossible(given, words):
    sentence = impossible([given])
    assert words in sentence and bool(sentence) == bool(words)


def test_the_worst_of_several_is_named_and_one_that_is_not_known_hides_no_other():
    assert impossible([bound(8_791), bound(88_250)]).startswith("88,250 tokens/s is 7.4x")
    none, broken = bound(float("nan"), **RATE), bound(9, **COPY)
    assert impossible([none, broken]) == impossible([broken, none]) != ""


def test_what_is_in_no_table_is_said_and_not_guessed():
    unknown = bound(1e9, gpu="TPU v9", model="Nobody-7B")
    assert impossible([unknown]) == ""
    gpu, model = unknown_limits([unknown, unknown])
    assert gpu.startswith(
        "Physical limit not checked: GPU 'TPU v9' is not in workbench/hardware/physics.py"
    )
    assert model.endswith("model 'Nobody-7B' is not in workbench/hardware/models.py")
