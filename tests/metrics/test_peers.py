"""The vLLM and LMCache samples were written by those tools (0.32.0 and 0.5.6); see `peers/`.

The vLLM files are real runs against a real CPU vLLM, cut to four requests and without their texts.
GuideLLM 0.8.1 and AIPerf 0.13.0 wrote theirs against the simulated engine, some streams broken on
purpose; what else they may write follows the formats in the tools' sources.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from workbench.errors import ResultError
from workbench.metrics.definitions import card
from workbench.metrics.latency import icl
from workbench.metrics.peers import read_peer
from workbench.metrics.statistics import pair, paired_ratio

PEERS = Path(__file__).parent / "peers"
COMPLETIONS = PEERS / "vllm_bench_0.32_completions.json"
CHAT = PEERS / "vllm_bench_0.32_chat.json"


def saved(tmp_path: Path, content: Any, name: str = "result.json") -> Path:
    path = tmp_path / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def aiperf_record(**change: Any) -> dict[str, Any]:
    return {
        "metadata": {
            "session_num": 0,
            "x_request_id": "a",
            "request_start_ns": 1_764_000_000_000_000_000,
            "request_end_ns": 1_764_000_000_500_000_000,
            "benchmark_phase": "profiling",
            "was_cancelled": False,
        },
        "metrics": {
            "input_sequence_length": {"value": 550, "unit": "tokens"},
            "output_sequence_length": {"value": 4, "unit": "tokens"},
            "time_to_first_token": {"value": 250.0, "unit": "ms"},
            "request_latency": {"value": 310.0, "unit": "ms"},
            "inter_chunk_latency": {"value": [10.0, 20.0, 30.0], "unit": "ms"},
        },
        "error": None,
    } | change


def guidellm_report(version: int = 2, **change: Any) -> dict[str, Any]:
    timings = {
        "targeted_start": 99.9,
        "request_start": 100.0,
        "first_token_iteration": 100.5,
        "last_token_iteration": 100.9,
        "request_end": 101.0,
    }
    good = {
        "request_id": "g",
        "info": {"timings": timings, "error": None},
        "prompt_tokens": 100,
        "output_tokens": 5,
        "time_to_first_token_ms": 500.0,
    } | change
    bad = good | {
        "info": {"timings": timings | {"request_start": 99.0}, "error": "ReadTimeout: timed out"},
        "time_to_first_token_ms": None,
    }
    requests = {"successful": [good], "errored": [bad], "incomplete": []}
    return {"metadata": {"version": version}, "benchmarks": [{"requests": requests}]}


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
    result["ttfts"][2], result["itls"][2] = 0.0, []
    result["errors"][3] = "Too Many Requests"
    frame = read_peer(saved(tmp_path, result))
    assert frame["error"].tolist() == ["", "timeout", "protocol", "http_429"]
    assert frame["ttft_s"].isna().tolist() == [False, True, True, True]
    assert frame["chunk_s"].map(len).tolist()[1:] == [0, 0, 0]


def test_lmcache_bench_in_the_order_of_sending():
    frame = read_peer(PEERS / "lmcache_bench_0.5.6.csv")
    assert frame["request_id"].tolist() == ["doc0", "doc1", "doc2"]
    assert frame["ttft_s"].tolist()[:2] == [0.5, 0.25]
    assert frame["tpot_s"].tolist()[:2] == pytest.approx([0.4 / 8, 0.4 / 8])
    assert frame["error"].tolist() == ["", "", "http_503"]
    assert "stopped" in frame["error_message"].iloc[2]  # the message has a line break in it
    assert len(icl(frame)) == 0


def test_guidellm_by_its_timings(tmp_path):
    frame = read_peer(saved(tmp_path, guidellm_report()))
    assert frame["error"].tolist() == ["timeout", ""]  # the failed one was sent first
    good = frame.iloc[1]
    assert good["ttft_s"] == pytest.approx(0.5)
    assert good["ttft_scheduled_s"] == pytest.approx(0.6)
    assert good["tpot_s"] == pytest.approx(0.4 / 4)  # its ITL, not its TPOT
    assert good["e2e_s"] == pytest.approx(0.9)
    assert good["stream_end_s"] - good["sent_s"] == pytest.approx(1.0)


def test_guidellm_as_it_was_saved():
    frame = read_peer(PEERS / "guidellm_0.8.1.json")
    assert sorted(frame["error"]) == ["", "", "stream_error", "stream_error"]
    good = frame[frame["error"] == ""]
    assert good["output_tokens"].tolist() == [16, 16]
    assert (good["ttft_s"] > 0).all()
    assert (good["e2e_s"] > good["ttft_s"]).all()
    assert "EngineCore encountered an issue" in frame["error_message"].max()


def test_aiperf_as_it_was_saved():
    frame = read_peer(PEERS / "aiperf_0.13.0.jsonl")
    assert frame["error"].tolist() == ["", "", "", "http_503"]
    # The server counted 6 tokens where AIPerf made 16 of the text; it did not tell those of the
    # third, which was cut off after two.
    assert frame["output_tokens"].tolist() == [6, 6, 5, -1]
    assert frame["prompt_tokens"].tolist()[:1] == [61]
    assert frame["ttft_s"].iloc[0] == pytest.approx(0.027860745)
    assert frame["chunk_s"].map(len).tolist() == [6, 6, 2, 0]


def test_aiperf_by_its_records(tmp_path):
    warm = aiperf_record()
    warm["metadata"] = warm["metadata"] | {"benchmark_phase": "warmup"}
    cut = aiperf_record(
        metrics={"error_isl": {"value": 550, "unit": "tokens"}},
        error={"code": 503, "type": "HTTPError", "message": "no engine"},
    )
    lines = "\n".join(json.dumps(record) for record in (warm, aiperf_record(), cut))
    frame = read_peer(saved(tmp_path, lines, "profile_export.jsonl"))
    assert frame["error"].tolist() == ["", "http_503"]
    good = frame.iloc[0]
    assert good["ttft_s"] == pytest.approx(0.25)
    assert good["e2e_s"] == pytest.approx(0.31)
    assert good["tpot_s"] == pytest.approx(0.02)
    assert icl(frame) == pytest.approx([0.01, 0.02, 0.03], abs=1e-6)  # epoch stamps are coarse


def without(content: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in content.items() if key != name}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("not json", "neither JSON nor a known CSV"),
        ("{}", "no result of a known tool"),
        ("[1, 2]", "no result of a known tool"),
        ("[" * 100_000, "neither JSON nor"),
        (without(json.loads(COMPLETIONS.read_text()), "ttfts"), "--save-detailed"),
        (without(json.loads(COMPLETIONS.read_text()), "itls"), "vLLM bench, but of a version"),
        (json.loads(COMPLETIONS.read_text()) | {"errors": [""]}, "vLLM bench, but of a version"),
        (COMPLETIONS.read_text().replace("\n", "") + "\n{}", "--append-result"),
        (guidellm_report(version=3), "report of version 3; known are versions 1 and 2"),
        ({"metadata": {"version": 2}, "benchmarks": []}, "without a request"),
        (guidellm_report(info={}), "GuideLLM, but of a version"),
        (aiperf_record(metrics={"ttft": {"value": 1, "unit": "ms"}}), "AIPerf, but of a version"),
        ({"config": {}, "results": {}}, "bench_results.csv"),
        ({"input_config": {}, "request_latency": {}}, "profile_export.jsonl"),
        ("request_id,ttft\na,1\n", "LMCache bench, but of a version"),
    ],
)
def test_what_is_not_known_gets_a_sentence(tmp_path, content, sentence):
    with pytest.raises(ResultError, match=sentence):
        read_peer(saved(tmp_path, content))


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ResultError, match="cannot be read"):
        read_peer(tmp_path / "nothing.json")
