"""Wasserstein-2 distance of two samples by exact optimal transport."""

from __future__ import annotations

import importlib
import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from pyro_boltzmann.diagnostics.metrics.energies import energy_w2
from pyro_boltzmann.diagnostics.metrics.inputs import as_particles, as_points, points_and_weights
from pyro_boltzmann.diagnostics.metrics.scipy_calls import best_matching, squared_distances
from pyro_boltzmann.diagnostics.weights import FloatArray
from pyro_boltzmann.exceptions import ShapeError

__all__ = ["optimal_cost", "sample_w2", "sinkhorn_divergence", "sliced_w2"]


def optimal_cost(cost: FloatArray, mass_x: FloatArray, mass_y: FloatArray) -> float:
    r"""Exact minimum :math:`\min_G \sum_{ij} G_{ij} C_{ij}` over plans with the given marginals.

    Equal numbers of equal masses are an assignment problem (SciPy); anything else goes to POT's network simplex.

    :param cost: ``(n, m)``.
    :param mass_x: ``(n,)``, summing to one.
    :param mass_y: ``(m,)``, summing to one.
    :raises ImportError: if POT is needed and not installed.

    >>> optimal_cost(np.array([[1.0, 0.0], [0.0, 1.0]]), np.full(2, 0.5), np.full(2, 0.5))
    0.0
    """
    uniform = len(mass_x) == len(mass_y) and np.ptp(mass_x) == 0.0 and np.ptp(mass_y) == 0.0
    if uniform:
        return float(cost[np.arange(len(cost)), best_matching(-cost)].mean())
    ot = _import_pot("weighted draws, or sets of unequal size,")
    plan = ot.emd(mass_x, mass_y, cost, numItermax=10_000_000)
    return float((plan * cost).sum())


def sample_w2(
    x: ArrayLike,
    y: ArrayLike,
    log_weights: ArrayLike | None = None,
    reference_log_weights: ArrayLike | None = None,
) -> float:
    r"""X-W2: the root of the cheapest squared transport between two samples,

    .. math:: \Big[\min_G \sum_{ij} G_{ij} |x_i - y_j|^2\Big]^{1/2},

    with an exact solver, in raw coordinates, without alignment; for configurations of particles ``(N, num_particles,
    D)`` the centres of mass are removed. The optimal plan of the *unsquared* cost would be Wasserstein-1.

    The value depends on the sizes: print :func:`sampling_floor` of the same size beside it. With weights, take
    :math:`N / \mathrm{ESS}` draws, whose Kish size is then that of the :math:`N` draws of the floor, or resample
    :math:`N` of many (:func:`~pyro_boltzmann.diagnostics.equal_weight_draws`). Time grows as :math:`N^3`: 0.2 s for
    1000 draws, 1.5 s for 2000.

    :param x: ``(n, d)``.
    :param y: ``(m, d)``.
    :raises ImportError: for weights or unequal sizes without the extra ``eval``.

    >>> x = np.random.default_rng(0).normal(size=(50, 2))
    >>> round(sample_w2(x, x[::-1] + [3.0, 4.0]), 9)
    5.0
    """
    x, y = _as_sample(x), _as_sample(y)
    if x.shape[1] != y.shape[1]:
        raise ShapeError(f"expected samples of one dimension, got {x.shape} and {y.shape}")
    points_x, mass_x = points_and_weights(x, log_weights)
    points_y, mass_y = points_and_weights(y, reference_log_weights)
    return math.sqrt(max(0.0, optimal_cost(squared_distances(points_x, points_y), mass_x, mass_y)))


def sliced_w2(
    x: ArrayLike,
    y: ArrayLike,
    log_weights: ArrayLike | None = None,
    reference_log_weights: ArrayLike | None = None,
    *,
    num_projections: int = 128,
    seed: int = 0,
) -> float:
    r"""Sliced Wasserstein-2: :math:`[E_\theta W_2^2(\theta \cdot x, \theta \cdot y)]^{1/2}` over random unit vectors.

    The directions depend on ``seed`` alone, so that value and floor share them. A shift by :math:`m` gives
    :math:`|m| / \sqrt d` on average. Source: Bonneel, Rabin, Peyre and Pfister, J. Math. Imaging Vis. 51, 22 (2015).

    >>> x = np.random.default_rng(0).normal(size=(50, 1))
    >>> round(sliced_w2(x, x + 2.0), 9)
    2.0
    """
    first, second = as_points(x), as_points(y)
    if first.shape[1] != second.shape[1] or num_projections < 1:
        raise ShapeError(
            f"expected samples of one dimension and num_projections >= 1, got {first.shape}, {second.shape} and "
            f"{num_projections}"
        )
    directions = np.random.default_rng(seed).normal(size=(first.shape[1], num_projections))
    directions /= np.linalg.norm(directions, axis=0)
    # The one-dimensional distance of energies is that of any numbers.
    along = zip((first @ directions).T, (second @ directions).T, strict=True)
    return math.sqrt(float(np.mean([energy_w2(a, b, log_weights, reference_log_weights) ** 2 for a, b in along])))


def sinkhorn_divergence(
    x: ArrayLike,
    y: ArrayLike,
    epsilon: float,
    log_weights: ArrayLike | None = None,
    reference_log_weights: ArrayLike | None = None,
) -> float:
    r"""Debiased entropic transport :math:`S = T_\epsilon(x, y) - \frac12 T_\epsilon(x, x) - \frac12 T_\epsilon(y, y)`.

    :math:`T_\epsilon = \min_G \sum_{ij} G_{ij} |x_i - y_j|^2 + \epsilon\, \mathrm{KL}(G \,|\, a \otimes b)`, by POT's
    log-domain solver. A squared distance; state ``epsilon`` beside it. Source: Feydy et al., arXiv 1810.08278.

    :param epsilon: in the units of a squared distance.
    :raises ImportError: without the extra ``eval``.
    """
    if not epsilon > 0:
        raise ShapeError(f"expected epsilon > 0, got {epsilon}")
    ot = _import_pot("the Sinkhorn divergence")
    sets = [points_and_weights(_as_sample(x), log_weights), points_and_weights(_as_sample(y), reference_log_weights)]

    def entropic(a: tuple[FloatArray, FloatArray], b: tuple[FloatArray, FloatArray]) -> float:
        cost = squared_distances(a[0], b[0])
        plan = ot.bregman.sinkhorn_log(a[1], b[1], cost, epsilon, numItermax=20_000, stopThr=1e-9, warn=False)
        product = np.outer(a[1], b[1])
        used = plan > 0
        return float((plan * cost).sum() + epsilon * (plan[used] * np.log(plan[used] / product[used])).sum())

    return entropic(*sets) - 0.5 * entropic(sets[0], sets[0]) - 0.5 * entropic(sets[1], sets[1])


def _as_sample(x: ArrayLike) -> FloatArray:
    array = np.asarray(x, dtype=np.float64)
    if array.ndim == 3:
        array = as_particles(array)
        return array.reshape(len(array), -1)
    return as_points(array)


def _import_pot(purpose: str) -> Any:
    try:
        return importlib.import_module("ot")
    except ImportError as error:
        raise ImportError(
            f'optimal transport of {purpose} needs POT: pip install "pyro-boltzmann[eval]", or compare equal numbers '
            "of equally weighted draws (pyro_boltzmann.diagnostics.equal_weight_draws)"
        ) from error
