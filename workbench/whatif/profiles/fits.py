"""A linear fit with coefficients of at least 0, robust against a few delayed requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

RESAMPLES = 20
"""Bootstrap resamples of each fit, for the intervals of predictions."""
_ROUNDS = 20
_HUBER = 1.345
"""Residuals beyond this many standard deviations count less (Huber, 1964: 95 % efficiency)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """A fitted duration in seconds as a sum of terms, and the range where it holds."""

    __pydantic_config__: ClassVar[Mapping[str, Any]] = {"allow_inf_nan": False}

    terms: tuple[str, ...]
    coefficients: tuple[float, ...]
    """In the order of the terms."""
    resamples: tuple[tuple[float, ...], ...]
    """The coefficients of bootstrap resamples of the points."""
    points: int
    measured_s: tuple[float, ...]
    fitted_s: tuple[float, ...]
    """Of each point, for the residuals."""
    ranges: Mapping[str, tuple[float, float]]
    """The smallest and the largest value that was measured of each input."""

    @property
    def residual(self) -> float:
        """Median of |measured / fitted - 1|."""
        ratio = np.asarray(self.measured_s) / np.asarray(self.fitted_s)
        return float(np.median(np.abs(ratio - 1)))

    def of_resample(self, number: int) -> dict[str, float]:
        """Coefficients by term: of all points for number 0, else of a resample."""
        found = self.resamples[(number - 1) % len(self.resamples)] if number else self.coefficients
        return dict(zip(self.terms, found, strict=True))


def fit(
    columns: Mapping[str, NDArray[np.float64]],
    measured_s: NDArray[np.float64],
    *,
    ranges: Mapping[str, NDArray[np.float64]],
    seed: int = 0,
) -> Fit:
    """Fit `measured_s` by the columns, with errors relative to the duration."""
    design = np.column_stack(list(columns.values()))
    rng = np.random.default_rng(seed)
    n = len(measured_s)
    whole = _solve(design, measured_s)
    drawn = (rng.integers(0, n, n) for _ in range(RESAMPLES))
    resamples = [_solve(design[rows], measured_s[rows]) for rows in drawn]
    return Fit(
        terms=tuple(columns),
        coefficients=_plain(whole),
        resamples=tuple(map(_plain, resamples)),
        points=n,
        measured_s=_plain(measured_s),
        fitted_s=_plain(design @ whole),
        ranges={name: (float(v.min()), float(v.max())) for name, v in ranges.items()},
    )


def _solve(design: NDArray[np.float64], measured_s: NDArray[np.float64]) -> NDArray[np.float64]:
    """Iteratively reweighted least squares: errors relative to the fit, with Huber's weights.

    Relative to the fit, not to the measured duration: one near 0 would outweigh all others.
    """
    size = np.linalg.norm(design, axis=0)
    size[size == 0] = 1.0
    usual_s = float(np.median(measured_s))
    scale_s: NDArray[np.float64] = np.full(len(measured_s), usual_s)
    weights: NDArray[np.float64] = np.ones(len(measured_s))
    found: NDArray[np.float64] = np.zeros(design.shape[1])
    for _ in range(_ROUNDS):
        root = np.sqrt(weights) / scale_s
        found, _ = nnls(design / size * root[:, None], measured_s * root)
        fitted_s = design @ (found / size)
        scale_s = np.maximum(fitted_s, 0.05 * usual_s)
        off = np.abs(measured_s - fitted_s) / scale_s
        spread = max(1.4826 * float(np.median(off)), 1e-9)
        weights = 1 / np.maximum(1.0, off / (_HUBER * spread))
    solved: NDArray[np.float64] = found / size
    return solved


def _plain(values: NDArray[np.float64] | Sequence[float]) -> tuple[float, ...]:
    """Rounded to six digits, which is more than a measurement has."""
    return tuple(float(f"{value:.6g}") for value in values)
