"""Exact posterior samples of the eight-schools and logistic-regression programs."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from pyro_boltzmann.energies.catalogue.exact_sampling import GridRejectionSampler
from pyro_boltzmann.energies.catalogue.posteriors import EIGHT_SCHOOLS_EFFECT, EIGHT_SCHOOLS_ERROR, logistic_data

__all__ = ["sample_eight_schools", "sample_eight_schools_centered", "sample_logistic_regression"]


def sample_eight_schools_centered(num_samples: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
    r"""Exact posterior draws of :math:`(\mu, \log \tau, \theta_1 .. \theta_8)`, shape ``(num_samples, 10)``.

    :math:`\log \tau` from its marginal posterior (:math:`\mu` and :math:`\theta` integrated out in closed form, then
    rejection on a one-dimensional grid), :math:`\mu \mid \tau` and :math:`\theta \mid \mu, \tau` from their normals.
    The range :math:`-30 < \log \tau < 10` leaves out a posterior mass of about 1e-13.

    >>> sample_eight_schools_centered(3, None, torch.device("cpu")).shape
    torch.Size([3, 10])
    """
    mu, log_tau, normal = _sample_eight_schools_top(num_samples, generator)
    y, sigma = _schools(device)
    tau = log_tau.exp()
    # Written with the shrinkage factor, which is stable for tau -> 0.
    shrinkage = tau.square() / (tau.square() + sigma.square())
    theta = mu + shrinkage * (y - mu) + shrinkage.sqrt() * sigma * normal
    return torch.cat([mu, log_tau, theta], -1)


def sample_eight_schools(num_samples: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
    r"""Exact posterior draws of :math:`(\mu, \log \tau, \eta_1 .. \eta_8)`, shape ``(num_samples, 10)``.

    As :func:`sample_eight_schools_centered`, with :math:`\eta_j = (\theta_j - \mu) / \tau` drawn without cancellation.

    >>> sample_eight_schools(3, None, torch.device("cpu")).shape
    torch.Size([3, 10])
    """
    mu, log_tau, normal = _sample_eight_schools_top(num_samples, generator)
    y, sigma = _schools(device)
    tau = log_tau.exp()
    total = tau.square() + sigma.square()
    eta = tau * (y - mu) / total + sigma / total.sqrt() * normal
    return torch.cat([mu, log_tau, eta], -1)


def _schools(device: torch.device) -> tuple[Tensor, Tensor]:
    y = torch.tensor(EIGHT_SCHOOLS_EFFECT, dtype=torch.float64, device=device)
    return y, torch.tensor(EIGHT_SCHOOLS_ERROR, dtype=torch.float64, device=device)


def _mean_given_tau(log_tau: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Posterior mean and precision of mu given tau ``(*batch, 1)``, and the precisions of the measured effects."""
    y, sigma = _schools(log_tau.device)
    precision = 1 / (sigma.square() + (2 * log_tau).exp())
    total = precision.sum(-1, keepdim=True) + 1 / 25
    return (precision * y).sum(-1, keepdim=True) / total, total, precision


def _log_tau_energy(log_tau: Tensor) -> Tensor:
    y, _ = _schools(log_tau.device)
    mean, total, precision = _mean_given_tau(log_tau)
    quadratic = (precision * y.square()).sum(-1) - (total * mean.square()).squeeze(-1)
    log_likelihood = 0.5 * (precision.log().sum(-1) - total.squeeze(-1).log() - quadratic)
    log_tau = log_tau.squeeze(-1)
    # The half-Cauchy prior of tau, with the Jacobian of tau = exp(log_tau).
    return torch.log1p((2 * log_tau).exp() / 25) - log_tau - log_likelihood


@cache
def _log_tau_sampler() -> GridRejectionSampler:
    return GridRejectionSampler(_log_tau_energy, [-30.0], [10.0], [8192])


def _sample_eight_schools_top(num_samples: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor, Tensor]:
    log_tau = _log_tau_sampler().sample(num_samples, generator)
    mean, total, _ = _mean_given_tau(log_tau)
    normal = torch.randn(num_samples, 9, generator=generator, device=log_tau.device, dtype=torch.float64)
    return mean + total.rsqrt() * normal[:, :1], log_tau, normal[:, 1:]


DEGREES_OF_FREEDOM = 6
# The unique maximum of the log ratio (200 gradient ascents from everywhere agree to 1e-9), rounded up.
LOG_RATIO_BOUND = -46.091961


@cache
def _logistic_laplace() -> tuple[Tensor, Tensor]:
    """Posterior mode of the weights and the lower Cholesky factor of the inverse Hessian there."""
    features, labels = (tensor.double() for tensor in logistic_data())
    weights = torch.zeros(features.shape[-1], dtype=torch.float64)
    hessian = torch.eye(len(weights), dtype=torch.float64)
    # Newton's method from zero converges quadratically here; 20 steps are far past rounding error.
    for _ in range(20):
        p = torch.sigmoid(features @ weights)
        hessian = torch.eye(len(weights)).double() + features.mT @ (features * (p * (1 - p)).unsqueeze(-1))
        weights = weights - torch.linalg.solve(hessian, weights + features.mT @ (p - labels))
    return weights, torch.linalg.cholesky(torch.linalg.inv(hessian))


def _logistic_log_ratio(standard: Tensor) -> Tensor:
    """Log of posterior over Student proposal, up to a constant, at Laplace-whitened points ``(*batch, 5)``."""
    features, labels = (tensor.to(standard) for tensor in logistic_data())
    mode, factor = (tensor.to(standard) for tensor in _logistic_laplace())
    weights = mode + standard @ factor.mT
    logits = weights @ features.mT
    log_posterior = (labels * logits - torch.nn.functional.softplus(logits)).sum(-1) - 0.5 * weights.square().sum(-1)
    exponent = 0.5 * (DEGREES_OF_FREEDOM + weights.shape[-1])
    return log_posterior + exponent * torch.log1p(standard.square().sum(-1) / DEGREES_OF_FREEDOM)


def sample_logistic_regression(num_samples: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
    """Exact posterior draws of the logistic-regression weights, shape ``(num_samples, 5)``.

    Rejection from a multivariate Student distribution around the posterior mode, whose tails are heavier than those of
    the posterior; about 36 % of the proposals are kept.

    >>> sample_logistic_regression(3, None, torch.device("cpu")).shape
    torch.Size([3, 5])
    """
    mode, factor = (tensor.to(device) for tensor in _logistic_laplace())
    kept: list[Tensor] = []
    missing = num_samples
    while missing > 0:
        shape = (3 * missing + 16, len(mode) + DEGREES_OF_FREEDOM)
        normal = torch.randn(shape, generator=generator, device=device, dtype=torch.float64)
        # A chi-squared variable as a sum of squares: torch.distributions takes no generator.
        chi_squared = normal[:, len(mode) :].square().sum(-1, keepdim=True)
        standard = normal[:, : len(mode)] * (DEGREES_OF_FREEDOM / chi_squared).sqrt()
        uniform = torch.rand(shape[0], generator=generator, device=device, dtype=torch.float64)
        accepted = standard[uniform.log() < _logistic_log_ratio(standard) - LOG_RATIO_BOUND][:missing]
        kept.append(mode + accepted @ factor.mT)
        missing -= len(accepted)
    return torch.cat(kept) if kept else mode.new_empty(0, len(mode))
