"""Leapfrog trajectories with fresh momenta."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_boltzmann.energies.evaluation import Energy
from pyro_boltzmann.energies.held import hold
from pyro_boltzmann.energies.memo import EnergyMemo
from pyro_boltzmann.stochastic.block import StepResult, StochasticBlock
from pyro_boltzmann.stochastic.force import bounded_gradient
from pyro_boltzmann.stochastic.info import StepInfo
from pyro_boltzmann.stochastic.noise import NoisePart, Parts

__all__ = ["LeapfrogTransform", "leapfrog"]


class LeapfrogTransform(StochasticBlock):
    r"""A leapfrog trajectory from a fresh momentum, with the momentum flipped at its end: an involution with
    :math:`\log|\det| = 0`. Inside :class:`MetropolisAdjusted` it is Hamiltonian Monte Carlo.

    With :math:`p = M^{1/2} n`, :math:`n \sim N(0, I)`, each of ``num_steps`` steps is

    .. math::
        p \leftarrow p - \tfrac h2 \nabla u(x), \quad x \leftarrow x + h M^{-1} p, \quad
        p \leftarrow p - \tfrac h2 \nabla u(x), \qquad n' = -n_L .

    :param energy: :math:`u`.
    :param dim: dimension of x.
    :param step_size: h >= 0, one number or one a trajectory.
    :param num_steps: leapfrog steps L of a trajectory (L + 1 force calls, L when the first force is known).
    :param num_trajectories: how many trajectories, each with its own momentum.
    :param mass: diagonal of M, a number or ``(dim,)``.
    :param learnable: make the step size a parameter.
    :param max_force: clip the norm of the gradient.

    Source: Neal, MCMC using Hamiltonian dynamics (arXiv 1206.1901), section 2.3.

    >>> import torch
    >>> block = LeapfrogTransform(lambda x: 0.5 * x.square().sum(-1), 1, step_size=0.1, num_steps=10)
    >>> joint = torch.tensor([[1.0, 0.3]])
    >>> torch.allclose(block(block(joint)), joint, atol=1e-6)
    True
    """

    scale_name = "step_size"

    def __init__(
        self,
        energy: Energy,
        dim: int,
        step_size: float | Tensor | list[float] = 0.1,
        num_steps: int = 5,
        *,
        num_trajectories: int = 1,
        mass: float | Tensor = 1.0,
        learnable: bool = False,
        max_force: float | None = None,
    ) -> None:
        super().__init__(dim, (NoisePart("normal", dim),), num_repeats=num_trajectories)
        if num_steps < 1:
            raise ValueError(f"a trajectory needs at least one leapfrog step, got num_steps={num_steps}")
        self.energy = hold(energy)
        self.num_steps = int(num_steps)
        self.max_force = max_force
        self._set_positive("step_size", step_size, learnable=learnable)
        self.sqrt_mass: Tensor
        self.register_buffer("sqrt_mass", _sqrt_mass(mass, dim))

    @property
    def step_size(self) -> Tensor:
        """h, a scalar or ``(num_trajectories,)``."""
        return self._log("step_size").exp()

    def step(self, x: Tensor, noise: Parts, memo: EnergyMemo, index: int) -> StepResult:
        (n,) = noise
        h = self._positive("step_size", index) / self.sqrt_mass
        gradient = bounded_gradient(self.energy, x, memo, self.max_force)
        n = n - 0.5 * h * gradient
        for remaining in reversed(range(self.num_steps)):
            x = x + h * n
            memo = EnergyMemo()
            gradient = bounded_gradient(self.energy, x, memo, self.max_force)
            n = n - (h if remaining else 0.5 * h) * gradient
        info = StepInfo(nonfinite=memo.count_nonfinite(), total=x[..., 0].numel())
        return StepResult(x, (-n,), 0.0, memo, info)


def _sqrt_mass(mass: float | Tensor, dim: int) -> Tensor:
    value = torch.as_tensor(mass, dtype=torch.get_default_dtype()).detach().clone()
    if value.shape not in ((), (dim,)) or not bool((value > 0).all()):
        raise ValueError(f"mass must be positive, a number or one a dimension ({dim}); got {mass}")
    return value.sqrt()


def leapfrog(energy: Energy, dim: int, step_size: float = 0.1, num_steps: int = 5) -> LeapfrogTransform:
    """A :class:`LeapfrogTransform` with defaults."""
    return LeapfrogTransform(energy, dim, step_size, num_steps)
