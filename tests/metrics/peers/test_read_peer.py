"""The vLLM and LMCache samples were written by those tools (0.32.0 and 0.5.6); see `peers/`.

The vLLM files are real runs against a real CPU vLLM, cut to four requests and without their texts.
GuideLLM 0.8.1 and AIPerf 0.13.0 wrote theirs against the simulated engine, some streams broken on
purpose; what else they may write follows the formats in the tools' sources.
"""

from __future__ import annotations

import json
from math import nan
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from tests.metrics.peers.peer_files import benchmark_report, guidellm_report
from workbench.errors import ResultError
from workbench.metrics.definitions import card
from workbench.metrics.latency import icl, system_tps
from workbench.metrics.peers.read_peer import read_peer
from workbench.metrics.statistics import pair, paired_ratio

PEERS = Path(__file__).parent
COMPLETIONS = PEERS / "vllm_bench_0.32_completions.json"
CHAT = PEERS / "vllm_bench_0.32_chat.json"


def saved(tmp_path: Path, content: Any, name: str = "result.json") -> Path:
    path = tmp_path / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def read(tmp_path: Path, content: Any, name: str = "result.json") -> pd.DataFrame:
    return read_peer(saved(tmp_path, content, name))


def aiperf_record(**change: Any) -> dict[str, Any]:
    measures = {
        "input_sequence_length": (550, "tokens"),
        "output_sequence_length": (4, "tokens"),
        "time_to_first_token": (250.0, "ms"),
        "request_latency": (310.0, "ms"),
        "inter_chunk_latency": ([10.0, 20.0, 30.0], "ms"),
    }
    return {
        "metadata": {
            "session_num": 0, "x_request_id": "a", "benchmark_phase": "profiling",
            "request_start_ns": 1_764_000_000_000_000_000,
            "request_end_ns": 1_764_000_000_500_000_000, "was_cancelled": False,
        },
        "metrics": {name: {"value": v, "unit": unit} for name, (v, unit) in measures.items()},
        "error": None,
    } | change  # fmt: skip


def test_vllm_bench_as_it_was_saved():
    frame = read_peer(COMPLETIONS)
    told = json.loads(COMPLETIONS.read_text())
    assert frame["ttft_s"].tolist() == pytest.approx(told["ttfts"])
    assert frame["e2e_s"].tolist() == pytest.approx(told["latencies"])
    assert (frame["ttft_scheduled_s"] - frame["ttft_s"]).tolist() == pytest.approx(
        told["queue_times"]
    )
    assert icl(frame).tolist() == pytest.approx([gap for gaps in told["itls"] for gap in gaps])
    tpots = (frame["e2e_s"] - frame["ttft_s"]) / 7
    assert frame["tpot_s"].tolist() == pytest.approx(tpots.tolist())


def test_in_a_real_chat_stream_vllm_bench_times_the_role_as_the_first_token():
    frame = read_peer(CHAT)
    assert (frame["chunk_s"].map(len) > frame["output_tokens"]).all()
    roles = [stamps[1] - stamps[0] for stamps in frame["chunk_s"]]
    assert np.median(roles) < 20e-6  # the token itself comes in the same packet


def test_the_card_works_on_what_was_read():
    found = card(read_peer(COMPLETIONS))
    assert found.at["ITL", "vllm_bench"] == pytest.approx(found.at["ICL", "workbench"])
    assert found.at["TPOT", "vllm_bench"] < found.at["TPOT", "guidellm"]


def test_a_comparison_of_two_tools_pairs_their_requests():
    one, other = read_peer(COMPLETIONS, arm="a"), read_peer(CHAT, arm="b")
    ratio = paired_ratio(pair(one, other, "ttft_s"))
    assert ratio.pairs == 4
    assert ratio.value == pytest.approx(
        np.exp(np.mean(np.log(one["ttft_s"] / other["ttft_s"].to_numpy())))
    )


def test_vllm_bench_requests_that_failed_have_zeros_in_the_file_and_nan_here(tmp_path):
    result = json.loads(COMPLETIONS.read_text())
    result["errors"][1] = "Traceback\nTimeoutError: timed out"
    result["ttfts"][2], result["itls"][2], result["output_lens"][2] = 0.0, [], 0
    result["errors"][3] = "Too Many Requests"
    frame = read(tmp_path, result)
    assert frame["error"].tolist() == ["", "timeout", "protocol", "http_429"]
    assert frame["ttft_s"].isna().tolist() == [False, True, True, True]
    assert frame["chunk_s"].map(len).tolist()[1:] == [0, 0, 0]


def old_vllm_bench(**change: Any) -> dict[str, Any]:
    """What vLLM 0.14 wrote with --save-detailed; benchmark_serving.py of 0.6 had no endpoint_type.

    Two answers of three tokens; the second is late by 0.1 s a token.
    """
    return {
        "backend": "vllm", "model_id": "m", "tokenizer_id": "m", "num_prompts": 2,
        "request_rate": "inf", "completed": 2, "total_output_tokens": 6,
        "input_lens": [100, 200], "output_lens": [3, 3], "ttfts": [0.5, 1.0],
        "itls": [[0.1, 0.2], [0.2, 0.3]], "generated_texts": ["a", "b"], "errors": ["", ""],
        "median_ttft_ms": 750.0,
    } | change  # fmt: skip


def test_the_servers_own_times_of_vllm_bench_033(tmp_path):
    result = old_vllm_bench(
        start_times=[7.0, 8.0], server_queue_times=[0.3, None], server_ttfts=[0.15, 0.9]
    )
    frame = read(tmp_path, result)
    assert [json.loads(told) for told in frame["engine_metrics"]] == [
        {"queue_time_ms": 300.0, "time_to_first_token_ms": 150.0},
        {"time_to_first_token_ms": 900.0},
    ]
    assert frame.attrs["version"].startswith("0.33")
    assert frame.attrs["doubts"] == ()
    assert frame["chunk_s"].iloc[0] == pytest.approx((7.5, 7.6, 7.8))


def sglang_result(**change: Any) -> dict[str, Any]:
    return {
        "tag": None, "backend": "sglang", "dataset_name": "random", "request_rate": "inf",
        "completed": 64, "total_output_tokens_retokenized": 128, "median_ttft_ms": 24_000.0,
        "input_lens": [4096, 4096], "output_lens": [2, 0], "ttfts": [1.0, 0.0],
        "itls": [[0.25], []], "errors": ["", ""],
    } | change  # fmt: skip


def test_what_a_file_cannot_tell_of_one_record_leaves_the_others(tmp_path):
    broken = aiperf_record(metrics={"request_latency": {"value": 1.0, "unit": "fortnight"}})
    lines = [json.dumps(record) for record in (aiperf_record(), broken, aiperf_record())]
    cut = json.dumps(aiperf_record())[:80]
    frame = read(tmp_path, "\n".join([*lines, cut]), "profile_export.jsonl")
    assert len(frame) == 2
    assert (frame.attrs["kept"], frame.attrs["total"]) == (2, 4)
    told = " ".join(frame.attrs["doubts"])
    assert "1 of 3 records could not be read and are left out (KeyError: 'fortnight')" in told
    assert "Lines left out because they are cut off or not JSON: 1." in told


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"ttfts": [-1.0, 1.0], "latencies": [0.8, 1.5], "itls": None}, "TTFT"),
        ({"ttfts": [float("inf"), 1.0]}, "infinite"),
        ({"itls": [[0.1, -0.2], [0.2, 0.3]]}, "not in order"),
        ({"output_lens": [float("inf"), 3]}, "OverflowError"),
    ],
)
def test_a_request_with_a_value_that_cannot_be_is_counted_and_left_out(tmp_path, change, reason):
    frame = read(tmp_path, old_vllm_bench(**change))
    assert frame["index"].tolist() == [1]  # its place in the data set, so that pairs stay pairs
    assert frame["ttft_s"].tolist() == [1.0]
    assert (frame.attrs["kept"], frame.attrs["total"]) == (1, 2)
    assert "1 of 2 records could not be read" in frame.attrs["doubts"][-1]
    assert reason in frame.attrs["doubts"][-1]


def test_a_row_of_a_table_that_was_cut_off_leaves_the_others(tmp_path):
    table = (PEERS / "lmcache_bench_0.5.6.csv").read_text()
    frame = read(tmp_path, f"{table}doc3,True,0.5", "bench_results.csv")
    assert (frame.attrs["kept"], frame.attrs["total"]) == (3, 4)


def test_a_folder_is_its_one_result_file(tmp_path):
    saved(tmp_path, guidellm_report(), "benchmarks.json")
    assert read_peer(tmp_path)["arm"].iloc[0] == "GuideLLM"
    saved(tmp_path, json.dumps(aiperf_record()), "profile_export.jsonl")
    with pytest.raises(ResultError, match=r"holds benchmarks\.json and profile_export\.jsonl"):
        read_peer(tmp_path)


def test_guidellm_as_it_was_saved():
    frame = read_peer(PEERS / "guidellm_0.8.1.json")
    assert sorted(frame["error"]) == ["", "", "stream_error", "stream_error"]
    good = frame[frame["error"] == ""]
    assert good["output_tokens"].tolist() == [16, 16]
    assert (good["ttft_s"] > 0).all()
    assert (good["e2e_s"] > good["ttft_s"]).all()
    assert "EngineCore encountered an issue" in frame["error_message"].max()


def guidellm_03_report(**change: Any) -> dict[str, Any]:
    """GuideLLM 0.2 and 0.3: no metadata, times beside the request, -1 where none came."""
    good = {
        "type_": "generative_text_response", "request_id": "g",
        "scheduler_info": {"targeted_start_time": 99.9, "request_start": 100.0},
        "prompt_tokens": 8, "output_tokens": 5, "start_time": 100.0, "end_time": 101.0,
        "first_token_time": 100.5, "last_token_time": 100.9, "time_to_first_token_ms": 500.0,
        "time_per_output_token_ms": 80.0,
    }  # fmt: skip
    bad = good | {
        "scheduler_info": {"targeted_start_time": -1}, "error": "ReadTimeout: timed out",
        "first_token_time": None, "time_to_first_token_ms": None,
    }  # fmt: skip
    percentiles = {"p50": 510.0, "p90": 750.0, "p99": 900.0}
    benchmark = {
        "request_totals": {"successful": 21, "errored": 1, "incomplete": 0, "total": 22},
        "requests": {"successful": [good] * 9, "errored": [bad], "incomplete": []},
        "metrics": {"time_to_first_token_ms": {"successful": {"percentiles": percentiles}}},
    }
    return {"benchmarks": [benchmark | change]}


def test_aiperf_counts_all_its_requests_in_the_summary_beside_the_records(tmp_path):
    path = saved(tmp_path, json.dumps(aiperf_record()), "profile_export.jsonl")
    counts = {"request_count": {"avg": 5.0}, "error_request_count": {"avg": 2.0}}
    saved(tmp_path, counts | {"aiperf_version": "0.13.0"}, "profile_export_aiperf.json")
    attrs = read_peer(path).attrs
    assert (attrs["kept"], attrs["total"], attrs["version"]) == (1, 7, "0.13.0")


def test_aiperf_as_it_was_saved():
    frame = read_peer(PEERS / "aiperf_0.13.0.jsonl")
    assert frame["error"].tolist() == ["", "", "", "http_503"]
    # The server counted 6 tokens where AIPerf made 16 of the text; it did not tell those of the
    # third, which was cut off after two.
    assert frame["output_tokens"].tolist() == [6, 6, 5, -1]
    assert frame["prompt_tokens"].tolist()[:1] == [61]
    assert frame["ttft_s"].iloc[0] == pytest.approx(0.027860745)
    assert frame["chunk_s"].map(len).tolist() == [6, 6, 2, 0]


@pytest.mark.parametrize("failed", [{"metrics": None}, {}])
def test_aiperf_requests_that_failed_have_no_metrics(tmp_path, failed):
    told = {"code": 503, "type": "HTTPError", "message": "Service Unavailable"}
    bad = {"metadata": aiperf_record()["metadata"], **failed, "error": told}
    lines = "\n".join(map(json.dumps, (bad, aiperf_record())))
    frame = read(tmp_path, lines, "profile_export.jsonl")
    assert sorted(frame["error"]) == ["", "http_503"]
    assert frame.attrs["doubts"] == ()


def less(content: dict[str, Any], *names: str) -> dict[str, Any]:
    return {key: value for key, value in content.items() if key not in names}


def guidellm_with(timings: dict[str, Any], **benchmark: Any) -> list[dict[str, Any]]:
    """The benchmarks of a report whose good request has no TTFT and these timings."""
    (made,) = guidellm_report(time_to_first_token_ms=None)["benchmarks"]
    made["requests"]["successful"][0]["info"]["timings"] |= timings
    return [made | benchmark]


def aiperf_lines(*records: dict[str, Any]) -> str:
    return "\n".join(map(json.dumps, records))


def aiperf_unstreamed() -> dict[str, Any]:
    """As AIPerf 0.2 wrote it in 2025: no x_request_id, no first token."""
    record = aiperf_record()
    metrics = less(record["metrics"], "time_to_first_token", "inter_chunk_latency")
    return record | {"metrics": metrics, "metadata": record["metadata"] | {"x_request_id": None}}


WARM = aiperf_record()["metadata"] | {"benchmark_phase": "warmup"}
REFUSED = aiperf_record(
    metrics={"error_isl": {"value": 550, "unit": "tokens"}},
    error={"code": 503, "type": "HTTPError", "message": "no engine"},
)
NO_DETAIL = less(
    old_vllm_bench(latencies=[0.8, 1.5, 0.0], completed=2, failed=1),
    "input_lens", "output_lens", "ttfts", "itls", "errors", "generated_texts",
)  # fmt: skip
"""Without --save-detailed, `latencies` and `queue_times` stay in the file up to 0.32."""
MULTI_ROUND = (
    ",prompt_tokens,generation_tokens,ttft,generation_time,user_id,question_id,launch_time,"
    "finish_time\n0,900,101,0.5,2.0,1,1,10.0,12.5\n1,950,0,0.0,0.0,1,2,9.0,9.0\n"
)
COUNTS = {"request_totals": {"successful": 30, "errored": 2}}
UNSTREAMED = {"first_token_iteration": None, "last_token_iteration": None}
DERIVED = {
    "icl": lambda frame: icl(frame).tolist(),
    "system_tps": lambda frame: [system_tps(frame)],
    "chunks": lambda frame: frame["chunk_s"].map(len).tolist(),
}


@pytest.mark.parametrize(
    ("content", "columns", "attrs", "doubt"),
    [
        pytest.param(
            old_vllm_bench(),
            {"ttft_s": [0.5, 1.0], "e2e_s": [0.8, 1.5], "tpot_s": [0.15, 0.25],
             "icl": [0.1, 0.2, 0.2, 0.3], "sent_s": [nan, nan], "system_tps": [nan]},
            {"version": "0.14 or older, without start_times"}, "no send times",
            id="vllm bench before it saved when it sent: overlap is unknown",
        ),
        pytest.param(
            less(old_vllm_bench(), "itls"),
            {"ttft_s": [0.5, 1.0], "tpot_s": [nan, nan], "e2e_s": [nan, nan]},
            {}, "no `itls`", id="a missing list takes what rests on it only",
        ),
        pytest.param(
            NO_DETAIL,
            {"error": ["", "", "protocol"], "e2e_s": [0.8, 1.5, nan], "ttft_s": [nan] * 3,
             "output_tokens": [-1, -1, -1]},
            {}, "--save-detailed", id="vllm bench without --save-detailed",
        ),
        pytest.param(
            old_vllm_bench(steady_state=None, start_times=[1.0, 2.0]), {}, {}, "Rust",
            id="the Rust client, by its steady_state",
        ),
        pytest.param(
            sglang_result(),
            {"arm": ["SGLang bench_serving"] * 2, "error": ["", "protocol"], "tpot_s": [0.25, nan],
             "e2e_s": [1.25, nan], "icl": []},
            {"kept": 2, "total": 64, "own": {"TTFT p50": 24.0}}, "no send times",
            id="sglang, whose gaps may be divided by the tokens of a chunk",
        ),
        pytest.param(
            sglang_result(cached_tokens=[96, 0]), {"cached_tokens": [96, -1]}, {}, "no send times",
            id="sglang's cached tokens",
        ),
        pytest.param(
            MULTI_ROUND,
            {"request_id": ["1.2", "1.1"], "error": ["protocol", ""], "ttft_s": [nan, 0.5],
             "e2e_s": [nan, 2.5], "tpot_s": [nan, 0.02]},
            {}, "finished requests only", id="multi-round-qa in the order of sending",
        ),
        pytest.param(
            (PEERS / "lmcache_bench_0.5.6.csv").read_text(),
            {"request_id": ["doc0", "doc1", "doc2"], "ttft_s": [0.5, 0.25, nan], "icl": [],
             "tpot_s": [0.05, 0.05, nan], "error": ["", "", "http_503"],
             "error_message": ["", "", "Error code: 503 - {'error': \"engine\nstopped\"}"]},
            {}, "", id="lmcache bench in the order of sending",
        ),
        pytest.param(
            guidellm_report(),  # the failed request was sent first; TPOT is GuideLLM's ITL
            {"error": ["timeout", ""], "ttft_s": [nan, 0.5], "ttft_scheduled_s": [nan, 0.6],
             "tpot_s": [nan, 0.1], "e2e_s": [nan, 0.9], "sent_s": [99, 100],
             "stream_end_s": [101, 101]},
            {}, "", id="guidellm by its timings",
        ),
        pytest.param(
            guidellm_03_report(),
            {"error": [*[""] * 9, "timeout"], "ttft_s": [*[0.5] * 9, nan],
             "ttft_scheduled_s": [*[0.6] * 9, nan], "tpot_s": [*[0.1] * 9, nan],
             "e2e_s": [*[0.9] * 9, nan]},
            {"kept": 10, "total": 22,
             "own": {"TTFT p50": 0.51, "TTFT p90": 0.75, "TTFT p99": 0.9}},
            "", id="guidellm 0.3 and the part of its requests that it keeps",
        ),
        pytest.param(
            {"args": {}, "benchmarks": guidellm_with({}, metrics=COUNTS)}, {},
            {"version": "0.4", "kept": 2, "total": 32}, "",
            id="guidellm 0.4 has no metadata, later ones count in their metrics",
        ),
        pytest.param(
            {"metadata": {"version": 2}, "benchmarks": guidellm_with(UNSTREAMED)},
            {"ttft_s": [nan, nan], "e2e_s": [nan, 1.0]},
            {}, "not streamed", id="guidellm without streaming",
        ),
        pytest.param(
            aiperf_unstreamed(),
            {"e2e_s": [0.31], "ttft_s": [nan], "tpot_s": [nan], "chunks": [0]},
            {}, "without --streaming", id="aiperf without streaming",
        ),
        pytest.param(
            aiperf_lines(aiperf_record(metadata=WARM), aiperf_record(), REFUSED),
            {"error": ["", "http_503"], "ttft_s": [0.25, nan], "e2e_s": [0.31, nan],
             "tpot_s": [0.02, nan], "icl": [0.01, 0.02, 0.03]},
            {}, "", id="aiperf by its records, without the warm-up",
        ),
    ],
)  # fmt: skip
def test_a_file_is_read_in_our_definitions(tmp_path, content, columns, attrs, doubt):
    frame = read(tmp_path, content)
    for name, values in columns.items():
        found = DERIVED[name](frame) if name in DERIVED else frame[name].tolist()
        texts = name in ("error", "error_message", "arm", "request_id")
        assert found == (values if texts else pytest.approx(values, abs=1e-6, nan_ok=True)), name
    assert {name: frame.attrs[name] for name in attrs} == attrs
    assert all(len(said.split()) <= 25 for said in frame.attrs["doubts"])
    assert doubt in " ".join(frame.attrs["doubts"]) and bool(doubt) == bool(frame.attrs["doubts"])


GUIDELLM_SUMMARY = guidellm_03_report(requests={"successful": [], "errored": []})


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "is empty"),
        ("not json", "not a result of a known tool"),
        ("<!doctype html><p>report", "is a web page"),
        ("{}", "not a result of a known tool"),
        ("[]", "not a result of a known tool"),
        ("[1, 2]", "not a result of a known tool"),
        ("[" * 100_000, "is damaged JSON"),
        (json.dumps(old_vllm_bench(), indent=1)[:-90], "cut off or edited. Copy the whole"),
        (json.dumps(old_vllm_bench())[:-90], "cut off or edited. Copy the whole"),
        (less(old_vllm_bench(), "ttfts"), "vLLM bench result without.*--save-detailed"),
        (old_vllm_bench(errors=[""]), "vLLM bench, but of an unknown version.*errors 1"),
        ([old_vllm_bench(), old_vllm_bench()], "one result, got 2 .*a sweep's summary.*run=0.json"),
        (json.dumps(old_vllm_bench()) + "\n{}", "--append-result"),
        ({"model_id": "m", "num_conversations": 3}, "Rust vllm-bench"),
        ([{"benchmark": {}, "model": {}, "metric": {}}], "PyTorch"),
        ("run,mean_ttft_ms,request_throughput\n0,1,2\n", "vllm bench sweep"),
        (guidellm_report(version=3), r"of version 1 or 2 .*, got version 3 \(GuideLLM unknown\)"),
        ({"metadata": {"version": 2}, "benchmarks": []}, "holds no requests of GuideLLM"),
        (GUIDELLM_SUMMARY, "holds 0 of 22 requests of GuideLLM"),
        (
            {"benchmarks": [{"mode": "synchronous", "results": []}]},
            "GuideLLM 0.2 to 0.8, got GuideLLM 0.1",
        ),
        ({"benchmarks": [{}, {}]}, "one GuideLLM benchmark, got 2"),
        (
            {"benchmarks": [{"requests": {"successful": [{"request_id": "g"}]}}]},
            "GuideLLM, but of an unknown version",
        ),
        ("metadata:\n  version: 1\nbenchmarks:\n", "GuideLLM report in CSV or YAML"),
        (benchmark_report(version="0.1"), "Benchmark Report of version 0.2, got 0.1"),
        (benchmark_report(units="fortnights"), "Benchmark Report, but of an unknown version"),
        ("version: 0.2\nresults: [\n", "is damaged"),
        ({"version": "0.2", "results": {}}, "holds no requests of Benchmark Report"),
        (
            aiperf_record(metrics={"ttft": {"value": 1, "unit": "ms"}}),
            "AIPerf, but of an unknown version",
        ),
        ({"metadata": {}, "payload": {}}, "AIPerf's raw export"),
        (
            {"input_config": {"loadgen": {}}, "request_latency": {}, "aiperf_version": "0.3.0"},
            r"AIPerf summary \(0.3.0\).*profile_export.jsonl",
        ),
        ({"input_config": {"model": ["m"]}, "request_latency": {}}, "is a genai-perf summary"),
        ({"service_kind": "openai", "experiments": []}, "genai-perf's raw profile"),
        ("Metric,avg,min\nTime To First Token (ms),1,1\n", "AIPerf or genai-perf"),
        (less(sglang_result(), "ttfts"), "SGLang bench_serving.*--output-details"),
        ({"config": {}, "results": {}}, "bench_results.csv"),
        ({"avg_latency": 1.0, "latencies": [1.0], "percentiles": {}}, "vllm bench latency"),
        ({"elapsed_time": 1.0, "total_num_tokens": 9}, "vllm bench latency or throughput"),
        ("request_id,successful,ttft\na,True,1\n", "LMCache bench, but of an unknown version"),
        ("request_id,ttft\na,1\n", "Supported: vLLM bench 0.6 to 0.33"),
    ],
)
def test_what_is_not_known_gets_a_sentence(tmp_path, content, sentence):
    with pytest.raises(ResultError, match=sentence) as refused:
        read(tmp_path, content)
    assert len(str(refused.value).split()) <= 60  # the longest list every tool that is supported


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ResultError, match="cannot be read"):
        read_peer(tmp_path / "nothing.json")


CASES = Path(__file__).parents[4] / "shared" / "cases"


@pytest.mark.skipif(not CASES.is_dir(), reason="the field's files are not beside the checkout")
def test_files_from_the_field():
    old, guidellm = (
        read_peer(CASES / name)
        for name in ("09-vllm-bench-014/bench.json", "12-guidellm-030/benchmarks.json")
    )
    assert (len(old), old["ttft_s"].notna().all()) == (40, True)
    assert (len(guidellm), guidellm["ttft_s"].median()) == (20, pytest.approx(1.2645))
    others = CASES / "15-other-tools"
    part = read_peer(others / "sglang.jsonl").attrs
    assert (part["kept"], part["total"]) == (4, 64)
    assert len(read_peer(others / "summary.csv")) == 10
    with pytest.raises(ResultError, match="genai-perf"):
        read_peer(others / "profile_export_genai_perf.json")


@pytest.mark.parametrize("form", [json.dumps, yaml.safe_dump])
def test_a_benchmark_report_has_percentiles_and_no_requests(tmp_path, form):
    frame = read(tmp_path, form(benchmark_report()))
    assert frame.empty and {"arm", "ttft_s", "prompt_tokens"} <= {*frame.columns}
    assert frame.attrs["quantiles"] == {("ttft_s", 0.5): 0.25, ("ttft_s", 0.9): 0.5}
    assert frame.attrs["version"] == "0.2, inference-perf 0.7.0"
    assert (frame.attrs["kept"], frame.attrs["total"]) == (0, 200)
    assert "3 of 200 requests failed." in frame.attrs["doubts"]


def test_a_benchmark_report_in_milliseconds_is_read_in_seconds(tmp_path):
    frame = read(tmp_path, benchmark_report(units="ms", p50=250.0, p90=500.0))
    assert frame.attrs["quantiles"] == {("ttft_s", 0.5): 0.25, ("ttft_s", 0.9): 0.5}
