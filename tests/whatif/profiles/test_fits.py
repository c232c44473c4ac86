import numpy as np
import pytest

from workbench.whatif.profiles.fits import fit

X = np.linspace(1, 100, 40)
TRUE_S = 0.01 + 0.002 * X


def fitted(measured_s):
    return fit({"base": np.ones_like(X), "x": X}, measured_s, ranges={"x": X})


def test_a_line_is_found_exactly():
    found = fitted(TRUE_S)
    assert found.of_resample(0) == pytest.approx({"base": 0.01, "x": 0.002}, rel=1e-4)
    assert found.residual < 1e-6
    assert found.ranges == {"x": (1.0, 100.0)}


def test_three_delayed_requests_of_forty_do_not_move_it():
    late_s = TRUE_S.copy()
    late_s[[5, 20, 33]] *= 8
    assert fitted(late_s).of_resample(0) == pytest.approx({"base": 0.01, "x": 0.002}, rel=0.02)


def test_a_duration_never_falls_with_its_input():
    assert fitted(0.5 - 0.001 * X).of_resample(0)["x"] == 0.0


def test_resamples_spread_as_much_as_the_noise_allows():
    rng = np.random.default_rng(0)
    noisy = fitted(TRUE_S * rng.lognormal(0, 0.05, len(X)))
    slopes = [noisy.of_resample(number)["x"] for number in range(1, 21)]
    assert 0 < np.std(slopes) < 0.1 * 0.002
    assert min(slopes) < 0.002 < max(slopes)
