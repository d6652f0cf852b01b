"""Exact transition laws of Brownian motion and the Ornstein-Uhlenbeck process."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import pyro.distributions as dist
import torch
from torch import Generator, Tensor

from pyro_boltzmann.exceptions import ShapeError

__all__ = ["BrownianTransition", "GaussianTransition", "OrnsteinUhlenbeckTransition"]


class GaussianTransition(ABC):
    r"""A transition law :math:`p_t(y \mid x_0) = \mathcal N(m(x_0, t), v(t))` with independent coordinates."""

    @abstractmethod
    def moments(self, x0: Tensor, time: float | Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance, both ``(*batch, d)``."""

    def distribution(self, x0: Tensor, time: float | Tensor) -> dist.TorchDistribution:
        """The law of the state at ``time``, with batch shape ``(*batch)`` and event shape ``(d,)``.

        :param x0: ``(*batch, d)``.
        :param time: a number, or a tensor that broadcasts to ``(*batch)``.
        :raises ValueError: unless all times are positive and finite.
        """
        mean, variance = self.moments(x0, time)
        law: dist.TorchDistribution = dist.Normal(mean, variance.sqrt()).to_event(1)
        return law

    def log_prob(self, y: Tensor, x0: Tensor, time: float | Tensor) -> Tensor:
        r""":math:`\log p_t(y \mid x_0)`, of shape ``(*batch)``."""
        result: Tensor = self.distribution(x0, time).log_prob(y)
        return result

    def sample(self, x0: Tensor, time: float | Tensor, *, generator: Generator | None = None) -> Tensor:
        """One state at ``time`` for each initial state, ``(*batch, d)``."""
        mean, variance = self.moments(x0, time)
        normal = torch.randn(mean.shape, generator=generator, dtype=mean.dtype, device=mean.device)
        return mean + variance.sqrt() * normal

    def entropy(self, x0: Tensor, time: float | Tensor) -> Tensor:
        """Entropy of the state at ``time``, ``(*batch)``: no negative log-likelihood averages to less."""
        result: Tensor = self.distribution(x0, time).entropy()
        return result


class BrownianTransition(GaussianTransition):
    r"""Brownian motion, :math:`dX = s\, dW`:

    .. math:: p_t(y \mid x_0) = \mathcal N(y;\ x_0,\ s^2 t) .

    :param scale: :math:`s > 0`, a number or ``(d,)``.
    :raises ValueError: if it is not positive.

    >>> BrownianTransition(2.0).log_prob(torch.zeros(1), torch.zeros(1), 0.25)
    tensor(-0.9189)
    """

    def __init__(self, scale: float | Tensor = 1.0) -> None:
        self.scale = _positive("scale", scale)

    def moments(self, x0: Tensor, time: float | Tensor) -> tuple[Tensor, Tensor]:
        t, scale = _time(time, x0), _like(self.scale, x0)
        return _broadcast(x0, t * scale**2)


class OrnsteinUhlenbeckTransition(GaussianTransition):
    r"""The Ornstein-Uhlenbeck process, :math:`dX = -\theta X\, dt + \sigma\, dW`:

    .. math:: p_t(y \mid x_0) = \mathcal N\Bigl(y;\ x_0 e^{-\theta t},\
        \frac{\sigma^2}{2\theta} \bigl(1 - e^{-2\theta t}\bigr)\Bigr) .

    :param theta: the rate :math:`\theta > 0`, a number or ``(d,)``.
    :param sigma: :math:`\sigma > 0`, a number or ``(d,)``.
    :raises ValueError: if one is not positive.

    >>> law = OrnsteinUhlenbeckTransition(1.0, 1.0).distribution(torch.ones(1), 200.0)
    >>> law.mean, law.variance
    (tensor([0.]), tensor([0.5000]))
    """

    def __init__(self, theta: float | Tensor = 1.0, sigma: float | Tensor = 1.0) -> None:
        self.theta = _positive("theta", theta, "; for no restoring force use BrownianTransition")
        self.sigma = _positive("sigma", sigma)

    def moments(self, x0: Tensor, time: float | Tensor) -> tuple[Tensor, Tensor]:
        t, theta, sigma = _time(time, x0), _like(self.theta, x0), _like(self.sigma, x0)
        decay = (-theta * t).exp()
        return _broadcast(x0 * decay, sigma**2 * -(-2.0 * theta * t).expm1() / (2.0 * theta))


def _positive(name: str, value: float | Tensor, hint: str = "") -> Tensor:
    tensor = torch.as_tensor(value, dtype=torch.float64)
    if tensor.dim() > 1:
        raise ShapeError(f"{name} must be a number or have shape (d,), got {tuple(tensor.shape)}")
    if not bool(((tensor > 0.0) & tensor.isfinite()).all()):
        raise ValueError(f"{name} must be positive and finite, got {value}{hint}")
    return tensor


def _like(value: Tensor, x: Tensor) -> Tensor:
    if value.dim() and value.shape[0] not in (1, x.shape[-1]):
        raise ShapeError(f"states of dimension {len(value)} were expected, got {tuple(x.shape)}")
    return value.to(x)


def _time(time: float | Tensor, x0: Tensor) -> Tensor:
    """``(*batch, 1)``."""
    t = torch.as_tensor(time, dtype=x0.dtype, device=x0.device)
    if not bool(((t > 0.0) & (t < math.inf)).all()):
        raise ValueError(f"an exact law needs times that are positive and finite, got {time}")
    return t.unsqueeze(-1)


def _broadcast(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    return mean.expand(torch.broadcast_shapes(mean.shape, variance.shape)), variance.expand(
        torch.broadcast_shapes(mean.shape, variance.shape)
    )
