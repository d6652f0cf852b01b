"""What a pair of networks that is only nearly reversible has to show: its mass, its folds, the gap of its densities."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Size, Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, StudentT

from pyro_boltzmann.transforms.tanh_network import ConditionalMap

__all__ = ["DensityGap", "Folds", "MassEstimate", "density_gap", "estimate_mass", "normal_log_prob"]

KERNELS = 64
DEGREES_OF_FREEDOM = 4.0
WIDE_SHARE = 0.15
"""Of the proposal, for each of its two wide components."""


class MassEstimate(NamedTuple):
    """Masses and their standard errors, ``(*batch)`` each."""

    value: Tensor
    std_error: Tensor

    def view(self, batch: Size) -> MassEstimate:
        return MassEstimate(self.value.view(batch), self.std_error.view(batch))


class Folds(NamedTuple):
    """How many determinants are positive, negative and zero."""

    positive: int
    negative: int
    zero: int

    @property
    def minority(self) -> int:
        """Rows whose determinant has not the sign of most."""
        return min(self.positive, self.negative) + self.zero

    @classmethod
    def of(cls, signs: Tensor) -> Folds:
        return cls(int((signs > 0).sum()), int((signs < 0).sum()), int((signs == 0).sum()))


class DensityGap(NamedTuple):
    """Differences of two log-densities ``(num_samples, *batch)``, and the folds of the sampler at these draws."""

    values: Tensor
    sampler_folds: Folds

    @property
    def mean(self) -> Tensor:
        r"""``(*batch)``: minus a KL divergence, hence not above 0 where both masses are one."""
        return self.values.mean(0)

    @property
    def std(self) -> Tensor:
        """``(*batch)``."""
        return self.values.std(0)

    @property
    def ess(self) -> Tensor:
        """Effective fraction of the draws, weighted from the sampler's density to the other, ``(*batch)``."""
        doubled = 2.0 * self.values.logsumexp(0) - (2.0 * self.values).logsumexp(0)
        return doubled.exp() / len(self.values)

    def view(self, batch: Size) -> DensityGap:
        return DensityGap(self.values.view(batch), self.sampler_folds)


def estimate_mass(h: ConditionalMap, g: ConditionalMap, context: Tensor, dim: int, num_samples: int) -> MassEstimate:
    r""":math:`\int \mathcal N(h(c, y)) |\det \partial h/\partial y|\, dy = \mathbb E_q[\hat p/q]` for each context.

    The proposal q is a mixture of Student kernels around draws of g, of a wider one around all of them, and of one that
    covers the standardised data, so that folds away from g's draws are met. The estimate is unbiased, and its variance
    is finite where :math:`\hat p` falls off faster than a power.

    :param context: ``(rows, context_dim)``, standardised, like y.
    :return: with entries ``(rows,)``.
    :raises ValueError: for fewer than two samples.
    """
    if num_samples < 2:
        raise ValueError(f"a mass with its error needs at least two samples, got {num_samples}")
    values, errors = [], []
    for row in context:
        kernels = g(row.expand(KERNELS, -1), context.new_empty(KERNELS, dim).normal_())
        proposal = _proposal(kernels)
        y = proposal.sample(Size([num_samples]))
        z, log_abs_det, _ = h.value_and_log_det(row.expand(num_samples, -1), y)
        weights = (normal_log_prob(z) + log_abs_det - proposal.log_prob(y)).double().exp()
        values.append(weights.mean())
        errors.append(weights.std() / math.sqrt(num_samples))
    empty = context.new_zeros(0, dtype=torch.float64)
    return MassEstimate(torch.stack(values), torch.stack(errors)) if values else MassEstimate(empty, empty)


def density_gap(h: ConditionalMap, g: ConditionalMap, context: Tensor, z: Tensor) -> DensityGap:
    r""":math:`\log \hat p_h - \log \hat p_g` at :math:`y = g(c, z)`, with
    :math:`\log \hat p_g(y) = \log \mathcal N(z) - \log|\det \partial g/\partial z|`, where g does not fold."""
    y, sampler_log_det, signs = g.value_and_log_det(context, z)
    back, log_abs_det, _ = h.value_and_log_det(context, y)
    return DensityGap(normal_log_prob(back) + log_abs_det - normal_log_prob(z) + sampler_log_det, Folds.of(signs))


def _proposal(draws: Tensor) -> MixtureSameFamily:
    dim = draws.shape[-1]
    spread = draws.std(0).clamp(min=1e-3)
    width = 1.5 * (4.0 / ((dim + 2) * len(draws))) ** (1.0 / (dim + 4))
    centres = torch.cat([draws, draws.mean(0, keepdim=True), torch.zeros_like(draws[:1])])
    scales = torch.cat([(width * spread).expand_as(draws), 2.0 * spread[None], torch.full_like(draws[:1], 2.0)])
    shares = torch.full_like(draws[:, 0], (1.0 - 2.0 * WIDE_SHARE) / len(draws))
    shares = torch.cat([shares, torch.full_like(shares[:2], WIDE_SHARE)])
    kernels = Independent(StudentT(DEGREES_OF_FREEDOM, centres, scales, validate_args=False), 1, validate_args=False)
    return MixtureSameFamily(Categorical(shares), kernels, validate_args=False)


def normal_log_prob(z: Tensor) -> Tensor:
    """Log-density of the standard normal law, ``(rows,)``."""
    return -0.5 * z.square().sum(-1) - 0.5 * z.shape[-1] * math.log(2 * math.pi)
