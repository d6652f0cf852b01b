"""Fields that are networks: the divergence is not in closed form, but automatic."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from pyro_boltzmann.transforms.continuous.divergence import exact_divergence
from pyro_boltzmann.transforms.continuous.velocity_field import VelocityField

__all__ = ["NetworkField"]


class NetworkField(VelocityField):
    r"""A field of which only the velocity is written: the divergence is exact, by autograd, one
    product for each coordinate (:func:`exact_divergence`).

    Subclasses implement :meth:`forward`. Each row of x must be treated alone (no batch normalisation).

    >>> import torch
    >>> class Rotation(NetworkField):
    ...     def forward(self, t, x):
    ...         return torch.stack([-x[..., 1], x[..., 0] * (1 + x[..., 1])], -1)
    >>> with torch.no_grad():
    ...     Rotation().velocity_and_divergence(0.0, torch.tensor([[2.0, 3.0]]))
    (tensor([[-3.,  8.]]), tensor([2.]))
    """

    def velocity_and_divergence(self, t: float | Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        return exact_divergence(partial(self, t), x)
