from __future__ import annotations

import json
import math
from dataclasses import replace

import pandas as pd
import pytest

from tests.wording import plain
from workbench.metrics.waterfall.waterfall import (
    CARD,
    PARTS,
    closes,
    doubts,
    representatives,
    summarise,
    waterfall,
)
from workbench.records import LegRecord, RequestRecord, to_frame


def timing(queue_ms: float, first_ms: float) -> str:
    """What vLLM says of a request, as far as it is read."""
    return json.dumps({"queue_time_ms": queue_ms, "time_to_first_token_ms": first_ms})


SENT_S = 100.0
REQUEST = RequestRecord(
    index=0,
    request_id="r0",
    prompt_tokens=5000,
    ideal_reuse_tokens=0,
    max_tokens=2,
    scheduled_s=SENT_S,
    sent_s=SENT_S,
    chunk_s=(SENT_S + 0.4005, SENT_S + 0.41),
    engine_metrics=timing(20, 10),
)
SPLIT = LegRecord(
    request_id="r0",
    index=0,
    prefill_instance="http://p",
    decode_instance="http://d",
    received_s=SENT_S + 0.0003,
    prefill_sent_s=SENT_S + 0.0013,  # proxy 1 ms
    prefill_done_s=SENT_S + 0.3413,  # leg 340 ms: queue 30, compute 300, so server 10
    decode_sent_s=SENT_S + 0.3423,  # hand-off 1 ms
    decode_first_byte_s=SENT_S + 0.4003,  # 58 ms: transfer and queue 20, step 10, so server 28
    prefill_engine_metrics=timing(30, 300),
)
MILLISECONDS = {
    "proxy_s": 1,
    "prefill_server_s": 10,
    "prefill_queue_s": 30,
    "prefill_compute_s": 300,
    "handoff_s": 1,
    "decode_server_s": 28,
    "transfer_queue_s": 20,
    "decode_step_s": 10,
    "stream_s": 0.2,
    "residual_s": 0.3,
}
AGGREGATED = replace(
    SPLIT,
    prefill_instance="",
    prefill_sent_s=math.nan,
    prefill_done_s=math.nan,
    decode_sent_s=SENT_S + 0.0005,
    prefill_engine_metrics="",
)


def frames(
    request: RequestRecord = REQUEST, *legs: LegRecord, **constants: object
) -> tuple[pd.DataFrame, pd.DataFrame]:
    given = {"arm": "1p1d nixl", "round": 0, "pass": "cold"} | constants
    return to_frame([request], **given), to_frame(legs, **given)


def one(request: RequestRecord = REQUEST, *legs: LegRecord) -> pd.Series:
    return waterfall(*frames(request, *legs)).iloc[0]


def test_every_part_of_a_split_request_by_hand():
    row = one(REQUEST, SPLIT)
    found = {name: 1000 * row[name] for name in MILLISECONDS}
    assert found == pytest.approx(MILLISECONDS)
    assert 1000 * row["ttft_s"] == pytest.approx(sum(MILLISECONDS.values()))
    assert row["note"] == ""


def clocks(host: str, *, rate: float = 1.0, rate_bound: float = 1e-5) -> pd.DataFrame:
    """What readings before and after the pass say about the clock of one host."""
    given = {"arm": "1p1d nixl", "round": 0, "pass": "cold"}
    return pd.DataFrame([given | {"host": host, "factor": 1 / rate, "rate_bound": rate_bound}])


def test_engine_times_of_a_host_with_a_fast_clock_become_ours():
    fast = replace(SPLIT, prefill_engine_metrics=timing(30 * 1.04, 300 * 1.04))
    requests, legs = frames(REQUEST, fast)
    assert waterfall(requests, legs)["note"][0].startswith("their durations contradict")
    row = waterfall(requests, legs, clocks=clocks("p", rate=1.04)).iloc[0]
    assert {name: 1000 * row[name] for name in MILLISECONDS} == pytest.approx(MILLISECONDS)


def test_hosts_that_serve_no_leg_do_not_matter():
    requests, legs = frames(REQUEST, SPLIT)
    with_clocks = waterfall(requests, legs, clocks=clocks("other", rate=1.5))
    pd.testing.assert_frame_equal(with_clocks, waterfall(requests, legs))


@pytest.mark.parametrize(
    ("host", "small", "beside"),
    [
        ("p", "prefill_server_s", "prefill_compute_s"),
        ("d", "decode_server_s", "transfer_queue_s"),
    ],
)
def test_a_part_below_what_clocks_leave_open_is_not_split(host, small, beside):
    requests, legs = frames(REQUEST, SPLIT)
    # Readings so far apart say nothing about 330 ms within 330 ms, nor 30 ms within 30 ms.
    row = waterfall(requests, legs, clocks=clocks(host, rate_bound=1.0)).iloc[0]
    assert row[small] == 0
    assert 1000 * row[beside] == pytest.approx(MILLISECONDS[small] + MILLISECONDS[beside])
    assert 1000 * row["residual_s"] == pytest.approx(MILLISECONDS["residual_s"])
    (said,) = doubts(row.to_frame().T)
    assert f"{PARTS[small]} is shown with {PARTS[beside]}" in said
    wide = waterfall(requests, legs, clocks=clocks(host, rate_bound=0.02)).iloc[0]
    assert wide["joined"] == "" and wide[small] > 0


def test_an_aggregated_request_has_none_of_the_second_leg():
    row = one(REQUEST, AGGREGATED)
    assert 1000 * row["proxy_s"] == pytest.approx(0.2)
    assert 1000 * row["prefill_server_s"] == pytest.approx(399.8 - 30)
    assert 1000 * row["prefill_queue_s"] == pytest.approx(20)
    assert 1000 * row["prefill_compute_s"] == pytest.approx(10)
    assert 1000 * row["stream_s"] == pytest.approx(0.2)
    assert 1000 * row["residual_s"] == pytest.approx(0.3)
    assert (row[["handoff_s", "decode_server_s", "transfer_queue_s", "decode_step_s"]] == 0).all()


AT_ONCE = replace(
    SPLIT,
    at_once=True,
    decode_sent_s=SENT_S + 0.0213,  # 20 ms after prefill, which has no part in TTFT
    decode_first_byte_s=SENT_S + 0.4003,  # 399 ms after prefill, less 30, 300 and the step of 10
)


def test_legs_sent_at_once_are_split_by_what_decode_waited_for():
    row = one(replace(REQUEST, engine_metrics=timing(350, 10)), AT_ONCE)
    apart = {"prefill_server_s": 0, "handoff_s": 0, "decode_server_s": 0, "transfer_queue_s": 59}
    found = {name: 1000 * row[name] for name in MILLISECONDS}
    assert found == pytest.approx(MILLISECONDS | apart)
    assert 1000 * row["ttft_s"] == pytest.approx(sum(found.values()))
    assert row["at_once"] and row["note"] == ""


def test_a_decode_leg_sent_after_prefill_has_a_hand_off_though_both_were_due_at_once():
    late = replace(AT_ONCE, decode_sent_s=AT_ONCE.prefill_done_s + 0.02)
    row = one(REQUEST, late)
    assert 1000 * row["handoff_s"] == pytest.approx(20)
    assert 1000 * row["transfer_queue_s"] == pytest.approx(39)


def test_a_prefill_response_after_the_first_byte_takes_nothing_from_another_part():
    known = one(REQUEST, AT_ONCE)
    row = one(REQUEST, replace(AT_ONCE, prefill_done_s=SENT_S + 0.45))
    assert [row[name] for name in PARTS] == pytest.approx([known[name] for name in PARTS])


def test_decode_that_did_not_wait_is_not_split():
    row = one(replace(REQUEST, engine_metrics=timing(0, 350)), AT_ONCE)
    assert row[[*PARTS]].isna().all()
    assert row["note"] == "decode did not wait for prefill"


def test_what_nobody_timed_is_in_the_residual():
    earlier = replace(REQUEST, sent_s=SENT_S - 0.05)  # sent 50 ms before the proxy took notice
    row = one(earlier, SPLIT)
    assert 1000 * row["residual_s"] == pytest.approx(50.3)
    known = one(REQUEST, SPLIT)
    assert [row[name] for name in PARTS] == pytest.approx([known[name] for name in PARTS])


def test_a_first_byte_without_a_token_is_not_the_end_of_ttft():
    """A chat stream opens with a role; its first token comes 100 ms later."""
    later = replace(REQUEST, chunk_s=tuple(stamp + 0.1 for stamp in REQUEST.chunk_s))
    assert 1000 * one(later, SPLIT)["stream_s"] == pytest.approx(100.2)


def test_a_vllm_without_timings_is_named_instead_of_an_option_to_start_it_with():
    untimed = replace(REQUEST, engine_metrics=""), replace(SPLIT, prefill_engine_metrics="")
    why = "vLLM 0.24.0 has no per-request metrics (they came with 0.25)"
    found = waterfall(*frames(*untimed), untimed=why)
    assert doubts(found) == [f"1 of 1 requests have no complete waterfall, because {why}."]


@pytest.mark.parametrize(
    ("request_", "legs", "known", "note"),
    [
        (replace(REQUEST, error="reset"), (SPLIT,), False, "they failed"),
        (REQUEST, (), False, "the workbench's proxy has no unique"),
        (
            replace(REQUEST, request_id="other"),
            (SPLIT,),
            False,
            "the workbench's proxy has no unique",
        ),
        (REQUEST, (SPLIT, SPLIT), False, "the workbench's proxy has no unique"),
        (replace(REQUEST, engine_metrics=""), (SPLIT,), True, "the decode instance sent no timing"),
        (
            replace(REQUEST, engine_metrics=json.dumps({"queue_time_ms": None})),
            (SPLIT,),
            True,
            "the decode instance sent no timing",
        ),
        (
            REQUEST,
            (replace(SPLIT, prefill_engine_metrics=""),),
            True,
            "the prefill instance sent no timing",
        ),
        (
            replace(REQUEST, engine_metrics=""),
            (AGGREGATED,),
            True,
            "the aggregated instance sent no timing",
        ),
        (
            REQUEST,
            (replace(SPLIT, decode_sent_s=math.nan),),
            True,
            "a timestamp of the proxy or the client is missing",
        ),
    ],
)
def test_what_is_missing_is_said_and_never_drawn(request_, legs, known, note):
    row = one(request_, *legs)
    assert math.isnan(row["residual_s"])
    assert (1000 * row["proxy_s"] > 0) if known else row[[*PARTS]].isna().all()
    assert row["note"].startswith(note)
    plain(doubts(waterfall(*frames(request_, *legs)))[0], most_words=25)


def clock_ahead(leg: LegRecord, by_s: float) -> LegRecord:
    """The leg as a proxy would stamp it whose clock is ahead of the client's."""
    stamps = [name for name in leg.__slots__ if name.endswith("_s")]
    return replace(leg, **{name: getattr(leg, name) + by_s for name in stamps})


@pytest.mark.parametrize(
    ("request_", "leg"),
    [
        (REQUEST, clock_ahead(SPLIT, 3600)),
        (REQUEST, clock_ahead(SPLIT, -0.001)),
        # An engine that was busy for longer than its whole leg took at the proxy.
        (REQUEST, replace(SPLIT, prefill_engine_metrics=timing(100, 300))),
        (replace(REQUEST, engine_metrics=timing(20, 60)), SPLIT),
        # A first token before the proxy had the first byte.
        (replace(REQUEST, chunk_s=(SENT_S + 0.39,)), SPLIT),
        (REQUEST, replace(SPLIT, decode_sent_s=SPLIT.prefill_done_s - 0.001)),
    ],
)
def test_durations_that_contradict_one_another_are_a_doubt_and_no_number(request_, leg):
    frame = waterfall(*frames(request_, leg))
    assert frame[[*PARTS, "residual_s"]].isna().all(axis=None)
    assert doubts(frame) == [
        "1 of 1 requests have no complete waterfall, because their durations contradict each other,"
        " so clocks may differ."
    ]


def test_a_run_without_the_proxy_has_a_row_per_request_and_one_sentence():
    requests, _ = frames()
    frame = waterfall(requests, to_frame(()))
    assert len(frame) == 1
    assert 1000 * frame["ttft_s"].iloc[0] == pytest.approx(400.5)
    assert doubts(frame) == [
        "1 of 1 requests have no complete waterfall, because the workbench's proxy has no unique"
        " record of them."
    ]
    assert representatives(frame).empty
    assert summarise(frame)["median"].isna().all()


def test_the_same_id_in_another_pass_is_another_request():
    cold, cold_legs = frames(REQUEST, SPLIT)
    warm, warm_legs = frames(
        replace(REQUEST, engine_metrics=timing(5, 25)), SPLIT, **{"pass": "engine-warm"}
    )
    frame = waterfall(pd.concat([cold, warm]), pd.concat([cold_legs, warm_legs]))
    assert [round(1000 * s) for s in frame["transfer_queue_s"]] == [20, 5]


def rows(n: int, *, residual_s: float = 0.001) -> pd.DataFrame:
    """Requests whose TTFT grows with their index, all of it prefill compute but the residual."""
    ttft_s = pd.Series([0.1 + 0.001 * i for i in range(n)])
    frame = pd.DataFrame({"arm": "5a", "round": 0, "pass": "cold", "index": range(n)})
    frame = frame.assign(**dict.fromkeys(PARTS, 0.0))
    return frame.assign(
        prefill_compute_s=ttft_s - residual_s, residual_s=residual_s, ttft_s=ttft_s, note=""
    )


@pytest.mark.parametrize(
    ("n", "which", "indexes"),
    [
        (1, ["median"], [0]),
        (2, ["median", "slowest"], [0, 1]),
        (9, ["median", "slowest"], [4, 8]),
        (367, ["median", "slowest"], [183, 366]),
        (400, ["median", "p99"], [199, 395]),
    ],
)
def test_a_tail_is_called_p99_only_where_the_sample_has_one(n, which, indexes):
    found = representatives(rows(n))
    assert found["which"].to_list() == which
    assert found["index"].to_list() == indexes


def test_no_p99_is_picked_where_the_client_was_late():
    frame = rows(400)
    frame.attrs["no_p99"] = "client did not keep up: late"
    assert representatives(frame)["which"].to_list() == ["median"]
    few = rows(9)
    few.attrs["no_p99"] = "client did not keep up: late"
    assert representatives(few)["which"].to_list() == ["median", "slowest"]
    few.attrs["failed_gates"] = ["client kept up"]
    assert representatives(few)["which"].to_list() == ["median"]


def test_requests_that_are_not_split_are_not_representatives():
    frame = rows(5)
    frame.loc[2:, "residual_s"] = math.nan
    assert representatives(frame)["index"].to_list() == [0, 1]


def test_a_summary_has_an_interval_where_the_sample_carries_one():
    summary = summarise(rows(20)).set_index("part")
    assert summary.loc["prefill_compute_s", "median"] == pytest.approx(0.1085)
    assert 0.099 < summary.loc["prefill_compute_s", "low"] < 0.1085
    assert 0.1085 < summary.loc["prefill_compute_s", "high"] < 0.118
    few = summarise(rows(3)).set_index("part")
    assert math.isnan(few.loc["ttft_s", "low"])
    assert few.loc["ttft_s", "note"] == "needs 6, has 3"


def test_a_waterfall_closes_within_2_ms_or_2_percent():
    assert closes(rows(3, residual_s=0.002)).all()
    assert not closes(rows(1, residual_s=0.0021)).any()
    slow = rows(1, residual_s=0.0021).assign(ttft_s=1.0)
    assert closes(slow).all()
    assert not closes(rows(1, residual_s=math.nan)).any()
    assert doubts(rows(3)) == []
    assert doubts(rows(2, residual_s=0.003)) == [
        "The untimed residual exceeds both 2 ms and 2 % of TTFT in 2 of 2 requests. The largest is"
        " 3.0 ms (5a, cold). The proxy accepted the connection late, or the machine was busy."
    ]


def test_the_card_defines_every_bar():
    names, labels, formulas, _ = zip(*CARD, strict=True)
    assert dict(zip(names, labels, strict=True)).pop("residual") == "untimed residual"
    assert list(labels[:-1]) == [*PARTS.values()]
    assert min(map(len, formulas)) > 10
