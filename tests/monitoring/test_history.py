"""What a Prometheus answers becomes a frame, and what is wrong with it one sentence."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.monitoring.pretended import Quiet, pretended
from workbench.errors import DeploymentError
from workbench.monitoring.history import COLUMNS, Prometheus, one_of
from workbench.monitoring.panels import PANELS

UP = [
    {"instance": "10.0.0.1:8000", "job": "vllm", "role": "prefill"},
    {"instance": "decode-0", "job": "vllm"},
    {"instance": "10.0.0.9:8000", "job": "vllm"},
    {"instance": "store", "job": "vllm"},
    {"instance": "10.0.0.1:9100", "job": "node"},
]
ENGINES = [
    {"instance": "10.0.0.1:8000", "job": "vllm", "model_name": "llama"},
    {"instance": "decode-0", "job": "vllm", "model_name": "llama"},
    {"instance": "10.0.0.9:8000", "job": "vllm", "model_name": "other"},
]

Answer = Callable[[str, dict[str, str]], Any]


@contextmanager
def server(answer: Answer, status: int = 200) -> Iterator[str]:
    """An HTTP API whose rows are `answer(what, parameters)`; a text is sent as it is."""

    class Handler(Quiet):
        def do_GET(self) -> None:
            asked = urlsplit(self.path)
            given = {name: values[0] for name, values in parse_qs(asked.query).items()}
            rows = answer(asked.path.removeprefix("/api/v1/"), given)
            sent = rows if isinstance(rows, str) else json.dumps({"data": {"result": rows}})
            self.send_response(status)
            self.end_headers()
            self.wfile.write(sent.encode())

    with pretended(Handler) as url:
        yield url


def rows_of(labels: list[dict[str, str]]) -> list[dict[str, Any]]:
    return [{"metric": one, "value": [0, "1"]} for one in labels]


def scraped(_: str, given: dict[str, str]) -> Any:
    return rows_of(ENGINES if "count by" in given["query"] else UP)


@pytest.mark.parametrize(
    ("addresses", "found"),
    [
        # An address wins over a name, and a name serves where addresses differ.
        (
            {"prefill-0": "http://10.0.0.1:8000", "decode-0": "http://127.0.0.1:8200"},
            r'instance=~"10\\.0\\.0\\.1:8000|decode\\-0"',
        ),
        # Without a list: all that serve the model, and what stands beside them in their job.
        ({}, r'instance=~"10\\.0\\.0\\.1:8000|decode\\-0|store"'),
    ],
    ids=["listed", "by model"],
)
async def test_servers_are_found_by_address_name_or_model(addresses, found):
    with server(scraped) as url:
        assert await Prometheus(url=url).find(addresses, model="llama") == found


async def test_servers_that_it_does_not_read_are_named():
    with server(scraped) as url, pytest.raises(DeploymentError) as raised:
        await Prometheus(url=url).find({"decode-7": "http://10.0.0.7:8000"}, model="llama")
    assert "has no series of decode-7 (10.0.0.7:8000) (it has: 10.0.0.1:8000," in str(raised.value)
    with server(scraped) as url, pytest.raises(DeploymentError, match="models llama, other"):
        await Prometheus(url=url).find({}, model="qwen")


@pytest.mark.parametrize(
    ("answer", "status", "said"),
    [
        ("<html>Grafana</html>", 200, "200 '<html>Grafana"),
        ("no", 404, "404 'no'"),
        ([{"metric": {"instance": "a:1"}}], 200, "200 '{"),
        ([{"value": [0, "1"]}], 200, "200 '{"),
        ([{"metric": ["a:1"], "value": [0, "1"]}], 200, "200 '{"),
        ([{"metric": {}, "values": [[0, "much"]]}], 200, "200 '{"),
        ([{"metric": {}, "values": [0]}], 200, "200 '{"),
        (["up"], 200, "200 '{"),
        ({"up": 1}, 200, "200 '{"),
        (7, 200, "200 '{"),
    ],
    ids=[
        *("another server", "404", "no sample", "no labels", "labels in a list", "no number"),
        *("no pair", "a word", "no list", "a number"),
    ],
)
async def test_what_is_no_prometheus_is_refused(answer, status, said):
    with server(lambda *_: answer, status) as url, pytest.raises(DeploymentError) as raised:
        await Prometheus(url=url).instant("up")
    assert f"must be a running Prometheus, but {url} responded {said}" in str(raised.value)


async def test_a_series_without_the_label_instance_is_that_of_no_server():
    with server(lambda *_: rows_of([{"job": "vllm", "model_name": "llama"}])) as url:
        asked = Prometheus(url=url)
        with pytest.raises(DeploymentError, match=r"has no series of decode-0 .*\(it has: none\)"):
            await asked.find({"decode-0": "http://127.0.0.1:8200"}, model="llama")
        assert await asked.find({}, model="llama") == 'instance=~""'
        assert await asked.scraped_since("", 0.0) == {""}


async def test_nobody_there_is_refused():
    with pytest.raises(DeploymentError, match=r"did not respond .*Start it"):
        await Prometheus(url="http://127.0.0.1:9").instant("up")


def recorded(what: str, given: dict[str, str]) -> Any:
    """A sample every 2 s; one panel has lines, and they have a gap and a NaN."""
    if what == "query":
        return [{"metric": {}, "values": [[at, "1"] for at in range(100, 120, 2)]}]
    if "num_preemptions" not in given["query"]:
        return []
    return [
        {"metric": {"role": "decode"}, "values": [[100, "NaN"], [102, "0.5"], [110, "+Inf"]]},
        {"metric": {}, "values": [[102, "1"]]},
    ]


async def test_panels_become_rows_of_numbers():
    with server(recorded) as url:
        found = await Prometheus(url=url).lines(PANELS, "", from_s=100, to_s=120)
    assert list(found.columns) == list(COLUMNS)
    assert found[["title", "line", "unix_s", "value"]].to_numpy().tolist() == [
        ["Preemptions", "decode", 102.0, 0.5],
        ["Preemptions", "", 102.0, 1.0],
    ]
    assert found["rate_s"].unique() == [8.0]  # 4 samples


async def test_a_server_that_was_read_once_has_no_panels():
    with server(lambda *_: [{"metric": {}, "values": [[1, "1"]]}]) as url:
        assert (await Prometheus(url=url).lines(PANELS, "", from_s=0, to_s=9)).empty


async def test_a_long_run_has_as_many_points_as_a_short_one():
    steps = []

    def answer(what: str, given: dict[str, str]) -> Any:
        steps.append(float(given.get("step", 0)))
        return recorded(what, given)

    with server(answer) as url:
        found = await Prometheus(url=url).lines(PANELS[:1], "", from_s=0, to_s=20_000)
    assert steps[-1] == 100 and found.empty


async def test_the_last_point_is_at_the_end_where_the_last_scrape_counts():
    ends = set()

    def answer(what: str, given: dict[str, str]) -> Any:
        if what != "query":
            ends.add((float(given["start"]), float(given["end"])))
        return recorded(what, given)

    with server(answer) as url:
        await Prometheus(url=url).lines(PANELS[:1], "", from_s=100, to_s=105.5)
        await Prometheus(url=url).lines(PANELS[:1], "", from_s=104, to_s=105.5)
    assert ends == {(101.5, 105.5), (105.5, 105.5)}  # a point every 2 s


def test_a_name_is_quoted_for_promql():
    parser = pytest.importorskip("promql_parser")
    matcher = one_of("instance", ["a.b:1", 'say "x"'])
    parser.parse(f"up{{{matcher}}}")
