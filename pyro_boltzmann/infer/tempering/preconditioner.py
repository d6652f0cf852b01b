"""The unit in which moves are made: what makes the particles' density look round."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["MASSES", "Preconditioner"]

MASSES = ("dense", "diagonal", "identity")
"""What a mass matrix may be made of: the inverse of the particles' covariance, of its diagonal, or nothing."""


@dataclass(frozen=True)
class Preconditioner:
    r"""A linear change of variables :math:`x = A y` in which moves have one step size for all directions; the mass
    matrix of Hamiltonian moves is :math:`(A A^\top)^{-1}`.

    :ivar factor: the diagonal of A, ``(dim,)``, or A itself, lower triangular, ``(dim, dim)``; with one more dimension
        in front where each temperature has its own.
    :ivar is_dense: which of the two.

    >>> scale = Preconditioner(torch.tensor([1.0, 2.0]), is_dense=False)
    >>> scale.outward(torch.ones(1, 2))
    tensor([[1., 2.]])
    """

    factor: Tensor
    is_dense: bool

    @classmethod
    def of_moments(cls, mass: str, mean: Tensor, second: Tensor, effective: float) -> Preconditioner:
        r"""From the first and second moments of weighted particles.

        A covariance from :math:`n` effective draws in :math:`d` dimensions is drawn towards its diagonal by the share
        :math:`d / (d + n)`.

        :param mass: one of :data:`MASSES`.
        :param mean: ``(dim,)``, float64.
        :param second: :math:`E[x x^\top]`, ``(dim, dim)``, float64; its diagonal will do unless ``mass`` is dense.
        """
        if mass == "identity":
            return cls(torch.ones_like(mean), False)
        dim = len(mean)
        variance = torch.addcmul(second.diagonal() if second.dim() == 2 else second, mean, mean, value=-1.0)
        # Particles that all sit at one place have no scale of their own; nor where anything is infinite or NaN.
        usable = variance > 1e-12 * variance.max()
        variance = torch.where(usable, variance, 1.0)
        if mass == "diagonal" or dim == 1 or not bool(usable.all()):
            return cls(variance.sqrt(), False)
        covariance = second - mean.unsqueeze(-1) * mean
        shrink = dim / (dim + effective)
        mixed = (1.0 - shrink) * covariance + shrink * torch.diag(variance)
        factor, failed = torch.linalg.cholesky_ex(mixed)
        return cls(variance.sqrt(), False) if bool(failed) else cls(factor, True)

    def outward(self, y: Tensor) -> Tensor:
        """:math:`A y`, a displacement of x."""
        return y * self.factor if not self.is_dense else _times(y, self.factor.mT)

    def inward(self, gradient: Tensor) -> Tensor:
        r""":math:`A^\top \nabla_x u = \nabla_y u`."""
        return gradient * self.factor if not self.is_dense else _times(gradient, self.factor)

    def to(self, like: Tensor) -> Preconditioner:
        """With the dtype and device of ``like``."""
        return Preconditioner(self.factor.to(like), self.is_dense)

    @property
    def log_size(self) -> Tensor:
        """Mean logarithm of the scales, one for each temperature."""
        diagonal = self.factor.diagonal(dim1=-2, dim2=-1) if self.is_dense else self.factor
        return diagonal.log().mean(-1)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, which JSON returns bit for bit."""
        return {"factor": self.factor.tolist(), "is_dense": self.is_dense}

    @classmethod
    def from_dict(cls, plain: dict[str, Any], like: Tensor) -> Preconditioner:
        """The inverse of :meth:`to_dict`."""
        return cls(torch.tensor(plain["factor"], dtype=like.dtype, device=like.device), plain["is_dense"])

    @staticmethod
    def stack(scales: list[Preconditioner]) -> Preconditioner:
        """One for each temperature; dense if any is."""
        if not any(scale.is_dense for scale in scales):
            return Preconditioner(torch.stack([scale.factor for scale in scales]), False)
        factors = [scale.factor if scale.is_dense else torch.diag(scale.factor) for scale in scales]
        return Preconditioner(torch.stack(factors), True)


def _times(rows: Tensor, matrix: Tensor) -> Tensor:
    if matrix.dim() == 2:
        return rows @ matrix
    return (rows.unsqueeze(-2) @ matrix).squeeze(-2)
