from math import isnan

import pandas as pd

from workbench.experiment.result.ledger_table import by_request, ledger_table, styled


def account(name="reused", expected=3000.0, observed=2688.0, entries=(), **values):
    """An account as result.json has it."""
    return {
        "arm": "1p1d lmcache", "round": 0, "pass_name": "cold", "role": "decode", "name": name,
        "expected": expected, "observed": observed, "unknown": "", "closes": True,
        "unexplained": expected - (observed or 0) - sum(e["tokens"] for e in entries),
        "entries": [*entries],
    } | values  # fmt: skip


def rounding(tokens):
    return {"cause": "block rounding", "tokens": tokens, "why": ""}


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
    row = account(observed=None, unexplained=None, unknown="nobody counted", closes=False)
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
    assert "1 more accounts are even" in html
    assert "sent, counted" not in html
    assert "#b3261e" in html and "#b3261e" not in styled(ledger_table(rows[:2])).to_html()
    assert "1p1d lmcache, cold<" in html


def test_no_account_is_an_empty_table():
    assert ledger_table([]).empty
    assert "0 more accounts" in styled(ledger_table([])).to_html()


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
