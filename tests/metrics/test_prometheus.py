from __future__ import annotations

import math
import ssl
from collections.abc import Callable
from math import isnan

import httpx
import pytest

from workbench.metrics.prometheus import Counters, difference, parse, read

TEXT = r"""# HELP vllm:prompt_tokens_total Number of prefill tokens processed.
# TYPE vllm:prompt_tokens_total counter
vllm:prompt_tokens_total{engine="0",model_name="tiny"} 1.2345678905e+09
# HELP vllm:prompt_tokens_created Number of prefill tokens processed.
# TYPE vllm:prompt_tokens_created gauge
vllm:prompt_tokens_created{engine="0",model_name="tiny"} 1.7951741119258113e+09
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="tiny"} 2.0
vllm:num_requests_running{engine="1",model_name="tiny"} 3.0
# TYPE vllm:nixl_bytes_transferred histogram
vllm:nixl_bytes_transferred_bucket{engine="0",le="2048.0"} 1.0
vllm:nixl_bytes_transferred_bucket{engine="0",le="+Inf"} 4.0
vllm:nixl_bytes_transferred_count{engine="0"} 4.0
vllm:nixl_bytes_transferred_sum{engine="0"} 8192.0
# TYPE odd gauge
odd{path="C:\\dir",said="\"}\" and\na new line"} NaN
unlabelled 7
"""


def counters(instance: str = "prefill-0", gauge: float = math.nan, **totals: float) -> Counters:
    lines = [f"# TYPE {name}_total counter\n{name}_total {value}" for name, value in totals.items()]
    return parse("\n".join([*lines, "# TYPE busy gauge", f"busy {gauge}"]), instance)


def test_values_are_found_by_name_and_labels():
    page = parse(TEXT, "decode-1")
    assert page.instance == "decode-1"
    assert page.sum("vllm:prompt_tokens_total") == 1234567890.5
    assert page.sum("vllm:num_requests_running") == 5
    assert page.sum("vllm:num_requests_running", engine="1") == 3
    assert page.sum("unlabelled") == 7


def test_what_is_not_there_is_nan():
    page = parse(TEXT, "decode-1")
    assert isnan(page.sum("vllm:no_such_total"))
    assert isnan(page.sum("vllm:num_requests_running", engine="9"))
    assert isnan(parse("", "decode-1").sum("unlabelled"))


def test_escaped_labels_are_read_as_written():
    ((key, value),) = [item for item in parse(TEXT, "i").values.items() if item[0][0] == "odd"]
    assert key[1] == (("path", "C:\\dir"), ("said", '"}" and\na new line'))
    assert isnan(value)


def test_buckets_and_creation_stamps_are_left_out_and_growing_series_are_known():
    page = parse(TEXT, "i")
    assert not any(name.endswith(("_bucket", "_created")) for name, _ in page.values)
    assert page.cumulative == {
        "vllm:prompt_tokens_total",
        "vllm:nixl_bytes_transferred_count",
        "vllm:nixl_bytes_transferred_sum",
    }


def test_what_the_page_says_of_a_series_is_kept_by_its_name_without_total():
    page = parse(TEXT, "i")
    assert page.helps["vllm:prompt_tokens"] == "Number of prefill tokens processed."


def test_a_counter_without_its_type_is_known_by_its_name():
    before, after = (parse(f"a_total {n}\na_usage {n}\n", "i") for n in (5, 7))
    change = difference(before, after)
    assert (change.sum("a_total"), change.sum("a_usage")) == (2, 7)


def test_only_some_series_can_be_asked_for():
    page = parse(TEXT, "i", only=("vllm:num_requests_running",))
    assert {name for name, _ in page.values} == {"vllm:num_requests_running"}


def test_lines_that_cannot_be_read_are_skipped():
    assert parse("<html>\nnot a sample\na b\n# TYPE\nfine 1\n", "i").values == {("fine", ()): 1.0}


def test_the_parser_agrees_with_prometheus_client_where_that_is_installed():
    client = pytest.importorskip("prometheus_client")
    reference = pytest.importorskip("prometheus_client.parser")
    registry = client.CollectorRegistry()
    counter = client.Counter("vllm:tokens", "text", ["source"], registry=registry)
    counter.labels('a "quoted", {braced} \\ name').inc(0.1 + 0.2)
    client.Gauge("vllm:usage", "text", registry=registry).set(1e-12)
    text = client.generate_latest(registry).decode()
    ours = parse(text, "i").values
    theirs = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in reference.text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.name.endswith("_created")
    }
    assert ours == theirs


def test_a_difference_is_what_was_counted_in_between():
    change = difference(counters(tokens=100, gauge=5), counters(tokens=130, gauge=2))
    assert change.sum("tokens_total") == 30
    assert change.sum("busy") == 2
    assert change.doubts == ()


def test_a_series_born_in_between_counts_from_zero():
    change = difference(counters(tokens=1), counters(tokens=1, hits=7))
    assert change.sum("hits_total") == 7
    assert change.sum("tokens_total") == 0


@pytest.mark.parametrize("after", [counters(tokens=3, hits=50), counters(hits=50)])
def test_a_counter_that_went_backwards_makes_all_of_them_unknown(after):
    change = difference(counters(tokens=100, hits=1), after)
    assert isnan(change.sum("tokens_total"))
    assert isnan(change.sum("hits_total"))  # it grew, but since when?
    (doubt,) = change.doubts
    assert doubt.startswith("prefill-0 restarted during the pass (tokens_total went from 100 to ")
    assert doubt.endswith("), so its counters are unknown")


def test_another_process_is_noticed_though_every_counter_grew():
    def page(tokens: int, born: float) -> Counters:
        return parse(
            f"# TYPE tokens_total counter\ntokens_total {tokens}\n"
            f"# TYPE process_start_time_seconds gauge\nprocess_start_time_seconds {born}\n",
            "prefill-0",
        )

    assert difference(page(1, 1e9), page(5, 1e9)).sum("tokens_total") == 4
    restarted = difference(page(1, 1e9), page(5, 1e9 + 60))
    assert isnan(restarted.sum("tokens_total"))
    assert "restarted" in restarted.doubts[0]


def test_two_instances_do_not_compare():
    with pytest.raises(ValueError, match="counters of 'prefill-0' and 'decode-0' do not compare"):
        difference(counters(), counters("decode-0"))


def refused(request: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("refused")


def not_trusted(request: httpx.Request) -> httpx.Response:
    reason = ssl.SSLCertVerificationError("no")
    reason.verify_code, reason.verify_message = 18, "self-signed certificate"
    raise httpx.ConnectError("no") from reason


async def reading(answer: Callable[[httpx.Request], httpx.Response]) -> Counters:
    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as client:
        return await read(client, "http://127.0.0.1:8000/", "decode-0")


async def test_read_asks_for_the_metrics_page():
    def answer(request: httpx.Request) -> httpx.Response:
        assert str(request.url) == "http://127.0.0.1:8000/metrics"
        return httpx.Response(200, text=TEXT)

    page = await reading(answer)
    assert (page.sum("unlabelled"), page.doubts) == (7, ())
    assert page.read_at_s > 0


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (lambda request: httpx.Response(404), "/metrics returned HTTP 404,"),
        (refused, "/metrics did not respond (ConnectError)"),
        (not_trusted, "is not trusted (self-signed certificate)"),
    ],
)
async def test_a_server_without_metrics_is_a_doubt_and_not_zero(answer, why: str):
    hidden = await reading(answer)
    assert hidden.values == {}
    (doubt,) = hidden.doubts
    assert doubt.startswith("decode-0: http://127.0.0.1:8000/metrics") and why in doubt
    before = parse("# TYPE tokens_total counter\ntokens_total 5\n", "decode-0")
    assert isnan(difference(before, hidden).sum("tokens_total"))
    assert isnan(difference(hidden, before).sum("tokens_total"))
    assert difference(before, hidden).doubts == hidden.doubts
