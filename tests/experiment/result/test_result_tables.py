"""Tables of a result: one row for what a reader compares, units and intervals in the cells."""

import math
from math import isnan, nan

import pandas as pd

from tests.experiment.result.waterfalls import split
from workbench.experiment.result.facts import ArmFacts
from workbench.experiment.result.finding_rows import LoadRow
from workbench.experiment.result.ledger_tables import by_request, ledger_table, store_table
from workbench.experiment.result.result_tables import (
    load_table,
    percentile_table,
    styled,
    waterfall_table,
)
from workbench.metrics.ledger.causes import Entry
from workbench.metrics.ledger.ledger import Account


def account(name="reused", expected=3000.0, observed=2688.0, entries=(), **values):
    fields = {
        "arm": "1p1d lmcache", "round": 0, "pass_name": "cold", "role": "decode", "requests": 3,
        "closes": True, "unexplained": expected - observed - sum(e.tokens for e in entries),
    }  # fmt: skip
    made = {"name": name, "expected": expected, "observed": observed, "entries": tuple(entries)}
    return Account(**fields | made | values)


def rounding(tokens):
    return Entry(cause="block rounding", tokens=tokens)


def test_rounds_are_added_up_by_cause():
    rows = [account(entries=[rounding(312.0)]), account(entries=[rounding(312.0)], round=1)]
    (line,) = ledger_table(rows).to_dict("records")
    assert (line["expected"], line["observed"], line["unexplained"]) == (6000, 5376, 0)
    assert line["causes"] == "block rounding +624"
    assert line["closes"]


def test_one_round_cannot_make_up_for_another():
    rows = [account(observed=2000.0, closes=False), account(observed=4000.0, round=1, closes=False)]
    (line,) = ledger_table(rows).to_dict("records")
    assert line["unexplained"] == 2000
    assert not line["closes"]


def test_what_is_not_known_is_no_number():
    row = account(observed=nan, unknown="nobody counted", closes=False)
    (line,) = ledger_table([row]).to_dict("records")
    assert isnan(line["unexplained"])
    assert line["causes"] == "nobody counted"


def test_the_page_lists_what_differs_and_reddens_what_is_open():
    rows = [
        account("counted", observed=3000.0),
        account(entries=[rounding(312.0)]),
        account("store", observed=0.0, closes=False, role="all"),
    ]
    html = styled(ledger_table(rows)).to_html()
    assert "1 more comparisons match" in html
    assert "sent vs counted" not in html
    assert "#b3261e" in html and "#b3261e" not in styled(ledger_table(rows[:2])).to_html()
    assert "1p1d lmcache, cold<" in html


def test_no_account_is_an_empty_table():
    assert ledger_table([]).empty
    assert "0 more comparisons" in styled(ledger_table([])).to_html()


def test_each_answer_has_a_line_where_both_sides_speak():
    rows = pd.DataFrame(
        {
            "arm": "2a", "round": 0, "pass": "engine-warm", "index": range(4),
            "connector": ["none", "none", "nixl", "none"], "prompt_tokens": 1000,
            "ideal_reuse_tokens": 999, "cached_tokens": [896, 512, 896, -1],
            "expected_cached_tokens": 896,
        }
    )  # fmt: skip
    table = by_request(rows)
    assert table["index"].tolist() == [0, 1]
    assert table["difference"].tolist() == [0, -384]
    assert table["computed"].tolist() == [104, 488]


def row(metric, q, value_s, n, note=""):
    low_s, high_s = (nan, nan) if note else (0.9 * value_s, 1.1 * value_s)
    kind = {"arm": "1a", "pass": "cold", "metric": metric, "quantile": q, "value_s": value_s}
    return kind | {"low_s": low_s, "high_s": high_s, "n": n, "note": note}


def test_a_row_per_metric_in_milliseconds_and_no_percentile_of_too_few():
    found = pd.DataFrame(
        [
            row("ttft_s", 0.5, 0.02, 100),
            row("ttft_s", 0.99, 0.09, 100, "needs 368, has 100"),
            row("icl_s", 0.5, 1.5, 9000),
            row("icl_s", 0.99, 2.0, 9000),
            row("tpot_s", 0.5, nan, 0, "no values"),
            row("tpot_s", 0.99, nan, 0, "no values"),
        ]
    )
    table = percentile_table(found)
    assert table.columns.tolist() == ["arm", "pass", "metric", "n", "p50", "p99"]
    assert table.to_numpy().tolist() == [
        ["1a", "cold", "TTFT, ms", 100, "20.0 [18.0, 22.0]", "needs 368, has 100"],
        ["1a", "cold", "ICL, ms", 9000, "1,500 [1,350, 1,650]", "2,000 [1,800, 2,200]"],
        ["1a", "cold", "TPOT, ms", 0, "no values", "no values"],
    ]


def rate(**given):
    fields = {
        "arm": "1p1d", "rate_per_s": 2, "n_requests": 80, "n_rounds": 2, "share": 0.95,
        "share_low": 0.88, "share_high": 0.98, "offered_per_s": 1.8, "achieved_per_s": 1.8,
        "goodput_per_s": 1.71, "ttft_s": 0.04, "ttft_low_s": 0.036, "ttft_high_s": 0.044,
        "ttft_p90_s": 0.08, "tpot_s": 0.004,
    }  # fmt: skip
    return LoadRow(**fields | given)


def test_the_table_of_a_user_sweep_has_no_rate_but_users():
    row = rate(rate_per_s=nan, offered_per_s=nan, users=8)
    found = load_table([row], limited=False).iloc[0].to_dict()
    assert list(found) == [
        "arm", "users", "throughput, req/s", "requests", "TTFT p50, ms", "TTFT p90, ms",
        "TPOT p50, ms",
    ]  # fmt: skip
    assert found["users"] == "8"


def test_the_table_has_limits_only_where_there_were_some():
    found = load_table([rate()], limited=True).iloc[0].to_dict()
    assert found == {
        "arm": "1p1d",
        "requested, req/s": "2",
        "offered, req/s": "1.80",
        "throughput, req/s": "1.80",
        "requests": "80 in 2 rounds",
        "within limits": "95 % [88, 98]",
        "goodput, req/s": "1.71",
        "TTFT p50, ms": "40.0 [36.0, 44.0]",
        "TTFT p90, ms": "80.0",
        "TPOT p50, ms": "4.00",
    }
    free = load_table([rate(ttft_low_s=nan)], limited=False)
    assert "goodput, req/s" not in free and "within limits" not in free
    assert free["TTFT p50, ms"].item() == "40.0"
    assert load_table([], limited=True).empty


def test_the_table_has_medians_in_milliseconds_with_intervals_where_there_are_any():
    frame = pd.concat(
        [
            split("1p1d nixl", transfer_queue_s=20),
            split("2a", rounds=1, stream_s=2500),
            split("2a", "engine-warm", rounds=1, stream_s=0.25),
        ]
    )
    assert waterfall_table(frame).to_dict("records") == [
        {"pass": name, "part of TTFT (median, ms)": part, "1p1d nixl": first, "2a": second}
        for name, part, first, second in (
            ("cold", "KV transfer + decode queue", "20.0 [20.0, 20.0]", "0"),
            ("cold", "stream", "0", "2,500"),
            ("cold", "untimed residual", "1.00 [1.00, 1.00]", "1.00"),
            ("cold", "TTFT", "21.0 [21.0, 21.0]", "2,501"),
            ("engine-warm", "stream", "", "0.25"),
            ("engine-warm", "untimed residual", "", "1.00"),
            ("engine-warm", "TTFT", "", "1.25"),
        )
    ]
    unknown = split("2a").assign(residual_s=math.nan)
    assert set(waterfall_table(unknown)["2a"]) == {"not known"}


def test_a_store_tells_what_it_holds_and_what_each_pass_put_read_and_evicted():
    arm = ArmFacts(label="2a mooncake-store", connector="mooncake-store")
    values = {"master_key_count": (10, 40), "master_batch_put_end_items_total": (10, 50),
              "mem_cache_hit_nums_": (0, 4)}  # fmt: skip
    rows = [
        {"arm": arm.label, "pass": "cold", "round": number, "when": when, "instance": "store",
         "read_at_s": 2.0 * (when == "after"), "series": series, "value": float(value)}
        for number in range(3)
        for series, both in values.items()
        for when, value in zip(("before", "after"), both, strict=True)
    ]  # fmt: skip
    table = store_table([arm, ArmFacts(label="2a", connector="none")], pd.DataFrame(rows))
    (line,) = table.to_dict("records")
    assert line["held"] == "40"
    assert (line["unit"], line["put"], line["read"]) == ("blocks", "40 (20.0/s)", "4 (2.00/s)")
    assert line["evicted"] == "0"  # a counter that was never added to is not exported
    assert store_table([arm], pd.DataFrame({"index": []})).empty  # servers without /metrics
