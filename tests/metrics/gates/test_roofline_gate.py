from math import nan

import pandas as pd
import pytest

from workbench.metrics.gates.answer_gates import Ceilings, below_ceilings

LIMIT = {"1a": Ceilings(prefill_tps=20_000, decode_tps=200)}


def rows(ttft_s: float = 0.1, tpot_s: float = 0.01, name: str = "cold", reuse: int = 0):
    """One request of 1,000 prompt tokens: 10,000 a second cold, 100 a second of output."""
    row = {"arm": "1a", "pass": name, "error": "", "prompt_tokens": 1000}
    return pd.DataFrame([row | {"ideal_reuse_tokens": reuse, "ttft_s": ttft_s, "tpot_s": tpot_s}])


def test_rates_below_the_roofline_pass_with_their_distance():
    gate = below_ceilings(rows(), LIMIT)
    assert gate.outcome == "PASS"
    assert gate.sentence.endswith("the nearest is at 50% of it")


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({"ttft_s": 0.01}, "1a: 100,000 prompt tokens per second of a cold prompt, where"),
        ({"tpot_s": 0.001}, "1a: 1,000 output tokens per second of one request, where"),
    ],
)
def test_a_rate_above_it_cannot_be(values, what):
    gate = below_ceilings(rows(**values), LIMIT)
    assert gate.outcome == "FAIL"
    assert gate.sentence.startswith(what)


@pytest.mark.parametrize(
    "row", [rows(0.01, name="engine-warm"), rows(0.01, reuse=900), rows(nan, nan)]
)
def test_what_was_not_computed_has_no_ceiling(row):
    assert below_ceilings(row, LIMIT).outcome == "PASS"


def test_without_a_roofline_nothing_is_proven():
    gate = below_ceilings(rows(), {}, "no roofline is known of this hardware")
    assert gate.outcome == "INCONCLUSIVE"
