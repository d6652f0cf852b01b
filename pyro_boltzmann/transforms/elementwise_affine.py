"""A trainable shift and scale of each coordinate."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyro_boltzmann.transforms.fused import FusedTransform

__all__ = ["ElementwiseAffine"]


class ElementwiseAffine(FusedTransform):
    r"""A trainable affine map of each coordinate, the identity at first,

    .. math:: y_i = b_i + e^{a_i} x_i, \qquad \log|\det| = \sum_i a_i .

    In front of a spline whose steep part separates two modes, :math:`b` carries probability from one mode to the other:
    a single parameter does what would otherwise need all knots to move.

    :param dim: dimension of x.

    >>> layer = ElementwiseAffine(2)
    >>> layer.call_and_ladj(torch.ones(3, 2))[1].shape
    torch.Size([3])
    """

    def __init__(self, dim: int, *, cache_size: int = 1) -> None:
        super().__init__(cache_size=cache_size)
        self.width = int(dim)
        self.shift = nn.Parameter(torch.zeros(dim))
        self.log_scale = nn.Parameter(torch.zeros(dim))

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.shift + self.log_scale.exp() * x, self.log_scale.sum().expand(x.shape[:-1])

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return (y - self.shift) * (-self.log_scale).exp(), -self.log_scale.sum().expand(y.shape[:-1])
