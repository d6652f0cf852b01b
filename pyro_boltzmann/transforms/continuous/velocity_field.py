"""The contract of a velocity field: what a continuous flow integrates."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["VelocityField"]


class VelocityField(nn.Module):
    r"""A velocity :math:`v(t, x)` and its divergence :math:`\nabla \cdot v`, for flows :math:`\dot x = v(t, x)`.

    The time ``t`` is a float or a scalar tensor in :math:`[0, 1]`; ``x`` has shape ``(*batch, dim)``. For particles
    these are the coordinates of :class:`~pyro_boltzmann.transforms.MeanFreeBasis`: a field that keeps the centre of
    mass and does not see it has the same divergence there as on :math:`\mathbb{R}^{N D}`.
    """

    def forward(self, t: float | Tensor, x: Tensor) -> Tensor:
        """The velocity, with the shape of ``x``."""
        raise NotImplementedError

    def velocity_and_divergence(self, t: float | Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """The velocity, with the shape of ``x``, and its divergence ``(*batch)``, in one pass."""
        raise NotImplementedError
