"""Diffusion down the gradient of an energy, and in a double well."""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_boltzmann.energies.evaluation import Energy, energy_and_gradient
from pyro_boltzmann.sde.equation import SDE
from pyro_boltzmann.sde.systems.system import System

__all__ = ["double_well_diffusion", "gradient_diffusion"]


def gradient_diffusion(energy: Energy, event_dim: int, temperature: float = 1.0) -> SDE:
    r"""Overdamped Langevin dynamics, :math:`dX = -\nabla u(X)\, dt + \sqrt{2 T}\, dW`.

    Its stationary law is :math:`\pi \propto e^{-u / T}`, and its transitions satisfy detailed balance,
    :math:`\pi(x)\, p_t(y \mid x) = \pi(y)\, p_t(x \mid y)`.

    :param energy: maps ``(*batch, d)`` to ``(*batch)``; evaluations are counted.
    :param event_dim: :math:`d`.
    :param temperature: :math:`T > 0`.
    :raises ValueError: if the temperature is not positive.

    >>> sde = gradient_diffusion(lambda x: 0.5 * x.square().sum(-1), 2)
    >>> sde.coefficients(torch.tensor([[1.0, -2.0]]))[0].detach()
    tensor([[-1.,  2.]])
    """
    if not 0.0 < temperature < math.inf:
        raise ValueError(f"the temperature must be positive and finite, got {temperature}")
    return SDE(lambda x: -energy_and_gradient(energy, x)[1], math.sqrt(2.0 * temperature), event_dim)


def double_well_diffusion(barrier: float = 2.0) -> System:
    r"""Diffusion for the time 1 in :math:`u(x) = B\, (x^2 - 1)^2`, from the uniform law on [-2, 2].

    :param barrier: the height :math:`B` between the wells, in units of the temperature.
    """

    def energy(x: Tensor) -> Tensor:
        return barrier * (x[..., 0].square() - 1.0).square()

    return System(
        name="double-well",
        sde=gradient_diffusion(energy, 1),
        initial=dist.Uniform(torch.tensor(-2.0), 2.0).expand([1]).to_event(1),
        time=1.0,
        step_size=0.005,
    )
