"""A field of many-body forces, the gradient of an embedded-atom potential, with the divergence in closed form."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyro_boltzmann.transforms.continuous.particle_field import ParticleField
from pyro_boltzmann.transforms.continuous.radial_kernels import ConstantKernel, GaussianKernels, smooth_distance
from pyro_boltzmann.transforms.continuous.spline_kernels import SplineKernels

__all__ = ["EmbeddedAtomField"]


class EmbeddedAtomField(ParticleField):
    r"""The field :math:`v = -\nabla \Phi` of pairs and of what each particle sees of all others,

    .. math::

        \Phi(x, t) = \sum_{i < j} \bigl[\phi(d_{ij}, t) - \tfrac12 b(t)\, |r_{ij}|^2\bigr] + \sum_i G(\rho_i, t), \qquad
        \rho_i^a = \sum_{j \ne i} \psi_a(d_{ij}, t), \quad a = 1, \dots, A,

    where :math:`\phi` and :math:`\psi_a` are sums of radial kernels and
    :math:`G(\rho, t) = \sum_h c_h(t) \tanh(R_h \cdot \rho + e_h(t))`. With :math:`\psi = \psi_a`,
    :math:`g_{ij} = \psi'(d_{ij}) / d_{ij}` and :math:`s = |r|^2 / d^2` the gradients and Laplacians are

    .. math::

        \nabla_i \rho_i &= \sum_j g_{ij} r_{ij}, \qquad
        \nabla_j \rho_i = -g_{ij} r_{ij}, \qquad
        \Delta \rho_i = 2 \sum_j \bigl[D g + (\psi'' - g) s\bigr]_{ij}, \\
        \nabla \cdot v &= -\Delta \Phi, \qquad
        \Delta G(\rho_i) = \sum_a G_a \Delta \rho_i^a + \sum_{ab} G_{ab} \nabla \rho_i^a \cdot \nabla \rho_i^b,

    so that velocity and divergence cost :math:`O(N^2)`, pairs counted once, and no automatic differentiation.

    :param num_particles: :math:`N \ge 2`.
    :param spatial_dim: :math:`D \ge 1`.
    :param num_densities: :math:`A \ge 1`. The cost grows as its square.
    :param width: the number of units of :math:`G`.
    :param kernels: 64 :class:`SplineKernels` of radius 10 unless given. They have to be even, so that forces are smooth
        where particles meet.
    :param time_kernels: ten Gaussians on [0, 1] unless given; a :class:`ConstantKernel` for a field without time.
    :raises ShapeError: by all methods, unless ``x`` is ``(*batch, (N - 1) D)`` and ``t`` one time.

    >>> field = EmbeddedAtomField(13, 3)
    >>> velocity, divergence = field.velocity_and_divergence(0.5, torch.randn(10, 36))
    >>> velocity.shape, divergence.shape
    (torch.Size([10, 36]), torch.Size([10]))

    Source: the energy is that of M. S. Daw and M. I. Baskes, Phys. Rev. B 29, 6443 (1984), with several densities; its
    use as the potential of a flow is this package's own.
    """

    def __init__(
        self,
        num_particles: int,
        spatial_dim: int,
        *,
        num_densities: int = 4,
        width: int = 32,
        kernels: SplineKernels | None = None,
        time_kernels: GaussianKernels | ConstantKernel | None = None,
    ) -> None:
        super().__init__(num_particles, spatial_dim, time_kernels)
        if num_densities < 1 or width < 1:
            raise ValueError(
                "an embedded-atom field needs num_densities >= 1 and width >= 1, got "
                f"num_densities={num_densities}, width={width}"
            )
        self.kernels = kernels or SplineKernels()
        self.num_densities = num_densities
        times, number = self.num_times, self.kernels.num_kernels
        self.weights = nn.Parameter(
            torch.cat([torch.zeros(1, number), _neighbourhoods(self.kernels.centres, num_densities)]).repeat(
                times, 1, 1
            )
        )
        self.rows = nn.Parameter(torch.randn(width, num_densities) * ((num_particles - 1) * num_densities) ** -0.5)
        self.shifts = nn.Parameter(torch.randn(width).repeat(times, 1))
        self.heights = nn.Parameter(0.1 * torch.randn(times, width) / width**0.5)

    def potential(self, t: float | Tensor, x: Tensor) -> Tensor:
        r""":math:`\Phi`, ``(*batch)``."""
        square, distance = smooth_distance(self.pairs.differences(x))
        time = self.time(t)
        (values,) = self._radial(time, distance, 0)
        units, heights = self._units(time, values)
        pairs = values[0] - 0.5 * (time @ self.bias) * square
        return (pairs.sum(-1) + (heights * units).sum((0, 2))).view(x.shape[:-1])

    def forward(self, t: float | Tensor, x: Tensor) -> Tensor:
        difference = self.pairs.differences(x)
        _, distance = smooth_distance(difference)
        time = self.time(t)
        values, slopes = self._radial(time, distance, 1)
        units, heights = self._units(time, values)
        both = self._gradients(heights * (1.0 - units * units))
        return self.pairs.forces((time @ self.bias - (both * (slopes / distance)).sum(0)) * difference, x)

    def velocity_and_divergence(self, t: float | Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        difference = self.pairs.differences(x)
        square, distance = smooth_distance(difference)
        time = self.time(t)
        bias = time @ self.bias
        values, slopes, bends = self._radial(time, distance, 2)
        slopes = slopes / distance
        units, heights = self._units(time, values)
        first = heights * (1.0 - units * units)
        both = self._gradients(first)
        velocity = self.pairs.forces((bias - (both * slopes).sum(0)) * difference, x)

        laplacians = torch.addcmul(self.spatial_dim * slopes, bends - slopes, square / (distance * distance))
        of_densities = (both * laplacians).sum(0) - self.spatial_dim * bias
        curvatures, densities = self._curvatures(-2.0 * units * first), slopes[1:]
        of_pairs = ((self.pairs.of_both(curvatures) * densities).sum(1) * densities).sum(0) * square
        seen = self.pairs.signed_of_each(densities.unsqueeze(1) * difference)
        of_particles = (curvatures.unsqueeze(2) * seen).sum(1) * seen
        divergence = (2.0 * of_densities + of_pairs).sum(-1) + of_particles.sum((0, 1, 3))
        return velocity, -divergence.view(x.shape[:-1])

    def _radial(self, time: Tensor, distance: Tensor, order: int) -> tuple[Tensor, ...]:
        r""":math:`\phi` and all :math:`\psi_a` with their derivatives, ``(1 + A, rows, P)`` each."""
        weights = (time @ self.weights.flatten(1)).view(self.weights.shape[1:])
        return self.kernels.derivatives(distance, weights, order)

    def _units(self, time: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """The units of G ``(H, rows, N)`` and their heights ``(H, 1, 1)``, from the radial functions
        ``(1 + A, rows, P)``."""
        density = self.pairs.of_each(values[1:])
        units = torch.addmm((time @ self.shifts).unsqueeze(-1), self.rows, density.flatten(1)).tanh()
        return units.view(len(self.rows), *density.shape[1:]), (time @ self.heights).view(-1, 1, 1)

    def _gradients(self, first: Tensor) -> Tensor:
        r"""What each radial function of a pair counts in :math:`\Phi`, ``(1 + A, rows, P)``, from the first derivatives
        ``(H, rows, N)`` of the units: one for :math:`\phi`, :math:`G_a(\rho_i) + G_a(\rho_j)` for :math:`\psi_a`."""
        both = self.pairs.of_both((self.rows.mT @ first.flatten(1)).view(self.num_densities, *first.shape[1:]))
        return torch.cat([torch.ones_like(both[:1]), both])

    def _curvatures(self, second: Tensor) -> Tensor:
        r""":math:`G_{ab}`, ``(A, A, rows, N)``, from the second derivatives ``(H, rows, N)`` of the units."""
        outer = (self.rows.unsqueeze(1) * self.rows.unsqueeze(2)).flatten(1)
        return (outer.mT @ second.flatten(1)).view(self.num_densities, self.num_densities, *second.shape[1:])


def _neighbourhoods(centres: Tensor, number: int) -> Tensor:
    """Weights ``(A, K)`` of bumps around zero, nested from narrow to half the radius: soft counts of neighbours."""
    reach = 0.5 * centres[-1:].clamp(min=1e-6) * torch.arange(1, number + 1).unsqueeze(-1) / number
    return torch.exp(-(centres / reach).square())
