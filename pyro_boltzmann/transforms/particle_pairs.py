"""Pairs of particles in Helmert coordinates: differences, smooth distances and their features."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyro_boltzmann.exceptions import ShapeError
from pyro_boltzmann.transforms.mean_free import MeanFreeBasis

__all__ = ["ParticlePairs", "RadialFeatures"]


class ParticlePairs:
    r"""The :math:`P = N (N - 1) / 2` pairs of :math:`N` particles, as products with constant matrices.

    Differences of positions are :math:`x_i - x_j = \sum_k C_{(ij) k} z_k` in the Helmert coordinates :math:`z` of
    :class:`~pyro_boltzmann.transforms.MeanFreeBasis`, and pair forces :math:`w_{ij} (x_i - x_j)` with
    :math:`w_{ij} = w_{ji}` come back as :math:`C^T`: they keep the centre of mass by construction.

    Tensors have the pair (or particle) first, then the batch: a gather or a sum is one matrix product, and
    element-wise work runs along memory.

    :param num_particles: :math:`N \ge 2`.
    :param spatial_dim: :math:`D \ge 1`.
    :raises ShapeError: as :class:`~pyro_boltzmann.transforms.MeanFreeBasis` does.

    >>> pairs = ParticlePairs(4, 2)
    >>> z = torch.randn(5, 6)
    >>> difference = pairs.differences(pairs.columns(z))
    >>> difference.shape
    torch.Size([6, 5, 2])
    >>> bool((pairs.rows(pairs.forces(difference)) - 4 * z).abs().max() < 1e-4)  # sum_j (x_i - x_j) = N x_i
    True
    """

    def __init__(self, num_particles: int, spatial_dim: int) -> None:
        self.basis = MeanFreeBasis(num_particles, spatial_dim)
        i, j = torch.triu_indices(num_particles, num_particles, offset=1)
        helmert = self.basis.matrix(torch.empty((), dtype=torch.float64))
        self._signed = (helmert[:, i] - helmert[:, j]).mT.contiguous()
        member = torch.nn.functional.one_hot(torch.stack([i, j]), num_particles).sum(0)
        self._member = member.to(torch.float64)

    @property
    def num_particles(self) -> int:
        """:math:`N`."""
        return self.basis.num_particles

    @property
    def num_pairs(self) -> int:
        """:math:`P`."""
        return len(self._signed)

    @property
    def dim(self) -> int:
        """:math:`(N - 1) D`."""
        return self.basis.dim

    def columns(self, z: Tensor) -> Tensor:
        """Coordinates ``(*batch, (N - 1) D)`` as ``(N - 1, rows, D)``, the batch flattened.

        :raises ShapeError: if the last dimension is not ``(N - 1) D``.
        """
        if z.dim() < 1 or z.shape[-1] != self.dim:
            raise ShapeError(
                f"expected mean-free coordinates of shape (*batch, {self.dim}) for {self.num_particles} particles in "
                f"{self.basis.spatial_dim} dimensions, got {tuple(z.shape)}; MeanFreeBasis makes them from positions"
            )
        return z.reshape(-1, self.num_particles - 1, self.basis.spatial_dim).transpose(0, 1)

    def rows(self, columns: Tensor) -> Tensor:
        """The inverse of :meth:`columns`: ``(rows, (N - 1) D)``."""
        return columns.transpose(0, 1).flatten(-2)

    def differences(self, columns: Tensor) -> Tensor:
        """:math:`x_i - x_j` for all pairs i < j, ``(P, rows, D)``."""
        return _product(self._signed.to(columns), columns)

    def forces(self, pair_vectors: Tensor) -> Tensor:
        """What pair vectors ``(P, rows, D)`` do to the particles, plus at i and minus at j, ``(N - 1, rows, D)``."""
        return _product(self._signed.to(pair_vectors).mT, pair_vectors)

    def of_both(self, particles: Tensor) -> Tensor:
        """The sum over the two particles of each pair, ``(N, rows, width)`` to ``(P, rows, width)``."""
        return _product(self._member.to(particles), particles)

    def of_each(self, pairs: Tensor) -> Tensor:
        r"""The sum over the pairs of each particle, over :math:`\sqrt{N - 1}`: ``(P, ...)`` to ``(N, ...)``."""
        return _product(self._member.to(pairs).mT / (self.num_particles - 1) ** 0.5, pairs)


class RadialFeatures(nn.Module):
    r"""Smooth features of a squared distance, at zero too:

    .. math::

        r = \sqrt{|x_i - x_j|^2 + \delta^2}, \qquad
        \bigl(1 + (r - \mu_k)^2 / \Delta^2\bigr)^{-2}, \; k = 1, \dots, K, \qquad \log(1 + r^2),

    with :math:`\mu_k` evenly spaced by :math:`\Delta` on :math:`[0, R]`. The floor :math:`\delta` keeps all derivatives
    finite where two particles meet; :math:`r` still tells all distances apart. The logarithm goes on beyond :math:`R`.
    Gaussian bumps would be denormal numbers a few spacings away, which cost ten times the arithmetic of others.

    :param num_features: :math:`K + 1 \ge 3`.
    :param radius: :math:`R`, in units of the scaled positions.
    :param floor: :math:`\delta > 0`.

    >>> RadialFeatures(24)(torch.zeros(6, 5)).shape
    torch.Size([6, 5, 24])
    """

    centres: Tensor

    def __init__(self, num_features: int = 24, radius: float = 5.0, floor: float = 0.1) -> None:
        super().__init__()
        if num_features < 3 or not radius > 0.0 or not floor > 0.0:
            raise ValueError(
                "radial features need num_features >= 3, radius > 0 and floor > 0, got "
                f"num_features={num_features}, radius={radius}, floor={floor}"
            )
        self.num_features = num_features
        self.floor = floor
        self._inverse_spacing = (num_features - 2) / radius
        centres = torch.linspace(0.0, num_features - 2.0, num_features - 1, dtype=torch.float64)
        self.register_buffer("centres", centres.to(torch.get_default_dtype()))

    def forward(self, square: Tensor) -> Tensor:
        """Features ``(*shape, K + 1)`` of squared distances ``(*shape)``."""
        square = square.unsqueeze(-1) + self.floor**2
        gap = square.sqrt() * self._inverse_spacing - self.centres
        bump = (1.0 + gap * gap).reciprocal()
        return torch.cat([bump * bump, square.log1p()], -1)


def _product(matrix: Tensor, tensor: Tensor) -> Tensor:
    """``matrix`` times the first dimension of ``tensor``, all others flattened."""
    return (matrix @ tensor.flatten(1)).view(len(matrix), *tensor.shape[1:])
