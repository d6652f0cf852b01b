"""What fields of pairs of particles share: distances that are smooth where particles meet, and kernels in time."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyro_boltzmann.exceptions import ShapeError
from pyro_boltzmann.transforms.continuous.pair_columns import PairColumns
from pyro_boltzmann.transforms.continuous.radial_kernels import ConstantKernel, GaussianKernels
from pyro_boltzmann.transforms.continuous.velocity_field import VelocityField

__all__ = ["ParticleField"]


class ParticleField(VelocityField):
    r"""A field of :math:`N` particles that depends on the distances :math:`d_{ij} = \sqrt{|x_i - x_j|^2 + 10^{-6}}`
    and on time.

    :param num_particles: :math:`N \ge 2`.
    :param spatial_dim: :math:`D \ge 1`.
    :param time_kernels: ten Gaussians on [0, 1] unless given; a :class:`ConstantKernel` for a field without time.
    """

    def __init__(
        self, num_particles: int, spatial_dim: int, time_kernels: GaussianKernels | ConstantKernel | None = None
    ) -> None:
        super().__init__()
        self.pairs = PairColumns(num_particles, spatial_dim)
        self.time_kernels: nn.Module = time_kernels or GaussianKernels.uniform(10, 0.0, 1.0, 0.3)
        self.num_times = int((time_kernels or self.time_kernels).num_kernels)
        self.bias = nn.Parameter(torch.zeros(self.num_times))

    @property
    def dim(self) -> int:
        """:math:`(N - 1) D`."""
        return self.pairs.basis.dim

    @property
    def spatial_dim(self) -> int:
        """:math:`D`."""
        return self.pairs.basis.spatial_dim

    def time(self, t: float | Tensor) -> Tensor:
        """The kernels at one time, ``(K_t,)``.

        :raises ShapeError: if the time is no scalar.
        """
        like = self.bias
        time = torch.as_tensor(t, dtype=like.dtype, device=like.device)
        if time.dim() > 0:
            raise ShapeError(f"expected one time for the whole batch, got a tensor of shape {tuple(time.shape)}")
        kernels: Tensor = self.time_kernels(time)
        return kernels
