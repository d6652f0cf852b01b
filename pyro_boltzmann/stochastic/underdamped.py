"""Underdamped Langevin dynamics."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_boltzmann.energies.evaluation import Energy
from pyro_boltzmann.energies.held import hold
from pyro_boltzmann.energies.memo import EnergyMemo
from pyro_boltzmann.stochastic.block import StepResult, StochasticBlock
from pyro_boltzmann.stochastic.force import bounded_gradient
from pyro_boltzmann.stochastic.info import StepInfo
from pyro_boltzmann.stochastic.leapfrog import _sqrt_mass
from pyro_boltzmann.stochastic.noise import NoisePart, Parts

__all__ = ["UnderdampedLangevinTransform", "underdamped_langevin"]


class UnderdampedLangevinTransform(StochasticBlock):
    r"""Underdamped Langevin dynamics by a palindromic splitting, as an involution of (x, velocity and noise).

    A trajectory draws :math:`v_0 \sim N(0, I)` (in units of :math:`M^{-1/2}`), makes ``num_steps`` steps of BAOAB or
    OBABO, flips the velocity and hands it back as noise. B is a kick by the force, A a drift, and O the rotation

    .. math::
        v \leftarrow c\,v + s\,\xi, \qquad \xi' = c\,\xi - s\,v, \qquad c = e^{-\gamma h}, \; s = \sqrt{1 - c^2},

    (:math:`h/2` in OBABO), which keeps :math:`|v|^2 + |\xi|^2`. Outgoing noise is stored in reversed order, so that the
    same trajectory run again retraces its path: velocities are odd under time reversal. The block's weight therefore
    carries only the error of the integrator, and :math:`\log|\det| = 0`.

    :param energy: :math:`u`.
    :param dim: dimension of x.
    :param step_size: h >= 0, one number or one a trajectory.
    :param friction: :math:`\gamma \ge 0`.
    :param num_steps: steps of a trajectory (one new force each).
    :param num_trajectories: how many trajectories, each from fresh velocities.
    :param mass: diagonal of M.
    :param scheme: ``"BAOAB"`` or ``"OBABO"``.
    :param learnable: make the step size and the friction parameters.
    :param max_force: clip the norm of the gradient.

    Source: Leimkuhler and Matthews, Appl. Math. Res. Express 2013 (BAOAB); Bussi and Parrinello, Phys. Rev. E 75
    (OBABO).

    >>> import torch
    >>> block = UnderdampedLangevinTransform(lambda x: x.pow(3).sum(-1), 2, step_size=0.1, num_steps=4)
    >>> block.noise_dim  # velocities and four kicks of noise
    10
    """

    scale_name = "step_size"

    def __init__(
        self,
        energy: Energy,
        dim: int,
        step_size: float | Tensor | list[float] = 0.1,
        friction: float = 1.0,
        num_steps: int = 5,
        *,
        num_trajectories: int = 1,
        mass: float | Tensor = 1.0,
        scheme: str = "BAOAB",
        learnable: bool = False,
        max_force: float | None = None,
    ) -> None:
        if scheme not in ("BAOAB", "OBABO"):
            raise ValueError(f'scheme must be "BAOAB" or "OBABO", got {scheme!r}')
        if num_steps < 1:
            raise ValueError(f"a trajectory needs at least one step, got num_steps={num_steps}")
        rotations = num_steps * scheme.count("O")
        super().__init__(
            dim, (NoisePart("normal", dim), NoisePart("normal", rotations * dim)), num_repeats=num_trajectories
        )
        self.energy = hold(energy)
        self.num_steps = int(num_steps)
        self.scheme = scheme
        self.max_force = max_force
        self._set_positive("step_size", step_size, learnable=learnable)
        self._set_positive("friction", friction, learnable=learnable)
        self.sqrt_mass: Tensor
        self.register_buffer("sqrt_mass", _sqrt_mass(mass, dim))

    @property
    def step_size(self) -> Tensor:
        """h, a scalar or ``(num_trajectories,)``."""
        return self._log("step_size").exp()

    @property
    def friction(self) -> Tensor:
        r""":math:`\gamma`."""
        return self._log("friction").exp()

    def step(self, x: Tensor, noise: Parts, memo: EnergyMemo, index: int) -> StepResult:
        v, kicks = noise
        xi = list(kicks.split(self.dim, -1))
        outgoing: list[Tensor] = []
        step_size = self._positive("step_size", index)
        h = step_size / self.sqrt_mass
        letters = self.scheme * self.num_steps
        fraction = {letter: 1.0 / self.scheme.count(letter) for letter in "ABO"}
        c = (-fraction["O"] * self._positive("friction", index) * step_size).exp()
        s = (-torch.expm1(-2 * fraction["O"] * self._positive("friction", index) * step_size)).sqrt()
        for letter in letters:
            if letter == "B":
                v = v - fraction["B"] * h * bounded_gradient(self.energy, x, memo, self.max_force)
            elif letter == "A":
                x, memo = x + fraction["A"] * h * v, EnergyMemo()
            else:
                old = xi[len(outgoing)]
                v, back = c * v + s * old, c * old - s * v
                outgoing.append(back)
        info = StepInfo(nonfinite=memo.count_nonfinite(), total=x[..., 0].numel())
        return StepResult(x, (-v, torch.cat(outgoing[::-1], -1)), 0.0, memo, info)


def underdamped_langevin(
    energy: Energy, dim: int, step_size: float = 0.1, friction: float = 1.0, num_steps: int = 5
) -> UnderdampedLangevinTransform:
    """An :class:`UnderdampedLangevinTransform` with defaults."""
    return UnderdampedLangevinTransform(energy, dim, step_size, friction, num_steps)
