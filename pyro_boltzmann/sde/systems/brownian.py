"""Brownian motion: free, and between two absorbing ends."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch

from pyro_boltzmann.sde.absorbed import AbsorbedBrownianTransition
from pyro_boltzmann.sde.boundaries import Absorbing
from pyro_boltzmann.sde.equation import SDE
from pyro_boltzmann.sde.exact import BrownianTransition
from pyro_boltzmann.sde.systems.system import System

__all__ = ["absorbed_brownian_motion", "brownian_motion", "four_initial_laws"]


def four_initial_laws(event_dim: int = 1) -> dict[str, Any]:
    """Four initial laws of independent coordinates: round, with edges, with two modes, skewed.

    >>> sorted(four_initial_laws(2)), four_initial_laws(2)["gamma"].sample().shape
    (['gamma', 'mixture', 'normal', 'uniform'], torch.Size([2]))
    """
    mixture = dist.MixtureSameFamily(
        dist.Categorical(torch.tensor([0.5, 0.5])),
        dist.Normal(torch.tensor([-1.5, 1.5]), torch.tensor([0.5, 0.5])),
    )
    laws = {
        "normal": dist.Normal(torch.tensor(0.0), 1.0),
        "uniform": dist.Uniform(torch.tensor(-1.0), 1.0),
        "mixture": mixture,
        "gamma": dist.Gamma(torch.tensor(2.0), 2.0),
    }
    return {name: law.expand([event_dim]).to_event(1) for name, law in laws.items()}


def brownian_motion(event_dim: int = 1, scale: float = 1.0, *, half_width: float = 6.0) -> System:
    r"""Free Brownian motion, :math:`dX = s\, dW`, for the time 1, from a uniform law and tested on
    :func:`four_initial_laws`.

    :param event_dim: :math:`d`.
    :param scale: :math:`s > 0`.
    :param half_width: training starts uniformly within this distance of 0 in each coordinate.

    Source: Yang et al., arXiv 2306.05580, example 5.1 (the equation; its settings are not published).

    >>> brownian_motion().sde
    SDE(event_dim=1, noise=1)
    """
    return System(
        name="brownian",
        sde=SDE(torch.zeros_like, scale, event_dim),
        initial=dist.Uniform(torch.tensor(-half_width), half_width).expand([event_dim]).to_event(1),
        time=1.0,
        step_size=1.0,
        tests=four_initial_laws(event_dim),
        transition=BrownianTransition(scale),
    )


def absorbed_brownian_motion(low: float = 0.0, high: float = 6.0, scale: float = 1.0) -> System:
    r"""Brownian motion on an interval, absorbed at both ends, for the total time 3, from a uniform law.

    >>> absorbed_brownian_motion().sde.boundaries
    (Absorbing(index=0, low=0.0, high=6.0, bridge=True),)
    """
    return System(
        name="absorbed-brownian",
        sde=SDE(torch.zeros_like, scale, 1, boundaries=[Absorbing(0, low, high)]),
        initial=dist.Uniform(torch.tensor(low), high).expand([1]).to_event(1),
        time=3.0,
        step_size=0.01,
        transition=AbsorbedBrownianTransition(low, high, scale),
    )
