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

    What stays the same on the way is multiplied once: :math:`\lambda h A` and :math:`(1 - \lambda) h A` of a diagonal
    A, and the precision :math:`s^{-2}` of a Gaussian reference, whose gradient is then :math:`x - \mu`. At
    :math:`\lambda = 1`, given as a number, the reference is not asked.

    :param position: :math:`\lambda > 0`, a number, or a tensor that broadcasts with ``(*batch)``.
    :param step: :math:`h`, ``(*batch)``.
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
        h = step.unsqueeze(-1)
        # Written out: a factor that is spread over the numbers of a row costs twice as much at each step.
        self.drift = h * scale.factor if self.dense is None else h.expand_as(x).contiguous()
        self.normal: NormalEnergy | None = None
        self.loc = self.base_kick = None
        self.asks_gradient = False
        if isinstance(position, float) and position == 1.0:
            self.kick = -self.drift
            return
        share = position if isinstance(position, float) else position.unsqueeze(-1).to(x)
        self.kick, rest = self.drift * -share, share - 1.0
        if isinstance(reference, NormalEnergy):
            self.normal, self.loc, rest = reference, reference.spread_loc(x), rest * reference.precision(x)
        self.asks_gradient = self.normal is None
        self.base_kick = self.drift * rest

    def trajectory(self, start: Ensemble, momentum: Tensor, num_steps: int) -> tuple[Ensemble, Tensor]:
        """Where ``num_steps`` steps lead, and the momentum there; the force at the end of a step begins the next."""
        x, base, base_gradient, gradient = start.x, start.reference, start.reference_gradient, start.target_gradient
        assert gradient is not None
        momentum = self._kicked(momentum, x, gradient, base_gradient, 0.5)
        for remaining in range(num_steps - 1, -1, -1):
            x = torch.addcmul(x, self.drift, momentum if self.dense is None else self.dense.outward(momentum))
            u, gradient = energy_and_gradient(self.target, x)
            if self.asks_gradient:
                base, base_gradient = energy_and_gradient(self.reference, x)
            momentum = self._kicked(momentum, x, gradient, base_gradient, 1.0 if remaining else 0.5)
        if self.normal is not None:  # nobody reads its energy on the way
            base = self.normal(x)
        return Ensemble(x, base, u, base_gradient, gradient), momentum

    def _kicked(
        self, momentum: Tensor, x: Tensor, gradient: Tensor, base_gradient: Tensor | None, share: float
    ) -> Tensor:
        """The momentum after ``share`` of a step's kick."""
        if self.dense is None:
            momentum = torch.addcmul(momentum, self.kick, gradient, value=share)
            if self.base_kick is not None:
                momentum.addcmul_(self.base_kick, self._direction(x, base_gradient), value=share)
            return momentum
        kick = self.kick * gradient
        if self.base_kick is not None:
            kick.addcmul_(self.base_kick, self._direction(x, base_gradient))
        return torch.add(momentum, self.dense.inward(kick), alpha=share)

    def _direction(self, x: Tensor, base_gradient: Tensor | None) -> Tensor:
        if self.normal is not None:
            return x if self.loc is None else x - self.loc
        assert base_gradient is not None
        return base_gradient
