"""Our Benchmark Reports against the format's own models, which inference-perf's wheel has.

They are fetched by pip when the test runs, and kept in pytest's cache: no code of others is in our
repository.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import zipfile
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from tests.golden.replay import RECORDINGS
from workbench import cli
from workbench.experiment.result.facts import ArmFacts, RunFacts, WorkloadFacts
from workbench.experiment.result.result import Result
from workbench.exports.benchmark_report import benchmark_reports, statistics
from workbench.metrics.gates.gate import Gate
from workbench.metrics.latency import latencies

WHEEL = "inference-perf==0.7.0"
MODELS = "inference_perf/reportgen/br/v0_2"
FILES = ("base", "schema_v0_2", "schema_v0_2_1", "schema_v0_2_components")


@pytest.fixture(scope="session")
def formats(request):
    """The models of v0.2 and of its extension v0.2.1, as their authors publish them."""
    folder = request.config.cache.mkdir("inference-perf-0.7.0")
    if not [*folder.glob("*.whl")]:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder),
                   "--python-version", "3.12", "--only-binary", ":all:", WHEEL]  # fmt: skip
        fetched = subprocess.run(command, capture_output=True, text=True, timeout=120)
        if fetched.returncode and "CI" not in os.environ:
            pytest.skip(f"pip cannot fetch {WHEEL} here: {fetched.stderr[-200:]}")
        assert fetched.returncode == 0, fetched.stderr
    package = folder / "br_format"
    package.mkdir(exist_ok=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        for name in FILES:
            (package / f"{name}.py").write_bytes(wheel.read(f"{MODELS}/{name}.py"))
    sys.path.insert(0, str(folder))
    yield (
        importlib.import_module("br_format.schema_v0_2").BenchmarkReportV02,
        importlib.import_module("br_format.schema_v0_2_1").BenchmarkReportV021,
    )
    sys.path.remove(str(folder))


@pytest.fixture(scope="module")
def run():
    """The recorded sweep: rows and gauges as they were measured, the rest as it is written."""
    requests = pd.read_parquet(RECORDINGS / "pd_sweep" / "requests.parquet")
    requests = requests.assign(**latencies(requests)) if "ttft_s" not in requests else requests
    machine = {"cpu": "AMD EPYC", "gpus": [], "versions": {"lmcache": "0.5.6"}}
    arms = tuple(
        ArmFacts(label=arm, topology=arm.split()[0], connector="lmcache", model="m")
        for arm in requests["arm"].unique()
    )
    facts = RunFacts(
        notebook="pd_sweep", run_id="r", status="success", started_at="2026-01-01T12:00:00+00:00",
        finished_at="2026-01-01T12:01:00+00:00", arms=arms, machine=machine, simulated=True,
        parameters={"engine": "simulated", "concurrency": 1, "prefill_tp": 2, "seed": 0},
        workload=WorkloadFacts(name="reference", arrivals="closed loop, 1 at a time", hash="h"),
    )  # fmt: skip
    gauges = pd.read_parquet(RECORDINGS / "pd_sweep" / "gauges.parquet")
    return Result(run=facts, folder=RECORDINGS, frames={"requests": requests, "gauges": gauges})


def reports(run, **facts):
    return dict(benchmark_reports(replace(run, run=replace(run.run, **facts))))


def rows_of(run, arm, cache_state):
    rows = run.frames["requests"]
    return rows[(rows["arm"] == arm) & (rows["pass"] == cache_state)]


def test_every_report_is_valid_and_nothing_is_lost_in_it(run, formats):
    found = reports(run)
    assert len(found) == len(run.frames["requests"][["arm", "pass"]].drop_duplicates())
    for report in found.values():
        for form in formats:
            read = form.model_validate(report)
            told = read.model_dump(mode="json", by_alias=True, exclude_unset=True)
            for part in ("scenario", "results"):
                assert told[part] == report[part]
            start, end = read.run.time.start, read.run.time.end
            assert report["run"]["time"]["duration"] == f"PT{(end - start).total_seconds():.3f}S"


def test_the_format_refuses_another_unit(run, formats):
    report = reports(run)["1p2d-lmcache-cold"]
    latency = report["results"]["request_performance"]["aggregate"]["latency"]
    latency["time_to_first_token"]["units"] = "count"
    with pytest.raises(ValueError, match="Invalid units"):
        formats[0].model_validate(report)


def test_numbers_and_units_are_those_of_the_rows(run):
    report = reports(run)["1p2d-lmcache-store-warm"]
    rows = rows_of(run, "1p2d lmcache", "store-warm")
    aggregate = report["results"]["request_performance"]["aggregate"]
    ttft = aggregate["latency"]["time_to_first_token"]
    assert ttft["units"] == "s"
    assert ttft["p50"] == rows["ttft_s"].median()
    assert ttft["max"] == rows["ttft_s"].max()
    assert "p99" not in ttft  # 9 requests have none
    assert aggregate["latency"]["time_per_output_token"]["units"] == "s/token"
    assert aggregate["requests"]["total"] == len(rows) == 9
    assert aggregate["requests"]["failures"] == 0
    assert aggregate["requests"]["input_length"]["mean"] == 22_660
    rates = aggregate["throughput"]
    assert rates["output_token_rate"]["units"] == "tokens/s"
    assert rates["request_rate"]["units"] == "queries/s"
    # 32 output tokens a request
    assert rates["output_token_rate"]["mean"] == pytest.approx(32 * rates["request_rate"]["mean"])


def test_the_stack_has_roles_replicas_and_load(run):
    report = reports(run)["1p2d-lmcache-cold"]
    prefill, decode, connector = report["scenario"]["stack"]
    assert [prefill["standardized"][name] for name in ("role", "replicas")] == ["prefill", 1]
    assert [decode["standardized"][name] for name in ("role", "replicas")] == ["decode", 2]
    assert prefill["standardized"]["accelerator"]["parallelism"] == {"tp": 2}
    assert connector["standardized"]["tool_version"] == "0.5.6"
    load = report["scenario"]["load"]["standardized"]
    assert load["concurrency"] == 1
    assert load["input_seq_len"] == {"distribution": "fixed", "value": 22_660}
    assert "rate_qps" not in load
    seen = report["results"]["observability"]["components"]
    assert {part["replica_id"] for part in seen} == {"prefill-0", "decode-0", "decode-1"}


def test_labels_that_differ_only_in_signs_or_letters_of_others_have_own_files(run):
    rows = run.frames["requests"]
    rows = rows[rows["arm"].eq("1p2d lmcache") & rows["pass"].eq("cold")]
    labels = ["模型甲, 1p2d", "模型乙, 1p2d", "m (1p2d)", "m [1p2d]", "M 1p2d", "m 1p2d 2"]
    frame = pd.concat([rows.assign(arm=label) for label in labels])
    made = list(benchmark_reports(replace(run, frames=run.frames | {"requests": frame})))
    names = [name for name, _ in made]
    assert names[:2] == ["模型甲-1p2d-cold", "模型乙-1p2d-cold"]
    assert len({name.casefold() for name in names}) == len(labels)
    assert len({report["run"]["uid"] for _, report in made}) == len(labels)


def test_what_a_failed_gate_takes_away_is_left_out_and_named(run):
    gate = Gate(name="no value is impossible", outcome="FAIL", sentence="No.", next_step="Stop")
    report = reports(run, gates=(gate,))["1p2d-lmcache-cold"]
    aggregate = report["results"]["request_performance"]["aggregate"]
    assert aggregate.keys() == {"requests"}
    assert "gate failed: no value is impossible" in report["run"]["keywords"]


def test_what_is_not_known_is_left_out():
    assert statistics([np.nan], "s") is None
    one = statistics([2.0], "s")
    assert one == {"units": "s", "mean": 2.0, "stddev": None, "min": 2.0, "max": 2.0}
    tails = statistics(range(1000), "s", tails=False)
    assert tails is not None
    assert "p75" in tails and "p99" not in tails and tails["max"] is None


def test_a_run_without_requests_is_refused(result, tmp_path, capsys):
    (tmp_path / "result.json").write_text(json.dumps(result))
    assert cli.main(["report", str(tmp_path), "--format", "benchmark-report"]) == 2
    assert "has no requests for a Benchmark Report" in capsys.readouterr().err
