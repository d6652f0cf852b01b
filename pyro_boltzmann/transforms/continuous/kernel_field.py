"""The kernel field of Koehler, Klein and Noe: pair forces by radial kernels, with the divergence in closed form."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyro_boltzmann.transforms.continuous.particle_field import ParticleField
from pyro_boltzmann.transforms.continuous.radial_kernels import (
    ConstantKernel,
    GaussianKernels,
    RadialKernels,
    smooth_distance,
)
from pyro_boltzmann.transforms.continuous.spline_kernels import SplineKernels

__all__ = ["KernelField"]


class KernelField(ParticleField):
    r"""Forces between pairs of particles, along their difference :math:`r_{ij} = x_i - x_j`,

    .. math::

        v_i(t, x) &= \sum_{j \ne i} r_{ij}\, f(d_{ij}, t), \qquad d_{ij} = \sqrt{|r_{ij}|^2 + 10^{-6}}, \\
        f(d, t) &= \sum_m \rho_m(t) \Bigl[ \sum_k W_{mk} \bigl(\kappa_k(d) + a_k\bigr) + b_m \Bigr], \\
        \nabla \cdot v &= 2 \sum_{i < j} \bigl[ D f(d_{ij}, t) + f'(d_{ij}, t)\, |r_{ij}|^2 / d_{ij} \bigr],

    the gradient of a pair potential, hence equivariant under rotations, reflections and permutations. Each pair is
    counted once, time is contracted before any pair is touched, and the divergence is exact at all distances. Beyond
    the kernels :math:`f` is the constant :math:`\sum_m \rho_m (\sum_k W_{mk} a_k + b_m)`: a harmonic force. Weights
    start near zero, so that a flow starts near the identity.

    :param num_particles: :math:`N \ge 2`.
    :param spatial_dim: :math:`D \ge 1`.
    :param kernels: 64 :class:`SplineKernels` of radius 10 unless given. The published ones for DW-4 are
        ``GaussianKernels.uniform(50, 0.0, 8.0, 0.5)``, those for LJ-13 ``GaussianKernels.lennard_jones()``.
    :param time_kernels: ten Gaussians on [0, 1] unless given; a :class:`ConstantKernel` for a field without time.
    :raises ShapeError: by both methods, unless ``x`` is ``(*batch, (N - 1) D)`` and ``t`` one time.

    >>> field = KernelField(4, 2)
    >>> velocity, divergence = field.velocity_and_divergence(0.5, torch.randn(10, 6))
    >>> velocity.shape, divergence.shape
    (torch.Size([10, 6]), torch.Size([10]))

    Source: J. Koehler, L. Klein and F. Noe, Equivariant flows, arXiv 2006.02425 (2020), section 6. There
    :math:`a_k` enters squared, which leaves it at zero for ever.
    """

    def __init__(
        self,
        num_particles: int,
        spatial_dim: int,
        *,
        kernels: RadialKernels | None = None,
        time_kernels: GaussianKernels | ConstantKernel | None = None,
    ) -> None:
        super().__init__(num_particles, spatial_dim, time_kernels)
        self.kernels = kernels or SplineKernels()
        number = self.kernels.num_kernels
        self.weights = nn.Parameter(0.1 * torch.randn(self.num_times, number) / number**0.5)
        self.importance = nn.Parameter(torch.zeros(number))

    def forward(self, t: float | Tensor, x: Tensor) -> Tensor:
        difference = self.pairs.differences(x)
        weights, constant = self._contracted(t)
        (force,) = self.kernels.derivatives(smooth_distance(difference)[1], weights, 0)
        return self.pairs.forces((force[0] + constant) * difference, x)

    def velocity_and_divergence(self, t: float | Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        forces, divergence = self.kernels.pair_forces(self.pairs.differences(x), *self._contracted(t))
        return self.pairs.forces(forces, x), divergence.view(x.shape[:-1])

    def _contracted(self, t: float | Tensor) -> tuple[Tensor, Tensor]:
        """The weights ``(1, K)`` of the kernels at one time, and the constant beside them."""
        time = self.time(t)
        weights = time @ self.weights
        return weights.unsqueeze(0), time @ self.bias + self.importance @ weights
