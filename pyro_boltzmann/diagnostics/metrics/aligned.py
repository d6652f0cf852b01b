"""Distances of particle configurations up to permutations, rotations and reflections."""

from __future__ import annotations

import itertools
import math

import numpy as np
from numpy.typing import ArrayLike

from pyro_boltzmann.diagnostics.metrics.alignment import CHUNK, MOST_PERMUTATIONS, climb, distance_features
from pyro_boltzmann.diagnostics.metrics.inputs import as_particles, points_and_weights
from pyro_boltzmann.diagnostics.metrics.transport import optimal_cost
from pyro_boltzmann.diagnostics.weights import FloatArray
from pyro_boltzmann.exceptions import ShapeError

__all__ = ["aligned_squared_distances", "aligned_w2"]


def aligned_w2(
    x: ArrayLike,
    y: ArrayLike,
    log_weights: ArrayLike | None = None,
    reference_log_weights: ArrayLike | None = None,
    *,
    num_alternations: int = 3,
) -> float:
    r"""X-W2 of configurations, aligned: :func:`sample_w2` with the cost of :func:`aligned_squared_distances`.

    Not divided by the number of particles or its root, and not comparable with the plain distance.

    :param x: ``(n, num_particles, D)``.
    :param y: ``(m, num_particles, D)``.
    :raises ImportError: for weights or unequal sizes without the extra ``eval``.

    >>> x = np.random.default_rng(0).normal(size=(5, 3, 2))
    >>> round(aligned_w2(x, -x[:, [2, 0, 1]]), 6)
    0.0
    """
    points_x, mass_x = points_and_weights(as_particles(x), log_weights)
    points_y, mass_y = points_and_weights(as_particles(y), reference_log_weights)
    cost = aligned_squared_distances(points_x, points_y, num_alternations=num_alternations)
    return math.sqrt(optimal_cost(cost, mass_x, mass_y))


def aligned_squared_distances(x: ArrayLike, y: ArrayLike, *, num_alternations: int = 3) -> FloatArray:
    r""":math:`\min_{P, R} |x - R P y|^2` over permutations and :math:`R \in O(D)`, for every pair, ``(n, m)``.

    The centres of mass are removed. For a permutation the best :math:`R` leaves

    .. math:: |x|^2 + |y|^2 - 2\,\|x^\top P y\|_*, \qquad \|\cdot\|_* \text{ the sum of the singular values}

    (Kabsch, with reflections). Up to four particles all permutations are tried: exact. Beyond, an upper bound: the
    first permutation matches the sorted distances of each particle to all others (Hungarian method), then rotation and
    permutation are improved in turn. The bound is itself invariant.

    :param x: ``(n, num_particles, D)``.
    :param y: ``(m, num_particles, D)``.
    :param num_alternations: Kabsch rotations of the upper bound, at least one.

    >>> x = np.random.default_rng(0).normal(size=(2, 7, 3))
    >>> bool(aligned_squared_distances(x, x[:, ::-1] @ np.diag([1.0, -1.0, -1.0])).diagonal().max() < 1e-10)
    True
    """
    first, second = as_particles(x), as_particles(y)
    if first.shape[1:] != second.shape[1:] or num_alternations < 1:
        raise ShapeError(
            "expected configurations of one shape (num_particles, D) and num_alternations >= 1, got "
            f"{first.shape[1:]}, {second.shape[1:]} and {num_alternations}"
        )
    exact = math.factorial(first.shape[1]) <= MOST_PERMUTATIONS
    overlap = _best_overlap(first, second) if exact else _alternating_overlap(first, second, num_alternations)
    squares = np.square(first).sum((1, 2))[:, None] + np.square(second).sum((1, 2))
    return np.asarray(np.maximum(squares - 2.0 * overlap, 0.0))


def _best_overlap(x: FloatArray, y: FloatArray) -> FloatArray:
    """The largest nuclear norm over all permutations of ``y``."""
    rows = max(1, CHUNK // len(y))
    best = np.full((len(x), len(y)), -math.inf)
    for permutation in itertools.permutations(range(x.shape[1])):
        permuted = y[:, permutation]
        for start in range(0, len(x), rows):
            part = slice(start, start + rows)
            np.maximum(best[part], _nuclear_norms(x[part], permuted), out=best[part])
    return best


def _nuclear_norms(x: FloatArray, y: FloatArray) -> FloatArray:
    """Sum of the singular values of ``x_i^T y_j``, ``(n, m)``."""
    dim = x.shape[-1]
    if dim == 2:
        # (s + t)^2 = |H|^2 + 2 |det H| spares the decomposition.
        a, b, c, d = (x[:, :, i] @ y[:, :, j].T for i in range(2) for j in range(2))
        return np.asarray(np.sqrt(a * a + b * b + c * c + d * d + 2.0 * np.abs(a * d - b * c)))
    products = np.einsum("ipk,jpl->ijkl", x, y, optimize=True)
    return np.asarray(np.linalg.svd(products, compute_uv=False).sum(-1))


def _alternating_overlap(x: FloatArray, y: FloatArray, num_alternations: int) -> FloatArray:
    rows = max(1, CHUNK // (20 * len(y)))
    features_x, features_y = distance_features(x), distance_features(y)
    parts = []
    for start in range(0, len(x), rows):
        part = slice(start, start + rows)
        left = np.repeat(x[part], len(y), axis=0)
        right = np.tile(y, (len(x[part]), 1, 1))
        likeness = np.einsum("ipf,jqf->ijpq", features_x[part], features_y, optimize=True)
        # |f - g|^2 = |f|^2 + |g|^2 - 2 f.g, and the two squares do not depend on the matching.
        found = climb(left, right, likeness.reshape(-1, *likeness.shape[2:]), num_alternations)
        parts.append(found.overlap.reshape(-1, len(y)))
    return np.concatenate(parts)
