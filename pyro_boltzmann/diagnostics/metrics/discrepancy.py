"""Maximum mean discrepancy with a Gaussian kernel."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from pyro_boltzmann.diagnostics.metrics.inputs import as_points, points_and_weights
from pyro_boltzmann.diagnostics.metrics.scipy_calls import squared_distances
from pyro_boltzmann.diagnostics.weights import FloatArray
from pyro_boltzmann.exceptions import ShapeError

__all__ = ["DiscrepancyTest", "median_bandwidth", "mmd_squared", "mmd_test"]

MEDIAN_DRAWS = 2000


@dataclass(frozen=True)
class DiscrepancyTest:
    """Squared discrepancy, the kernel's bandwidth, and the share of permutations that reach it."""

    squared: float
    bandwidth: float
    p_value: float


def median_bandwidth(x: ArrayLike, y: ArrayLike) -> float:
    """Median distance within the pooled sample, of at most 2000 draws spread evenly over it.

    >>> median_bandwidth([0.0], [3.0])
    3.0
    """
    from scipy.spatial.distance import pdist

    pooled = np.concatenate([as_points(x), as_points(y)])
    distances = pdist(pooled[:: -(-len(pooled) // MEDIAN_DRAWS)])
    median = float(np.median(distances)) if distances.size else 0.0
    if not median > 0.0:
        raise ShapeError(
            "expected draws that differ: the median distance of the pooled sample is zero; give bandwidth="
        )
    return median


def mmd_squared(
    x: ArrayLike,
    y: ArrayLike,
    log_weights: ArrayLike | None = None,
    reference_log_weights: ArrayLike | None = None,
    *,
    bandwidth: float | None = None,
) -> float:
    r"""Unbiased estimate of :math:`\mathrm{MMD}^2 = E[k(x, x')] + E[k(y, y')] - 2 E[k(x, y)]`.

    With :math:`k(a, b) = e^{-|a - b|^2 / (2 \sigma^2)}`; pairs of a draw with itself are left out, so equal laws give
    zero on average and values below it occur. Weighted: sums over pairs with :math:`\bar w_i \bar w_j`, divided by
    :math:`1 - \sum \bar w_i^2`. Source: Gretton et al., J. Mach. Learn. Res. 13, 723 (2012), equation 3.

    :param bandwidth: :math:`\sigma`; default :func:`median_bandwidth`, which must be shared by value and floor.

    >>> x = np.random.default_rng(0).normal(size=(500, 2))
    >>> mmd_squared(x[:250], x[250:] + 3.0) > 0.5 > abs(mmd_squared(x[:250], x[250:]))
    True
    """
    points_x, weights_x = points_and_weights(as_points(x), log_weights)
    points_y, weights_y = points_and_weights(as_points(y), reference_log_weights)
    sigma = _bandwidth(bandwidth, points_x, points_y)
    within = [
        _within(_kernel(points, points, sigma), weights)
        for points, weights in ((points_x, weights_x), (points_y, weights_y))
    ]
    return sum(within) - 2.0 * float(weights_x @ _kernel(points_x, points_y, sigma) @ weights_y)


def mmd_test(
    x: ArrayLike, y: ArrayLike, *, bandwidth: float | None = None, num_permutations: int = 500, seed: int = 0
) -> DiscrepancyTest:
    r""":func:`mmd_squared` of unweighted samples, with the p-value of a permutation test.

    :math:`p = (1 + \#\{\text{permutations with at least this discrepancy}\}) / (1 + \text{permutations})`, uniform for
    equal laws. All permutations are one product with the kernel matrix of the pooled sample: keep it below 4000
    draws.

    >>> x = np.random.default_rng(0).normal(size=(200, 2))
    >>> mmd_test(x[:100], x[100:] + 1.0, num_permutations=199).p_value
    0.005
    """
    first, second = as_points(x), as_points(y)
    n, m = len(first), len(second)
    if first.shape[1] != second.shape[1] or min(n, m) < 2 or num_permutations < 1:
        raise ShapeError(
            f"expected two samples (N >= 2, d) and num_permutations >= 1, got {first.shape}, {second.shape}"
        )
    sigma = _bandwidth(bandwidth, first, second)
    pooled, _ = points_and_weights(np.concatenate([first, second]), None)
    kernel = _kernel(pooled, pooled, sigma)
    np.fill_diagonal(kernel, 0.0)
    rng = np.random.default_rng(seed)
    membership = np.zeros((num_permutations + 1, n + m))
    membership[0, :n] = 1.0
    membership[1:] = rng.permuted(np.broadcast_to(membership[0], (num_permutations, n + m)), axis=1)
    reached = membership @ kernel
    inside = (reached * membership).sum(1)
    across = reached.sum(1) - inside
    outside = kernel.sum() - inside - 2.0 * across
    values = inside / (n * (n - 1)) + outside / (m * (m - 1)) - 2.0 * across / (n * m)
    # Permutations that only exchange equal draws must count as ties, whatever the rounding.
    reaching = int(np.count_nonzero(values[1:] >= values[0] - 1e-12))
    return DiscrepancyTest(float(values[0]), sigma, (1 + reaching) / (1 + num_permutations))


def _bandwidth(bandwidth: float | None, x: FloatArray, y: FloatArray) -> float:
    if x.shape[1] != y.shape[1]:
        raise ShapeError(f"expected samples of one dimension, got {x.shape} and {y.shape}")
    if bandwidth is not None and not bandwidth > 0:
        raise ShapeError(f"expected bandwidth > 0, got {bandwidth}")
    return median_bandwidth(x, y) if bandwidth is None else bandwidth


def _kernel(x: FloatArray, y: FloatArray, bandwidth: float) -> FloatArray:
    return np.asarray(np.exp(squared_distances(x, y) / (-2.0 * bandwidth**2)))


def _within(kernel: FloatArray, weights: FloatArray) -> float:
    # k(x, x) = 1, so the pairs of a draw with itself carry the sum of the squared weights.
    itself = float(np.square(weights).sum())
    if len(weights) < 2:
        raise ShapeError("expected at least two draws of positive weight in each sample")
    return (float(weights @ kernel @ weights) - itself) / (1.0 - itself)
