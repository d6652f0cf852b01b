"""What a continuous flow integrates."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["VelocityField"]


class VelocityField(nn.Module):
    r"""A velocity :math:`v(t, x)` of points that flow from :math:`t = 0` to :math:`t = 1`,

    .. math:: \frac{dx}{dt} = v(t, x), \qquad \frac{d \log q(x)}{dt} = -\nabla \cdot v(t, x) .

    Subclasses implement both methods; ``t`` is a number or a scalar tensor, ``x`` has shape ``(*batch, dim)``.
    """

    def forward(self, t: float | Tensor, x: Tensor) -> Tensor:
        """The velocity, of the shape of ``x``."""
        raise NotImplementedError

    def velocity_and_divergence(self, t: float | Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        r"""The velocity and :math:`\nabla \cdot v`, ``(*batch)``, in one pass."""
        raise NotImplementedError
