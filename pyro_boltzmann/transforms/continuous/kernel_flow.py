"""The kernel flow of particles: a continuous flow over a field of pair forces."""

from __future__ import annotations

from typing import Any

from pyro_boltzmann.transforms.continuous.continuous_transform import ContinuousTransform
from pyro_boltzmann.transforms.continuous.kernel_field import KernelField
from pyro_boltzmann.transforms.continuous.radial_kernels import ConstantKernel, GaussianKernels, RadialKernels

__all__ = ["KernelFlow"]


class KernelFlow(ContinuousTransform):
    r"""The flow of a :class:`KernelField`: pair forces :math:`v_i = \sum_j r_{ij} f(|r_{ij}|, t)` with their divergence
    in closed form.

    With an isotropic Gaussian base its density is invariant under rotations, reflections and permutations. Forces
    between pairs alone cannot follow many-body correlations; :class:`EmbeddedAtomField` and :class:`GraphField` can.

    :param num_particles: N.
    :param spatial_dim: D.
    :param kernels: as for :class:`KernelField`, like ``time_kernels``.
    :param settings: as for :class:`ContinuousTransform`.
    :raises ShapeError: if there are fewer than two particles.

    Source: Koehler, Klein and Noe, arXiv 2006.02425, section 5.

    >>> import torch
    >>> flow = KernelFlow(4, 2, num_steps=10)
    >>> y, ladj = flow.call_and_ladj(torch.randn(5, 6))
    >>> y.shape, ladj.shape
    (torch.Size([5, 6]), torch.Size([5]))
    """

    def __init__(
        self,
        num_particles: int,
        spatial_dim: int,
        *,
        kernels: RadialKernels | None = None,
        time_kernels: GaussianKernels | ConstantKernel | None = None,
        **settings: Any,
    ) -> None:
        field = KernelField(num_particles, spatial_dim, kernels=kernels, time_kernels=time_kernels)
        super().__init__(field, (num_particles - 1) * spatial_dim, **settings)
