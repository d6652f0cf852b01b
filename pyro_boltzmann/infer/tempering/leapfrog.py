"""Leapfrog steps of many particles at a temperature, in as few operations as they take."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_boltzmann.energies.evaluation import Energy, energy_and_gradient
from pyro_boltzmann.energies.reference import NormalEnergy
from pyro_boltzmann.infer.tempering.ensemble import Ensemble
from pyro_boltzmann.infer.tempering.preconditioner import Preconditioner

__all__ = ["Leapfrog"]


class Leapfrog:
    r"""Steps at :math:`u_\lambda = u_0 + \lambda (u - u_0)` in the variables :math:`y` of :math:`x = A y`,

    .. math:: x \leftarrow x + h A p, \qquad
        p \leftarrow p - \lambda h A^\top \nabla u(x) - (1 - \lambda) h A^\top \nabla u_0(x).

    What stays the same on the way is multiplied once: :math:`h A` of a diagonal A, and the factors of the kicks, with
    the precision :math:`s^{-2}` of a Gaussian reference, whose gradient is then :math:`x - \mu`. At
    :math:`\lambda = 1`, given as a number, the reference is not asked.

    :param position: :math:`\lambda > 0`, a number, or a tensor that broadcasts with ``(*batch)``.
    :param step: :math:`h`, ``(*batch, 1)``.
    :param x: where the particles are, ``(*batch, dim)``.
    """

    def __init__(
        self,
        reference: Energy,
        target: Energy,
        position: float | Tensor,
        step: Tensor,
        scale: Preconditioner,
        x: Tensor,
    ) -> None:
        self.reference, self.target = reference, target
        self.dense = scale if scale.is_dense else None
        # Written out: a factor that is spread over the numbers of a row costs twice as much at each step.
        self.drift = step * scale.factor if self.dense is None else step.expand_as(x).contiguous()
        share = position.unsqueeze(-1).to(x) if isinstance(position, Tensor) else position
        self.kick = _times(self.drift, -share)
        self.asks_reference = isinstance(share, Tensor) or share != 1.0
        self.normal = reference if self.asks_reference and isinstance(reference, NormalEnergy) else None
        self.loc = None if self.normal is None else self.normal.spread_loc(x)
        rest = share - 1.0
        self.base_kick = _times(self.drift, rest if self.normal is None else rest * self.normal.precision(x))

    def trajectory(self, start: Ensemble, momentum: Tensor, num_steps: int) -> tuple[Ensemble, Tensor]:
        """Where ``num_steps`` steps lead, and the momentum there; the force at the end of a step begins the next."""
        x, base, base_gradient, gradient = start.x, start.reference, start.reference_gradient, start.target_gradient
        assert gradient is not None
        momentum = self._kicked(momentum, x, gradient, base_gradient, 0.5)
        for remaining in range(num_steps - 1, -1, -1):
            x = torch.addcmul(x, self.drift, momentum if self.dense is None else self.dense.outward(momentum))
            u, gradient = energy_and_gradient(self.target, x)
            if self.asks_reference and self.normal is None:
                base, base_gradient = energy_and_gradient(self.reference, x)
            momentum = self._kicked(momentum, x, gradient, base_gradient, 1.0 if remaining else 0.5)
        if self.normal is not None:  # nobody reads its energy on the way
            base = self.normal(x)
        return Ensemble(x, base, u, base_gradient, gradient), momentum

    def _kicked(
        self, momentum: Tensor, x: Tensor, gradient: Tensor, base_gradient: Tensor | None, share: float
    ) -> Tensor:
        """The momentum after ``share`` of a step's kick."""
        factor, number = self.kick
        if self.dense is None:
            momentum = torch.addcmul(momentum, factor, gradient, value=share * number)
            if self.asks_reference:
                factor, number = self.base_kick
                momentum.addcmul_(factor, self._direction(x, base_gradient), value=share * number)
            return momentum
        kick = torch.mul(factor, gradient).mul_(number)
        if self.asks_reference:
            factor, number = self.base_kick
            kick.addcmul_(factor, self._direction(x, base_gradient), value=number)
        return torch.add(momentum, self.dense.inward(kick), alpha=share)

    def _direction(self, x: Tensor, base_gradient: Tensor | None) -> Tensor:
        """The gradient of the reference, but for the precision of a Gaussian."""
        if self.normal is not None:
            return x if self.loc is None else x - self.loc
        assert base_gradient is not None
        return base_gradient


def _times(factor: Tensor, other: float | Tensor) -> tuple[Tensor, float]:
    """A product as a tensor and a number; numbers cost nothing on the way."""
    return (factor, other) if isinstance(other, float) else (factor * other, 1.0)
