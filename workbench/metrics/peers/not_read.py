"""Sentences on files without requests, of no known tool, or damaged: what it is, what to read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from workbench.metrics.peers.csv_files import columns_of

READ = (
    "vLLM bench 0.6 to 0.33 (--save-detailed), GuideLLM JSON of 0.2 to 0.8, AIPerf's"
    " profile_export.jsonl of 0.2 to 0.13, SGLang's bench_serving (--output-details), LMCache"
    " bench's bench_results.csv and multi-round-qa's summary.csv"
)
KNOWN_FILES = ("benchmarks.json", "profile_export.jsonl", "bench_results.csv", "summary.csv")
"""Names that tools give to files with single requests."""

_VLLM = (
    "is a result of vLLM bench without single requests: vllm bench serve writes them only with"
    " --save-detailed beside --save-result"
)
_SGLANG = (
    "is a result of SGLang's bench_serving without single requests; run it with --output-details"
)
_AIPERF = (
    "is AIPerf's summary{version}, which holds no requests; read profile_export.jsonl beside it"
    " (AIPerf 0.2 and later, --export-level records)"
)
_AIPERF_RAW = "is AIPerf's raw export; read profile_export.jsonl beside it"
_OFFLINE = (
    "is a result of vllm bench latency or throughput, which ask no server; read one of vllm bench"
    " serve --save-result --save-detailed"
)
_SUMMARIES = (
    ("request_rate model_id", _VLLM),
    ("endpoint_type request_rate", _VLLM),
    ("model_id num_conversations", "is a multi-turn summary of the Rust vllm-bench, which holds no"
     " single requests; run it without conversations and with --save-detailed"),
    ("total_output_tokens_retokenized", _SGLANG),
    ("dataset_name request_rate", _SGLANG),
    ("config results", "is the summary of lmcache bench engine, which holds no requests; read"
     " bench_results.csv beside it"),
    ("experiments service_kind", "is genai-perf's raw profile, which is not read; run AIPerf, its"
     " successor, and read its profile_export.jsonl"),
    ("input_config aiperf_version", _AIPERF),
    ("input_config schema_version", _AIPERF),
    ("input_config was_cancelled", _AIPERF),
    ("input_config start_time", _AIPERF),
    ("input_config.loadgen", _AIPERF),
    ("input_config.cli_command", _AIPERF),
    ("input_config", "is a summary of genai-perf, which holds no requests; run AIPerf, its"
     " successor, and read its profile_export.jsonl"),
    ("metadata responses", _AIPERF_RAW),
    ("metadata payload", _AIPERF_RAW),
    ("avg_latency percentiles", _OFFLINE),
    ("total_num_tokens elapsed_time", _OFFLINE),
    ("benchmark metric", "is vLLM bench's file for PyTorch's dashboard; read the file beside it"
     " without .pytorch"),
    ("", f"is no result of a known tool; read are {READ}"),
)  # fmt: skip
"""By the names that a document has, the first that fits: what it is, and what to read."""


def why_no_requests(source: Path, document: Any) -> str:
    """Why one JSON document is no result with requests."""
    names = set(document) if isinstance(document, dict) else set()
    about = document.get("input_config") if names else None
    names |= {f"input_config.{name}" for name in (about if isinstance(about, dict) else ())}
    why = next(why for wanted, why in _SUMMARIES if names.issuperset(wanted.split()))
    version = document.get("aiperf_version") if names else ""
    return f"{source} {why.format(version=f' ({version})' if version else '')}"


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
    start = text.lstrip()[:200].lower()
    if start.startswith("<"):
        why = "is a web page; read the JSON that the tool writes beside it"
    elif {"mean_ttft_ms", "request_throughput"} <= columns_of(text):
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
