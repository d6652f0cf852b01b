"""Ratios of means over weighted samples: their logarithm's bias, their variance, and the best mixture of two."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["MixedScore", "grouped", "jackknife_shift", "log_mean_variance", "mixed_score", "normalised_weights"]

# Weights this far below the largest are nothing beside it. Numbers that underflow, here or in the squares of weights,
# cost a hundred times as much as others.
LOWEST = -40.0


def normalised_weights(log_weights: Tensor) -> tuple[Tensor, Tensor]:
    r"""Weights :math:`\bar w_i = w_i / \sum_j w_j` and :math:`\log \frac1K \sum_i w_i` of ``(batch, K)``.

    Weights below :math:`e^{-39}` of the largest count as zero. Where all are zero the logarithm is :math:`-\infty` and the weights stay zero.

    >>> weights, log_mean = normalised_weights(torch.tensor([[0.0, 0.0], [0.0, -torch.inf], [-torch.inf, -torch.inf]]))
    >>> weights
    tensor([[0.5000, 0.5000],
            [1.0000, 0.0000],
            [0.0000, 0.0000]])
    >>> log_mean
    tensor([ 0.0000, -0.6931,    -inf])
    """
    top = log_weights.amax(-1, keepdim=True)
    weights = (log_weights - top.clamp_min(torch.finfo(top.dtype).min)).clamp_min_(LOWEST).exp_()
    torch.nn.functional.threshold_(weights, 2.0 * math.exp(LOWEST), 0.0)
    total = weights.sum(-1, keepdim=True)
    log_mean = (top + (total / log_weights.shape[-1]).log()).squeeze(-1)
    # The largest weight is one, so a total below one means that all are zero.
    return weights.div_(total.clamp_min(1.0)), log_mean


def grouped(values: Tensor, pairs: bool) -> Tensor:
    """Sums over antithetic pairs (``K / 2`` apart in dimension 1), the independent units of what they are summed to."""
    if not pairs:
        return values
    half = values.shape[1] // 2
    return values[:, :half] + values[:, half:]


def log_mean_variance(weights: Tensor) -> Tensor:
    r"""Variance of :math:`\log \frac1G \sum_g w_g` by the delta method, from normalised weights ``(batch, G)``:

    .. math:: \frac{G}{G - 1} \sum_g \left( \bar w_g - \tfrac1G \right)^2

    which is :math:`\hat v / (\hat m^2 G)`; infinite for one group, about which nothing is known.
    """
    number = weights.shape[-1]
    if number == 1:
        return torch.full_like(weights[:, 0], torch.inf)
    return (weights - 1.0 / number).square_().sum(-1).mul_(number / (number - 1))


def jackknife_shift(weights: Tensor) -> Tensor:
    r"""What the jackknife adds to :math:`-\log \frac1G \sum_g w_g`, from normalised weights ``(batch, G)``.

    With :math:`U_{-g}` the estimate without group :math:`g`, :math:`G U - (G - 1) \overline{U_{-g}} = U + (G - 1)\,
    \overline{\log[(1 - \bar w_g)\, G / (G - 1)]}`, in which :math:`1 - \bar w_g` is kept above the number format's
    epsilon, so that one weight that outweighs all others cannot make it infinite.

    >>> jackknife_shift(torch.full((1, 4), 0.25))
    tensor([0.])
    """
    number = weights.shape[-1]
    if number == 1:
        return torch.zeros_like(weights[:, 0])
    others = (1.0 - weights).clamp_min_(torch.finfo(weights.dtype).eps)
    return others.mul_(number / (number - 1)).log_().sum(-1).mul_((number - 1) / number)


class MixedScore(NamedTuple):
    r"""A score :math:`(1 - \lambda) A + \lambda B`, the :math:`\lambda` of each state, and the trace of its variance."""

    score: Tensor
    mixing: Tensor
    variance: Tensor


def mixed_score(
    weights: Tensor, force: Tensor, noise: Tensor, scale: Tensor, *, form: str, pairs: bool = False
) -> MixedScore:
    r"""The target-score form, the Tweedie form, or their mixture of least estimated variance.

    Both forms are ratios of means with the same weights, of :math:`a_i = -\nabla u(y_i)` and of
    :math:`b_i = (y_i - x) / h = z_i / \sqrt h`. By the delta method a ratio
    :math:`\hat c = \sum \bar w_i c_i` has the variance :math:`\sum \bar w_i^2 |c_i - \hat c|^2` (trace). For
    :math:`c = (1 - \lambda) a + \lambda b` the residuals are linear in :math:`\lambda`: with
    :math:`\alpha_i = \bar w_i (a_i - \hat a)`, :math:`\beta_i` alike, and :math:`\delta = \alpha - \beta`,

    .. math::

        V(\lambda) = \sum_i |\alpha_i - \lambda \delta_i|^2, \qquad
        \lambda^* = \frac{\sum_i \alpha_i \cdot \delta_i}{\sum_i |\delta_i|^2}

    kept within [0, 1]. It is the regression of :math:`A` on the control variate :math:`A - B`, whose expectation is
    zero up to the bias of ratios. For an isotropic Gaussian target of variance :math:`s^2` the residuals are
    proportional, :math:`\lambda^* = h / (s^2 + h)`, and the score is exact for every :math:`K \ge 2`.
    Everything is multiplied by :math:`\sqrt h`, so nothing is divided by small numbers. Antithetic pairs are summed
    first, because it is pairs that are independent.

    :param weights: normalised, ``(batch, K)``.
    :param force: :math:`-\nabla u(y)`, ``(batch, K, dim)``; for ``form="tweedie"`` it is not read.
    :param noise: :math:`z`, ``(batch, K, dim)``.
    :param scale: :math:`\sqrt h`, ``(batch)``.
    """
    number = weights.shape[1] // (2 if pairs else 1)
    inflation = number / (number - 1) if number > 1 else torch.inf
    inverse = torch.where(scale > 0.0, scale.reciprocal(), 0.0)
    each = weights.unsqueeze(-1)

    def residual(values: Tensor) -> tuple[Tensor, Tensor]:
        mean = weighted_mean(weights, values)
        return mean, grouped((values - mean.unsqueeze(1)).mul_(each), pairs)

    def dot(first: Tensor, second: Tensor) -> Tensor:
        return (first * second).sum((1, 2))

    if form == "tweedie":
        mean, beta = residual(noise)
        variance = _inflated(dot(beta, beta), inflation).mul_(inverse.square())
        return MixedScore(mean.mul_(inverse.unsqueeze(-1)), torch.ones_like(scale), variance)
    score, alpha = residual(force)
    if form == "target":
        return MixedScore(score, torch.zeros_like(scale), _inflated(dot(alpha, alpha), inflation))
    tweedie, beta = residual(noise)
    alpha.mul_(scale[:, None, None])
    delta = alpha - beta
    own, cross, square = dot(alpha, alpha), dot(alpha, delta), dot(delta, delta)
    mixing = torch.where(square > 0.0, cross / square, 0.0).clamp_(0.0, 1.0)
    least = (own - mixing * (2.0 * cross - mixing * square)).clamp_min_(0.0)
    score = score + (mixing.unsqueeze(-1) * (tweedie * inverse.unsqueeze(-1) - score))
    return MixedScore(score, mixing, _inflated(least, inflation).mul_(inverse.square()))


def weighted_mean(weights: Tensor, values: Tensor) -> Tensor:
    """Means ``(batch, dim)`` of ``values`` ``(batch, K, dim)``."""
    return torch.bmm(weights.unsqueeze(1), values).squeeze(1)


def _inflated(square: Tensor, inflation: float) -> Tensor:
    return torch.full_like(square, torch.inf) if inflation == torch.inf else square.mul_(inflation)
