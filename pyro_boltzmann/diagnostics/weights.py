r"""Statistics of importance weights :math:`w_i = e^{\ell_i}`, in log space and float64 throughout.

All functions take log weights of shape ``(N,)``. A log weight of ``-inf`` is a weight of zero (an energy of ``+inf``)
and counts as a draw; NaN and ``+inf`` raise, because they mean that the target itself is undefined there.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pyro_boltzmann.diagnostics.compat import pareto_smooth
from pyro_boltzmann.exceptions import NonFiniteEnergyError, ShapeError

__all__ = [
    "FloatArray",
    "as_log_weights",
    "effective_groups",
    "effective_sample_size",
    "elbo",
    "eubo",
    "expectation",
    "forward_ess",
    "grouped_expectation",
    "grouped_log_normalizer_error",
    "khat_limit",
    "kish_ess",
    "log_mean_exp",
    "log_normalizer",
    "log_normalizer_error",
    "normalized_weights",
    "psis",
]

FloatArray = NDArray[np.float64]


def as_log_weights(log_weights: ArrayLike, *, allow_zero: bool = True) -> FloatArray:
    """Check log weights and return them as a float64 array ``(N,)``.

    :param allow_zero: whether every weight may be zero (all ``-inf``).
    :raises ShapeError: if there is no draw or more than one dimension.
    :raises NonFiniteEnergyError: for NaN or ``+inf``, with the count; if all are ``-inf`` and ``allow_zero`` is false.
    """
    if hasattr(log_weights, "detach"):
        log_weights = log_weights.detach().cpu()
    array = np.asarray(log_weights, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise ShapeError(
            f"expected log weights of shape (N,) with N >= 1, got shape {array.shape}; draw at least one sample"
        )
    bad = int(np.count_nonzero(np.isnan(array) | np.isposinf(array)))
    if bad:
        raise NonFiniteEnergyError(
            f"{bad} of {array.size} log weights are NaN or +inf; the energy must be finite or +inf at every draw: "
            "look for 0/0, log of a negative number, or an energy that is unbounded below",
            count=bad,
        )
    if not allow_zero and np.isneginf(array).all():
        raise NonFiniteEnergyError(
            f"all {array.size} weights are zero (log weight -inf), so nothing can be estimated; the sampler never "
            "reached a point of finite energy: start it from a wider or better placed base distribution",
            count=array.size,
        )
    return array


def log_mean_exp(log_weights: ArrayLike) -> float:
    r""":math:`\log \frac1N \sum_i e^{\ell_i}` (``-inf`` if every weight is zero).

    >>> round(log_mean_exp([1000.0, 1000.0, float("-inf"), float("-inf")]), 6)
    999.306853
    """
    array = as_log_weights(log_weights)
    top = float(array.max())
    return top if math.isinf(top) else top + math.log(float(np.exp(array - top).mean()))


def normalized_weights(log_weights: ArrayLike) -> FloatArray:
    r""":math:`\bar w_i = w_i / \sum_j w_j`, shape ``(N,)``.

    :raises NonFiniteEnergyError: if every weight is zero.
    """
    array = as_log_weights(log_weights, allow_zero=False)
    weights = np.exp(array - array.max())
    normalized: FloatArray = weights / weights.sum()
    return normalized


def kish_ess(log_weights: ArrayLike) -> float:
    r"""Kish's effective sample size as a *fraction* of :math:`N`: :math:`(\sum w)^2 / (N \sum w^2) \in [1/N, 1]`.

    High values do not prove that every mode was found: see :func:`forward_ess`.

    >>> kish_ess([0.0, 0.0, float("-inf"), float("-inf")])
    0.5
    """
    weights = normalized_weights(log_weights)
    # Rounding can push the ratio of equal weights above one by an ulp.
    return min(1.0, 1.0 / (weights.size * float(np.square(weights).sum())))


def effective_sample_size(log_weights: ArrayLike) -> float:
    """Kish's effective sample size as a number of draws."""
    array = as_log_weights(log_weights)
    return kish_ess(array) * array.size


def log_normalizer(log_weights: ArrayLike) -> float:
    r"""The estimate :math:`\log \hat Z = \log \frac1N \sum_i w_i`.

    :raises NonFiniteEnergyError: if every weight is zero.
    """
    return log_mean_exp(as_log_weights(log_weights, allow_zero=False))


def log_normalizer_error(log_weights: ArrayLike) -> float:
    r"""Standard error of :func:`log_normalizer` by the delta method: :math:`\sqrt{1/\mathrm{ESS} - 1/N}`, ESS in draws.

    Meaningless above :func:`khat_limit`; reports print ``n/a (k-hat)`` there. One draw tells nothing: ``inf``.
    """
    array = as_log_weights(log_weights)
    if array.size == 1:
        return math.inf
    return math.sqrt(max(0.0, (1.0 / kish_ess(array) - 1.0) / array.size))


def expectation(log_weights: ArrayLike, values: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    r"""Self-normalised mean :math:`\hat f = \sum \bar w_i f_i`, error :math:`\sqrt{\sum \bar w_i^2 (f_i - \hat f)^2}`.

    Draws of zero weight do not count, whatever (even non-finite) value they have.

    :param values: shape ``(N, *event)``.
    :returns: mean and standard error, each of shape ``event``.
    """
    weights = normalized_weights(log_weights)
    array = np.asarray(values, dtype=np.float64)
    if array.shape[:1] != weights.shape:
        raise ShapeError(f"expected values of shape ({weights.size}, ...), one row a draw, got {array.shape}")
    used = weights > 0
    weights, array = weights[used], array[used]
    mean = np.tensordot(weights, array, axes=1)
    error = np.sqrt(np.tensordot(np.square(weights), np.square(array - mean), axes=1))
    return np.asarray(mean), np.asarray(error)


def grouped_expectation(
    log_weights: ArrayLike, values: ArrayLike, groups: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    r"""Self-normalised mean of draws that depend on each other within groups, but not across them.

    The error is :math:`\bigl[\tfrac{G}{G - 1} \sum_g \bigl(\sum_{i \in g} \bar w_i (f_i - \hat f)\bigr)^2\bigr]^{1/2}`
    over G groups of positive weight; for one draw a group it is that of :func:`expectation`. One group tells nothing:
    ``inf``.

    :param groups: integers ``(N,)``: the first ancestor of each draw, or the chain that it comes from.

    Source: Lee and Whiteley, Variance estimation in the particle filter, arXiv 1509.00394.

    >>> mean, error = grouped_expectation([0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0], [0, 0, 1, 1])
    >>> float(mean), round(float(error), 6)
    (0.5, 0.5)
    """
    weights, labels = normalized_weights(log_weights), np.asarray(groups)
    array = np.asarray(values, dtype=np.float64)
    if array.shape[:1] != weights.shape or labels.shape != weights.shape:
        raise ShapeError(
            f"expected values of shape ({weights.size}, ...) and groups ({weights.size},), one row a draw, got "
            f"{array.shape} and {labels.shape}"
        )
    used = weights > 0
    weights, array = weights[used], array[used]
    mean = np.tensordot(weights, array, axes=1)
    _, index = np.unique(labels[used], return_inverse=True)
    number = int(index.max()) + 1
    if number == 1:
        return np.asarray(mean), np.full_like(np.asarray(mean), math.inf)
    weighted = weights.reshape(-1, *[1] * (array.ndim - 1)) * (array - mean)
    sums = np.zeros((number, *array.shape[1:]))
    np.add.at(sums, index, weighted)
    return np.asarray(mean), np.asarray(np.sqrt(np.square(sums).sum(0) * (number / (number - 1))))


def grouped_log_normalizer_error(log_weights: ArrayLike, groups: ArrayLike, total_groups: int) -> float:
    r"""Standard error of :math:`\log \hat Z` from groups of draws that share a first ancestor.

    With the share :math:`S_g` of the total weight in each of G groups that were there at the start,
    :math:`\bigl[\tfrac{G}{G - 1} \sum_g (S_g - 1/G)^2\bigr]^{1/2}`: the delta-method error of the mean of the groups'
    weights.

    :param total_groups: G, the extinct ones included.
    """
    weights, labels = normalized_weights(log_weights), np.asarray(groups)
    if total_groups < 2:
        return math.inf
    _, index = np.unique(labels, return_inverse=True)
    shares = np.zeros(int(index.max()) + 1)
    np.add.at(shares, index, weights)
    spread = float(np.square(shares).sum()) - 1.0 / total_groups
    return math.sqrt(max(0.0, spread * total_groups / (total_groups - 1)))


def effective_groups(log_weights: ArrayLike, groups: ArrayLike) -> float:
    r"""How many groups of equal weight would be as unequal as these: :math:`1 / \sum_g S_g^2`.

    >>> effective_groups([0.0, 0.0, 0.0, 0.0], [0, 0, 1, 1])
    2.0
    """
    weights, labels = normalized_weights(log_weights), np.asarray(groups)
    _, index = np.unique(labels, return_inverse=True)
    shares = np.zeros(int(index.max()) + 1)
    np.add.at(shares, index, weights)
    return 1.0 / float(np.square(shares).sum())


def elbo(log_weights: ArrayLike) -> tuple[float, float]:
    r"""Lower bound :math:`\frac1N \sum \ell_i \le \log Z` over draws of the sampler, and its standard error.

    One zero weight makes the bound ``-inf`` (with error ``inf``): the draws leave the support of the target.
    """
    return _mean_and_error(as_log_weights(log_weights))


def eubo(reverse_log_weights: ArrayLike) -> tuple[float, float]:
    r"""Upper bound :math:`\log Z \le \frac1N \sum \ell_i` over *exact* samples of the target, with its standard error.

    The log weights are those of paths run backwards from the samples. Here ``+inf`` is allowed (the sampler cannot
    produce that sample) and makes the bound ``inf``.
    """
    array = _as_reverse_log_weights(reverse_log_weights)
    return (math.inf, math.inf) if np.isposinf(array).any() else _mean_and_error(array)


def forward_ess(reverse_log_weights: ArrayLike, log_z: float | None = None) -> float:
    r"""ESS fraction :math:`1 / (\overline{w}\;\overline{1/w})` from exact samples of the target; it sees missing modes.

    Both this and :func:`kish_ess` estimate :math:`E_q[w]^2 / E_q[w^2]`. With a known :math:`\log Z` the
    less noisy :math:`Z / \overline{w}` is used.
    """
    array = _as_reverse_log_weights(reverse_log_weights)
    if np.isposinf(array).any():
        return 0.0
    log_mean_inverse = log_mean_exp(-array) if log_z is None else -log_z
    return math.exp(min(0.0, -log_mean_exp(array) - log_mean_inverse))


def khat_limit(num_samples: int) -> float:
    r"""Largest k-hat at which estimates from ``num_samples`` draws are usable: :math:`\min(1 - 1/\log_{10} N,\ 0.7)`.

    Source: Vehtari, Simpson, Gelman, Yao and Gabry, arXiv 1507.02646.

    >>> khat_limit(100), khat_limit(100_000)
    (0.5, 0.7)
    """
    return min(1.0 - 1.0 / math.log10(num_samples), 0.7) if num_samples > 1 else -math.inf


def psis(log_weights: ArrayLike) -> tuple[FloatArray, float]:
    r"""Pareto smoothed, normalised log weights ``(N,)`` and the tail index k-hat.

    The fit is ArviZ's (Vehtari et al., arXiv 1507.02646). Zero weights stay zero and take no part in the fit. Equal
    largest weights are a bounded tail, where k-hat is 0; ``inf`` says that no tail could be fitted (fewer than about
    25 positive weights, or a single dominating one).

    :raises NonFiniteEnergyError: if every weight is zero.
    """
    array = as_log_weights(log_weights, allow_zero=False)
    positive = np.isfinite(array)
    finite = array[positive]
    smoothed = np.full_like(array, -math.inf)
    smoothed[positive] = finite - finite.max() - math.log(float(np.exp(finite - finite.max()).sum()))
    tail_size = int(min(0.2 * finite.size, 3.0 * math.sqrt(finite.size)))
    if tail_size < 5:
        return smoothed, math.inf
    tail = np.partition(finite, finite.size - tail_size)[-tail_size:]
    # Differences at the level of rounding are not a tail; a Pareto fit to them would report noise.
    if tail.max() - tail.min() <= 1e-10 * max(1.0, abs(float(tail.max()))):
        return smoothed, 0.0
    fitted, khat = pareto_smooth(finite)
    if not math.isfinite(khat):
        return smoothed, math.inf
    smoothed[positive] = fitted
    return smoothed, khat


def _as_reverse_log_weights(reverse_log_weights: ArrayLike) -> FloatArray:
    # The checks of forward weights apply to 1/w: a sample of the target has a positive density there.
    if hasattr(reverse_log_weights, "detach"):
        reverse_log_weights = reverse_log_weights.detach().cpu()
    return -as_log_weights(-np.asarray(reverse_log_weights, dtype=np.float64))


def _mean_and_error(array: FloatArray) -> tuple[float, float]:
    if np.isneginf(array).any():
        return -math.inf, math.inf
    error = float(array.std(ddof=1)) / math.sqrt(array.size) if array.size > 1 else math.inf
    return float(array.mean()), error
