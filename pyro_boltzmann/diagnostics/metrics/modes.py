"""Masses of modes and free energies of regions, from the assignment of each draw."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from pyro_boltzmann.diagnostics.metrics.inputs import as_points, weights_of
from pyro_boltzmann.diagnostics.weights import FloatArray
from pyro_boltzmann.exceptions import ShapeError

__all__ = ["assignment_entropy", "delta_f", "mode_mass_tv", "mode_masses", "mode_weight_error", "modes_found"]


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
    weights = weights_of(a.size, log_weights)
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
    np.add.at(masses, labels, weights_of(labels.size, log_weights))
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


def assignment_entropy(assignment: ArrayLike, num_modes: int, log_weights: ArrayLike | None = None) -> float:
    r"""Entropy :math:`-\sum_k \hat p_k \log \hat p_k` of the assignment in nats, between 0 and :math:`\log K`.

    One dominating mode shows as a low entropy even where every mode holds a draw. From :math:`N` exact draws the
    estimate is low by about :math:`(K - 1) / (2 N)`.

    >>> round(assignment_entropy([0, 1, 2, 3], 4) - math.log(4), 12)
    0.0
    """
    masses = mode_masses(assignment, num_modes, log_weights)
    positive = masses[masses > 0]
    return max(0.0, -float((positive * np.log(positive)).sum()))


def mode_weight_error(x: ArrayLike, exact_probability: ArrayLike, log_weights: ArrayLike | None = None) -> float:
    r"""Mean absolute error of :math:`P(x_i > 0)` over the coordinates, :math:`\frac1d \sum_i |\hat P_i - P_i|`.

    For products of many wells, whose modes are too many to be counted. Its floor from :math:`N` exact draws
    is :math:`\sqrt{2 P (1 - P) / (\pi N)}`.

    :param x: ``(N, d)``, only the coordinates that have two wells (``x[:, ::2]`` for ManyWell).
    :param exact_probability: one for all, or ``(d,)``.

    >>> mode_weight_error([[1.0, -1.0], [2.0, 3.0]], 0.75)
    0.25
    """
    points = as_points(x)
    found = weights_of(len(points), log_weights) @ (points > 0)
    return float(np.abs(found - np.broadcast_to(np.asarray(exact_probability, dtype=np.float64), found.shape)).mean())
