"""Overdamped Langevin steps."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_boltzmann.energies.evaluation import Energy
from pyro_boltzmann.energies.held import hold
from pyro_boltzmann.energies.memo import EnergyMemo
from pyro_boltzmann.stochastic.block import StepResult, StochasticBlock
from pyro_boltzmann.stochastic.force import bounded_gradient, shift
from pyro_boltzmann.stochastic.info import StepInfo
from pyro_boltzmann.stochastic.noise import NoisePart, Parts

__all__ = ["LangevinTransform", "langevin"]


class LangevinTransform(StochasticBlock):
    r"""Overdamped Langevin dynamics as an involution of (x, noise),

    .. math::
        y = x - \epsilon \nabla u(x) + \sqrt{2 \epsilon}\, \xi, \qquad
        \xi' = \frac{x - y + \epsilon \nabla u(y)}{\sqrt{2 \epsilon}}
             = -\xi + \sqrt{\epsilon / 2}\, (\nabla u(x) + \nabla u(y)), \qquad \log|\det| = 0.

    The noise of the way back is computed in its second form, which is right at :math:`\epsilon = 0` too. The force at
    y is the force at x of the next step: n steps cost n + 1 force calls. A force that is not finite counts as zero at
    both ends, and a clipped one is clipped at both ends, so weights stay exact.

    :param energy: :math:`u`, ``(*batch, dim) -> (*batch)``.
    :param dim: dimension of x.
    :param step_size: :math:`\epsilon \ge 0`, one number or one a step.
    :param num_steps: how many steps.
    :param learnable: make the step size a parameter; its gradient is exact, through the force too.
    :param max_force: clip the norm of the gradient.

    Source: Wu, Koehler and Noe, arXiv 2002.06707, equations 12 and 13.

    >>> import torch
    >>> block = LangevinTransform(lambda x: 0.5 * x.square().sum(-1), 1, step_size=0.5)
    >>> block(torch.tensor([[1.0, 0.0]])).detach()  # y = x - x / 2
    tensor([[0.5000, 0.7500]])
    """

    scale_name = "step_size"

    def __init__(
        self,
        energy: Energy,
        dim: int,
        step_size: float | Tensor | list[float] = 0.01,
        *,
        num_steps: int = 1,
        learnable: bool = False,
        max_force: float | None = None,
    ) -> None:
        super().__init__(dim, (NoisePart("normal", dim),), num_repeats=num_steps)
        self.energy = hold(energy)
        self.max_force = max_force
        self._set_positive("step_size", step_size, learnable=learnable)

    @property
    def step_size(self) -> Tensor:
        r""":math:`\epsilon`, a scalar or ``(num_steps,)``."""
        return self._log("step_size").exp()

    def _move(self, x: Tensor, xi: Tensor, memo: EnergyMemo, index: int) -> tuple[Tensor, Tensor, EnergyMemo, StepInfo]:
        r"""``(y, v, memo at y, info)`` with :math:`v = \sqrt{\epsilon/2} (\nabla u(x) + \nabla u(y)) = \xi + \xi'`."""
        step_size = self._number("step_size", index, x)
        gradient = bounded_gradient(self.energy, x, memo, self.max_force)
        y = shift(shift(x, -step_size, gradient), (2 * step_size) ** 0.5, xi)
        after = EnergyMemo()
        total = gradient + bounded_gradient(self.energy, y, after, self.max_force)
        half = (step_size / 2) ** 0.5
        v = half * total if torch.is_grad_enabled() else total.mul_(half)
        info = StepInfo(nonfinite=after.count_nonfinite(), total=x[..., 0].numel())
        return y, v, after, info

    def step(self, x: Tensor, noise: Parts, memo: EnergyMemo, index: int) -> StepResult:
        y, v, after, info = self._move(x, noise[0], memo, index)
        return StepResult(y, (v - noise[0],), 0.0, after, info)

    def stream_step(
        self, x: Tensor, noise: Parts, memo: EnergyMemo, index: int, *, inverse: bool = False
    ) -> tuple[Tensor, Tensor | float, EnergyMemo, StepInfo]:
        y, v, after, info = self._move(x, noise[0], memo, index)
        return y, (v * shift(noise[0], -0.5, v)).sum(-1), after, info  # (|xi|^2 - |v - xi|^2) / 2


def langevin(energy: Energy, dim: int, step_size: float = 0.01, num_steps: int = 1) -> LangevinTransform:
    """A :class:`LangevinTransform` with defaults."""
    return LangevinTransform(energy, dim, step_size, num_steps=num_steps)
