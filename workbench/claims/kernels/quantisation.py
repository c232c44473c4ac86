"""Quantised KV: bytes with scales, and the error of the attention output against float64.

Queries, keys and values come from the model itself, for a random prompt that differs between
runs. Nothing is timed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from workbench.claims.recipes.recipe import Curve, Outcome, Setting
from workbench.claims.recipes.rounds import Cost, launched_recipe
from workbench.claims.recipes.rows import Rows, mean_of_runs, row
from workbench.claims.verdict.decision import Interval
from workbench.claims.verdict.verdict import Measurement, by_construction, known

if TYPE_CHECKING:
    import torch

FORMATS = ("bf16", "int8", "fp8", "int4")
GROUP = 32
"""Elements that share scale and zero point in INT4; INT8 has a scale for each head and token."""
FP8_MOST = 448.0
"""The largest E4M3 number (Micikevicius et al., FP8 Formats for Deep Learning, 2022, table 1)."""
WIDE = (8, 1024, 128)
"""Heads, tokens and width of the KV whose bytes are counted: one layer of Llama-3-8B."""


def measure(job: Mapping[str, Any]) -> dict[str, Any]:
    """Rows of one run: ratio of bytes for each format, and the error in each layer."""
    import torch

    torch.manual_seed(job["seed"])
    rows: list[dict[str, Any]] = []
    wide = torch.randn(1, *WIDE, device=job["device"])
    for name in FORMATS:
        ratio = wide.numel() * 2 / quantised(wide, name)[1]
        rows.append(row("ratio", name, "128 wide", ratio, "x"))
    for layer, (q, k, v) in enumerate(_attention_inputs(job), 1):
        exact = _attend(q.double(), k.double(), v.double())
        for name in FORMATS:
            output = _attend(q.double(), *(quantised(kv, name)[0].double() for kv in (k, v)))
            error = float((output - exact).norm() / exact.norm())
            rows.append(row("error", name, f"layer {layer}", error, "fraction"))
    return {"rows": rows, "threads": torch.get_num_threads()}


def quantised(kv: torch.Tensor, name: str) -> tuple[torch.Tensor, int]:
    """KV (batch x heads x tokens x width) after that format, and the bytes stored.

    INT8: symmetric, a 16-bit scale for each head and token. INT4: a 16-bit scale and zero point
    for each 32 elements, two elements a byte. FP8 (E4M3): one 32-bit scale for the whole tensor.
    """
    import torch

    if name == "bf16":
        stored = kv.to(torch.bfloat16)
        return stored.float(), _bytes(stored)
    if name == "int8":
        scale = (kv.abs().amax(-1, keepdim=True) / 127).half().clamp_min(2**-14)
        codes = (kv / scale.float()).round().clamp(-127, 127).to(torch.int8)
        return codes.float() * scale.float(), _bytes(codes, scale)
    if name == "fp8":
        scale = (kv.abs().amax().float() / FP8_MOST).clamp_min(2**-60)
        codes = (kv / scale).to(torch.float8_e4m3fn)
        return codes.float() * scale, _bytes(codes, scale)
    groups = kv.unflatten(-1, (-1, GROUP))
    zero = groups.amin(-1, keepdim=True).half()
    scale = ((groups.amax(-1, keepdim=True) - zero.float()) / 15).half().clamp_min(2**-14)
    codes = ((groups - zero.float()) / scale.float()).round().clamp(0, 15).to(torch.uint8)
    packed = codes[..., ::2] | (codes[..., 1::2] << 4)
    opened = torch.stack((packed & 15, packed >> 4), -1).flatten(-2)
    return (opened * scale.float() + zero.float()).flatten(-2), _bytes(packed, scale, zero)


def _bytes(*tensors: torch.Tensor) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    import torch

    shared = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(shared, 1), v.repeat_interleave(shared, 1)
    hidden = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).triu(1)
    scores = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).masked_fill(hidden, float("-inf"))
    return scores.softmax(-1) @ v


def _attention_inputs(job: Mapping[str, Any]) -> list[tuple[torch.Tensor, ...]]:
    """Queries, keys and values of every layer, in float32, for one prompt of random tokens."""
    import torch
    from transformers import AttentionInterface, AutoModelForCausalLM
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    caught: list[tuple[torch.Tensor, ...]] = []

    def catch(module: Any, q: Any, k: Any, v: Any, *rest: Any, **options: Any) -> Any:
        caught.append((q.float(), k.float(), v.float()))
        return sdpa_attention_forward(module, q, k, v, *rest, **options)

    AttentionInterface.register("catch", catch)
    model = AutoModelForCausalLM.from_pretrained(
        job["model"], dtype=torch.float32 if job["device"] == "cpu" else torch.bfloat16,
        attn_implementation="catch", local_files_only=True,
    ).to(job["device"])  # fmt: skip
    prompt = torch.randint(
        10, model.config.get_text_config().vocab_size, (1, job["tokens"]), device=job["device"]
    )
    with torch.inference_mode():
        model(prompt)
    return caught


def read(rows: Rows, setting: Setting) -> Outcome:
    """Ratios of bytes, and the error of each format."""
    bytes_ = {
        name: Interval.counted(rows.medians("ratio", name).to_numpy(float).ravel())
        for name in FORMATS[1:]
    }
    # Layers of one prompt are not independent: a run's error is the mean over its layers.
    layers = {name: rows.medians("error", name).mean() for name in FORMATS}
    errors = {name: mean_of_runs(each) for name, each in layers.items()}
    percent = {name: error.scaled(100) for name, error in errors.items()}
    ratios = frozenset(f"{name.upper()} ratio" for name in bytes_)
    return rows.outcome(
        {
            "OWN-KV-BYTES": Measurement(
                effects={f"{name.upper()} ratio": (ratio,) for name, ratio in bytes_.items()},
                counted=ratios, built_in=ratios, tolerance=0.005,
            ),
            "OWN-KV-ERROR": Measurement(
                effects={
                    f"{one.upper()} over {other.upper()}": (
                        mean_of_runs(layers[one] / layers[other]),
                    )
                    for one, other in (("fp8", "int8"), ("int4", "fp8"))
                }
            ),
            "LLMIR-QUANT": _beside_fp32(bytes_, errors),
            "S003-QUANT": _beside_fp32(bytes_, percent),
        },
        says="Bytes of 128-wide KV with scales compared with bf16, and the attention output of the"
        f" model's own queries, keys and values compared with float64, {rows.where(setting)}. The"
        f" error is {_percents(errors)} of the norm.",
        # The quality measure is the error against float64, which needs an interval.
        checks=by_construction("one_factor_changed")
        | {"output_quality_checked": known(*(error.low for error in errors.values()))},
        curves=(
            Curve.of(
                "Error of the attention output", "format", "% of the output's norm",
                {"all layers": percent}, at=str,
            ),
        ),
    )  # fmt: skip


def _percents(errors: Mapping[str, Interval]) -> str:
    """`0.21 % (BF16), 0.30 % (INT8)`."""
    return ", ".join(f"{100 * e.estimate:.3g} % ({name.upper()})" for name, e in errors.items())


def _beside_fp32(bytes_: Mapping[str, Interval], loss: Mapping[str, Interval]) -> Measurement:
    """As those sources count: compared with FP32, which doubles every ratio."""
    effects = {f"{name.upper()} ratio": (bytes_[name].scaled(2),) for name in ("int8", "int4")}
    counted = frozenset(effects)
    effects |= {f"{name.upper()} loss": (loss[name],) for name in ("int8", "int4")}
    return Measurement(effects=effects, counted=counted)


RECIPE = launched_recipe(
    "quantisation", "kernel", ("OWN-KV-BYTES", "OWN-KV-ERROR", "LLMIR-QUANT", "S003-QUANT"),
    "Bytes and attention error of INT8, FP8 and INT4 KV, compared with bf16 and float64.",
    target=f"{__name__}:measure",
    job=lambda setting: {"model": str(setting.model), "tokens": 512},
    outcome=read,
    cost=Cost(start_s=10.0, launch_s=0.0, gpu_launch_s=10.0),
    each_s=1.0,
    warm=("torch", "transformers.models.auto.modeling_auto"),
)  # fmt: skip
