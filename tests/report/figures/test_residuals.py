from dataclasses import asdict

import pandas as pd

from tests.report.conftest import words
from workbench.experiment.result.predicted import FitRow
from workbench.report import figures

PREFILL = FitRow(
    part="prefill", formula="10 ms x steps", residual=0.05, limit=0.3,
    ranges={"tokens": (1_000.0, 4_000.0)},
    measured_s=(0.095, 0.21, 0.42), fitted_s=(0.1, 0.2, 0.2),
)  # fmt: skip


def frame(*rows):
    return pd.DataFrame([asdict(row) for row in rows])


def test_a_fit_is_drawn_with_its_residuals_and_its_range():
    chart = figures.residuals(frame(PREFILL))
    shown = words(chart)
    assert "Median residual of the profile's fits: prefill 5.0 %" in shown
    assert {"prefill", "1,000 to 4,000 tokens", "residual, %", "fitted, ms"} <= set(shown)
    assert {"+60", "+30", "-30"} <= set(shown)  # the limit, and twice that
    assert "Triangles: 1 residual beyond the axis." in chart.caption  # +110 %
    assert "The fits are valid for: prefill for 1,000 to 4,000 tokens." in chart.alt


def test_without_a_profile_there_is_no_figure():
    assert figures.residuals(pd.DataFrame()) is None
