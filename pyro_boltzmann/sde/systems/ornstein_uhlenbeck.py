"""The Ornstein-Uhlenbeck process in any dimension."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_boltzmann.sde.equation import SDE
from pyro_boltzmann.sde.exact import OrnsteinUhlenbeckTransition
from pyro_boltzmann.sde.systems.brownian import four_initial_laws
from pyro_boltzmann.sde.systems.system import System

__all__ = ["ornstein_uhlenbeck"]


def ornstein_uhlenbeck(
    event_dim: int = 1, theta: float | Tensor = 1.0, sigma: float | Tensor = 1.0, *, half_width: float = 6.0
) -> System:
    r"""The Ornstein-Uhlenbeck process, :math:`dX = -\theta X\, dt + \sigma\, dW`, for the time 1, from a uniform law
    and tested on :func:`four_initial_laws`.

    :param event_dim: :math:`d`.
    :param theta: :math:`\theta > 0`, a number or ``(d,)``.
    :param sigma: :math:`\sigma > 0`, a number or ``(d,)``.
    :param half_width: training starts uniformly within this distance of 0 in each coordinate.

    >>> system = ornstein_uhlenbeck(3)
    >>> system.sde.coefficients(torch.ones(1, 3))
    (tensor([[-1., -1., -1.]]), 1.0)
    """
    rate = torch.as_tensor(theta)
    return System(
        name="ornstein-uhlenbeck",
        sde=SDE(lambda x: x * -rate.to(x), sigma, event_dim),
        initial=dist.Uniform(torch.tensor(-half_width), half_width).expand([event_dim]).to_event(1),
        time=1.0,
        step_size=0.01,
        tests=four_initial_laws(event_dim),
        transition=OrnsteinUhlenbeckTransition(theta, sigma),
    )
