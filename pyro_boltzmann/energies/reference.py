"""Normalised reference energies: the prior of a path, where annealing starts."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["NormalEnergy"]


class NormalEnergy:
    r"""The normalised energy of an isotropic Gaussian,

    .. math:: u_0(x) = \frac{|x - \mu|^2}{2 s^2} + d \log s + \frac d2 \log 2\pi.

    :param loc: :math:`\mu`, a number or one number per dimension.
    :param scale: :math:`s > 0`.

    >>> float(NormalEnergy()(torch.zeros(2)))  # log 2 pi
    1.837877...
    """

    is_reference = True

    def __init__(self, loc: float | Tensor = 0.0, scale: float = 1.0) -> None:
        if not scale > 0:
            raise ValueError(f"the scale of a Gaussian must be positive, got {scale}")
        self.loc = loc
        self.scale = float(scale)

    def _centred(self, x: Tensor) -> Tensor:
        if isinstance(self.loc, Tensor):
            return x - self.loc.to(x)
        return x - self.loc if self.loc else x

    def __call__(self, x: Tensor) -> Tensor:
        constant = x.shape[-1] * (math.log(self.scale) + 0.5 * math.log(2 * math.pi))
        return (0.5 / self.scale**2) * self._centred(x).square().sum(-1) + constant

    def energy_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Value and gradient in closed form, without autograd."""
        centred = self._centred(x)
        constant = x.shape[-1] * (math.log(self.scale) + 0.5 * math.log(2 * math.pi))
        return (0.5 / self.scale**2) * torch.linalg.vecdot(centred, centred) + constant, centred / self.scale**2
