"""Errors for files without single requests, of unknown tools, or damaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from workbench.metrics.peers.csv_files import columns_of

READ = (
    "vLLM bench 0.6 to 0.33 (--save-detailed), GuideLLM JSON 0.2 to 0.8, AIPerf"
    " profile_export.jsonl 0.2 to 0.13, SGLang bench_serving (--output-details), LMCache bench"
    " bench_results.csv, multi-round-qa summary.csv, Benchmark Report 0.2"
)
KNOWN_FILES = ("benchmarks.json", "profile_export.jsonl", "bench_results.csv", "summary.csv")
"""Names that tools give to files with single requests."""

_UNKNOWN = f"not a result of a known tool. Supported: {READ}"
_VLLM = (
    "a vLLM bench result without single requests. Run vllm bench serve with --save-result"
    " --save-detailed"
)
_SGLANG = "an SGLang bench_serving result without single requests. Run it with --output-details"
_AIPERF = (
    "an AIPerf summary{version} without single requests. Use profile_export.jsonl from its folder"
    " (AIPerf 0.2 and later, --export-level records)"
)
_AIPERF_RAW = "AIPerf's raw export. Use profile_export.jsonl from its folder"
_GENAI_PERF = "Run AIPerf, its successor, and use its profile_export.jsonl"
_OFFLINE = (
    "a result of vllm bench latency or throughput, which send no requests to a server. Run vllm"
    " bench serve with --save-result --save-detailed"
)
_SUMMARIES = (
    ("request_rate model_id", _VLLM),
    ("endpoint_type request_rate", _VLLM),
    ("model_id num_conversations", "a multi-turn summary of the Rust vllm-bench without single"
     " requests. Run it without conversations and with --save-detailed"),
    ("total_output_tokens_retokenized", _SGLANG),
    ("dataset_name request_rate", _SGLANG),
    ("config results", "the summary of lmcache bench engine without single requests. Use"
     " bench_results.csv from its folder"),
    ("experiments service_kind", f"genai-perf's raw profile. {_GENAI_PERF}"),
    ("input_config aiperf_version", _AIPERF),
    ("input_config schema_version", _AIPERF),
    ("input_config was_cancelled", _AIPERF),
    ("input_config start_time", _AIPERF),
    ("input_config.loadgen", _AIPERF),
    ("input_config.cli_command", _AIPERF),
    ("input_config", f"a genai-perf summary without single requests. {_GENAI_PERF}"),
    ("metadata responses", _AIPERF_RAW),
    ("metadata payload", _AIPERF_RAW),
    ("avg_latency percentiles", _OFFLINE),
    ("total_num_tokens elapsed_time", _OFFLINE),
    ("benchmark metric", "vLLM bench's file for PyTorch's dashboard. Use the file of the same name"
     " without .pytorch"),
    ("", _UNKNOWN),
)  # fmt: skip
"""By the names in a document, the first that fits: what the file is, and what to use instead."""


def why_no_requests(source: Path, document: Any) -> str:
    """The error for one JSON document without requests."""
    names = set(document) if isinstance(document, dict) else set()
    about = document.get("input_config") if names else None
    names |= {f"input_config.{name}" for name in (about if isinstance(about, dict) else ())}
    why = next(why for wanted, why in _SUMMARIES if names.issuperset(wanted.split()))
    version = document.get("aiperf_version") if names else ""
    return f"{source} is {why.format(version=f' ({version})' if version else '')}"


def why_several(source: Path, documents: list[Any]) -> str:
    """The error for a file with several JSON documents."""
    first = documents[0]
    if not isinstance(first, dict) or not {"request_rate", "completed"} & set(first):
        return why_no_requests(source, first)
    return (
        f"{source} must hold one result, got {len(documents)} (as --append-result, SGLang's"
        " bench_serving and a sweep's summary write them). Give each result its own file"
        " (example: run=0.json of a sweep)"
    )


def why_not_json(source: Path, error: Exception) -> str:
    """The error for a text that begins like JSON."""
    return f"{source} is damaged JSON ({error}): cut off or edited. Copy the whole file again"


def why_not_table(source: Path, text: str) -> str:
    """The error for a text that does not begin like JSON."""
    start = text.lstrip()[:200].lower()
    if start.startswith("<"):
        why = "a web page. Use the JSON file that the tool writes with it"
    elif {"mean_ttft_ms", "request_throughput"} <= columns_of(text):
        why = (
            "the table of a vllm bench sweep without single requests. Use run=0.json in one of its"
            " folders, made with --save-detailed"
        )
    elif start.startswith("metric,"):
        why = (
            "a summary table of AIPerf or genai-perf without single requests. Use AIPerf's"
            " profile_export.jsonl"
        )
    elif "guidellm" in start or start.startswith(("run info,", "args:", "metadata:")):
        why = "a GuideLLM report in CSV or YAML. Use its benchmarks.json (--outputs json)"
    else:
        why = _UNKNOWN
    return f"{source} is {why}"
