"""The Pareto chart: which points are on the line, and which are hollow or crossed out."""

from __future__ import annotations

import pandas as pd
import pytest

from tests.report.conftest import text, words
from workbench.report.figures import pareto
from workbench.report.figures.pareto import _front


def points(*rows, **attrs):
    """A frame of (arm, rate, tokens/s per user, tokens/s per GPU)."""
    frame = pd.DataFrame(
        [
            {
                "arm": arm, "pass": f"cold at {rate}/s", "gpus": 2, "rate_per_s": rate,
                "users": None, "user_tps": user, "system_tps": 2 * gpu, "gpu_tps": gpu,
            }
            for arm, rate, user, gpu in rows
        ]
    )  # fmt: skip
    frame.attrs |= {"unit": "GPU"} | attrs
    return frame


LADDER = (
    ("1p1d lmcache", 1, 100.0, 40.0), ("1p1d lmcache", 2, 80.0, 75.0),
    ("1p1d lmcache", 4, 20.0, 60.0),
    ("2a", 1, 95.0, 42.0), ("2a", 2, 60.0, 85.0), ("2a", 4, 30.0, 130.0),
)  # fmt: skip


def paths(chart):
    """Lines of the front; each has the width that only they have."""
    return chart.svg.count("stroke-width:1.4")


def test_it_names_the_arm_with_most_throughput_and_the_fastest():
    chart = pareto(points(*LADDER))
    said = text(chart)
    assert "Highest throughput per GPU: 2a (130 tok/s)" in said
    assert "fastest per user: 1p1d lmcache (100 tok/s)" in said
    assert "output tokens/s per GPU (log scale)" in said
    assert "tokens/s per user: 1 / median TPOT (log scale)" in said
    assert {"1p1d lmcache", "2a"} <= set(words(chart))
    assert paths(chart) == 2
    assert "Hollow" not in chart.caption and "Crossed" not in chart.caption
    assert "2a 4/s: 130 tokens/s per GPU, 30.0 per user" in chart.alt


def test_a_point_that_another_surpasses_is_not_on_the_line():
    rows = [{"user_tps": u, "gpu_tps": g, "effect": ""} for _, _, u, g in LADDER[:3]]
    assert [row["user_tps"] for row in _front(rows, "gpu_tps")] == [100, 80]
    equal = [{"user_tps": 50.0, "gpu_tps": g, "effect": ""} for g in (10.0, 20.0)]
    assert [row["gpu_tps"] for row in _front(equal, "gpu_tps")] == [20]


def test_one_point_an_arm_has_no_line():
    chart = pareto(points(LADDER[0], LADDER[3]))
    assert paths(chart) == 0
    assert "Lines join" not in chart.caption


def test_a_single_point_is_neither_highest_nor_fastest():
    assert "1p1d lmcache: 40.0 tok/s per GPU, 100 tok/s per user" in text(pareto(points(LADDER[0])))


def test_points_of_a_failed_gate_are_hollow_or_crossed_out_and_off_the_line():
    rough = pareto(points(*LADDER, failed_gates=["client kept up"]))
    assert "Hollow: a gate makes it rough" in rough.caption
    assert "Crossed out" not in rough.caption
    assert paths(rough) == 2
    failed = {"KV moved": ("1p1d lmcache",)}
    struck = pareto(points(*LADDER, failed_gates=failed))
    assert "Crossed out: not valid" in struck.caption
    assert paths(struck) == 1
    assert "Hollow" not in struck.caption
    found = "2a: highest throughput per GPU (130 tok/s) and fastest per user (95.0 tok/s)"
    assert found in text(struck)


def test_loads_that_are_close_together_are_labelled_once():
    close = [(arm, 1, 100.0, gpu) for arm, gpu in (("a", 40.0), ("b", 41.0), ("c", 90.0))]
    assert words(pareto(points(*close))).count("1/s") == 2


def test_many_points_have_no_labels():
    many = [("1p1d", n, 100.0 / n, 10.0 * n) for n in range(1, 17)]
    assert "4/s" not in words(pareto(points(*many)))


def test_an_unknown_number_of_gpus_leaves_throughput_in_all():
    frame = points(*LADDER).assign(gpu_tps=None)
    chart = pareto(frame)
    assert "output tokens/s of all instances (log scale)" in words(chart)
    assert "The number of GPUs is unknown" in chart.caption


def test_models_have_a_panel_each():
    frame = pd.concat([points(*LADDER).assign(model=name) for name in ("large", "small")])
    frame.attrs["unit"] = "GPU"
    chart = pareto(frame)
    assert {"large", "small"} <= set(words(chart))
    assert "Highest throughput" not in text(chart)  # models are not compared with one another


@pytest.mark.parametrize("column", ["user_tps", "gpu_tps"])
def test_without_numbers_it_says_why(column):
    frame = points(*LADDER[:1]).assign(**{column: None, "system_tps": None})
    assert "no pass has both TPOT and throughput" in text(pareto(frame))


def test_without_points_there_is_no_figure():
    assert pareto(pd.DataFrame()) is None
