"""A Gaussian target and an affine flow, whose divergences are known in closed form."""

from __future__ import annotations

import math

import torch

import pyro_boltzmann as pb
from pyro_boltzmann.transforms import ElementwiseAffine

SIGMAS = 4.5  # two-sided false-alarm rate 7e-6
MEAN, SCALE = torch.tensor([0.5, -1.0], dtype=torch.float64), torch.tensor([1.6, 0.7], dtype=torch.float64)
LOC, LOG_SCALE = torch.tensor([0.2, -0.8], dtype=torch.float64), torch.tensor([0.6, -0.3], dtype=torch.float64)
LOG_Z = float(SCALE.log().sum()) + math.log(2 * math.pi)


def gaussian_energy(x):
    """-log N(MEAN, diag SCALE^2), without its normaliser."""
    return 0.5 * ((x - MEAN) / SCALE).square().sum(-1)


def gaussian_flow(loc=LOC, log_scale=LOG_SCALE, energy=gaussian_energy, after=lambda energy, dim: []):
    """N(loc, exp(2 log_scale)) as a flow, with more blocks behind it."""
    model = pb.BoltzmannModel(energy, 2, dtype=torch.float64)

    def blocks(energy, dim):
        layer = ElementwiseAffine(dim)
        with torch.no_grad():
            layer.shift.copy_(loc)
            layer.log_scale.copy_(log_scale)
        return [layer.double(), *after(energy, dim)]

    guide = pb.AutoStochasticFlow(model, blocks, dtype=torch.float64)
    with torch.no_grad():  # built in the default precision at first
        guide.path.blocks[0].shift.copy_(loc)
        guide.path.blocks[0].log_scale.copy_(log_scale)
    return model, guide


def repeat(count, f):
    """Mean and standard error of ``count`` independent values of ``f``, each a vector."""
    values = torch.stack([torch.as_tensor(f(), dtype=torch.float64).flatten() for _ in range(count)])
    return values.mean(0), values.std(0) / math.sqrt(count)


def gradient(objective, model, guide):
    """All gradients of the guide as one vector."""
    guide.zero_grad()
    objective.loss_and_grads(model, guide)
    return flat_gradient(guide)


def flat_gradient(guide):
    return torch.cat([p.grad.flatten().double() for p in guide.parameters() if p.grad is not None])


def half_variance(loc, log_scale, mean_r, scale_r):
    r"""1/2 Var_r[log w] in closed form: log w = sum a x^2 + b x + c under N(mean_r, scale_r^2)."""
    precision = (-2 * log_scale).exp()
    a = 0.5 * (precision - 1 / SCALE.square())
    b = MEAN / SCALE.square() - loc * precision
    return 0.5 * (2 * a.square() * scale_r**4 + scale_r**2 * (2 * a * mean_r + b).square()).sum()


def log_alpha2(loc, log_scale):
    r"""log int p^2 / q in closed form, for the normalised target p."""
    q_variance = (2 * log_scale).exp()
    # p^2 / q is the exponential of a quadratic with this precision, linear term and value at zero.
    precision = 2 / SCALE.square() - 1 / q_variance
    linear = 2 * MEAN / SCALE.square() - loc / q_variance
    constant = -MEAN.square() / SCALE.square() + 0.5 * loc.square() / q_variance
    norm = -2 * SCALE.log() - math.log(2 * math.pi) + 0.5 * q_variance.log() + 0.5 * math.log(2 * math.pi)
    gaussian = 0.5 * (2 * math.pi / precision).log() + 0.5 * linear.square() / precision
    return (norm + constant + gaussian).sum()


def closed_gradient(f, loc=LOC, log_scale=LOG_SCALE):
    """Gradient of ``f(loc, log_scale)``, shift first."""
    loc, log_scale = loc.clone().requires_grad_(), log_scale.clone().requires_grad_()
    return torch.cat(torch.autograd.grad(f(loc, log_scale), (loc, log_scale)))


class NeverDifferentiated(torch.autograd.Function):
    """The Gaussian energy, as from an engine that gives values only."""

    @staticmethod
    def forward(ctx, x):
        return gaussian_energy(x)

    @staticmethod
    def backward(ctx, gradient):
        raise AssertionError("the energy was differentiated")
