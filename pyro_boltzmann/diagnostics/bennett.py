"""Bennett's bridge estimate of log Z from forward and reverse path weights."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from pyro_boltzmann.diagnostics.weights import FloatArray, as_log_weights

__all__ = ["bennett_log_normalizer"]


def bennett_log_normalizer(
    log_weights: ArrayLike, reverse_log_weights: ArrayLike, *, tolerance: float = 1e-10, max_iterations: int = 500
) -> tuple[float, float]:
    r"""Bridge estimate :math:`C = \log Z` from both directions, and its asymptotic standard error.

    With :math:`M = \log(n_f / n_r)`, solves

    .. math:: \sum_{\mathrm{fwd}} \frac{1}{1 + e^{C + M - \ell}} = \sum_{\mathrm{rev}} \frac{1}{1 + e^{\ell - C - M}}

    in log space by a safeguarded Newton iteration that stops on the *absolute* change of :math:`C`, and

    .. math:: \mathrm{SE}^2 = \Big[\sum_{\mathrm{all}} p (1 - p)\Big]^{-1} - \frac1{n_f} - \frac1{n_r},
       \qquad p = \frac{1}{1 + e^{C + M - \ell}} .

    The error is ``inf`` where the two sets do not overlap. Source: C. H. Bennett, J. Comput. Phys. 22, 245 (1976);
    Shirts, Bair, Hooker and Pande, Phys. Rev. Lett. 91, 140601 (2003), equations 8 and 10.

    :param log_weights: ``(n_f,)``, of draws of the sampler; ``-inf`` allowed.
    :param reverse_log_weights: ``(n_r,)``, of exact samples run backwards; ``+inf`` allowed.
    :raises NonFiniteEnergyError: if every weight is zero on one side, or any is NaN.

    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> forward, reverse = rng.normal(-5.5, 1.0, 10_000), rng.normal(-4.5, 1.0, 10_000)  # log Z = -5
    >>> value, error = bennett_log_normalizer(forward, reverse)
    >>> abs(value + 5.0) < 4.5 * error < 0.05
    True
    """
    forward = as_log_weights(log_weights, allow_zero=False)
    reverse = -as_log_weights(-np.asarray(reverse_log_weights, dtype=np.float64), allow_zero=False)
    shift = math.log(forward.size / reverse.size)
    finite = np.concatenate([forward[np.isfinite(forward)], reverse[np.isfinite(reverse)]])
    low, high = float(finite.min()) - shift, float(finite.max()) - shift
    width = 1.0
    while _imbalance(low, shift, forward, reverse)[0] < 0:
        low, width = low - width, 2.0 * width
    while _imbalance(high, shift, forward, reverse)[0] > 0:
        high, width = high + width, 2.0 * width
    log_z = 0.5 * (low + high)
    for _ in range(max_iterations):
        value, slope = _imbalance(log_z, shift, forward, reverse)
        low, high = (log_z, high) if value > 0 else (low, log_z)
        proposal = log_z - value / slope if slope < 0 else math.nan
        updated = proposal if low <= proposal <= high else 0.5 * (low + high)
        change, log_z = abs(updated - log_z), updated
        if change <= tolerance:
            break
    return log_z, _standard_error(log_z, shift, forward, reverse)


def _log_sigmoid(a: FloatArray) -> FloatArray:
    result: FloatArray = -np.logaddexp(0.0, -a)
    return result


def _imbalance(log_z: float, shift: float, forward: FloatArray, reverse: FloatArray) -> tuple[float, float]:
    """Log of the ratio of the two sums, which falls monotonically in ``log_z``, and its derivative."""
    value, slope = 0.0, 0.0
    for sign, a in ((1.0, forward - log_z - shift), (-1.0, log_z + shift - reverse)):
        log_p = _log_sigmoid(a)
        top = float(log_p.max())
        weights = np.exp(log_p - top)
        total = float(weights.sum())
        value += sign * (top + math.log(total))
        slope -= float((weights * np.exp(_log_sigmoid(-a))).sum()) / total
    return value, slope


def _standard_error(log_z: float, shift: float, forward: FloatArray, reverse: FloatArray) -> float:
    a = np.concatenate([forward, reverse]) - log_z - shift
    log_overlap = _log_sigmoid(a) + _log_sigmoid(-a)
    top = float(log_overlap.max())
    log_sum = top + math.log(float(np.exp(log_overlap - top).sum()))
    if log_sum < -700.0:
        return math.inf
    return math.sqrt(max(0.0, math.exp(-log_sum) - 1.0 / forward.size - 1.0 / reverse.size))
