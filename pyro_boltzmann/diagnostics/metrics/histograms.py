"""Divergences of histograms: the plane (images), its total variation, and angles."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from pyro_boltzmann.diagnostics.metrics.inputs import as_points, kish_size, points_and_weights
from pyro_boltzmann.diagnostics.weights import FloatArray
from pyro_boltzmann.exceptions import ShapeError

__all__ = ["PlaneBins", "histogram_tv", "image_kl", "image_kl_floor", "plug_in_kl_floor", "torsion_kl"]

DRAWS_PER_BIN = 50


@dataclass(frozen=True)
class PlaneBins:
    """Equal bins of the box ``((x_low, x_high), (y_low, y_high))``, ``shape`` of them along each axis."""

    box: tuple[tuple[float, float], tuple[float, float]]
    shape: tuple[int, int] = (50, 50)

    def __post_init__(self) -> None:
        if min(self.shape) < 1 or any(not low < high for low, high in self.box):
            raise ShapeError(f"expected low < high on both axes and at least one bin, got {self}")

    @property
    def edges(self) -> tuple[FloatArray, FloatArray]:
        first, second = (
            np.linspace(low, high, count + 1) for (low, high), count in zip(self.box, self.shape, strict=True)
        )
        return first, second

    @property
    def centres(self) -> FloatArray:
        """``(*shape, 2)``."""
        middles = [0.5 * (edges[1:] + edges[:-1]) for edges in self.edges]
        return np.stack(np.meshgrid(*middles, indexing="ij"), -1)

    def masses(self, x: ArrayLike, weights: ArrayLike | None = None) -> FloatArray:
        """Share of *all* draws ``(N, 2)`` in each bin, ``shape``; the draws outside are missing from the sum."""
        points = as_points(x)
        if points.shape[1] != 2:
            raise ShapeError(f"expected draws in the plane, (N, 2), got {points.shape}")
        share = np.full(len(points), 1.0 / len(points)) if weights is None else np.asarray(weights, dtype=np.float64)
        masses, _, _ = np.histogram2d(points[:, 0], points[:, 1], bins=list(self.edges), weights=share)
        return np.asarray(masses)

    def exact_masses(self, energy: Callable[[FloatArray], FloatArray], num_nodes: int = 1) -> FloatArray:
        r"""Normalised bin integrals of :math:`e^{-u}`, ``shape``, by Gauss-Legendre quadrature within each bin.

        One node is the bin's centre. (The ends of a grid are no stand-in for centres: exact samples then score as
        if they were wrong.)

        :param energy: ``(..., 2) -> (...)``.
        """
        nodes, node_weights = np.polynomial.legendre.leggauss(num_nodes)
        half = [0.5 * (high - low) / n for (low, high), n in zip(self.box, self.shape, strict=True)]
        offsets = np.stack(np.meshgrid(half[0] * nodes, half[1] * nodes, indexing="ij"), -1)
        log_weights = np.log(np.multiply.outer(node_weights, node_weights))
        values = -np.asarray(energy(self.centres[:, :, None, None] + offsets), dtype=np.float64) + log_weights
        masses = np.exp(values - values.max()).sum((2, 3))
        return np.asarray(masses / masses.sum())


def image_kl(
    x: ArrayLike,
    masses: ArrayLike,
    bins: PlaneBins,
    log_weights: ArrayLike | None = None,
    *,
    pseudo_count: float = 0.5,
) -> float:
    r""":math:`\mathrm{KL}(p \,\|\, q) = \sum_b p_b \log (p_b / q_b)` in nats, target first, with

    .. math:: q_b = \frac{N \hat q_b + a}{N + a B},

    :math:`\hat q_b` the (weighted) share of all draws, those outside the box among them, :math:`B` the number of bins,
    :math:`a` the pseudo-count and :math:`N` the Kish size of the draws. From exact draws it is not zero but about
    :func:`plug_in_kl_floor`; :func:`image_kl_floor` simulates it. State ``pseudo_count`` beside it.

    :param x: ``(N, 2)``.
    :param masses: exact :math:`p_b` of the bins, or values at their centres, ``bins.shape``; normalised here.
    :raises ShapeError: if ``masses`` do not fit the bins, are negative, or all zero; if ``pseudo_count`` is negative.

    >>> bins = PlaneBins(((0.0, 2.0), (0.0, 1.0)), (2, 1))
    >>> round(image_kl([[0.5, 0.5]] * 3 + [[1.5, 0.5]], [[0.75], [0.25]], bins, pseudo_count=0.0), 12)
    0.0
    """
    exact = _as_masses(masses, bins, pseudo_count)
    points, weights = points_and_weights(as_points(x), log_weights)
    size = kish_size(weights)
    return _kl(exact, size * bins.masses(points, weights), size, pseudo_count)


def image_kl_floor(
    masses: ArrayLike, num_samples: int, *, pseudo_count: float = 0.5, num_repeats: int = 20, seed: int = 0
) -> tuple[float, float]:
    """:func:`image_kl` of exact draws, simulated from the bin masses: mean and standard deviation over the repeats."""
    exact = _as_masses(masses, None, pseudo_count)
    counts = np.random.default_rng(seed).multinomial(num_samples, exact.reshape(-1), size=num_repeats)
    values = [_kl(exact.reshape(-1), count.astype(np.float64), num_samples, pseudo_count) for count in counts]
    return float(np.mean(values)), float(np.std(values, ddof=1)) if num_repeats > 1 else math.inf


def plug_in_kl_floor(num_bins: int, num_samples: int, *, two_samples: bool = False) -> float:
    """Leading bias of a plug-in KL: ``(B - 1) / (2 N)`` with exact masses, ``(B - 1) / N`` between two samples.

    >>> plug_in_kl_floor(51, 10_000)
    0.0025
    """
    return (num_bins - 1) / ((1 if two_samples else 2) * num_samples)


def histogram_tv(
    x: ArrayLike,
    reference: ArrayLike,
    bins: PlaneBins,
    log_weights: ArrayLike | None = None,
    reference_log_weights: ArrayLike | None = None,
) -> float:
    r"""Total variation :math:`\frac12 \sum_b |p_b - q_b|` of two samples in the plane; one more bin holds all outside.

    :raises ShapeError: with more than one bin for 50 effective draws of the smaller sample, where two exact samples
        differ nearly as much as two arbitrary ones (0.8 for 1000 draws in 200 x 200 bins).
    """
    sets = [
        points_and_weights(as_points(x), log_weights),
        points_and_weights(as_points(reference), reference_log_weights),
    ]
    size = min(kish_size(weights) for _, weights in sets)
    # Rounding must not take a bin from N equal weights.
    most = int(size * (1.0 + 1e-9) / DRAWS_PER_BIN)
    if math.prod(bins.shape) > most:
        raise ShapeError(
            f"expected at most N / {DRAWS_PER_BIN} = {most} bins for {size:.0f} effective draws, "
            f"got {math.prod(bins.shape)}: exact samples would not score near zero; use fewer bins or more draws"
        )
    first, second = (bins.masses(points, weights) for points, weights in sets)
    return 0.5 * float(np.abs(first - second).sum() + abs(first.sum() - second.sum()))


def torsion_kl(
    angles: ArrayLike,
    reference: ArrayLike,
    log_weights: ArrayLike | None = None,
    reference_log_weights: ArrayLike | None = None,
    *,
    num_bins: int = 50,
) -> float:
    r"""KL of torsion angles in nats, reference first: probabilities in equal bins of :math:`[-\pi, \pi)`, unsmoothed.

    Infinite where the reference is and the sample is not. The floor is :func:`plug_in_kl_floor`.

    :param angles: ``(N,)`` in radians, any period.

    >>> torsion_kl([0.1, 2.0], [0.1 + 2 * math.pi, 2.0])
    0.0
    """
    shares = []
    for values, lw in ((angles, log_weights), (reference, reference_log_weights)):
        points, weights = points_and_weights(as_points(values), lw)
        wrapped = (points[:, 0] + math.pi) % (2 * math.pi) - math.pi
        shares.append(np.histogram(wrapped, bins=num_bins, range=(-math.pi, math.pi), weights=weights)[0])
    return _kl(shares[1], shares[0], 1.0, 0.0)


def _as_masses(masses: ArrayLike, bins: PlaneBins | None, pseudo_count: float) -> FloatArray:
    exact = np.asarray(masses, dtype=np.float64)
    if (bins is not None and exact.shape != bins.shape) or not (exact >= 0).all() or not exact.sum() > 0:
        wanted = "" if bins is None else f" of shape {bins.shape}"
        raise ShapeError(f"expected non-negative bin masses{wanted} with a positive sum, got shape {exact.shape}")
    if not pseudo_count >= 0:
        raise ShapeError(f"expected pseudo_count >= 0, got {pseudo_count}")
    return np.asarray(exact / exact.sum())


def _kl(exact: FloatArray, counts: FloatArray, size: float, pseudo_count: float) -> float:
    estimate = (counts + pseudo_count) / (size + pseudo_count * exact.size)
    used = exact > 0
    with np.errstate(divide="ignore"):
        return float((exact[used] * np.log(exact[used] / estimate[used])).sum())
