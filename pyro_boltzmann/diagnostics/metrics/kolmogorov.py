"""Kolmogorov-Smirnov distances of one coordinate, with their floor."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from pyro_boltzmann.diagnostics.metrics.inputs import as_points, kish_size, points_and_weights
from pyro_boltzmann.diagnostics.weights import FloatArray
from pyro_boltzmann.exceptions import ShapeError

__all__ = ["KolmogorovSmirnov", "ks_distance", "ks_floor", "ks_test"]

Cdf = Callable[[FloatArray], FloatArray]


@dataclass(frozen=True)
class KolmogorovSmirnov:
    """The distance, what exact draws would give on average, and the p-value (``None`` with weights)."""

    distance: float
    floor: float
    p_value: float | None


def ks_distance(
    x: ArrayLike,
    reference: ArrayLike | Cdf,
    log_weights: ArrayLike | None = None,
    reference_log_weights: ArrayLike | None = None,
) -> float:
    r"""Largest difference :math:`\sup_t |\hat F(t) - F(t)|` of two (weighted) distribution functions of one coordinate.

    :param x: ``(N,)``.
    :param reference: a continuous distribution function, or a sample ``(M,)``.

    >>> ks_distance([0.25, 0.75], lambda t: t)
    0.25
    >>> ks_distance([0.0, 1.0], [5.0, 6.0])
    1.0
    """
    values, mass = _steps(x, log_weights)
    if callable(reference):
        exact = np.asarray(reference(values), dtype=np.float64)
        return float(np.maximum(mass - exact, exact - np.concatenate([[0.0], mass[:-1]])).max())
    others, other_mass = _steps(reference, reference_log_weights)
    where = np.concatenate([values, others])
    return float(np.abs(_evaluate(values, mass, where) - _evaluate(others, other_mass, where)).max())


def ks_floor(num_samples: float, num_reference: float = math.inf) -> float:
    r"""Mean of :func:`ks_distance` for exact draws, :math:`\sqrt{\pi/2}\,\ln 2\,/\sqrt{n} = 0.8687/\sqrt n`.

    :math:`n = N M / (N + M)`, with Kish sizes where there are weights. Leading order of Kolmogorov's law; the mean of
    a finite sample is smaller by about :math:`1 / (6 n)`.

    >>> round(ks_floor(10_000), 6)
    0.008687
    """
    if not (num_samples > 0 and num_reference > 0):
        raise ShapeError(f"expected positive numbers of draws, got {num_samples} and {num_reference}")
    return math.sqrt(0.5 * math.pi * (1.0 / num_samples + 1.0 / num_reference)) * math.log(2.0)


def ks_test(
    x: ArrayLike,
    reference: ArrayLike | Cdf,
    log_weights: ArrayLike | None = None,
    reference_log_weights: ArrayLike | None = None,
) -> KolmogorovSmirnov:
    """:func:`ks_distance` with its floor and, without weights, SciPy's p-value. One coordinate, ``(N,)``.

    >>> result = ks_test(np.random.default_rng(0).random(1000), lambda t: t)
    >>> result.distance < 0.05, result.p_value > 1e-3
    (True, True)
    """
    distance = ks_distance(x, reference, log_weights, reference_log_weights)
    sizes = [_kish(x, log_weights)]
    if not callable(reference):
        sizes.append(_kish(reference, reference_log_weights))
    p_value = None
    if log_weights is None and reference_log_weights is None:
        from scipy import stats

        other = reference if callable(reference) else np.asarray(reference, dtype=np.float64)
        p_value = float(stats.kstest(np.asarray(x, dtype=np.float64), other).pvalue)
    return KolmogorovSmirnov(distance, ks_floor(*sizes), p_value)


def _column(x: ArrayLike, log_weights: ArrayLike | None) -> tuple[FloatArray, FloatArray]:
    points = as_points(x)
    if points.shape[1] != 1:
        raise ShapeError(f"expected one coordinate of shape (N,), got {points.shape}; use x[:, 0]")
    column, weights = points_and_weights(points, log_weights)
    return column[:, 0], weights


def _kish(x: ArrayLike, log_weights: ArrayLike | None) -> float:
    return kish_size(_column(x, log_weights)[1])


def _steps(x: ArrayLike, log_weights: ArrayLike | None) -> tuple[FloatArray, FloatArray]:
    """Sorted values and the distribution function just after each."""
    values, weights = _column(x, log_weights)
    order = np.argsort(values)
    mass = np.cumsum(weights[order])
    return values[order], mass / mass[-1]


def _evaluate(values: FloatArray, mass: FloatArray, where: FloatArray) -> FloatArray:
    below = np.searchsorted(values, where, side="right")
    return np.asarray(np.concatenate([[0.0], mass])[below])
