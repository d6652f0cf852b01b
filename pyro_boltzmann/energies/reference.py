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
    :param scale: :math:`s > 0`, a number, or one number per dimension (then :math:`d \log s` is their sum).

    >>> float(NormalEnergy()(torch.zeros(2)))  # log 2 pi
    1.837877...
    """

    is_reference = True

    def __init__(self, loc: float | Tensor = 0.0, scale: float | Tensor = 1.0) -> None:
        if not bool(torch.as_tensor(scale > 0).all()):
            raise ValueError(f"the scale of a Gaussian must be positive, got {scale}")
        self.loc = loc
        self.scale = scale if isinstance(scale, Tensor) and scale.dim() else float(scale)

    def _centred(self, x: Tensor) -> Tensor:
        if isinstance(self.loc, Tensor):
            return x - self.loc.to(x)
        return x - self.loc if self.loc else x

    def __call__(self, x: Tensor) -> Tensor:
        return self._value(self._centred(x), x)

    def energy_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Value and gradient in closed form, without autograd."""
        return self._value(self._centred(x), x), self.gradient(x)

    def gradient(self, x: Tensor) -> Tensor:
        """The gradient alone."""
        scale = self.scale.to(x) if isinstance(self.scale, Tensor) else self.scale
        return self._centred(x) / scale**2

    def precision(self, like: Tensor) -> float | Tensor:
        r""":math:`s^{-2}`, in which the gradient is :math:`s^{-2} (x - \mu)`: a number, or one per dimension."""
        return 1.0 / (self.scale.to(like) if isinstance(self.scale, Tensor) else self.scale) ** 2

    def spread_loc(self, x: Tensor) -> Tensor | None:
        r""":math:`\mu`, one for each number of ``x``; ``None`` where it is zero."""
        if isinstance(self.loc, Tensor):
            return self.loc.to(x).expand_as(x).contiguous()
        return torch.full_like(x, self.loc) if self.loc else None

    def _value(self, centred: Tensor, x: Tensor) -> Tensor:
        if isinstance(self.scale, Tensor):
            scaled, log_scale = centred / self.scale.to(x), float(self.scale.double().log().sum())
            value: Tensor = 0.5 * torch.linalg.vecdot(scaled, scaled) + (
                log_scale + 0.5 * x.shape[-1] * math.log(2 * math.pi)
            )
            return value
        constant = x.shape[-1] * (math.log(self.scale) + 0.5 * math.log(2 * math.pi))
        value = (0.5 / self.scale**2) * torch.linalg.vecdot(centred, centred) + constant
        return value
