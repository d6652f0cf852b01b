"""Exact law of Brownian motion between two absorbing ends."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

from pyro_boltzmann.exceptions import ShapeError

__all__ = ["AbsorbedBrownianTransition"]

SWITCH = 0.25
"""Times below this many L^2 / s^2 are summed by images, later ones by sines: four images or eight sines then suffice
for double precision."""


class AbsorbedBrownianTransition:
    r"""Brownian motion :math:`dX = s\, dW` on :math:`[a, b]`, absorbed at both ends; :math:`L = b - a`.

    The density of those not yet absorbed, whose mass is the survival probability, is

    .. math:: p_t(y \mid x_0) = \sum_{n} \bigl[\mathcal N(y - x_0 - 2nL;\ 0, s^2 t)
        - \mathcal N(y + x_0 - 2a - 2nL;\ 0, s^2 t)\bigr]
        = \frac2L \sum_{k \ge 1} \sin\frac{k\pi(x_0 - a)}{L} \sin\frac{k\pi(y - a)}{L}\, e^{-k^2\pi^2 s^2 t / 2L^2} .

    States have shape ``(*batch, 1)``, results are computed in double precision.

    :param low: :math:`a`.
    :param high: :math:`b > a`.
    :param scale: :math:`s > 0`.
    :raises ValueError: if the numbers are not in order.

    Source: Karatzas and Shreve, Brownian Motion and Stochastic Calculus (1991), section 2.8.C.

    >>> law = AbsorbedBrownianTransition(0.0, 6.0)
    >>> law.survival(torch.tensor([[3.0], [1.0]]), 3.0)
    tensor([0.8335, 0.4325])
    """

    def __init__(self, low: float = 0.0, high: float = 6.0, scale: float = 1.0) -> None:
        if not (math.isfinite(low) and math.isfinite(high) and low < high and 0.0 < scale < math.inf):
            raise ValueError(f"expected low < high and scale > 0, all finite, got {low}, {high} and {scale}")
        self.low, self.high, self.scale = float(low), float(high), float(scale)

    def survival(self, x0: Tensor, time: float | Tensor) -> Tensor:
        """The probability of not having been absorbed by ``time``, ``(*batch)``."""
        x, t = self._units(x0, time)
        early = t.clamp_max(SWITCH).sqrt()
        images = torch.zeros_like(x + t)
        for n in range(-4, 5):
            for centre, sign in ((x + 2 * n, 1.0), (2 * n - x, -1.0)):
                images = images + sign * (_normal_cdf((1.0 - centre) / early) - _normal_cdf(-centre / early))
        late = t.clamp_min(SWITCH)
        sines = torch.zeros_like(images)
        for k in range(1, 16, 2):
            angle = k * math.pi
            sines = sines + 4.0 / angle * (angle * x).sin() * (-0.5 * angle**2 * late).exp()
        return self._inside(x, torch.where(t < SWITCH, images, sines)).clamp(0.0, 1.0).to(x0)

    def log_prob(self, y: Tensor, x0: Tensor, time: float | Tensor) -> Tensor:
        """The logarithm of the density of being at ``y`` and not absorbed, ``(*batch)``, ``-inf`` outside.

        Subtract the logarithm of :meth:`survival` for the density of the survivors.
        """
        x, t = self._units(x0, time)
        z, _ = self._units(y, time)
        density = self._inside(x, self._inside(z, self._density(z, x, t))).clamp_min(0.0)
        return (density.log() - math.log(self.high - self.low)).to(x0)

    def sample(self, x0: Tensor, time: float | Tensor, *, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
        """States ``(*batch, 1)``, NaN where absorbed, and whether each was absorbed, ``(*batch)``.

        A free path that ends at ``y`` has survived with the ratio of this density to the free one.
        """
        x, t = self._units(x0, time)
        x, t = torch.broadcast_tensors(x, t)
        y = x + t.sqrt() * torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
        free = (-0.5 * (y - x).square() / t).exp() / (2.0 * math.pi * t).sqrt()
        uniform = torch.rand(x.shape, generator=generator, dtype=x.dtype, device=x.device)
        survived = uniform * free < self._inside(x, self._inside(y, self._density(y, x, t)))
        place = torch.where(survived, self.low + (self.high - self.low) * y, math.nan)
        return place.to(x0).unsqueeze(-1), ~survived

    def _density(self, y: Tensor, x: Tensor, t: Tensor) -> Tensor:
        early = t.clamp_max(SWITCH)
        images = torch.zeros_like(y + x + t)
        for n in range(-4, 5):
            same, mirrored = (y - x - 2 * n).square(), (y + x - 2 * n).square()
            images = images + (-0.5 * same / early).exp() - (-0.5 * mirrored / early).exp()
        late = t.clamp_min(SWITCH)
        sines = torch.zeros_like(images)
        for k in range(1, 9):
            angle = k * math.pi
            sines = sines + 2.0 * (angle * x).sin() * (angle * y).sin() * (-0.5 * angle**2 * late).exp()
        return torch.where(t < SWITCH, images / (2.0 * math.pi * early).sqrt(), sines)

    def _inside(self, x: Tensor, value: Tensor) -> Tensor:
        return torch.where((x > 0.0) & (x < 1.0), value, 0.0)

    def _units(self, x: Tensor, time: float | Tensor) -> tuple[Tensor, Tensor]:
        """Position in [0, 1] and time in units of :math:`L^2 / s^2`, in double precision."""
        if x.dim() < 1 or x.shape[-1] != 1:
            raise ShapeError(f"states must have shape (*batch, 1), got {tuple(x.shape)}")
        t = torch.as_tensor(time, dtype=torch.float64, device=x.device)
        if not bool(((t > 0.0) & (t < math.inf)).all()):
            raise ValueError(f"an exact law needs times that are positive and finite, got {time}")
        width = self.high - self.low
        return (x[..., 0].double() - self.low) / width, t * (self.scale / width) ** 2


def _normal_cdf(x: Tensor) -> Tensor:
    result: Tensor = torch.special.ndtr(x)
    return result
