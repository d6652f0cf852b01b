"""Distances between samples, mode masses and identities, each with the error or the floor that belongs beside it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pyro_boltzmann.diagnostics.weights import FloatArray, expectation, normalized_weights
from pyro_boltzmann.exceptions import ShapeError

__all__ = ["delta_f", "energy_w2", "mode_mass_tv", "mode_masses", "modes_found", "sampling_floor", "virial"]


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


def delta_f(in_a: ArrayLike, in_b: ArrayLike, log_weights: ArrayLike | None = None) -> tuple[float, float]:
    r"""Free energy of region A minus that of B, in kT: :math:`-\log(\sum_A w / \sum_B w)`, and its standard error.

    Delta method: :math:`\sum_i \bar w_i^2 (1_A / P_A - 1_B / P_B)^2`. An empty region gives an infinite
    difference with an infinite error.

    :param in_a: booleans ``(N,)``, membership of region A.
    :param in_b: booleans ``(N,)``, membership of region B.

    >>> value, error = delta_f([True, True, False], [False, False, True])
    >>> round(value, 6), round(error, 6)
    (-0.693147, 1.224745)
    """
    a, b = np.asarray(in_a, dtype=bool), np.asarray(in_b, dtype=bool)
    weights = _weights_of(a.size, log_weights)
    if a.shape != b.shape or a.ndim != 1:
        raise ShapeError(f"expected two boolean arrays of one shape (N,), got {a.shape} and {b.shape}")
    mass_a, mass_b = float(weights[a].sum()), float(weights[b].sum())
    if mass_a == 0.0 or mass_b == 0.0:
        return (math.inf if mass_b > 0 else -math.inf if mass_a > 0 else math.nan), math.inf
    influence = weights * (a / mass_a - b / mass_b)
    return -math.log(mass_a / mass_b), math.sqrt(float(np.square(influence).sum()))


def mode_masses(assignment: ArrayLike, num_modes: int, log_weights: ArrayLike | None = None) -> FloatArray:
    """Weighted fraction of draws assigned to each of ``num_modes`` modes; ``assignment`` is ``(N,)`` integers.

    :raises ShapeError: if an assignment is outside ``range(num_modes)``.
    """
    labels = np.asarray(assignment)
    if labels.ndim != 1 or (labels.size and (labels.min() < 0 or labels.max() >= num_modes)):
        raise ShapeError(f"expected integers (N,) in range({num_modes}), got shape {labels.shape} with other values")
    masses = np.zeros(num_modes)
    np.add.at(masses, labels, _weights_of(labels.size, log_weights))
    return masses


def mode_mass_tv(assignment: ArrayLike, exact_masses: ArrayLike, log_weights: ArrayLike | None = None) -> float:
    r"""Total variation :math:`\frac12 \sum_k |\hat p_k - p_k|` between the masses found and the exact ones.

    >>> mode_mass_tv([0, 0, 0, 1], [0.5, 0.5])
    0.25
    """
    exact = np.asarray(exact_masses, dtype=np.float64)
    return 0.5 * float(np.abs(mode_masses(assignment, exact.size, log_weights) - exact).sum())


def modes_found(assignment: ArrayLike, num_modes: int, log_weights: ArrayLike | None = None) -> int:
    """Number of modes with at least one draw of positive weight."""
    return int(np.count_nonzero(mode_masses(assignment, num_modes, log_weights)))


def virial(
    x: ArrayLike, gradient: ArrayLike, log_weights: ArrayLike | None = None, *, particle_dim: int | None = None
) -> tuple[float, float]:
    r"""Stein's identity :math:`E[(x - \bar x) \cdot \nabla u(x)] = \mathrm{dof}` and its standard error.

    The degrees of freedom are ``d``, or ``(num_particles - 1) * particle_dim`` about the centre of mass.
    A wrong energy or a biased reference shows at once. Not valid across jumps or hard walls of ``u``.

    :param x: ``(N, d)``.
    :param gradient: gradient of the energy, ``(N, d)``.
    :param particle_dim: space dimension of particle configurations, whose centre of mass is then subtracted.
    """
    position, force = np.asarray(x, dtype=np.float64), np.asarray(gradient, dtype=np.float64)
    if position.shape != force.shape or position.ndim != 2:
        raise ShapeError(f"expected x and gradient of one shape (N, d), got {position.shape} and {force.shape}")
    if particle_dim is not None:
        particles = position.reshape(len(position), -1, particle_dim)
        position = (particles - particles.mean(1, keepdims=True)).reshape(position.shape)
    zeros = np.zeros(len(position)) if log_weights is None else log_weights
    mean, error = expectation(zeros, (position * force).sum(1))
    return float(mean), float(error)


def sampling_floor(
    metric: Callable[[Any, Any], float], sample: Callable[[], Any], num_repeats: int = 20
) -> tuple[float, float]:
    """What ``metric`` gives between two *exact* samples of the same size: its mean and standard deviation.

    :param metric: a distance of two samples, the very function whose value the floor stands beside.
    :param sample: draws one exact (or reference) sample, independent at each call.

    >>> rng = np.random.default_rng(0)
    >>> floor, spread = sampling_floor(energy_w2, lambda: rng.normal(size=1000))
    >>> 0.03 < floor < 0.1
    True
    """
    values = [metric(sample(), sample()) for _ in range(num_repeats)]
    return float(np.mean(values)), float(np.std(values, ddof=1)) if num_repeats > 1 else math.inf


def _weights_of(size: int, log_weights: ArrayLike | None) -> FloatArray:
    weights = np.full(size, 1.0 / max(size, 1)) if log_weights is None else normalized_weights(log_weights)
    if weights.shape != (size,) or size == 0:
        raise ShapeError(f"expected one log weight for each of {size} >= 1 draws, got {weights.shape}")
    return weights


def _sorted_with_mass(values: ArrayLike, log_weights: ArrayLike | None) -> tuple[FloatArray, NDArray[np.float64]]:
    array = np.asarray(values, dtype=np.float64).reshape(-1)
    weights = _weights_of(array.size, log_weights)
    kept = weights > 0
    array, weights = array[kept], weights[kept]
    order = np.argsort(array)
    if log_weights is None:
        # Exact fractions make equal sizes pair up without slivers from rounding.
        return array[order], np.arange(1, array.size + 1) / array.size
    mass = np.cumsum(weights[order])
    return array[order], mass / mass[-1]
