"""A run that Prometheus and Grafana watch: refused before it starts, or measured whatever they do.

Real servers under a real Prometheus: tests/engine/test_monitoring.py.
"""

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.monitoring.prometheus_server import prometheus
from tests.monitoring.test_annotations import grafana
from tests.monitoring.test_history import rows_of, server
from workbench.errors import DeploymentError, ParameterError
from workbench.experiment.plan.arms import plan
from workbench.experiment.result.run_folder import RunFolder
from workbench.experiment.run import watch
from workbench.experiment.run.run import run
from workbench.experiment.run.servers import deploy
from workbench.monitoring.annotations import TOKEN
from workbench.monitoring.history import Prometheus
from workbench.params.notebooks import check_params
from workbench.report.figures import panels


def quiet(_: str) -> None: ...


def watching(address: str) -> Any:
    """A Prometheus that reads the server at this address, and has one line for each query."""

    def answer(what: str, given: dict[str, str]) -> Any:
        up = rows_of([{"instance": address, "job": "vllm"}])
        if what == "query_range":
            points = [[float(given["start"]) + n, f"{n}"] for n in range(4)]
            return [{"metric": {"role": "aggregated"}, "values": points}]
        if "timestamp" in given["query"]:
            return [row | {"value": [0, "9e12"]} for row in up]
        if "[" in given["query"]:
            return [{"metric": {}, "values": [[n, "1"] for n in range(9)]}]
        return up

    return answer


async def test_an_attached_run_reads_its_own_window_back(attached, vllm):
    with server(watching(httpx.URL(vllm.url).netloc.decode())) as url:
        result = await run(attached(prometheus_url=url), echo=quiet)
    shown = result.panels
    assert set(shown["title"]) >= {"Prompt tokens by source", "TTFT", "KV cache usage"}
    times = result.facts["pass_times"]
    assert [one["pass"] for one in times] == ["cold", "engine-warm"]
    assert 0 <= shown["unix_s"].min() - times[0]["from_s"] < 1.01  # scraped every second
    assert all(one["from_s"] < one["to_s"] for one in times)
    figure = panels(shown)
    assert figure is not None and "What Prometheus recorded" in figure.alt


async def test_servers_that_prometheus_does_not_read_are_refused_before_a_request(attached, vllm):
    with server(watching("other:1")) as url, pytest.raises(DeploymentError) as raised:
        await run(attached(prometheus_url=url), echo=quiet)
    assert "has no series of aggregated-0" in str(raised.value)
    assert "(it has: other:1)" in str(raised.value)


async def test_a_prometheus_that_is_not_there_is_refused_before_anything_starts(attached):
    with pytest.raises(DeploymentError, match="must be a running Prometheus"):
        await run(attached(prometheus_url="http://127.0.0.1:9"), echo=quiet)


async def test_a_prometheus_that_ends_in_mid_run_is_a_doubt(attached, vllm):
    answer = watching(httpx.URL(vllm.url).netloc.decode())

    def ending(what: str, given: dict[str, str]) -> Any:
        return "gone" if what == "query_range" else answer(what, given)

    with server(ending) as url:
        result = await run(attached(prometheus_url=url), echo=quiet)
    assert result.facts["status"] == "success"
    assert result.panels.empty and panels(result.panels) is None
    assert [doubt for doubt in result.doubts if doubt.startswith("Panels are missing: ")]


@pytest.mark.parametrize(
    "garbage",
    ["<html>Sign in</html>", "[]", [{"metric": {}}], [{"value": [0, "1"]}]],
    ids=["HTML", "no object", "no sample", "no labels"],
)
async def test_garbage_is_a_doubt_once_requests_were_sent_and_refused_before(
    attached, vllm, garbage
):
    answer = watching(httpx.URL(vllm.url).netloc.decode())
    asked: list[str] = []

    def later(what: str, given: dict[str, str]) -> Any:
        asked.append(given["query"])
        late = what == "query_range" or "[" in given["query"] or asked.count("up") > 1
        return garbage if late else answer(what, given)

    with server(later) as url:
        result = await run(attached(prometheus_url=url, rounds=2), echo=quiet)
    assert result.facts["status"] == "success"
    assert {one["round"] for one in result.facts["pass_times"]} == {0, 1}
    assert [doubt for doubt in result.doubts if "must be a running Prometheus" in doubt]
    with server(lambda *_: garbage) as url, pytest.raises(DeploymentError, match="running Prom"):
        await run(attached(prometheus_url=url), echo=quiet)


async def test_servers_that_are_not_read_any_more_in_a_later_round_are_a_doubt(attached, vllm):
    answer = watching(httpx.URL(vllm.url).netloc.decode())
    asked: list[str] = []

    def losing(what: str, given: dict[str, str]) -> Any:
        asked.append(given["query"])
        return [] if asked.count("up") > 1 else answer(what, given)

    with server(losing) as url:
        result = await run(attached(prometheus_url=url, rounds=2), echo=quiet)
    assert result.facts["status"] == "success"
    assert {one["round"] for one in result.facts["pass_times"]} == {0, 1}
    assert any("has no series of aggregated-0" in doubt for doubt in result.doubts)


async def test_a_run_that_was_scraped_once_waits_for_its_last_scrape(attached, vllm):
    answer = watching(httpx.URL(vllm.url).netloc.decode())
    asked: list[str] = []

    def once(what: str, given: dict[str, str]) -> Any:
        asked.append("interval" if "[" in given["query"] else given["query"].split("(")[0])
        return (
            [{"metric": {}, "values": [[0, "1"]]}] if "[" in given["query"] else answer(what, given)
        )

    with server(once) as url:
        await run(attached(prometheus_url=url), echo=quiet)
    assert "timestamp" in asked[asked.index("interval") :]


async def test_each_pass_is_marked_in_grafana(attached, monkeypatch):
    monkeypatch.setenv(TOKEN, "glsa_1")
    posted: list[tuple[str, dict[str, Any]]] = []
    with grafana(posted, "glsa_1") as url:
        made = attached(grafana_url=url, rounds=2)
        result = await run(made, echo=quiet)
    texts = [body["text"] for _, body in posted]
    assert texts == [
        f"attached, round {number}: {name}"
        for number in (1, 2)
        for name in ("cold", "engine-warm")
    ]  # fmt: skip
    first = posted[0][1]
    assert first["tags"] == ["workbench", "pd_sweep", made.run_id, "cold"]
    assert first["time"] == pytest.approx(1000 * result.run.pass_times[0].from_s, abs=1)
    assert "glsa_1" not in json.dumps(result.facts)


async def test_a_grafana_that_refuses_is_one_doubt_and_asked_once(attached, monkeypatch):
    monkeypatch.setenv(TOKEN, "wrong")
    posted: list[tuple[str, dict[str, Any]]] = []
    with grafana(posted, "glsa_1") as url:
        result = await run(attached(grafana_url=url, rounds=2), echo=quiet)
    assert result.facts["status"] == "success" and len(posted) == 1
    doubt = f"Passes are not marked in Grafana: {url} responded 401 Unauthorized."
    assert doubt in result.doubts


async def test_a_grafana_without_a_token_is_refused_before_anything_starts(attached, monkeypatch):
    monkeypatch.delenv(TOKEN, raising=False)
    with pytest.raises(ParameterError, match="grafana_url needs a service account's token"):
        await run(attached(grafana_url="http://127.0.0.1:3000"), echo=quiet)


def simulated(folder: Path, url: str) -> Any:
    values = {
        "engine": "simulated", "topology": "1p1d", "connector": "nixl", "opponents": False,
        "rounds": 1, "prompt_tokens": 600, "requests": 3, "output_dir": str(folder),
    }  # fmt: skip
    return plan(check_params("pd_sweep", values | {"prometheus_url": url}))


def test_the_next_run_removes_what_killed_runs_told_prometheus(tmp_path):
    outputs = str(tmp_path)
    ours, other, killed = (RunFolder.open(outputs, "pd_sweep", f"1p1d-{n}") for n in range(3))
    killed.let_go()  # as the end of its process does
    told = tmp_path / "prometheus"
    told.mkdir()
    for name in (other.attempt.name, killed.attempt.name, "attempt-whose-folder-is-gone", "mine"):
        (told / f"{name}.json").write_text("[]")
    (told / f"{killed.attempt.name}.partial").touch()
    watch.Watch(plan=simulated(tmp_path, ""), folder=ours)._tell([])
    left = {file.name for file in told.iterdir()}
    assert left == {f"{ours.attempt.name}.json", f"{other.attempt.name}.json", "mine.json"}


@pytest.mark.servers
async def test_a_real_prometheus_reads_the_servers_that_a_run_starts(tmp_path):
    outputs = tmp_path / "out"
    with prometheus(tmp_path / "prometheus", outputs) as url:
        result = await run(simulated(outputs, url), echo=quiet)
    lines = set(result.panels["line"])
    assert {"prefill computed", "decode external hit", "decode decode-0 running"} <= lines
    assert not list((outputs / "prometheus").iterdir())


@pytest.mark.servers
async def test_a_prometheus_that_does_not_read_the_targets_of_a_run_is_refused(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(watch, "SCRAPE_TIMEOUT_S", 1.0)
    with prometheus(tmp_path / "prometheus", tmp_path / "elsewhere") as url:
        with pytest.raises(DeploymentError) as raised:
            await run(simulated(tmp_path / "out", url), echo=quiet)
    assert "has not read decode-0, prefill-0 within 1 s. Add " in str(raised.value)


@pytest.mark.servers
async def test_servers_whose_metrics_are_out_of_reach_are_shown_by_their_model(tmp_path):
    """Only `base_url` is given; Prometheus reads the instances and the store behind it."""
    values = {"engine": "simulated", "topology": "1p1d", "connector": "lmcache"}
    (arm, *_) = plan(check_params("pd_sweep", values)).arms
    async with deploy(arm, log_dir=tmp_path / "logs") as running:
        targets = watch.targets_of(arm, running)
        with prometheus(tmp_path / "prometheus", tmp_path / "out", targets) as url:
            values = {
                "engine": "attach", "base_url": running.url, "prometheus_url": url, "rounds": 1,
                "prompt_tokens": 600, "requests": 9, "output_dir": str(tmp_path / "out"),
            }  # fmt: skip
            while len(await Prometheus(url=url).instant("up == 1")) < len(targets):
                await asyncio.sleep(0.2)
            result = await run(plan(check_params("pd_sweep", values)), echo=quiet)
    shown = result.panels
    assert set(shown["line"]) >= {"prefill computed", "decode external hit", "store"}
    assert "lmcache: fill" in set(shown["title"])
    # A sample is no proof: what the run could not count itself stays so.
    gates = {gate["name"]: gate["outcome"] for gate in result.facts["gates"]}
    assert gates["the ledger closes"] == "INCONCLUSIVE"
