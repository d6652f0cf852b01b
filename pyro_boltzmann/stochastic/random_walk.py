"""Random-walk proposals."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_boltzmann.energies.memo import EnergyMemo
from pyro_boltzmann.stochastic.block import StepResult, StochasticBlock
from pyro_boltzmann.stochastic.force import shift
from pyro_boltzmann.stochastic.info import StepInfo
from pyro_boltzmann.stochastic.noise import NoisePart, Parts

__all__ = ["RandomWalkTransform", "random_walk"]


class RandomWalkTransform(StochasticBlock):
    r"""Gaussian random walk as an involution of (x, noise),

    .. math:: y = x + s\,\xi, \qquad \xi' = -\xi, \qquad \log|\det| = 0.

    Alone it only adds noise; inside :class:`MetropolisAdjusted` it is random-walk Metropolis.

    :param dim: dimension of x.
    :param scale: the step s >= 0, one number or one a step.
    :param num_steps: how many steps.
    :param learnable: make the scale a parameter (see :class:`MetropolisAdjusted` for which gradient is right).

    >>> import torch
    >>> block = RandomWalkTransform(2, scale=0.5)
    >>> joint = torch.tensor([[0.0, 0.0, 1.0, -1.0]])
    >>> block(joint)
    tensor([[ 0.5000, -0.5000, -1.0000,  1.0000]])
    """

    scale_name = "scale"

    def __init__(
        self, dim: int, scale: float | Tensor | list[float] = 0.1, *, num_steps: int = 1, learnable: bool = False
    ) -> None:
        super().__init__(dim, (NoisePart("normal", dim),), num_repeats=num_steps)
        self._set_positive("scale", scale, learnable=learnable)

    @property
    def scale(self) -> Tensor:
        """The step, a scalar or ``(num_steps,)``."""
        return self._log("scale").exp()

    def step(self, x: Tensor, noise: Parts, memo: EnergyMemo, index: int) -> StepResult:
        (xi,) = noise
        return StepResult(shift(x, self._number("scale", index, x), xi), (-xi,), 0.0, EnergyMemo())

    def stream_step(
        self, x: Tensor, noise: Parts, memo: EnergyMemo, index: int, *, inverse: bool = False
    ) -> tuple[Tensor, Tensor | float, EnergyMemo, StepInfo]:
        scale, xi = self._number("scale", index, x), noise[0]
        if isinstance(scale, float) and not torch.is_grad_enabled():
            y = torch.add(x, xi, alpha=scale, out=xi)  # the noise is not needed any more
        else:
            y = shift(x, scale, xi)
        return y, 0.0, EnergyMemo(), StepInfo()


def random_walk(dim: int, scale: float = 0.1, num_steps: int = 1) -> RandomWalkTransform:
    """A :class:`RandomWalkTransform` with defaults."""
    return RandomWalkTransform(dim, scale, num_steps=num_steps)
