"""Brownian motion seen through noise, with unknown scales and its middle unseen."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

from pyro_boltzmann.energies.catalogue.closed_form import ClosedForm
from pyro_boltzmann.energies.catalogue.exact_sampling import GridRejectionSampler
from pyro_boltzmann.energies.catalogue.posteriors import PosteriorTarget

__all__ = ["BROWNIAN_OBSERVED", "Brownian", "RandomWalk", "brownian"]

NUM_STEPS = 30
# Trapezoidal rule over both log scales from -18 to 6, the walk integrated out; stable to 1e-12 under refinement.
LOG_Z = 1.187748985920
MEAN_ENERGY = -36.798874435963
# At times 0 to 9 and 20 to 29.
# fmt: off
BROWNIAN_OBSERVED = (
    0.21592641, 0.118771404, -0.07945447, 0.037677474, -0.27885845,
    -0.1484156, -0.3250906, -0.22957903, -0.44110894, -0.09830782,
    -0.8786016, -0.83736074, -0.7384849, -0.8939254, -0.7774566,
    -0.70238715, -0.87771565, -0.51853573, -0.6948214, -0.6202789,
)
# fmt: on


class RandomWalk(TorchDistribution):
    r"""Positions of a Gaussian random walk: :math:`x_0 \sim N(0, s^2)`, :math:`x_t \sim N(x_{t-1}, s^2)`.

    :param scale: :math:`s`, shape ``(*batch)``.
    :param num_steps: number of positions, the event's size.

    >>> walk = RandomWalk(torch.ones(3), 30)
    >>> walk.sample().shape, walk.log_prob(torch.zeros(3, 30)).shape
    (torch.Size([3, 30]), torch.Size([3]))
    """

    arg_constraints = {"scale": constraints.positive}  # noqa: RUF012 (the name and form are those of torch)
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, scale: Tensor, num_steps: int, validate_args: bool | None = None) -> None:
        self.scale = scale
        self.num_steps = num_steps
        super().__init__(scale.shape, torch.Size((num_steps,)), validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> RandomWalk:
        return RandomWalk(self.scale.expand(batch_shape), self.num_steps, validate_args=False)

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008 (torch's own default)
        noise = torch.randn(self._extended_shape(sample_shape), dtype=self.scale.dtype, device=self.scale.device)
        return self.scale.unsqueeze(-1) * noise.cumsum(-1)

    def log_prob(self, value: Tensor) -> Tensor:
        square = value[..., 0].square() + value.diff(dim=-1).square().sum(-1)
        normalizer = self.num_steps * (self.scale.log() + 0.5 * math.log(2 * math.pi))
        return -0.5 * square / self.scale.square() - normalizer


def brownian(y: Tensor | None = None) -> Tensor:
    r"""A random walk of 30 steps, observed with noise at its first ten and last ten.

    .. math::

        s, \sigma \sim \mathrm{LogNormal}(0, 2^2), \quad x_0 \sim N(0, s^2), \quad x_t \sim N(x_{t-1}, s^2), \quad
        y_t \sim N(x_t, \sigma^2), \; t \in \{0..9, 20..29\}

    :param y: the observations, shape ``(20,)``; drawn from the model when ``None``.
    :return: the positions :math:`x`.

    Source: model and data are ``BrownianMotionUnknownScalesMissingMiddleObservations`` of TensorFlow Probability's
    ``inference_gym``, whose observations are the twenty numbers of :data:`BROWNIAN_OBSERVED`.

    >>> brownian().shape
    torch.Size([30])
    """
    innovation = pyro.sample("innovation_noise_scale", dist.LogNormal(0.0, 2.0))
    observation = pyro.sample("observation_noise_scale", dist.LogNormal(0.0, 2.0))
    locs: Tensor = pyro.sample("locs", RandomWalk(innovation, NUM_STEPS))
    observed = torch.cat([locs[..., :10], locs[..., -10:]], -1)
    seen = None if y is None else y.to(locs)
    pyro.sample("y", dist.Normal(observed, observation.unsqueeze(-1)).to_event(1), obs=seen)
    return locs


class Brownian(ClosedForm, PosteriorTarget):
    r"""The posterior of :func:`brownian` in 32 dimensions, :math:`(a, b, x)` with :math:`a = \log s, b = \log \sigma`.

    Its energy is written out, which saves running the program: up to a constant, and with :math:`x_{-1} = 0`,

    .. math::

        u = \tfrac18 (a^2 + b^2) + 30 a + 20 b + \tfrac12 e^{-2a} \sum_t (x_t - x_{t-1})^2
        + \tfrac12 e^{-2b} \sum_{t\,\mathrm{seen}} (x_t - y_t)^2 .

    Given the scales everything is Gaussian, so :math:`\log Z` is a two-dimensional integral and draws are exact. (The
    best published ELBO, 1.06, lies below it as it must.)

    >>> target = Brownian()
    >>> target.dim, round(target.log_z, 5), target.sample(3).shape
    (32, 1.18775, torch.Size([3, 32]))
    """

    def __init__(self) -> None:
        super().__init__(
            "brownian",
            brownian,
            {"y": torch.tensor(BROWNIAN_OBSERVED, dtype=torch.float32)},
            NUM_STEPS + 2,
            sampler=_sample_brownian,
            log_z=LOG_Z,
            log_z_origin="exact",
            log_z_note="two-dimensional quadrature over the scales, the walk integrated out in closed form",
            mean_energy=MEAN_ENERGY,
            bounds=((-4.0, -0.5), (-3.5, -0.5)),
        )
        self._constant = 2 * math.log(2.0) + 0.5 * (2 + 30 + 20) * math.log(2 * math.pi)

    def __call__(self, x: Tensor) -> Tensor:
        steps, residuals = self._parts(x)
        return self._energy_of(x[..., :2], steps.square().sum(-1), residuals.square().sum(-1))

    def closed_form(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logs, (steps, residuals) = x[..., :2], self._parts(x)
        squares = torch.stack([steps.square().sum(-1), residuals.square().sum(-1)], -1)
        precision = (-2.0 * logs).exp()
        gradient = torch.empty_like(x)
        gradient[..., :2] = 0.25 * logs + self._counts(x) - precision * squares
        by_step, by_residual = precision[..., :1] * steps, precision[..., 1:] * residuals
        locs = gradient[..., 2:].copy_(by_step)
        locs[..., :-1].sub_(by_step[..., 1:])
        locs[..., :10].add_(by_residual[..., :10])
        locs[..., -10:].add_(by_residual[..., 10:])
        return self._energy_of(logs, *squares.unbind(-1)), gradient

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Steps of the walk ``(*batch, 30)`` and residuals of what is seen ``(*batch, 20)``."""
        locs = x[..., 2:]
        steps = torch.cat([locs[..., :1], locs.diff(dim=-1)], -1)
        return steps, torch.cat([locs[..., :10], locs[..., -10:]], -1) - self._on("y", x)

    def _counts(self, like: Tensor) -> Tensor:
        return like.new_tensor([30.0, 20.0])

    def _energy_of(self, logs: Tensor, steps_square: Tensor, residuals_square: Tensor) -> Tensor:
        a, b = logs.unbind(-1)
        u = 0.125 * logs.square().sum(-1) + 30.0 * a + 20.0 * b + self._constant
        return u + 0.5 * ((-2.0 * a).exp() * steps_square + (-2.0 * b).exp() * residuals_square)


@cache
def _observed_modes() -> tuple[Tensor, Tensor, Tensor]:
    r"""Eigenvalues :math:`\lambda` and eigenvectors of the covariance of what is seen of a walk with :math:`s = 1`, and
    the observations in their basis. With noise its eigenvalues are :math:`s^2 \lambda + \sigma^2`."""
    times = torch.arange(1, NUM_STEPS + 1, dtype=torch.float64)
    times = torch.cat([times[:10], times[-10:]])
    eigenvalues, vectors = torch.linalg.eigh(torch.minimum(times, times.unsqueeze(-1)))
    y = torch.tensor(BROWNIAN_OBSERVED, dtype=torch.float32).double()
    return eigenvalues, vectors, y @ vectors


def _log_scales_energy(logs: Tensor) -> Tensor:
    """Minus the log of the joint density of both log scales and the observations, up to a constant."""
    eigenvalues, _, y = (tensor.to(logs.device) for tensor in _observed_modes())
    squares = (2.0 * logs).exp()
    variances = squares[..., :1] * eigenvalues + squares[..., 1:]
    return 0.125 * logs.square().sum(-1) + 0.5 * (variances.log() + y.square() / variances).sum(-1)


@cache
def _log_scales_sampler() -> GridRejectionSampler:
    # The prior leaves 1e-16 below -17; above 4 the likelihood leaves less.
    return GridRejectionSampler(_log_scales_energy, [-17.0, -17.0], [4.0, 4.0], [512, 512])


def _sample_brownian(num_samples: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
    """Scales from their marginal posterior; then a walk of the prior, corrected by its misfit to the observations."""
    logs = _log_scales_sampler().sample(num_samples, generator)
    innovation, observation = logs.exp().split(1, -1)
    eigenvalues, vectors, y = (tensor.to(device) for tensor in _observed_modes())
    noise = torch.randn(num_samples, NUM_STEPS + 20, generator=generator, device=device, dtype=torch.float64)
    walk = innovation * noise[:, :NUM_STEPS].cumsum(-1)
    seen = torch.cat([walk[:, :10], walk[:, -10:]], -1) + observation * noise[:, NUM_STEPS:]
    variances = innovation.square() * eigenvalues + observation.square()
    misfit = ((y - seen @ vectors) / variances) @ vectors.mT
    times = torch.arange(1, NUM_STEPS + 1, dtype=torch.float64, device=device)
    covariance = torch.minimum(times, torch.cat([times[:10], times[-10:]]).unsqueeze(-1))
    return torch.cat([logs, walk + innovation.square() * (misfit @ covariance)], -1)
