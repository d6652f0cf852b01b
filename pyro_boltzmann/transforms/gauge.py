"""One configuration for each orbit of rotations and permutations: what a flow that knows no symmetry can learn."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor

from pyro_boltzmann.exceptions import ShapeError
from pyro_boltzmann.transforms.mean_free import MeanFreeBasis
from pyro_boltzmann.transforms.symmetry import ParticleSymmetry

__all__ = ["GaugeFixedEnergy", "ParticleGauge"]


class ParticleGauge:
    r"""Coordinates :math:`s` of the orbits of :math:`O(D)`, and the volume of the orbit at each.

    The Helmert rows of a configuration are the columns of a matrix :math:`Z \in \mathbb{R}^{D \times (N-1)}`. Its QR
    decomposition :math:`Z = Q T` with :math:`T_{ii} > 0` for :math:`i \le m = \min(D, N - 1)` and zeros below the
    diagonal is unique but for a null set: the first vector is turned onto the first axis, the second into the first
    half-plane, and so on. A rotation or reflection of the particles changes :math:`Q` alone. Volumes split as

    .. math::

        dZ = \prod_{i=1}^m T_{ii}^{D - i}\, dT\, dQ, \qquad
        V = \int dQ = \frac{2^m \pi^{m D / 2}}{\Gamma_m(D / 2)},

    :math:`2 \pi` for two particles in the plane, where :math:`T_{11}` is the radius; :math:`4 \pi` for more of them;
    :math:`16 \pi^2` in space. The :math:`\log T_{ii}` and the entries above the diagonal are the coordinates :math:`s`,
    all of :math:`\mathbb{R}^{\text{dim}}`. An orbit has the volume

    .. math:: \omega(s) = V \prod_{i=1}^m T_{ii}^{D - i + 1} \cdot N!^{[\text{permutations}]},

    so that :math:`\int f(z)\, dz = \int f(z(s))\, \omega(s)\, ds` for every invariant :math:`f`: a density :math:`q(s)`
    is the invariant density :math:`q(s(z)) / \omega(s(z))` of :math:`z`, and :math:`\log Z` stays what it was.

    With ``permutations=True`` the particles are numbered by their distance from the centre of mass, which no rotation
    changes. Then only the part of the :math:`s` that are in order stands for an orbit, and a density on all of
    :math:`\mathbb{R}^{\text{dim}}` loses what it has elsewhere: its invariant density integrates to the share of
    ordered draws. It is a lower bound of the density of the draws that are kept, and importance weights, zero for the
    others, remain exact.

    :param num_particles: :math:`N \ge 2`.
    :param spatial_dim: :math:`D \ge 1`.
    :param permutations: number the particles, too.
    :raises ShapeError: for a size out of range.

    Source: Muirhead, Aspects of Multivariate Statistical Theory (1982), theorems 2.1.13 and 2.1.15.

    >>> gauge = ParticleGauge(4, 2)
    >>> z = torch.randn(3, 6)
    >>> s = gauge.to_slice(z)
    >>> s.shape, torch.allclose(gauge.to_slice(gauge.spread(s)), s, atol=1e-4)
    (torch.Size([3, 5]), True)
    """

    def __init__(self, num_particles: int, spatial_dim: int, *, permutations: bool = False) -> None:
        self.basis = MeanFreeBasis(num_particles, spatial_dim)
        self.permutations = permutations
        self._symmetry = ParticleSymmetry(num_particles, spatial_dim, permutations=permutations)
        self._rank = min(spatial_dim, num_particles - 1)
        rows, columns = torch.triu_indices(spatial_dim, num_particles - 1, offset=1)
        self._above = rows, columns
        self._log_constant = _log_stiefel_volume(self._rank, spatial_dim) + (
            math.lgamma(num_particles + 1) if permutations else 0.0
        )

    @property
    def dim(self) -> int:
        r"""Dimension of the orbit space, :math:`(N - 1) D - m D + m (m + 1) / 2`."""
        return self._rank + len(self._above[0])

    def to_slice(self, z: Tensor) -> Tensor:
        """The coordinates ``(*batch, dim)`` of the orbits of Helmert coordinates ``(*batch, (N - 1) D)``.

        :raises ShapeError: if the last dimension is not ``(N - 1) D``.
        :raises ValueError: for configurations without a frame: particles that coincide, or all on a line or plane.
        """
        particles = self.basis.to_particles(z)
        if self.permutations:
            z = self.basis.to_coordinates(self._numbered(particles))
        t = self._triangle(z)
        diagonal = t.diagonal(dim1=-2, dim2=-1)[..., : self._rank]
        rounding = torch.finfo(z.dtype).eps * z.norm(dim=-1, keepdim=True)
        bad = int((~(diagonal > rounding).all(-1)).sum())
        if bad:
            raise ValueError(
                f"{bad} configurations have no frame: their first {self._rank + 1} particles coincide, or lie on a "
                "line or plane; move them, or leave them out"
            )
        return torch.cat([diagonal.log(), t[..., self._above[0], self._above[1]]], -1)

    def to_coordinates(self, s: Tensor) -> Tensor:
        """The representatives ``(*batch, (N - 1) D)`` with :math:`Q = I`, differentiable.

        :raises ShapeError: if the last dimension of ``s`` is not ``dim``.
        """
        self._check(s)
        t = s.new_zeros(*s.shape[:-1], self.basis.spatial_dim, self.basis.num_particles - 1)
        index = torch.arange(self._rank, device=s.device)
        t[..., index, index] = s[..., : self._rank].exp()
        t[..., self._above[0], self._above[1]] = s[..., self._rank :]
        return t.mT.flatten(-2)

    def log_volume(self, s: Tensor) -> Tensor:
        r""":math:`\log \omega(s)`, ``(*batch)``."""
        self._check(s)
        powers = torch.arange(self.basis.spatial_dim, self.basis.spatial_dim - self._rank, -1).to(s)
        return s[..., : self._rank] @ powers + self._log_constant

    def is_ordered(self, s: Tensor) -> Tensor:
        """Whether ``s`` stands for an orbit: all true without permutations, ``(*batch)``."""
        if not self.permutations:
            return torch.ones(s.shape[:-1], dtype=torch.bool, device=s.device)
        radius = self.basis.to_particles(self.to_coordinates(s)).square().sum(-1)
        return (radius.diff(dim=-1) >= 0).all(-1)

    def spread(self, s: Tensor, *, generator: Generator | None = None) -> Tensor:
        """Helmert coordinates ``(n, (N - 1) D)`` at random places of the orbits ``(n, dim)``."""
        g = self._symmetry.random(len(s), generator=generator, like=s)
        return self._symmetry.act(g, self.to_coordinates(s))

    def log_prob(self, z: Tensor, slice_log_prob: Callable[[Tensor], Tensor]) -> Tensor:
        r""":math:`\log q(s(z)) - \log \omega(s(z))` of Helmert coordinates, invariant by construction.

        :param slice_log_prob: :math:`\log q` of slice coordinates, such as that of a trained flow.
        """
        s = self.to_slice(z)
        return slice_log_prob(s) - self.log_volume(s)

    def energy(self, energy: Callable[[Tensor], Tensor]) -> GaugeFixedEnergy:
        """The energy of slice coordinates, :class:`GaugeFixedEnergy`."""
        return GaugeFixedEnergy(energy, self)

    def _triangle(self, z: Tensor) -> Tensor:
        columns = z.reshape(*z.shape[:-1], -1, self.basis.spatial_dim).mT
        q, r = torch.linalg.qr(columns[..., : self._rank], mode="complete")
        sign = torch.where(r.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(z)
        t = q.mT @ columns
        # Axes beyond the rank carry nothing.
        return torch.cat([sign.unsqueeze(-1) * t[..., : self._rank, :], t[..., self._rank :, :]], -2)

    def _numbered(self, x: Tensor) -> Tensor:
        order = x.square().sum(-1).argsort(-1)
        return x.gather(-2, order.unsqueeze(-1).expand_as(x))

    def _check(self, s: Tensor) -> None:
        if s.dim() < 1 or s.shape[-1] != self.dim:
            raise ShapeError(
                f"expected slice coordinates of shape (*batch, {self.dim}), got {tuple(s.shape)}; "
                ".to_slice(z) makes them from Helmert coordinates"
            )


class GaugeFixedEnergy:
    r"""An invariant energy on slice coordinates, with the same :math:`Z`:

    .. math:: u_\text{slice}(s) = u(z(s)) - \log \omega(s),

    :math:`+\infty`, weight zero, where ``s`` is not in order. The target of an ordinary flow, of sequential Monte
    Carlo, or of anything else that samples energies on :math:`\mathbb{R}^{\text{dim}}`.

    :param energy: of Helmert coordinates, invariant under :math:`O(D)`, and under permutations if the gauge has them.
    :param gauge: the coordinates.

    >>> gauge = ParticleGauge(2, 2)
    >>> u = gauge.energy(lambda z: 0.5 * z.square().sum(-1))
    >>> s = torch.linspace(-8, 4, 4001).unsqueeze(-1)  # the logarithm of the radius: log Z = log 2 pi
    >>> round(float(torch.trapezoid((-u(s)).exp(), s.squeeze(-1)).log()), 4)
    1.8379
    """

    def __init__(self, energy: Callable[[Tensor], Tensor], gauge: ParticleGauge) -> None:
        self.base = energy
        self.gauge = gauge

    def __call__(self, s: Tensor) -> Tensor:
        u = self.base(self.gauge.to_coordinates(s)) - self.gauge.log_volume(s)
        return torch.where(self.gauge.is_ordered(s), u, torch.inf) if self.gauge.permutations else u


def _log_stiefel_volume(m: int, dim: int) -> float:
    """Of the orthonormal m-frames in ``dim`` dimensions; the multivariate gamma function spelt out."""
    log_gamma = 0.25 * m * (m - 1) * math.log(math.pi) + sum(math.lgamma(0.5 * (dim - i)) for i in range(m))
    return m * math.log(2.0) + 0.5 * m * dim * math.log(math.pi) - log_gamma
