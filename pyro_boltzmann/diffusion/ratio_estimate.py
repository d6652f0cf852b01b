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
# Pseudo-observations in the regression of one form of a score on the other.
PSEUDO = 3.0


def normalised_weights(log_weights: Tensor) -> tuple[Tensor, Tensor]:
    r"""Weights :math:`\bar w_i = w_i / \sum_j w_j` and :math:`\log \frac1K \sum_i w_i` of ``(batch, K)``.

    Weights below :math:`e^{-39}` of the largest count as zero. Where all are zero the logarithm is :math:`-\infty` and
    the weights stay zero.

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
    torch.nn.functional.threshold(weights, 2.0 * math.exp(LOWEST), 0.0, inplace=True)
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
    r"""The jackknife's variance of :math:`\log \frac1G \sum_g w_g`, from normalised weights ``(batch, G)``:

    .. math:: \frac{G - 1}{G} \sum_g (\ell_g - \bar \ell)^2, \qquad \ell_g = \log(1 - \bar w_g)

    It tends to :math:`\hat v / (\hat m^2 G)`; where one weight outweighs all others, it says more than this, which
    cannot exceed one. Infinite for one group, about which nothing is known.

    >>> log_mean_variance(torch.tensor([[0.25, 0.25, 0.25, 0.25], [1.0, 0.0, 0.0, 0.0]]))
    tensor([  0.0000, 142.9648])
    """
    number = weights.shape[-1]
    if number == 1:
        return torch.full_like(weights[:, 0], torch.inf)
    each = _left_out(weights).log_()
    return (each - each.mean(-1, keepdim=True)).square_().sum(-1).mul_((number - 1) / number)


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
    return _left_out(weights).mul_(number / (number - 1)).log_().sum(-1).mul_((number - 1) / number)


def _left_out(weights: Tensor) -> Tensor:
    """Sums of all other weights, kept above the number format's epsilon."""
    return (1.0 - weights).clamp_min_(torch.finfo(weights.dtype).eps)


class MixedScore(NamedTuple):
    r"""A score :math:`(1 - \lambda) A + \lambda B`, each state's :math:`\lambda`, and the trace of its variance."""

    score: Tensor
    mixing: Tensor
    variance: Tensor


def mixed_score(
    weights: Tensor, gradient: Tensor, noise: Tensor, scale: Tensor, *, form: str, pairs: bool = False
) -> MixedScore:
    r"""The target-score form, the Tweedie form, or their mixture of least estimated variance.

    Both forms are ratios of means with the same weights. Times :math:`\sqrt h`, so that nothing is divided by small
    numbers, they average :math:`a_i = -\sqrt h\, \nabla u(y_i)` and :math:`z_i = (y_i - x) / \sqrt h`. Without point
    :math:`i` a ratio :math:`\hat c = \sum \bar w_i c_i` changes by :math:`-\bar w_i (c_i - \hat c) / (1 - \bar w_i)`;
    the sum of the squares of these changes is the jackknife's estimate of its variance (trace), up to
    :math:`(K - 1) / K`. The changes are linear in :math:`c`. With those of the forms, :math:`\alpha_i` and
    :math:`\beta_i`, and :math:`\delta = \alpha - \beta`, the combination :math:`(1 - \lambda) a + \lambda z` has

    .. math::

        V(\lambda) = \frac{K - 1}{K} \sum_i |\alpha_i - \lambda \delta_i|^2, \qquad
        \lambda^* = \frac{\sum_i \alpha_i \cdot \delta_i}{\sum_i |\delta_i|^2} .

    This is the regression of the target form on a control variate, the difference of the forms, whose expectation is
    zero up to the bias of ratios. For an isotropic Gaussian target of variance :math:`s^2` the residuals are
    proportional and :math:`\lambda^* = h / (s^2 + h)` leaves no variance.

    Where two or three points carry all weight, their residuals are chance. So the sums have three terms more, pseudo-
    observations of the average weight. What these say is known beforehand: under the law of y given x, which
    the weights sample and whose own score is :math:`(a - z) / \sqrt h`, Stein's identity gives

    .. math:: -E[z \cdot (a - z)] = d, \qquad E[a \cdot (a - z)] = h\, E[\Delta u] =: d\, h / s^2,

    which defines the local width :math:`s`, and the sum of both is :math:`E|a - z|^2`. The first is taken as it is;
    for the second, with :math:`n = 1 / \sum \bar w_i^2` and :math:`t = (1 - 1/n) / (1 - 1/K)`,

    .. math:: C = \frac{\sum \bar w_i\, a_i \cdot (a_i - z_i) - t\, \hat a \cdot (\hat a - \hat z)}{1 - t / n} \ge 0

    has for n independent draws the right expectation whatever t, because :math:`E(a - z) = 0`. Subtracting the mean
    force takes chance away, nearly all of it at small :math:`h`, where :math:`n \to K`; but where one point carries all
    weight nothing would be left, so there :math:`t \to 0`. In sum,

    .. math::

        \lambda = \frac{\sum \alpha_i \cdot \delta_i + 3 C / n^2}{\sum |\delta_i|^2 + 3 (C + d) / n^2}, \qquad
        1 - \lambda = \frac{-\sum \beta_i \cdot \delta_i + 3 d / n^2}{\sum |\delta_i|^2 + 3 (C + d) / n^2},

    each kept within [0, 1]. One point alone gives a share whose parts have the expectations :math:`h / s^2` and 1, so
    it tends to the target form without noise and to Tweedie's with much; many independent points of equal weight give
    :math:`\lambda^*` up to :math:`O(n^{-3/2})`, and scores change by :math:`O(n^{-2})`. Antithetic pairs are summed
    first, because it is pairs that are independent.

    A single point, or one that carries all weight, tells nothing of its variance, which is then infinite.

    :param weights: normalised, ``(batch, K)``.
    :param gradient: :math:`\nabla u(y)`, ``(batch, K, dim)``; for ``form="tweedie"`` it is not read.
    :param noise: :math:`z`, ``(batch, K, dim)``.
    :param scale: :math:`\sqrt h`, ``(batch)``.
    """
    units = grouped(weights, pairs)
    factor, dim = (units.shape[1] - 1) / units.shape[1], noise.shape[-1]
    inverse = torch.where(scale > 0.0, scale.reciprocal(), 0.0)
    each, others = weights.unsqueeze(-1), _left_out(units).unsqueeze(-1)
    alone = units.amax(-1) > 1.0 - 2.0 * torch.finfo(units.dtype).eps

    def residual(values: Tensor) -> tuple[Tensor, Tensor]:
        mean = weighted_mean(weights, values)
        return mean, grouped((values - mean.unsqueeze(1)).mul_(each), pairs).div_(others)

    if form == "tweedie":
        mean, beta = residual(noise)
        variance = _square(beta).mul_(factor * inverse.square()).masked_fill_(alone, torch.inf)
        return MixedScore(mean.mul_(inverse.unsqueeze(-1)), torch.ones_like(scale), variance)
    mean, alpha = residual(gradient)
    target = mean.neg_()
    if form == "target":
        return MixedScore(target, torch.zeros_like(scale), _square(alpha).mul_(factor).masked_fill_(alone, torch.inf))
    mean, beta = residual(noise)
    alpha.mul_(-scale[:, None, None])
    own, cross, other = _square(alpha), _dot(alpha, beta), _square(beta)
    # Both shares are computed: beside a huge force, one minus a rounded share would be nothing but rounding.
    doubt = units.square().sum(-1)
    once = PSEUDO * doubt.square()
    curvature = _curvature(each, gradient, noise, scale, target, mean, doubt, (1.0 - doubt) / max(factor, 0.5))
    from_target, from_noise = own - cross + once * curvature, other - cross + once * dim
    total = from_target + from_noise
    # Infinite squares of forces overrule the noise; without any weight there is nothing to share.
    mixing = (from_target / total).nan_to_num_(1.0).clamp_(0.0, 1.0)
    mixing = torch.where(once > 0.0, mixing, 0.0)
    rest = (from_noise / total).nan_to_num_(0.0).clamp_(0.0, 1.0)
    least = torch.where(rest > 0.0, rest.square() * own + 2.0 * rest * mixing * cross, 0.0) + mixing.square() * other
    # Without noise there is nothing to average.
    least = least.clamp_min_(0.0).mul_(factor * inverse.square()).masked_fill_(alone, torch.inf)
    variance = torch.where(scale > 0.0, least, 0.0)
    rest, share = rest.unsqueeze(-1), (mixing * inverse).unsqueeze(-1)
    return MixedScore(torch.where(rest > 0.0, rest * target, 0.0) + share * mean, mixing, variance)


def _curvature(
    each: Tensor,
    gradient: Tensor,
    noise: Tensor,
    scale: Tensor,
    score: Tensor,
    mean: Tensor,
    doubt: Tensor,
    trust: Tensor,
) -> Tensor:
    r"""C of :func:`mixed_score`: h times the mean Laplacian of the energy, not below zero."""
    # The weight first: a wild force without weight must not overflow.
    weighted = gradient * each
    square = _dot(weighted, gradient).mul_(scale).add_(_dot(weighted, noise)).mul_(scale)
    scaled = score * scale.unsqueeze(-1)
    return (square - trust * (scaled * (scaled - mean)).sum(-1)).div_(1.0 - trust * doubt).clamp_min_(0.0)


def weighted_mean(weights: Tensor, values: Tensor) -> Tensor:
    """Means ``(batch, dim)`` of ``values`` ``(batch, K, dim)``."""
    return torch.bmm(weights.unsqueeze(1), values).squeeze(1)


def _dot(first: Tensor, second: Tensor) -> Tensor:
    return (first * second).sum((1, 2))


def _square(values: Tensor) -> Tensor:
    return _dot(values, values)
