"""One launch of one engine: the same prompts in batches, by vLLM or by transformers.

Runs in the process that measures. Both have the same weights, number format, prompts and lengths,
greedy decoding and no end of sequence; neither turns tokens into text.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from workbench.claims.engines.memory import PeakMemory

__all__ = [
    "ENGINES",
    "TRANSFORMERS",
    "VLLM",
    "VLLM_CACHED",
    "context_tokens",
    "measure",
    "start_vllm",
]

VLLM, VLLM_CACHED, TRANSFORMERS = "vllm", "vllm, prefix cache on", "transformers"
ENGINES = (TRANSFORMERS, VLLM, VLLM_CACHED)
FIRST_TOKEN_ID = 10
"""Below it are a model's special tokens."""
GROWTH = 2.2
"""A batch twice as large takes at most about so much longer."""
CALLS_S, MOST_CALLS = 0.8, 7
"""A batch is called again until it has taken so long: the median of seven calls forgets a spike."""
KV_MIB = 256
"""KV space of vLLM on a CPU: 350,000 tokens of the tiny model."""

SLACK_TOKENS = 64

Generate = Callable[[Sequence[Sequence[int]]], tuple[list[list[int]], int]]
"""Prompts in, answers out, with the prompt tokens that came from a cache."""


def measure(job: Mapping[str, Any]) -> dict[str, Any]:
    """Rows of one launch: for each batch the seconds of each call, its tokens, memory and text.

    Every batch is warmed up by a call of its own shape and called `calls` times, quick ones more
    often. Batches double until `batches` ends or `budget_s` would; `done` holds those measured.
    """
    started_s = time.monotonic()
    memory = PeakMemory(job["device"])
    generate = _transformers(job) if job["engine"] == TRANSFORMERS else _vllm(job)
    rows: list[dict[str, Any]] = []
    done: list[int] = []
    needed_s = 0.0

    def row(quantity: str, batch: int, value: float, unit: str) -> None:
        rows.append(
            {"quantity": quantity, "arm": job["engine"], "cell": f"batch {batch}", "value": value,
             "unit": unit, "order": len(rows), "steady": True}
        )  # fmt: skip

    for batch in job["batches"]:
        if done and time.monotonic() - started_s + GROWTH * needed_s > job["budget_s"]:
            break
        begin_s = time.monotonic()
        memory.reset()
        for call in range(1 + MOST_CALLS):
            if call > job["calls"] and time.monotonic() - begin_s > CALLS_S:
                break
            prompts = _prompts(job, batch, call)
            call_s = time.perf_counter()
            outputs, cached = generate(prompts)
            lap_s = time.perf_counter() - call_s
            if call == 0:
                continue
            row("time", batch, lap_s, "s")
            row("output tokens", batch, sum(map(len, outputs)), "tokens")
            row("cached tokens", batch, cached, "tokens")
            for output in outputs:
                row("first token", batch, output[0], "id")
        if job["engine"] == VLLM_CACHED:
            call_s = time.perf_counter()
            _, cached = generate(prompts)
            row("time when repeated", batch, time.perf_counter() - call_s, "s")
            row("cached tokens when repeated", batch, cached, "tokens")
        row("peak memory", batch, memory.gb(), "GB")
        done.append(batch)
        needed_s = time.monotonic() - begin_s
    return {"rows": rows, "notes": [], "done": done, "threads": _threads()}


def _prompts(job: Mapping[str, Any], batch: int, call: int) -> list[list[int]]:
    """The same for every engine; new in every call, so that a prefix cache finds nothing."""
    import random

    random_ids = random.Random(f"{job['seed']} {batch} {call}")
    return [
        random_ids.choices(range(FIRST_TOKEN_ID, job["vocab_tokens"]), k=job["input_tokens"])
        for _ in range(batch)
    ]


def _transformers(job: Mapping[str, Any]) -> Generate:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        job["model"], dtype=getattr(torch, job["dtype"]), local_files_only=True
    ).to(job["device"])
    model.eval()
    tokens = job["output_tokens"]

    def generate(prompts: Sequence[Sequence[int]]) -> tuple[list[list[int]], int]:
        ids = torch.tensor(prompts, device=job["device"])
        with torch.inference_mode():
            output = model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False,
                min_new_tokens=tokens, max_new_tokens=tokens, pad_token_id=0,
            )  # fmt: skip
        return [list(row) for row in output[:, ids.shape[1] :].tolist()], 0

    return generate


def _vllm(job: Mapping[str, Any]) -> Generate:
    from vllm import SamplingParams

    engine = start_vllm(
        job, enable_prefix_caching=job["engine"] == VLLM_CACHED, max_num_seqs=max(job["batches"])
    )
    sampling = SamplingParams(
        temperature=job.get("temperature", 0.0), detokenize=job.get("text", False),
        max_tokens=job["output_tokens"], ignore_eos=True,
    )  # fmt: skip

    def generate(prompts: Sequence[Sequence[int]]) -> tuple[list[list[int]], int]:
        given = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        answers = engine.generate(given, sampling, use_tqdm=False)
        cached = sum(answer.num_cached_tokens or 0 for answer in answers)
        return [list(answer.outputs[0].token_ids) for answer in answers], cached

    return generate


def start_vllm(job: Mapping[str, Any], **options: Any) -> Any:
    """A `vllm.LLM` in this process, in the number format and with room for the lengths of a job."""
    from vllm import LLM

    if job["device"] == "cpu":
        options |= {
            "enforce_eager": True, "distributed_executor_backend": "uni",
            "kv_cache_memory_bytes": KV_MIB * 2**20,
        }  # fmt: skip
    return LLM(
        model=job["model"], dtype=job["dtype"], seed=0,
        max_model_len=context_tokens(job), **options,
    )  # fmt: skip


def context_tokens(job: Mapping[str, Any]) -> int:
    """Room for a prompt and its answer; vLLM's random prompts may come out somewhat longer."""
    return int(job["input_tokens"] + job["output_tokens"] + SLACK_TOKENS)


def _threads() -> int:
    import torch

    return int(torch.get_num_threads())
