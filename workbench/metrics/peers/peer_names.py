"""Sentences on files that hold no single requests, are of no known tool, or are damaged.

Each names the tool, what the file is, and the file to read or the option to run with instead.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from workbench.metrics.peers.peer_tables import columns_of

__all__ = [
    "KNOWN_FILES",
    "READ",
    "why_no_requests",
    "why_not_json",
    "why_not_table",
    "why_several",
]

READ = (
    "vLLM bench 0.6 to 0.33 (--save-detailed), GuideLLM JSON of 0.2 to 0.8, AIPerf's"
    " profile_export.jsonl of 0.2 to 0.13, SGLang's bench_serving (--output-details), LMCache"
    " bench's bench_results.csv and multi-round-qa's summary.csv"
)
KNOWN_FILES = ("benchmarks.json", "profile_export.jsonl", "bench_results.csv", "summary.csv")
"""Names that tools give to files with single requests."""


def why_no_requests(source: Path, document: Any) -> str:
    """Why one JSON document is no result with requests."""
    names = set(document) if isinstance(document, dict) else set()
    about = document.get("input_config") if names else None
    inner = set(about) if isinstance(about, dict) else set()
    if {"request_rate", "model_id"} <= names or {"endpoint_type", "request_rate"} <= names:
        why = (
            "is a result of vLLM bench without single requests: vllm bench serve writes them only"
            " with --save-detailed beside --save-result"
        )
    elif {"model_id", "num_conversations"} <= names:
        why = (
            "is a multi-turn summary of the Rust vllm-bench, which holds no single requests;"
            " run it without conversations and with --save-detailed"
        )
    elif "total_output_tokens_retokenized" in names or {"dataset_name", "request_rate"} <= names:
        why = (
            "is a result of SGLang's bench_serving without single requests; run it with"
            " --output-details"
        )
    elif names == {"config", "results"}:
        why = (
            "is the summary of lmcache bench engine, which holds no requests; read"
            " bench_results.csv beside it"
        )
    elif {"experiments", "service_kind"} <= names:
        why = (
            "is genai-perf's raw profile, which is not read; run AIPerf, its successor, and read"
            " its profile_export.jsonl"
        )
    elif "input_config" in names and (
        names & {"aiperf_version", "schema_version", "was_cancelled", "start_time"}
        or inner & {"loadgen", "cli_command"}
    ):
        version = document.get("aiperf_version") or ""
        why = (
            f"is AIPerf's summary{f' ({version})' if version else ''}, which holds no requests;"
            " read profile_export.jsonl beside it (AIPerf 0.2 and later, --export-level records)"
        )
    elif "input_config" in names:
        why = (
            "is a summary of genai-perf, which holds no requests; run AIPerf, its successor, and"
            " read its profile_export.jsonl"
        )
    elif {"metadata", "responses"} <= names or {"metadata", "payload"} <= names:
        why = "is AIPerf's raw export; read profile_export.jsonl beside it"
    elif {"avg_latency", "percentiles"} <= names or {"total_num_tokens", "elapsed_time"} <= names:
        why = (
            "is a result of vllm bench latency or throughput, which ask no server; read one of"
            " vllm bench serve --save-result --save-detailed"
        )
    elif {"benchmark", "metric"} <= names:
        why = (
            "is vLLM bench's file for PyTorch's dashboard; read the file beside it without .pytorch"
        )
    else:
        why = f"is no result of a known tool; read are {READ}"
    return f"{source} {why}"


def why_several(source: Path, documents: list[Any]) -> str:
    """Why several JSON documents in one file are not one result."""
    first = documents[0]
    if not isinstance(first, dict) or not {"request_rate", "completed"} & set(first):
        return why_no_requests(source, first)
    return (
        f"{source} holds {len(documents)} results, as --append-result, SGLang's bench_serving and"
        " a sweep's summary write them; give each a file of its own, such as run=0.json of a sweep"
    )


def why_not_json(source: Path, error: Exception) -> str:
    """Why a text that begins like JSON cannot be read."""
    return (
        f"{source} is neither JSON nor a known CSV ({error}): it was cut off or edited;"
        " copy the whole file again"
    )


def why_not_table(source: Path, text: str) -> str:
    """Why a text that does not begin like JSON cannot be read."""
    columns, start = set(columns_of(text)), text.lstrip()[:200].lower()
    if start.startswith("<"):
        why = "is a web page; read the JSON that the tool writes beside it"
    elif {"mean_ttft_ms", "request_throughput"} <= columns:
        why = (
            "is the table of a vllm bench sweep, which holds no requests; read run=0.json of one"
            " of its folders, made with --save-detailed"
        )
    elif start.startswith("metric,"):
        why = (
            "is a summary table of AIPerf or genai-perf, which holds no requests; read AIPerf's"
            " profile_export.jsonl"
        )
    elif "guidellm" in start or start.startswith(("run info,", "args:", "metadata:")):
        why = "is a GuideLLM report in CSV or YAML; read its benchmarks.json (--outputs json)"
    else:
        why = f"is neither JSON nor a known CSV; read are {READ}"
    return f"{source} {why}"
