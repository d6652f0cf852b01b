"""Collisions of relativistic electrons with a thermal plasma."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

__all__ = ["CollisionRates", "Collisions"]


class CollisionRates(NamedTuple):
    r"""Coefficients at momenta :math:`p`, all of the shape of ``p``.

    :ivar gamma: the Lorentz factor.
    :ivar c_a: diffusion of momentum, :math:`C_A`.
    :ivar c_a_slope: its derivative, :math:`C_A' = dC_A / dp`.
    :ivar c_b: pitch-angle scattering, :math:`C_B`.
    :ivar c_f: drag, :math:`C_F`.
    """

    gamma: Tensor
    c_a: Tensor
    c_a_slope: Tensor
    c_b: Tensor
    c_f: Tensor


@dataclass(frozen=True)
class Collisions:
    r"""Chandrasekhar's collision functions after a thermal quench from the temperature :math:`\tilde T` to
    :math:`\hat T`, in units in which momenta are thermal ones of :math:`\tilde T`:

    .. math:: \gamma = \sqrt{1 + 2 \tilde T p^2 / mc^2}, \quad \bar v = \sqrt{\hat T / \tilde T}, \quad
        x = \frac{p}{\bar v \gamma}, \quad \phi = \operatorname{erf} x, \quad
        \psi = \frac{\phi - x \phi'}{2 x^2}, \quad \delta^2 = \frac{2 \hat T}{mc^2},

    .. math:: C_A = \nu \bar v^2 \frac\psi x, \qquad
        C_B = \frac{\nu \bar v^2}{2 x} \Bigl(Z + \phi - \psi + \tfrac12 \delta^4 x^2\Bigr), \qquad
        C_F = 2 \nu \bar v \psi, \qquad
        \nu = \Bigl(\frac{\tilde T}{\hat T}\Bigr)^{3/2} \frac{\ln\Lambda(\hat T)}{\ln\Lambda(\tilde T)},

    :math:`\ln\Lambda(T) = 14.9 - \tfrac12 \ln 0.28 + \ln T`. The derivative needs no finite difference: with
    :math:`dx/dp = 1 / \bar v \gamma^3` and :math:`\psi' = \phi' - 2\psi / x`,

    .. math:: C_A' = \frac{\nu \bar v}{\gamma^3} \Bigl(\frac{\phi'}{x} - \frac{3 \psi}{x^2}\Bigr) .

    Since :math:`x` is bounded, so are :math:`C_A` and :math:`C_B` from below, and the published floors of
    :math:`10^{-10}` never act.

    :ivar initial_temperature: :math:`\tilde T`.
    :ivar final_temperature: :math:`\hat T`.
    :ivar rest_energy: :math:`mc^2`, in the unit of the temperatures.
    :ivar charge: :math:`Z`.

    Source: Yang et al., arXiv 2507.15990, and its repository (which takes the derivative by a finite difference).

    >>> import torch
    >>> rates = Collisions().rates(torch.tensor([1.0]))
    >>> round(rates.c_f.item(), 3)
    0.763
    """

    initial_temperature: float = 3.0
    final_temperature: float = 0.05
    rest_energy: float = 500.0
    charge: float = 1.0

    @property
    def frequency(self) -> float:
        r""":math:`\nu`."""
        hot, cold = self.initial_temperature, self.final_temperature
        return math.pow(hot / cold, 1.5) * _coulomb_logarithm(cold) / _coulomb_logarithm(hot)

    @property
    def thermal_speed(self) -> float:
        r""":math:`\bar v`."""
        return math.sqrt(self.final_temperature / self.initial_temperature)

    def rates(self, p: Tensor) -> CollisionRates:
        """The coefficients at momenta ``p > 0`` of any shape."""
        nu, v = self.frequency, self.thermal_speed
        gamma = (1.0 + (2.0 * self.initial_temperature / self.rest_energy) * p.square()).sqrt()
        x = p / (v * gamma)
        square = x.square()
        phi = x.erf()
        # What is smaller than exp(-80) adds nothing, and denormal numbers are slow.
        phi_slope = (2.0 / math.sqrt(math.pi)) * (-square.clamp_max(80.0)).exp()
        psi = (phi - x * phi_slope) / (2.0 * square)
        c_a = (nu * v**2) * psi / x
        c_a_slope = (nu * v) * (phi_slope / x - 3.0 * psi / square) / gamma**3
        delta4 = (2.0 * self.final_temperature / self.rest_energy) ** 2
        c_b = (0.5 * nu * v**2) * (self.charge + phi - psi + (0.5 * delta4) * square) / x
        return CollisionRates(gamma, c_a, c_a_slope, c_b, (2.0 * nu * v) * psi)


def _coulomb_logarithm(temperature: float) -> float:
    return 14.9 - 0.5 * math.log(0.28) + math.log(temperature)
