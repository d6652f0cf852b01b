"""A source seen through diffusion: programs by a flow map and by the simulator, and the posterior where it is known."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_boltzmann.infer.randomness import seeded
from pyro_boltzmann.sde import FlowMap, simulate
from pyro_boltzmann.sde.exact import GaussianTransition
from pyro_boltzmann.sde.systems import System, abc_flow, brownian_motion, ornstein_uhlenbeck

__all__ = ["PROBLEMS", "ExactPosterior", "SourceProblem"]

WIDTH_LOC, WIDTH_SCALE = math.log(0.7), 0.4
"""Of the log-normal prior of the source's width."""


class ExactPosterior(NamedTuple):
    """Means and standard deviations of the source's coordinates and its width ``(d + 1,)``, and log Z."""

    mean: Tensor
    sd: Tensor
    log_z: float


@dataclass(frozen=True)
class SourceProblem:
    r"""Particles start around a source and are seen, with noise, after they have moved:

    .. math:: a \sim \mathcal N(m, s^2 I), \quad w \sim \mathrm{LogNormal}, \quad x_0^i \sim \mathcal N(a, w^2 I), \quad
              x^i \sim p_T(x \mid x_0^i), \quad y^i \sim \mathcal N(x^i, \epsilon^2 I) .

    :ivar system: the equation.
    :ivar prior_loc: m, the same for all coordinates.
    :ivar prior_scale: s.
    :ivar num_observed: particles.
    :ivar noise: :math:`\epsilon`.
    :ivar num_steps: of the simulation inside a program.
    :ivar scheme: of that simulation.
    :ivar period: of the drift, if it has one.
    :ivar chain: draws and warm-up of NUTS.
    """

    system: System
    prior_loc: float
    prior_scale: float
    num_observed: int
    noise: float
    num_steps: int
    scheme: str = "euler"
    period: float | None = None
    chain: tuple[int, int] = (400, 200)

    @property
    def dim(self) -> int:
        """d."""
        return self.system.sde.event_dim

    @property
    def settings(self) -> list[float | str | None]:
        """All but the equation."""
        numbers = (self.system.time, self.prior_loc, self.prior_scale, self.num_observed, self.noise, self.num_steps)
        return [*numbers, self.scheme, self.period, *self.chain]

    def observations(self, seed: int) -> Tensor:
        """``(num_observed, d)``, from a source half a prior width from the middle, of width 0.7."""
        with seeded(seed):
            shift = 0.5 * self.prior_scale * torch.tensor([1.0, -1.0, 1.0])[: self.dim]
            x0 = self.prior_loc + shift + 0.7 * torch.randn(self.num_observed, self.dim)
            end = simulate(self.system.sde, x0, self.system.time, step_size=self.system.step_size).state
            return end + self.noise * torch.randn_like(end)

    def through_map(self, flow_map: FlowMap) -> Callable[[Tensor], None]:
        """The program whose particles move by a flow map."""
        carry = flow_map.model(self._around(torch.zeros(self.dim), torch.ones(())), self.system.time)
        return self._program(lambda initial: carry(initial=initial))

    def through_simulator(self) -> Callable[[Tensor], None]:
        """The program whose particles move by an integration of the equation."""
        system = self.system

        def move(initial: dist.TorchDistribution) -> Tensor:
            return system.sde.model(initial, system.time, self.num_steps, scheme=self.scheme)()

        return self._program(move)

    def _program(self, move: Callable[[dist.TorchDistribution], Tensor]) -> Callable[[Tensor], None]:
        def program(observed: Tensor) -> None:
            middle = torch.full((self.dim,), self.prior_loc)
            source = pyro.sample("source", dist.Normal(middle, self.prior_scale).to_event(1))
            width = pyro.sample("width", dist.LogNormal(torch.tensor(WIDTH_LOC), WIDTH_SCALE))
            with pyro.plate("particles", len(observed)):
                x = move(self._around(source, width))
                pyro.sample("y", dist.Normal(x, self.noise).to_event(1), obs=observed)

        return program

    def _around(self, source: Tensor, width: Tensor) -> dist.TorchDistribution:
        law: dist.TorchDistribution = dist.Normal(source, width.unsqueeze(-1)).to_event(1)
        return law

    def exact(self, observed: Tensor, size: int = 600) -> ExactPosterior | None:
        r"""By quadrature over the source and :math:`\log w`, where the transition is Gaussian and d is one:
        :math:`y^i \sim \mathcal N(\lambda a,\ \lambda^2 w^2 + v + \epsilon^2)`.

        :param size: of the grid in each direction.
        """
        transition = self.system.transition
        if not isinstance(transition, GaussianTransition) or self.dim != 1:
            return None
        one = torch.ones(1, 1, dtype=torch.float64)
        factor, variance = (float(moment) for moment in transition.moments(one, self.system.time))
        reach = 7.0 * self.prior_scale
        a = torch.linspace(self.prior_loc - reach, self.prior_loc + reach, size, dtype=torch.float64)[:, None]
        u = torch.linspace(WIDTH_LOC - 7 * WIDTH_SCALE, WIDTH_LOC + 7 * WIDTH_SCALE, size, dtype=torch.float64)[None]
        spread = (factor**2 * (2.0 * u).exp() + variance + self.noise**2).sqrt()
        law = torch.distributions.Normal(factor * a, spread)
        log_joint = sum(law.log_prob(y) for y in observed[:, 0].double())
        log_joint = log_joint + torch.distributions.Normal(self.prior_loc, self.prior_scale).log_prob(a)
        log_joint = log_joint + torch.distributions.Normal(WIDTH_LOC, WIDTH_SCALE).log_prob(u)
        cell = float((a[1, 0] - a[0, 0]) * (u[0, 1] - u[0, 0]))
        log_z = float(log_joint.flatten().logsumexp(0)) + math.log(cell)
        weight = (log_joint - log_joint.max()).exp()
        weight = weight / weight.sum()
        values = torch.stack([a.expand_as(weight), u.exp().expand_as(weight)])
        mean = (weight * values).sum((1, 2))
        return ExactPosterior(mean, (weight * (values - mean[:, None, None]).square()).sum((1, 2)).sqrt(), log_z)


PROBLEMS: dict[str, SourceProblem] = {
    "brownian": SourceProblem(brownian_motion(half_width=10.0), 0.0, 2.0, 8, 0.3, 1),
    "ornstein-uhlenbeck": SourceProblem(ornstein_uhlenbeck(half_width=10.0), 0.0, 2.0, 8, 0.1, 20),
    "abc": SourceProblem(abc_flow(), math.pi, 0.7, 4, 0.3, 20, "runge_kutta", 2.0 * math.pi, (120, 60)),
}
"""Problems by the names of their systems."""
