"""Tracers in the ABC flow (Arnold, Beltrami, Childress), a chaotic periodic velocity field."""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_boltzmann.sde.equation import SDE
from pyro_boltzmann.sde.laws import TruncatedNormal
from pyro_boltzmann.sde.systems.system import System

__all__ = ["abc_flow", "abc_truncated_normal"]


def abc_flow(peclet: float = 3.0, a: float = 1.0, b: float = 1.0, c: float = 0.25) -> System:
    r"""Diffusion in the ABC flow for the time 2, from the uniform law on one cell :math:`[0, 2\pi]^3`:

    .. math:: dX = \mathrm{Pe}\, U(X)\, dt + dW, \qquad
        U = (A \sin z + C \cos y,\ B \sin x + A \cos z,\ C \sin y + B \cos x) .

    Positions are not wrapped.

    :param peclet: :math:`\mathrm{Pe}`.

    Source: Yang et al., arXiv 2306.05580, example 5.3.

    >>> abc_flow().sde.coefficients(torch.zeros(1, 3))
    (tensor([[0.7500, 3.0000, 3.0000]]), 1.0)
    """
    pa, pb, pc = peclet * a, peclet * b, peclet * c

    def velocity(x: Tensor) -> Tensor:
        sines, cosines = x.sin().unbind(-1), x.cos().unbind(-1)
        columns = [
            torch.add(pa * sines[2], cosines[1], alpha=pc),
            torch.add(pb * sines[0], cosines[2], alpha=pa),
            torch.add(pc * sines[1], cosines[0], alpha=pb),
        ]
        return torch.stack(columns, 0).movedim(0, -1)

    return System(
        name="abc",
        sde=SDE(velocity, 1.0, 3),
        initial=dist.Uniform(torch.zeros(3), 2.0 * math.pi).to_event(1),
        time=2.0,
        step_size=0.002,
        tests={"truncated normal": abc_truncated_normal(1.5 * math.pi, math.pi, math.pi)},
    )


def abc_truncated_normal(x: float, y: float, z: float) -> dist.TorchDistribution:
    r"""The published test law: :math:`\prod_i e^{-(x_i - c_i)^2 / s_i^2}` with
    :math:`s = (\pi/3, \pi/5, \pi/4)`, truncated to :math:`[0, 2\pi]^3`.

    :param x: the first coordinate of the centre :math:`c`; likewise ``y`` and ``z``.

    >>> abc_truncated_normal(4.0, 3.0, 3.0).sample((5,)).shape
    torch.Size([5, 3])
    """
    width = math.pi * torch.tensor([1.0 / 3.0, 1.0 / 5.0, 1.0 / 4.0])
    low, high = torch.zeros(3), torch.full((3,), 2.0 * math.pi)
    laws = TruncatedNormal(torch.tensor([x, y, z]), width / math.sqrt(2.0), low, high)
    return dist.Independent(laws, 1)
