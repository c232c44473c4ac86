"""The claim table and its panels from invented rows: a word, a shape and a reason for each."""

import re

import nbformat
import pytest
from bs4 import BeautifulSoup

from workbench.experiment.result.claim_account import ShownNumber
from workbench.experiment.result.result import Result
from workbench.report.claims import MARKS, claim_panels, claim_table, shown_number
from workbench.report.figures.claims import claim_curve, claim_intervals
from workbench.report.page import render


def effect(**changed):
    fields = {
        "name": "TTFT", "cells": 1, "cell": "", "quantifier": "lower", "unit": "x",
        "estimate": 0.21, "low": 0.19, "high": 0.24, "runs": 5,
        "exact": False, "confidence": 0.95, "claimed": "below 1x", "value": 1.0,
        "confirms_from": None, "confirms_to": 1.0, "code": "confirmed", "noise_floor": 0.03,
    }  # fmt: skip
    return {**fields, **changed}


def row(name="VLLM-APC", **changed):
    effects = [effect()]
    number = [{key: effects[0][key] for key in ("name", "estimate", "low", "high", "unit", "exact")}
              | {"kind": "measured", "cells": 1, "least": 0.21, "most": 0.21}]  # fmt: skip
    fields = {
        "id": name, "group": "literature", "source": "vLLM docs", "confirmation": "primary: read",
        "withdrawn": "", "own": False, "statement": "TTFT falls <b>a lot</b>.",
        "says": ["TTFT: below 1x"], "conditions": "any model; any hardware",
        "subject": "vLLM", "comparator": "the same without", "ours": "Prompts of 512 tokens.",
        "number": number, "effects": effects, "measured": True, "shown_only": False,
        "recipe": "prefix_cache",
        "verdict": "confirmed (on CPU)", "kind": "confirmed", "code": "confirmed", "gate": "G4",
        "reason": "The whole interval agrees with the claim. Measured 0.21x (0.19 to 0.24).",
        "tier": "shape", "needed": "",
        "skipped": "", "checked": [
            {"state": "pass", "check": "equal models", "by": "our run", "why": ""},
            {"state": "unknown", "check": "a tuned baseline", "by": "its source", "why": "Old."},
        ],
        "sums": [], "curves": [], "doubts": ["A caveat."], "limits": ["A limit."], "note": "",
        "versions": {"vllm": "0.32.0"},
    }  # fmt: skip
    return {**fields, **changed}


KINDS = [
    row(f"K{place}", kind=kind, verdict=kind.replace("-", " "), measured=place < 3)
    for place, kind in enumerate(MARKS)
]


@pytest.fixture
def page(result):
    """`page(rows)` is the parsed page of a result with these claims."""

    def make(rows):
        notebook = nbformat.v4.new_notebook()
        return BeautifulSoup(
            render(notebook, Result.from_bundle(result | {"claims": rows}, "a test")), "html.parser"
        )

    return make


def test_the_legend_explains_only_what_the_rows_show(page):
    def legend(*rows):
        heading = page(list(rows)).find("h2", string="The claims")
        return heading.find_next("p", class_="cond").get_text()

    measured = legend(row())
    assert measured.startswith("● confirmed.")
    assert "A verdict “on CPU” is about direction and counts" in measured
    assert "Brackets are 95 % confidence intervals." in measured
    alike = effect(quantifier="unchanged")
    assert "90 % for “unchanged”" in legend(row(effects=[alike]))
    plain = row(kind="contradicted", verdict="impossible", effects=[], says=["rate: 9 tokens/s"])
    assert legend(plain) == "▲ contradicted, impossible or inconsistent."


def test_each_kind_of_verdict_has_a_shape_and_a_word_of_its_own(page):
    cells = page(KINDS).select("table.claims .verdict")
    assert [cell.get_text().replace("\u00a0", " ") for cell in cells] == [
        f"{mark} {kind.replace('-', ' ')}" for kind, mark in MARKS.items()
    ]
    assert len(set(MARKS.values())) == len(MARKS)
    assert [cell["class"][1] for cell in cells] == list(MARKS)


def test_number_interval_conditions_and_reason_stand_in_the_row(page):
    (body,) = page([row()]).select("table.claims tbody")
    text = " ".join(body.get_text(" ").split())
    assert "0.210x [0.190, 0.240]" in text
    for words in ("VLLM-APC", "vLLM docs", "below 1x", "confirmed (on CPU)", "5 launches per arm",
                  "The whole interval agrees with the claim."):  # fmt: skip
        assert words in text
    assert "Measured" not in text  # the panel has the whole reason


def test_parts_follow_one_another_and_long_ones_are_folded(page):
    rows = [
        row(name, **changed)
        for name, changed in {
            **{f"R{place}": {"measured": False, "kind": "contradicted"} for place in range(40)},
            "OWN": {"own": True},
            "LEFT": {"measured": False, "kind": "not-tested"},
            "UNFAIR": {"measured": False, "kind": "not-comparable"},
            "HERE": {},
        }.items()
    ]
    parts = page(rows).select("details.claims-part")
    assert [(part.summary.get_text(), part.has_attr("open")) for part in parts] == [
        ("Measured here: 1 (1 confirmed)", True),
        ("Contradicted or without evidence: 40 (40 contradicted)", False),
        ("Not comparable: 1 ", False),
        ("Not tested: 1 ", False),
        ("Our own control claims: 1 (1 confirmed)", False),
    ]


def test_the_table_stands_on_the_first_screen_and_links_its_panels(page):
    soup = page([row()])
    table, gates = soup.select_one("table.claims"), soup.select_one(".gates")
    assert table.sourceline < gates.sourceline
    target = soup.select_one("table.claims a")["href"].removeprefix("#")
    assert soup.find(id=target).name == "details"
    assert [h.get_text() for h in soup("h2")][:2] == ["The claims", "Can this be trusted?"]


def test_it_sorts_with_a_few_lines_that_load_nothing(page):
    soup = page(KINDS)
    (script,) = [s for s in soup("script") if "aria-sort" in s.get_text()]
    assert "http" not in script.get_text() and not script.get("src")
    assert all(cell.has_attr("data-key") for cell in soup.select("table.claims tbody td"))
    keys = {cell["data-key"]: cell.get_text() for cell in soup.select('td[data-label="verdict"]')}
    assert [keys[key][0] for key in sorted(keys)] == list(MARKS.values())  # not by the alphabet


def test_text_of_claims_is_text(page):
    assert not page([row()]).select(".claims td b b, .claims td:first-child b:nth-of-type(2)")


def test_a_panel_says_what_was_checked_and_what_it_does_not_show(page):
    panel = page([row()]).find(id="claim-VLLM-APC")
    text = " ".join(panel.get_text(" ").split())
    assert "◆ Unknown whether a tuned baseline. Old." in text
    assert "● 1 fairness check passed" in text
    assert "A limit." in text and "A caveat." in text and "vllm 0.32.0" in text
    assert panel.has_attr("open")
    (figure,) = panel("figure")
    assert figure.svg["aria-label"].startswith(
        "VLLM-APC, confirmed (on CPU). TTFT: 0.210x [0.190, 0.24"
    )


def test_a_claim_that_was_not_measured_is_folded_and_says_why(page):
    skipped = row(measured=False, number=[], effects=[], skipped="pd takes 90 s.", ours="")
    soup = page([skipped])
    assert not soup.find(id="claim-VLLM-APC").has_attr("open")
    assert soup.select_one('td[data-label="reason"]').get_text() == "pd takes 90 s."


def test_a_corrected_comparison_is_a_table_of_cells(page):
    sums = [{"sentence": "At equal batch the ratio is 2.00 to 2.35 x.", "holds": False,
             "rows": [{"batch": 1, "ratio": 2.055}]}]  # fmt: skip
    recomputed = {"name": "recomputed from its table", "estimate": None, "low": 2.004, "high": 2.35,
                  "unit": "x", "exact": False, "kind": "recomputed"}  # fmt: skip
    soup = page([row(sums=sums, number=[recomputed], effects=[])])
    assert "2.00x to 2.35x" in soup.select_one('td[data-label="our number"]').get_text()
    panel = soup.find(id="claim-VLLM-APC")
    assert "▲ At equal batch the ratio is" in panel.get_text()
    assert [cell.get_text() for cell in panel.select("tbody td")] == ["1", "2.055"]


@pytest.mark.parametrize(
    ("changed", "shown"),
    [
        ({}, ("0.210x", "[0.190, 0.240]")),
        ({"low": None, "high": None}, ("0.210x", "no interval")),
        ({"estimate": None}, ("unknown", "")),
        ({"estimate": 0.0, "low": 0.0, "high": 0.0, "exact": True, "unit": "tokens"},
         ("0 tokens", "exact")),
        ({"cells": 3, "least": 0.1, "most": 0.21},
         ("0.100x to 0.210x", "in 3 cases, weakest [0.190, 0.240]")),
        ({"cells": 3, "least": 0.2101, "most": 0.2102},
         ("0.210x", "in 3 cases, weakest [0.190, 0.240]")),
        ({"kind": "recomputed", "low": 4095.7, "high": 4102.7, "unit": "tokens"},
         ("about 4,100 tokens", "")),
        ({"unit": "bool", "estimate": 1.0, "exact": True}, ("yes", "exact")),
        ({"estimate": 1.969, "low": 1.969, "high": 1.969, "exact": True}, ("1.969x", "exact")),
        ({"unit": "%", "estimate": 71.2, "low": 60.0, "high": 80.0}, ("71.2 %", "[60.0, 80.0]")),
    ],
)  # fmt: skip
def test_numbers_in_words(changed, shown):
    found = shown_number(ShownNumber(**{**row()["number"][0], **changed}))
    assert (found["value"], found["interval"].replace("\u00a0", " ")) == shown


def test_a_notebook_shows_table_and_panels_by_themselves():
    plain = {"schema": 2, "notebook": "n", "run_id": "r", "status": "success", "claims": KINDS}
    result = Result.from_bundle(plain, "a test")
    for view in (claim_table(result), claim_panels(result)):
        bundle = view._repr_mimebundle_()
        assert "K1" in bundle["text/html"]
        assert bundle["text/plain"].startswith("● K0: confirmed.")


def test_effects_of_different_units_have_axes_of_their_own():
    other = effect(name="TPOT", unit="%", value=5.0, confirms_from=-5.0, confirms_to=5.0)
    chart = claim_intervals(row(effects=[effect(), other]))
    assert len(re.findall(r'id="axes_\d+"', chart.svg)) == 2
    assert "TTFT: 0.210x [0.190, 0.240]" in chart.svg
    assert "claimed: below 1x" in chart.svg


def test_cells_of_one_effect_share_its_axis():
    cells = [effect(cells=2), effect(cells=2, estimate=0.5, low=0.4, high=0.6)]
    chart = claim_intervals(row(effects=cells))
    assert len(re.findall(r'id="axes_\d+"', chart.svg)) == 1
    assert "TTFT: 2 cases" in chart.svg
    assert "0.500x [0.400, 0.600]" in chart.alt


def test_a_number_without_interval_is_drawn_hollow_and_said():
    chart = claim_intervals(row(effects=[effect(low=None, high=None)]))
    assert "0.210x, no CI" in chart.svg


@pytest.mark.parametrize("xs", [[128, 512, 2048, 8192], [1, 60, 92, 2049], ["naive", "SDPA"]])
def test_a_curve_takes_numbers_and_words(xs):
    points = [{"series": "a", "x": x, "value": 2.0 + i, "low": 1.5 + i, "high": None}
              for i, x in enumerate(xs)]  # fmt: skip
    chart = claim_curve({"title": "T", "x": "tokens", "y": "ms", "points": points})
    words = [x for x in xs if isinstance(x, str)]
    assert all(f">{word}<" in chart.svg for word in words)
    assert ">tokens<" in chart.svg and ">ms<" in chart.svg
    assert chart.alt == "T: ms over tokens, 1 line."
