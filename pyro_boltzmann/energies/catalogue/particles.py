"""Particles with their centre of mass at the origin, and energies that are sums over their pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_boltzmann.energies.catalogue.closed_form import ClosedForm, keeps_graph
from pyro_boltzmann.energies.catalogue.target import Target
from pyro_boltzmann.energies.columns import by_columns
from pyro_boltzmann.energies.tracing import is_tracing
from pyro_boltzmann.exceptions import ShapeError

__all__ = ["PairTarget", "ParticleTarget"]

# Pair differences held at once: about a megabyte in float32, which stays in the caches.
WORKING_SET = 2**18


class ParticleTarget(Target):
    r"""A target on :math:`N` particles in :math:`D` dimensions whose energy does not change under translation.

    It lives on the :math:`(N - 1) D` orthonormal Helmert coordinates of
    :class:`~pyro_boltzmann.transforms.mean_free.MeanFreeBasis`, so it is an ordinary density on
    :math:`\mathbb{R}^{(N-1)D}` and :math:`\log Z` needs no convention about the centre of mass.

    :param name: the catalogue name.
    :param num_particles: :math:`N \ge 2`.
    :param spatial_dim: :math:`D`.
    :param constants: as for :class:`Target`; further keyword arguments are those of :class:`Target`.
    """

    def __init__(
        self,
        name: str,
        num_particles: int,
        spatial_dim: int,
        *,
        constants: Mapping[str, float | int | str | Tensor],
        **truths: Any,
    ) -> None:
        # Imported here because the rooms of the package import to the left only at load time.
        from pyro_boltzmann.transforms.mean_free import MeanFreeBasis

        self.num_particles = num_particles
        self.spatial_dim = spatial_dim
        self.basis = MeanFreeBasis(num_particles, spatial_dim)
        super().__init__(name, self.basis.dim, constants=constants, **truths)

    def to_particles(self, x: Tensor) -> Tensor:
        """Mean-free positions ``(*batch, N, D)`` of Helmert coordinates ``(*batch, (N - 1) D)``."""
        return self.basis.to_particles(x)

    def from_particles(self, particles: Tensor) -> Tensor:
        """Helmert coordinates ``(*batch, (N - 1) D)`` of positions ``(*batch, N, D)``, whatever their centre."""
        return self.basis.to_coordinates(particles)


class PairTarget(ClosedForm, ParticleTarget):
    r"""Particles with an energy in every pair distance, each pair counted once, and perhaps a common harmonic trap:

    .. math::

        u(x) = \sum_{i<j} v(r_{ij}^2) + \frac{k}{2} \sum_i |x_i - \bar x|^2, \qquad
        \nabla_{x_i} u = \sum_{j \ne i} 2 v'(r_{ij}^2)\, (x_i - x_j) + k\, (x_i - \bar x) .

    In Helmert coordinates :math:`z` the trap is :math:`\tfrac{k}{2} |z|^2`. Pair differences are one product of
    :math:`z` with a constant matrix, and the gradient is one product back.

    A subclass implements :meth:`pair_energy` and :meth:`pair_energy_and_slope`. Both ways to evaluate it raise
    :class:`~pyro_boltzmann.exceptions.ShapeError` for anything but ``(*batch, (N - 1) D)``.

    >>> class Springs(PairTarget):
    ...     def pair_energy(self, square):
    ...         return 0.5 * square.sum(0)
    ...     def pair_energy_and_slope(self, square):
    ...         return 0.5 * square.sum(0), torch.ones_like(square)
    >>> target = Springs("springs", 3, 2, constants={})
    >>> u, gradient = target.energy_and_gradient(torch.ones(5, 4))
    >>> u.shape, torch.allclose(gradient, 3 * torch.ones(5, 4))
    (torch.Size([5]), True)
    """

    trap: float = 0.0

    def __init__(
        self,
        name: str,
        num_particles: int,
        spatial_dim: int,
        *,
        constants: Mapping[str, float | int | str | Tensor],
        **truths: Any,
    ) -> None:
        super().__init__(name, num_particles, spatial_dim, constants=constants, **truths)
        helmert = self.basis.matrix(torch.empty((), dtype=torch.float64))
        i, j = torch.triu_indices(num_particles, num_particles, offset=1)
        self._derived["pairs"] = (helmert[:, i] - helmert[:, j]).mT.contiguous()

    def pair_energy(self, square: Tensor) -> Tensor:
        r""":math:`\sum v(r^2)` of squared distances ``(pairs, batch)``, of shape ``(batch)``, for autograd."""
        raise NotImplementedError(f"{type(self).__name__} must implement pair_energy(square)")

    def pair_energy_and_slope(self, square: Tensor) -> tuple[Tensor, Tensor]:
        r""":math:`\sum v(r^2)` of shape ``(batch)`` and :math:`2 v'(r^2)` of shape ``(pairs, batch)``.

        No graph is kept, and ``square`` may be overwritten.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement pair_energy_and_slope(square)")

    def __call__(self, x: Tensor) -> Tensor:
        flat = self._rows_of(x)
        # With a graph everything is kept anyway, so nothing is gained by going in parts.
        parts = (flat,) if keeps_graph(x) else flat.split(self._rows())
        return _join([self._energy(part) for part in parts]).reshape(x.shape[:-1])

    def closed_form(self, x: Tensor) -> tuple[Tensor, Tensor]:
        parts = [self._energy_and_gradient(part) for part in self._rows_of(x).split(self._rows())]
        u, columns = (_join(each) for each in zip(*parts, strict=True))
        gradient = columns.mT.reshape(x.shape)
        # States that come stored by columns get forces stored alike.
        return u.reshape(x.shape[:-1]), gradient.contiguous() if x.is_contiguous() else by_columns(gradient)

    def _rows_of(self, x: Tensor) -> Tensor:
        if not is_tracing() and (x.dim() < 1 or x.shape[-1] != self.dim):
            raise ShapeError(
                f"expected mean-free coordinates of shape (*batch, {self.dim}) for {self.num_particles} particles in "
                f"{self.spatial_dim} dimensions, got {tuple(x.shape)}; .from_particles(x) makes them from positions"
            )
        return x.reshape(-1, self.dim)

    def _rows(self) -> int:
        """How many configurations are evaluated at once."""
        return max(1, WORKING_SET // self._derived["pairs"].shape[0] // self.spatial_dim)

    def _differences(self, flat: Tensor) -> Tensor:
        """All pair differences, of shape ``(pairs, D, batch)``: the batch innermost, where element-wise work is."""
        pairs = self._on("pairs", flat)
        columns = flat.mT.reshape(pairs.shape[1], self.spatial_dim * len(flat))
        return (pairs @ columns).view(len(pairs), self.spatial_dim, len(flat))

    def _energy(self, flat: Tensor) -> Tensor:
        u = self.pair_energy(_squares(self._differences(flat)))
        return u + (0.5 * self.trap) * flat.square().sum(-1) if self.trap else u

    def _energy_and_gradient(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """Energies ``(batch)`` and gradients by columns ``(dim, batch)``."""
        differences = self._differences(flat)
        u, slope = self.pair_energy_and_slope(_squares(differences))
        forces = differences.mul_(slope.unsqueeze(1)).view(len(slope), self.spatial_dim * len(flat))
        gradient = (self._on("pairs", flat).mT @ forces).view(self.dim, len(flat))
        if self.trap:
            u.add_(flat.square().sum(-1), alpha=0.5 * self.trap)
            gradient.add_(flat.mT, alpha=self.trap)
        return u, gradient


def _join(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), -1)


def _squares(differences: Tensor) -> Tensor:
    """Squared lengths ``(pairs, batch)`` of vectors ``(pairs, D, batch)``."""
    first, *others = differences.unbind(1)
    square = first * first
    for other in others:
        square.addcmul_(other, other)
    return square
