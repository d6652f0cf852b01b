"""Free-energy profiles along one coordinate, and how far they are from the exact one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from pyro_boltzmann.diagnostics.weights import FloatArray, as_log_weights, normalized_weights
from pyro_boltzmann.exceptions import ShapeError

__all__ = [
    "ProfileBins",
    "ProfileError",
    "PublishedProfileError",
    "exact_profile",
    "fillable_bins",
    "free_energy_profile",
    "profile_error",
    "published_profile_error",
]

FEWEST_IN_BIN = 10
"""Expected draws below which the logarithm of a bin's count says more about luck than about the sampler."""


@dataclass(frozen=True)
class ProfileBins:
    """Bins that are *fixed* before any sample is seen. The defaults are those of the SNF double well.

    :ivar count: number of bins between ``low`` and ``high``.
    :ivar scored_within: only bins with ``|centre| <`` this value are scored.
    """

    count: int = 30
    low: float = -3.0
    high: float = 3.0
    scored_within: float = 2.25

    @property
    def edges(self) -> FloatArray:
        return np.linspace(self.low, self.high, self.count + 1)

    @property
    def centres(self) -> FloatArray:
        return 0.5 * (self.edges[1:] + self.edges[:-1])

    @property
    def scored(self) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        return np.abs(self.centres) < self.scored_within


def free_energy_profile(
    x: ArrayLike, log_weights: ArrayLike | None = None, bins: ProfileBins | None = None
) -> FloatArray:
    r""":math:`F_b = -\log \hat p_b` in kT, with the probability of bin :math:`b` raw or reweighted; ``inf`` if empty.

    :param x: coordinate of the draws, ``(N,)``. Draws outside the bins count in the normalisation.
    """
    bins = bins or ProfileBins()
    array = np.asarray(x, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise ShapeError(f"expected one coordinate of shape (N,) with N >= 1, got {array.shape}; use x[:, 0]")
    weights = np.full(array.size, 1.0 / array.size) if log_weights is None else normalized_weights(log_weights)
    mass, _ = np.histogram(array, bins=bins.edges, weights=weights)
    with np.errstate(divide="ignore"):
        profile: FloatArray = -np.log(mass)
    return profile


def exact_profile(
    energy: Callable[[FloatArray], FloatArray], bins: ProfileBins | None = None, num_nodes: int = 32
) -> FloatArray:
    r""":math:`-\log \int_b e^{-f(x)} dx` for each bin, by Gauss-Legendre quadrature of the marginal energy :math:`f`.

    Up to the constant :math:`\log \int e^{-f}`, which alignment removes.

    >>> profile = exact_profile(lambda x: 0.5 * x**2)
    >>> bool(abs(np.exp(-profile).sum() / (2 * np.pi) ** 0.5 - 0.9973002) < 1e-7)
    True
    """
    bins = bins or ProfileBins()
    nodes, node_weights = np.polynomial.legendre.leggauss(num_nodes)
    half = 0.5 * np.diff(bins.edges)[:, None]
    values = -np.asarray(energy(bins.centres[:, None] + half * nodes), dtype=np.float64) + np.log(half * node_weights)
    profile: FloatArray = -np.logaddexp.reduce(values, axis=1)
    return profile


def fillable_bins(
    exact: ArrayLike, num_samples: int, bins: ProfileBins | None = None
) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """The scored bins in which ``num_samples`` exact draws would expect :data:`FEWEST_IN_BIN` or more, ``(B,)``."""
    bins = bins or ProfileBins()
    truth = np.asarray(exact, dtype=np.float64)
    mass = np.exp(truth.min() - truth)
    fillable: np.ndarray[tuple[int], np.dtype[np.bool_]] = bins.scored & (
        num_samples * mass / mass.sum() >= FEWEST_IN_BIN
    )
    return fillable


@dataclass(frozen=True)
class ProfileError:
    """Errors of aligned profiles over the scored bins, in kT: ``rms``, ``bias`` and ``std`` over the repeats, and the
    number of bins scored."""

    rms: float
    bias: float
    std: float
    num_bins: int


def profile_error(
    profiles: ArrayLike, exact: ArrayLike, bins: ProfileBins | None = None, *, num_samples: int | None = None
) -> ProfileError:
    r"""Compare profiles of ``R`` repeats with the exact one, all on the same fixed bins and aligned alike.

    .. math:: \mathrm{rms} = \sqrt{\mathrm{mean}_{b,r} (F_{br} - F_b)^2}, \qquad
              \mathrm{bias} = \mathrm{mean}_b |\mathrm{mean}_r F_{br} - F_b| .

    An empty scored bin makes all of them infinite, and so does having no bin to score.

    :param profiles: ``(R, B)`` or ``(B,)``.
    :param exact: ``(B,)``.
    :param num_samples: N of each repeat. Bins in which N exact draws would expect fewer than
        :data:`FEWEST_IN_BIN` are then not scored: no sampler of that size can fill them reliably.
    """
    bins = bins or ProfileBins()
    repeats = np.atleast_2d(np.asarray(profiles, dtype=np.float64))
    truth = np.asarray(exact, dtype=np.float64)
    if repeats.shape[-1] != bins.count or truth.shape != (bins.count,):
        raise ShapeError(
            f"expected profiles (R, {bins.count}) and exact ({bins.count},), got {repeats.shape}, {truth.shape}"
        )
    scored = bins.scored if num_samples is None else fillable_bins(truth, num_samples, bins)
    repeats, truth = repeats[:, scored], truth[scored]
    if not scored.any() or not np.isfinite(repeats).all():
        return ProfileError(math.inf, math.inf, math.inf, int(scored.sum()))
    difference = repeats - repeats.mean(-1, keepdims=True) - (truth - truth.mean())
    return ProfileError(
        rms=math.sqrt(float(np.square(difference).mean())),
        bias=float(np.abs(difference.mean(0)).mean()),
        std=float(difference.std(0).mean()),
        num_bins=int(scored.sum()),
    )


@dataclass(frozen=True)
class PublishedProfileError:
    """The three numbers of the SNF paper's table, in kT: ``err`` is the root of ``bias**2 + std**2``."""

    bias: float
    std: float
    err: float


def published_profile_error(
    x: Sequence[ArrayLike],
    energy: Callable[[FloatArray], FloatArray],
    log_weights: Sequence[ArrayLike] | None = None,
    *,
    num_bins: int = 30,
    scored_within: float = 2.25,
) -> PublishedProfileError:
    """The double-well metric of Wu, Koehler and Noe (arXiv 2002.06707) *as their code computes it*: not a good metric.

    Kept to compare with the published table. Its edges span each sample, so that the bins of different repeats are
    different intervals, yet they are averaged as if aligned, at the centres of the *last* repeat; the bias is the
    absolute value of a *signed* mean over bins, in which errors of opposite sign cancel. Prefer :func:`profile_error`.

    :param x: one array ``(N,)`` for each repeat.
    :param energy: the marginal energy, evaluated at bin centres.
    :param log_weights: one array ``(N,)`` for each repeat, for the reweighted columns.
    """
    profiles = []
    centres = np.empty(0)
    for repeat, array in enumerate(x):
        weights = None
        if log_weights is not None:
            log_weight = as_log_weights(log_weights[repeat], allow_zero=False)
            weights = np.exp(log_weight - log_weight.max())
        density, edges = np.histogram(np.asarray(array, dtype=np.float64), num_bins, density=True, weights=weights)
        centres = 0.5 * (edges[1:] + edges[:-1])
        with np.errstate(divide="ignore"):
            profile = -np.log(density)
        profiles.append(profile - profile[np.isfinite(profile)].mean())
    stacked = np.stack(profiles)
    mean = stacked.mean(0)
    exact = np.asarray(energy(centres), dtype=np.float64)
    scored = np.isfinite(mean) & (np.abs(centres) < scored_within)
    bias = abs(float(((exact - exact.min()) - (mean - mean.min()))[scored].mean()))
    std = float(stacked[:, scored].std(0).mean())
    return PublishedProfileError(bias, std, math.hypot(bias, std))
