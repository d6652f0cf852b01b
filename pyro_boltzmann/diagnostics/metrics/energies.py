"""Distances and differences of two energy distributions."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from pyro_boltzmann.diagnostics.metrics.inputs import weights_of
from pyro_boltzmann.diagnostics.weights import FloatArray, expectation
from pyro_boltzmann.exceptions import ShapeError

__all__ = ["energy_w2", "mean_energy_difference"]


def energy_w2(
    energies: ArrayLike,
    reference: ArrayLike,
    log_weights: ArrayLike | None = None,
    reference_log_weights: ArrayLike | None = None,
) -> float:
    r"""Wasserstein-2 distance of two energy distributions, *with* its root.

    .. math:: \Big[\int_0^1 \big(F_a^{-1}(t) - F_b^{-1}(t)\big)^2 dt\Big]^{1/2},

    which is :math:`[\mathrm{mean}_i (a_{(i)} - b_{(i)})^2]^{1/2}` for equal numbers of unweighted draws. Sizes may
    differ. Large energies dominate it: print the mean energies and :func:`sampling_floor` beside it.

    >>> energy_w2([0.0, 1.0], [1.0, 2.0])
    1.0
    """
    a, mass_a = _sorted_with_mass(energies, log_weights)
    b, mass_b = _sorted_with_mass(reference, reference_log_weights)
    levels = np.unique(np.concatenate([[0.0], mass_a, mass_b]))
    middle = 0.5 * (levels[1:] + levels[:-1])
    quantile_a = a[np.searchsorted(mass_a, middle).clip(max=a.size - 1)]
    quantile_b = b[np.searchsorted(mass_b, middle).clip(max=b.size - 1)]
    return math.sqrt(float((np.diff(levels) * np.square(quantile_a - quantile_b)).sum()))


def mean_energy_difference(
    energies: ArrayLike,
    reference: ArrayLike,
    log_weights: ArrayLike | None = None,
    reference_log_weights: ArrayLike | None = None,
) -> tuple[float, float]:
    r"""Difference :math:`\bar a - \bar b` of the (weighted) mean energies, and its standard error
    :math:`\sqrt{s_a^2 + s_b^2}`.

    It says what :func:`energy_w2`, which the tail dominates, does not.

    >>> value, error = mean_energy_difference([1.0, 3.0], [0.0, 0.0])
    >>> value, round(error, 6)
    (2.0, 0.707107)
    """
    means, variances = [], []
    for values, lw in ((energies, log_weights), (reference, reference_log_weights)):
        array = np.asarray(values, dtype=np.float64)
        if array.ndim != 1 or array.size == 0:
            raise ShapeError(f"expected energies of shape (N,) with N >= 1, got {array.shape}")
        mean, error = expectation(np.zeros(array.size) if lw is None else lw, array)
        means.append(float(mean))
        variances.append(float(error) ** 2)
    return means[0] - means[1], math.sqrt(sum(variances))


def _sorted_with_mass(values: ArrayLike, log_weights: ArrayLike | None) -> tuple[FloatArray, FloatArray]:
    array = np.asarray(values, dtype=np.float64).reshape(-1)
    weights = weights_of(array.size, log_weights)
    kept = weights > 0
    array, weights = array[kept], weights[kept]
    order = np.argsort(array)
    if log_weights is None:
        # Exact fractions make equal sizes pair up without slivers from rounding.
        return array[order], np.arange(1, array.size + 1) / array.size
    mass = np.cumsum(weights[order])
    return array[order], mass / mass[-1]
