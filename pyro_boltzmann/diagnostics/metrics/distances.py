"""Histograms of interatomic distances, in which no distance is lost."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from pyro_boltzmann.diagnostics.metrics.inputs import points_and_weights
from pyro_boltzmann.diagnostics.weights import FloatArray
from pyro_boltzmann.exceptions import ShapeError

__all__ = ["DistanceBins", "distance_tv", "pair_distances"]


@dataclass(frozen=True)
class DistanceBins:
    """Equal bins on ``[low, high]`` that are fixed with the target, and one more for every distance outside.

    >>> DistanceBins(0.0, 2.0, count=2).masses([[0.5, 1.5, 2.5, 9.0]])
    array([0.25, 0.25, 0.5 ])
    """

    low: float
    high: float
    count: int = 200

    def __post_init__(self) -> None:
        if not self.low < self.high or self.count < 1:
            raise ShapeError(f"expected low < high and count >= 1, got {self}")

    @classmethod
    def spanning(cls, particles: ArrayLike, count: int = 200) -> DistanceBins:
        """The range of the distances within reference configurations ``(N, num_particles, D)``."""
        distances = pair_distances(particles)
        return cls(float(distances.min()), float(distances.max()), count)

    def masses(self, distances: ArrayLike, weights: ArrayLike | None = None) -> FloatArray:
        """Share of *all* pairs in each bin, the outsiders last: ``(count + 1,)``, summing to one.

        :param distances: ``(N, num_pairs)``.
        :param weights: normalised, ``(N,)``.
        """
        values = np.asarray(distances, dtype=np.float64)
        per_draw = np.full(len(values), 1.0 / len(values)) if weights is None else np.asarray(weights, dtype=np.float64)
        spread = np.broadcast_to(per_draw[:, None] / values.shape[1], values.shape)
        inside, _ = np.histogram(values, bins=self.count, range=(self.low, self.high), weights=spread)
        outside = spread[(values < self.low) | (values > self.high)].sum()
        return np.append(inside, outside)


def pair_distances(particles: ArrayLike) -> FloatArray:
    """Distances of all pairs, ``(N, num_particles, D) -> (N, num_particles (num_particles - 1) / 2)``.

    >>> pair_distances([[[0.0, 0.0], [3.0, 4.0], [0.0, 0.0]]])
    array([[5., 0., 5.]])
    """
    array = np.asarray(particles, dtype=np.float64)
    if array.ndim != 3 or array.shape[1] < 2 or array.size == 0:
        raise ShapeError(f"expected configurations of shape (N, num_particles >= 2, D) with N >= 1, got {array.shape}")
    i, j = np.triu_indices(array.shape[1], 1)
    # Axis by axis: the differences of all pairs would need D times the memory of the result.
    return np.asarray(np.sqrt(sum(np.square(axis[:, i] - axis[:, j]) for axis in np.moveaxis(array, -1, 0))))


def distance_tv(
    particles: ArrayLike,
    reference: ArrayLike,
    log_weights: ArrayLike | None = None,
    reference_log_weights: ArrayLike | None = None,
    *,
    bins: DistanceBins | None = None,
) -> float:
    r"""Total variation :math:`\frac12 \sum_b |p_b - q_b|` of the interatomic distances, all pairs pooled.

    Shares are of the total number of pairs, and the distances out of range have a bin of their own: a sample that
    collapsed or flew apart scores near one.

    :param particles: ``(N, num_particles, D)``.
    :param reference: ``(M, num_particles, D)``.
    :param bins: fixed with the target; by default 200 over the range of ``reference``.

    >>> pair = np.array([[[0.0], [1.0]], [[0.0], [2.0]]])
    >>> distance_tv(pair, pair), distance_tv(100 * pair, pair)
    (0.0, 1.0)
    """
    points, weights = points_and_weights(np.asarray(particles, dtype=np.float64), log_weights)
    others, other_weights = points_and_weights(np.asarray(reference, dtype=np.float64), reference_log_weights)
    bins = bins or DistanceBins.spanning(others)
    difference = bins.masses(pair_distances(points), weights) - bins.masses(pair_distances(others), other_weights)
    return 0.5 * float(np.abs(difference).sum())
