from __future__ import annotations

import math

import pandas as pd
import pytest

from tests.wording import plain
from workbench.metrics.latency import (
    DEFINITIONS,
    buffered,
    comparable,
    gathered,
    icl,
    latencies,
    succeeded,
    system_tps,
    tpot_unknown,
)
from workbench.records import RequestRecord, to_frame


def request(index: int = 0, **facts: object) -> RequestRecord:
    """A request due at 9.5, sent at 10, whose three tokens came at 11, 11.1 and 11.3."""
    given: dict[str, object] = {
        "index": index,
        "request_id": f"r{index}",
        "prompt_tokens": 100,
        "ideal_reuse_tokens": 0,
        "max_tokens": 3,
        "scheduled_s": 9.5,
        "sent_s": 10.0,
        "chunk_s": (11.0, 11.1, 11.3),
        "output_tokens": 3,
        "stream_end_s": 12.0,
    }
    return RequestRecord(**{**given, **facts})  # type: ignore[arg-type]


def row(**facts: object) -> pd.Series:
    return latencies(to_frame([request(**facts)])).iloc[0]


def test_one_request_by_hand():
    r = row()
    assert r["ttft_s"] == pytest.approx(1.0)
    assert r["ttft_scheduled_s"] == pytest.approx(1.5)
    assert r["tpot_s"] == pytest.approx(0.3 / 2)
    assert r["e2e_s"] == pytest.approx(1.3)  # not 2.0: the stream's end is kept apart
    assert r["request_tps"] == pytest.approx(2 / 0.3)


def test_the_other_columns_stay_and_the_given_frame_is_not_changed():
    frame = to_frame([request()], arm="1p4d lmcache", round=1)
    out = latencies(frame)
    assert list(out.columns[: len(frame.columns)]) == list(frame.columns)
    assert "ttft_s" not in frame


@pytest.mark.parametrize(
    ("facts", "tpot_s"),
    [
        # as many chunks as tokens: one token each
        ({}, 0.15),
        # the server says how many tokens came with each chunk
        ({"chunk_tokens": (2, 1, 2), "output_tokens": 5}, 0.3 / 3),
        # five tokens in three chunks, and nobody says how: not known, not guessed
        ({"output_tokens": 5}, math.nan),
        ({"output_tokens": -1}, math.nan),
        # one token has no time per following token
        ({"chunk_s": (11.0,), "output_tokens": 1}, math.nan),
        # all tokens in one chunk
        ({"chunk_s": (11.0,), "chunk_tokens": (5,), "output_tokens": 5}, math.nan),
        ({"chunk_s": (), "output_tokens": 0}, math.nan),
    ],
)
def test_tpot_needs_the_tokens_of_the_first_chunk(facts, tpot_s):
    assert row(**facts)["tpot_s"] == pytest.approx(tpot_s, nan_ok=True)


def test_chunks_of_one_read_have_no_rate():
    r = row(chunk_s=(11.0, 11.0, 11.0))
    assert r["tpot_s"] == 0
    assert math.isnan(r["request_tps"])


@pytest.mark.parametrize("error", ["reset", "truncated", "http_500"])
def test_a_failed_request_keeps_its_row_and_has_no_latency(error):
    out = latencies(to_frame([request(), request(1, error=error)]))
    assert list(succeeded(out)) == [True, False]
    added = ["ttft_s", "ttft_scheduled_s", "tpot_s", "e2e_s", "request_tps"]
    assert out.loc[1, added].isna().all()
    assert out.loc[0, added].notna().all()


def test_no_request_gives_no_row_but_all_columns():
    out = latencies(to_frame([]))
    assert len(out) == 0
    assert {"ttft_s", "tpot_s", "e2e_s", "request_tps"} <= set(out.columns)


def test_a_frame_read_back_from_parquet_gives_the_same(tmp_path):
    frame = to_frame([request(), request(1, chunk_s=(), error="connect"), request(2)])
    frame.to_parquet(tmp_path / "requests.parquet")
    again = latencies(pd.read_parquet(tmp_path / "requests.parquet"))
    added = ["ttft_s", "tpot_s", "e2e_s", "request_tps"]
    pd.testing.assert_frame_equal(again[added], latencies(frame)[added])


def test_icl_pools_the_gaps_within_requests_only():
    frame = to_frame(
        [
            request(0, chunk_s=(1.0, 2.0, 4.0)),
            request(1, chunk_s=(100.0,)),
            request(2, chunk_s=()),
            request(3, chunk_s=(50.0, 50.5)),
            request(4, chunk_s=(7.0, 8.0), error="reset"),
        ]
    )
    assert icl(frame) == pytest.approx([1.0, 2.0, 0.5])
    assert icl(frame.iloc[:0]).size == 0


def test_system_tps_is_tokens_of_successes_over_the_whole_pass():
    frame = to_frame(
        [
            request(0, sent_s=10.0, chunk_s=(11.0, 12.0), output_tokens=2),
            request(1, sent_s=10.5, chunk_s=(13.0, 15.0), output_tokens=8),
            request(2, sent_s=11.0, chunk_s=(13.0,), output_tokens=1, error="reset"),
            request(3, sent_s=math.nan, chunk_s=(), output_tokens=-1, error="connect"),
        ]
    )
    assert system_tps(frame) == pytest.approx(10 / (15.0 - 10.0))


def test_system_tps_is_nan_where_it_is_not_known():
    assert math.isnan(system_tps(to_frame([])))
    assert math.isnan(system_tps(to_frame([request(error="reset")])))
    assert math.isnan(system_tps(to_frame([request(), request(1, output_tokens=-1)])))


def test_several_passes_have_no_common_window():
    two = pd.concat([to_frame([request()], **{"pass": name}) for name in ("cold", "store-warm")])
    with pytest.raises(ValueError, match=r"holds 2 passes.*group it by arm, round and pass"):
        system_tps(two)


def test_the_card_defines_every_column_that_latencies_adds():
    added = set(latencies(to_frame([request()])).columns) - set(to_frame([request()]).columns)
    assert added | {"icl_s", "system_tps"} == {name for name, *_ in DEFINITIONS}


def paced(gap_s: float, n: int = 12) -> tuple[float, ...]:
    return tuple(11.0 + gap_s * i for i in range(n))


BURSTS = tuple(11.0 + 0.1 * (i // 6) + 1e-5 * (i % 6) for i in range(12))


@pytest.mark.parametrize(
    ("facts", "together"),
    [
        ({"chunk_s": paced(0.001), "output_tokens": 12}, False),
        ({"chunk_s": paced(0.0), "output_tokens": 12}, True),
        ({"chunk_s": paced(5e-5), "output_tokens": 12}, True),
        ({"chunk_s": BURSTS, "output_tokens": 12}, True),
        ({"chunk_s": paced(0.0), "output_tokens": -1}, True),
        # a client that was late, once or most of the time
        ({"chunk_s": tuple(11.0 + 0.01 * (i // 4) for i in range(12)), "output_tokens": 12}, False),
        ({"chunk_s": (*paced(0.01, 6), *(11.2,) * 5), "output_tokens": 11}, False),
        ({"chunk_s": (11.0,), "output_tokens": 12}, True),
        # speculative decoding: four tokens a chunk
        ({"chunk_s": paced(0.03, 3), "output_tokens": 12}, False),
        # too few tokens to see it
        ({"chunk_s": (11.0,), "output_tokens": 4}, False),
        ({"chunk_s": (11.0,), "output_tokens": -1}, False),
        ({"chunk_s": paced(0.0, 4), "output_tokens": 4}, False),
        ({"chunk_s": (), "output_tokens": 12}, False),
        ({"chunk_s": paced(0.0), "output_tokens": 12, "error": "truncated"}, False),
    ],
)
def test_an_answer_whose_tokens_came_together_was_gathered(facts, together):
    frame = to_frame([request(), request(1, **facts), request(2)])
    assert list(gathered(frame)) == [False, together, False]


def test_where_nearly_all_answers_were_gathered_something_held_them_back():
    steady, one_piece = {"chunk_s": paced(0.01)}, {"chunk_s": paced(0.0)}

    def arm(name: str, held_back: int) -> pd.DataFrame:
        kinds = [one_piece] * held_back + [steady] * (10 - held_back)
        return to_frame([request(i, output_tokens=12, **k) for i, k in enumerate(kinds)], arm=name)

    short = to_frame([request()], arm="gateway")  # of three tokens: nothing can be seen
    frame = pd.concat([arm("gateway", 9), short, arm("direct", 8)], ignore_index=True)
    assert buffered(frame).groupby(frame["arm"]).sum().to_dict() == {"direct": 0, "gateway": 9}
    assert buffered(arm("x", 9).drop(columns="arm")).sum() == 9
    assert buffered(to_frame([])).sum() == 0


def test_a_buffered_answer_has_a_ttft_and_an_e2e_but_no_tpot():
    r = row(chunk_s=paced(1e-6), output_tokens=12)
    assert (r["ttft_s"], r["e2e_s"]) == pytest.approx((1.0, 1.0), abs=1e-4)
    assert math.isnan(r["tpot_s"]) and math.isnan(r["request_tps"])


def test_no_ratio_is_made_of_the_ttft_of_an_arm_that_was_buffered():
    one_piece = {"chunk_s": paced(0.0), "output_tokens": 12}
    gateway = latencies(to_frame([request(i, **one_piece) for i in range(3)], arm="gateway"))
    slow = {"chunk_s": paced(0.01), "output_tokens": 12}
    answers = [request(0, **slow), request(1, **one_piece), request(2, **slow)]
    direct = latencies(to_frame(answers, arm="direct"))
    seen = comparable(pd.concat([gateway, direct]))
    assert seen.groupby("arm")["ttft_s"].count().to_dict() == {"direct": 3, "gateway": 0}
    assert seen["e2e_s"].notna().all()
    assert comparable(direct.iloc[[0, 2]])["ttft_s"].notna().all()


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"output_tokens": -1}, "the server sent no usage"),
        ({"chunk_s": (11.0,), "output_tokens": 1}, "they have only one token"),
        ({"chunk_s": (11.0,), "output_tokens": 5}, "all tokens arrived in one chunk"),
        ({"output_tokens": 5}, "several tokens share a chunk without a token count"),
        ({"output_tokens": 0}, "the server reported 0 tokens"),
        (
            {"chunk_s": paced(0.0), "output_tokens": 12},
            "their tokens arrived together (buffered stream or late client)",
        ),
    ],
)
def test_a_tpot_that_is_not_known_is_told_with_its_reason(facts, reason):
    records = [request(), request(1, **facts), request(2, **facts), request(3, error="reset")]
    told = tpot_unknown(latencies(to_frame(records, arm="1a")))
    assert told == [f"TPOT is unknown for 2 of 3 responses: {reason}."]
    plain(told[0], most_words=25)


def test_every_tpot_known_is_nothing_to_tell():
    assert tpot_unknown(latencies(to_frame([request()]))) == []
    assert tpot_unknown(latencies(to_frame([]))) == []


def test_a_usage_of_no_tokens_beside_tokens_is_no_throughput():
    assert math.isnan(system_tps(to_frame([request(output_tokens=0)])))
