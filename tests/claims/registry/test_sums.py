import pytest
from pydantic import TypeAdapter

from workbench.claims.registry.sums import Arithmetic, rounding
from workbench.claims.verdict.verdict import judge

READ = TypeAdapter(Arithmetic).validate_python


@pytest.mark.parametrize(
    ("text", "span"),
    [("1.90", (1.895, 1.905)), ("0.004", (0.0035, 0.0045)), ("475", (474.5, 475.5))],
)
def test_a_published_number_stands_for_what_is_rounded_to_it(text, span):
    assert rounding(text) == pytest.approx(span)


@pytest.mark.parametrize("text", ["two", "", None, "inf", "1..2"])
def test_what_is_no_number_is_said(text):
    with pytest.raises(ValueError, match="must be a number"):
        rounding(text)


def one(claim, entry, **changed):
    (found,) = claim(arithmetic=(READ(entry),), **changed).sums({})
    return found


@pytest.mark.parametrize(
    ("entry", "holds"),
    [
        ({"kind": "ratio", "of": "1.90", "over": "0.004", "said": "475"}, True),
        ({"kind": "ratio", "of": "1.90", "over": "0.004", "said": "600"}, False),
        ({"kind": "product", "of": ["34.14", "511.648"], "said": "17466.3"}, True),
        ({"kind": "product", "of": ["34.14", "512"], "said": "18000"}, False),
        ({"kind": "increase", "from": "2006.8", "to": "7431.5", "said": "270.3"}, True),
        ({"kind": "increase", "from": "2006.8", "to": "7431.5", "said": "370.3"}, False),
        ({"kind": "difference", "of": "256", "less": "496", "said": "-240"}, True),
        ({"kind": "difference", "of": "256", "less": "496", "said": "240"}, False),
    ],
)
def test_arithmetic_holds_as_far_as_numbers_were_rounded(claim, entry, holds):
    assert one(claim, entry).holds is holds
    assert bool(claim(arithmetic=(READ(entry),)).inconsistent) is not holds


def test_digits_to_spare_are_named(claim):
    found = one(claim, {"kind": "ratio", "of": "1.90", "over": "0.004", "said": "475", "unit": "x"})
    assert (round(found.low), round(found.high)) == (421, 544)
    assert found.sentence == (
        "1.90 / 0.004 = 475x (421.1 to 544.3 with rounding). The published 475 is more precise"
        " than its inputs allow."
    )


def test_a_claim_whose_numbers_disagree_is_not_confirmed_whatever_we_measure(claim):
    wrong = claim(arithmetic=(READ({"kind": "ratio", "of": "4.0", "over": "2.0", "said": "3"}),))
    verdict = judge(wrong)
    assert (verdict.gate, verdict.verdict, verdict.word) == ("G1", "not_confirmed", "inconsistent")
    assert "4.0 / 2.0 = 2 (1.927 to 2.077 with rounding), not 3 as published" in verdict.reason


def test_peaks_of_unequal_batches_are_corrected_on_the_common_grid(published):
    found = published["S003-VLLM-VS-HF-PEAK"].sums(published)
    arithmetic, cells = found
    assert arithmetic.holds  # 270.3 % is the right quotient of the wrong cells
    assert not cells.holds
    assert (round(cells.low, 2), round(cells.high, 2)) == (2.00, 2.35)
    assert [row["batch"] for row in cells.rows] == [1, 4, 8, 16, 32, 64]
    assert "compares batch 128 with 64" in cells.sentence


def test_a_warm_up_row_shows_in_time_that_falls_while_work_grows(published):
    _, grows = published["S003-ATTN-SPEEDUP"].sums(published)
    assert not grows.holds
    assert "falls from 2.39 ms at length 128 to 0.57 ms at length 256" in grows.sentence


def test_a_headline_that_no_table_has_is_found(published):
    (listed,) = published["S003-PEAK"].sums(published)
    assert not listed.holds
    assert listed.sentence.startswith("6,996,656 is in no table of its source")


def test_rows_are_recomputed_one_by_one(claim):
    entry = {"kind": "rows", "of": ["n"], "over": "s", "said": "rate"}
    right = [{"n": 10, "s": 2.0, "rate": 5.0}]
    assert one(claim, entry, figures=right).holds
    wrong = one(claim, entry, figures=[*right, {"n": 10, "s": 2.0, "rate": 7.5}])
    assert not wrong.holds and "in 1 of 2 rows (7.5 instead of" in wrong.sentence


def test_a_sum_without_its_figures_is_a_sentence_and_stops_nothing(claim):
    found = one(claim, {"kind": "rows", "of": ["n"], "over": "s", "said": "rate"}, figures=None)
    assert "does not fit the claim's figures" in found.sentence
    gone = one(claim, {"kind": "cells", "of": "A", "over": "B", "by": "b", "value": "v", "said": 1})
    assert gone.sentence == "A is not in the registry."


def test_no_published_claim_contradicts_its_own_arithmetic_beyond_what_fixtures_expect(published):
    assert [claim.id for claim in published.values() if claim.inconsistent] == []
