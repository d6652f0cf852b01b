"""The subspace of particle configurations whose centre of mass is at the origin, in orthonormal coordinates."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_boltzmann.exceptions import ShapeError

__all__ = ["MeanFreeBasis", "helmert_basis"]


def helmert_basis(num_particles: int, dtype: torch.dtype = torch.float32) -> Tensor:
    r"""The Helmert matrix without its constant row: an orthonormal basis of the mean-free vectors of length :math:`N`.

    .. math::

        H_{kj} = \frac{1}{\sqrt{k(k+1)}} \begin{cases} 1 & j \le k \\ -k & j = k + 1 \\ 0 & j > k + 1 \end{cases}
        \qquad k = 1, \dots, N - 1, \quad j = 1, \dots, N,

    so that :math:`H H^T = I_{N-1}` and :math:`H^T H = I_N - \tfrac{1}{N} 1 1^T`.

    :param num_particles: :math:`N \ge 2`.
    :return: a tensor of shape ``(N - 1, N)``, computed in float64 and rounded once.
    :raises ShapeError: if there are fewer than two particles.

    >>> helmert_basis(3)
    tensor([[ 0.7071, -0.7071,  0.0000],
            [ 0.4082,  0.4082, -0.8165]])

    Source: H. O. Lancaster, The Helmert matrices, Amer. Math. Monthly 72 (1965), 4-12.
    """
    if num_particles < 2:
        raise ShapeError(f"a mean-free basis needs at least 2 particles, got {num_particles}; pass num_particles >= 2")
    k = torch.arange(1, num_particles, dtype=torch.float64).unsqueeze(-1)
    j = torch.arange(1, num_particles + 1, dtype=torch.float64)
    rows = torch.where(j <= k, torch.ones_like(k), torch.where(j == k + 1, -k, torch.zeros_like(k)))
    return (rows / (k * (k + 1)).sqrt()).to(dtype)


class MeanFreeBasis:
    r"""Isometry between :math:`\mathbb{R}^{(N-1)D}` and the configurations of :math:`N` particles in :math:`D`
    dimensions with centre of mass zero: :math:`x = H^T z`, :math:`z = H x`, with :math:`H` of :func:`helmert_basis`.

    Being orthonormal it keeps volumes and distances, so a density of ``z`` is an ordinary normalised density and
    needs no Jacobian. Permuting, rotating or reflecting the particles is an orthogonal map of ``z``.

    :param num_particles: :math:`N \ge 2`.
    :param spatial_dim: :math:`D \ge 1`.

    >>> basis = MeanFreeBasis(num_particles=4, spatial_dim=2)
    >>> basis.dim
    6
    >>> particles = basis.to_particles(torch.ones(5, 6))
    >>> particles.shape, bool(particles.mean(-2).abs().max() < 1e-6)
    (torch.Size([5, 4, 2]), True)
    >>> torch.allclose(basis.to_coordinates(particles), torch.ones(5, 6))
    True
    """

    def __init__(self, num_particles: int, spatial_dim: int) -> None:
        if spatial_dim < 1:
            raise ShapeError(f"spatial_dim must be at least 1, got {spatial_dim}")
        self.num_particles = num_particles
        self.spatial_dim = spatial_dim
        self._helmert = helmert_basis(num_particles, torch.float64)

    @property
    def dim(self) -> int:
        """Number of degrees of freedom, :math:`(N - 1) D`."""
        return (self.num_particles - 1) * self.spatial_dim

    def matrix(self, like: Tensor) -> Tensor:
        """The Helmert matrix ``(N - 1, N)`` in the dtype and on the device of ``like``."""
        return self._helmert.to(like)

    def to_particles(self, z: Tensor) -> Tensor:
        """Mean-free positions of shape ``(*batch, N, D)`` from coordinates ``z`` of shape ``(*batch, (N - 1) D)``.

        :raises ShapeError: if the last dimension of ``z`` is not ``(N - 1) D``.
        """
        if z.dim() < 1 or z.shape[-1] != self.dim:
            raise ShapeError(
                f"expected mean-free coordinates of shape (*batch, {self.dim}) for {self.num_particles} particles in "
                f"{self.spatial_dim} dimensions, got {tuple(z.shape)}; .to_coordinates(x) makes them from positions"
            )
        return self.matrix(z).mT @ z.reshape(*z.shape[:-1], self.num_particles - 1, self.spatial_dim)

    def to_coordinates(self, x: Tensor) -> Tensor:
        """Coordinates of shape ``(*batch, (N - 1) D)`` from positions ``x`` of shape ``(*batch, N, D)``.

        The centre of mass is projected out: translated positions have equal coordinates.

        :raises ShapeError: if the last two dimensions of ``x`` are not ``(N, D)``.
        """
        if x.dim() < 2 or x.shape[-2:] != (self.num_particles, self.spatial_dim):
            raise ShapeError(
                f"expected positions of shape (*batch, {self.num_particles}, {self.spatial_dim}), got "
                f"{tuple(x.shape)}; unflatten flat positions with x.unflatten(-1, (N, D)) first"
            )
        return (self.matrix(x) @ x).flatten(-2)
