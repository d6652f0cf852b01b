"""Four particles in the plane, bound pairwise by double wells."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_boltzmann.energies.catalogue.target import Target

__all__ = ["DW4"]


class DW4(Target):
    r"""Four particles in two dimensions with a double well in every pair distance.

    .. math:: u(x) = \sum_{i<j} \left[ 0.9\, (d_{ij} - 4)^4 - 4\, (d_{ij} - 4)^2 \right]

    The centre of mass is fixed at the origin by working in the 6 orthonormal Helmert coordinates of
    :class:`~pyro_boltzmann.transforms.mean_free.MeanFreeBasis`, so the density is an ordinary normalised density on
    :math:`\mathbb{R}^6`. It is invariant under permutations, rotations and reflections of the particles.

    There is no exact sampler. :math:`\log Z = 29.665 \pm 0.005` and the mean energy were measured by tempered SMC
    with HMC moves (7 runs of 40 000 particles, confirmed by annealed importance sampling).

    Source: Koehler, Klein and Noe, Equivariant Flows (2020), arXiv 2006.02425, section 6.1.

    >>> target = DW4()
    >>> particles = target.to_particles(torch.zeros(3, 6))
    >>> particles.shape, target(torch.zeros(3, 6)).shape, target.virial_dof
    (torch.Size([3, 4, 2]), torch.Size([3]), 6)
    """

    num_particles: int = 4
    spatial_dim: int = 2

    def __init__(self) -> None:
        # Imported here because the rooms of the package import to the left only at load time.
        from pyro_boltzmann.transforms.mean_free import MeanFreeBasis

        self.basis = MeanFreeBasis(self.num_particles, self.spatial_dim)
        i, j = torch.triu_indices(self.num_particles, self.num_particles, offset=1)
        helmert = self.basis.matrix(torch.empty((), dtype=torch.float64))
        along_one_axis = helmert[:, i] - helmert[:, j]
        # (6, 12): from coordinates to the six pair differences along x, then the six along y, in one product.
        axes = torch.eye(2, dtype=torch.float64).unsqueeze(-1).unbind()
        pair_differences = torch.cat([torch.kron(along_one_axis, axis) for axis in axes], -1)
        super().__init__(
            "dw4",
            self.basis.dim,
            constants={"offset": 4.0, "quadratic": -4.0, "quartic": 0.9, "pair_differences": pair_differences},
            log_z=29.665,
            log_z_error=0.005,
            log_z_origin="measured",
            mean_energy=-22.541,
            mean_energy_error=0.002,
            bounds=((-6.0, 6.0), (-6.0, 6.0)),
        )

    def __call__(self, x: Tensor) -> Tensor:
        dx, dy = (x @ self._on("pair_differences", x)).chunk(2, -1)
        # The distance is not differentiable where two particles coincide: a floor keeps both derivatives finite.
        distance = torch.addcmul(dx * dx, dy, dy).clamp(min=1e-16).sqrt()
        square = (distance - 4.0).square()
        return (square * (0.9 * square - 4.0)).sum(-1)

    def to_particles(self, x: Tensor) -> Tensor:
        """Mean-free positions ``(*batch, 4, 2)`` of Helmert coordinates ``(*batch, 6)``."""
        return self.basis.to_particles(x)

    def from_particles(self, particles: Tensor) -> Tensor:
        """Helmert coordinates ``(*batch, 6)`` of positions ``(*batch, 4, 2)``; the centre of mass is dropped."""
        return self.basis.to_coordinates(particles)
