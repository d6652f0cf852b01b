"""A learned transition density in one dimension beside the exact one, on a grid: KL divergences by quadrature."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["InitialNodes", "LogDensity", "TransitionGrid"]

LogDensity = Callable[[Tensor, Tensor], Tensor]
"""States ``(*batch, d)`` and initial states ``(*batch, d)`` to log-densities ``(*batch)``."""

EDGES = (-1.0, 0.0, 1.0)
"""Where the named initial laws have an edge: between them the quadrature sees smooth functions."""
NODES_A_PIECE = 48
_ROWS = 50_000


@dataclass(frozen=True)
class InitialNodes:
    r"""Gauss-Legendre nodes between :math:`-w`, the edges of the named initial laws, and :math:`w`.

    An initial law becomes weights of these nodes, :math:`p_0(x_j) \omega_j`, normalised: the law given that
    :math:`|x_0| \le w`.

    :ivar x: ``(n,)``, float64.
    :ivar weight: :math:`\omega_j`, ``(n,)``.

    >>> import pyro.distributions as dist
    >>> nodes = InitialNodes.within(6.0)
    >>> weights = nodes.weights_of(dist.Gamma(torch.tensor(2.0), 2.0).expand([1]).to_event(1))
    >>> round(float(weights @ nodes.x), 3)
    1.0
    """

    x: Tensor
    weight: Tensor

    @classmethod
    def within(cls, half_width: float) -> InitialNodes:
        """The nodes on :math:`[-w, w]`, w being ``half_width``."""
        if not half_width > EDGES[-1]:
            raise ValueError(f"nodes need a half_width above {EDGES[-1]}, got {half_width}")
        unit, weight = (torch.from_numpy(column) for column in np.polynomial.legendre.leggauss(NODES_A_PIECE))
        ends = [-half_width, *EDGES, half_width]
        pieces = [
            (0.5 * (low + high) + 0.5 * (high - low) * unit, 0.5 * (high - low) * weight)
            for low, high in pairwise(ends)
        ]
        return cls(torch.cat([x for x, _ in pieces]), torch.cat([w for _, w in pieces]))

    def weights_of(self, law: Any) -> Tensor:
        """Weights of the nodes ``(n,)`` under a law of one coordinate, with event shape ``(1,)``; their sum is one."""
        x = self.x.unsqueeze(-1)
        inside = law.support.check(x).reshape(-1)
        log_prob = law.log_prob(torch.where(inside.unsqueeze(-1), x, law.mean.double())).double()
        weights = torch.where(inside, log_prob.exp(), 0.0) * self.weight
        return weights / weights.sum()


@dataclass(frozen=True)
class TransitionGrid:
    r"""Log-densities of an exact transition law p and of a learned one q, ``(n, m)`` each, at the initial states of
    ``nodes`` and at equidistant states y.

    With the weights :math:`\pi_j` of an initial law, and integrals over y by the trapezoidal rule, which converges
    faster than any power for laws that vanish at the ends,

    .. math:: \mathrm{KL}_\mathrm{c} = \sum_j \pi_j \int p(y \mid x_j) \log\frac{p(y \mid x_j)}{q(y \mid x_j)}\,dy,
        \qquad \mathrm{KL}_\mathrm{m} = \int p_T \log\frac{p_T}{q_T}\,dy, \quad
        p_T(y) = \sum_j \pi_j\, p(y \mid x_j) .

    By the convexity of KL, :math:`\mathrm{KL}_\mathrm{m} \le \mathrm{KL}_\mathrm{c}` where q has mass one.

    >>> from pyro_boltzmann.sde.systems import brownian_motion
    >>> system = brownian_motion()
    >>> exact = lambda y, x0: system.transition.log_prob(y, x0, 1.0)
    >>> wide = lambda y, x0: torch.distributions.Normal(x0, 1.1).log_prob(y).sum(-1)
    >>> grid = TransitionGrid.evaluate(exact, wide, half_width=6.0)
    >>> round(grid.conditional_kl(system.tests["uniform"]), 5), round(grid.marginal_kl(system.tests["normal"]), 5)
    (0.00853, 0.00241)
    """

    nodes: InitialNodes
    y: Tensor
    exact: Tensor
    learned: Tensor

    @classmethod
    @torch.no_grad()
    def evaluate(
        cls,
        exact: LogDensity,
        learned: LogDensity,
        *,
        half_width: float,
        reach: float = 13.0,
        num_states: int = 521,
        dtype: torch.dtype = torch.float32,
    ) -> TransitionGrid:
        """Evaluate both densities.

        :param half_width: initial states lie within this distance of 0.
        :param reach: states lie within this distance of 0.
        :param dtype: of what ``learned`` is given; ``exact`` is given float64.
        """
        nodes = InitialNodes.within(half_width)
        y = torch.linspace(-reach, reach, num_states, dtype=torch.float64)
        shape = (len(nodes.x), num_states)
        x0 = nodes.x[:, None].expand(shape).reshape(-1, 1)
        state = y.expand(shape).reshape(-1, 1)
        values = [
            torch.cat(
                [
                    density(b.to(kind), a.to(kind)).double()
                    for a, b in zip(x0.split(_ROWS), state.split(_ROWS), strict=True)
                ]
            ).view(shape)
            for density, kind in ((exact, torch.float64), (learned, dtype))
        ]
        return cls(nodes, y, *values)

    def conditional_kl(self, law: Any) -> float:
        """Averaged over an initial law with event shape ``(1,)``."""
        each = self._integral(_kl_density(self.exact, self.learned))
        return float(self.nodes.weights_of(law) @ each)

    def marginal_kl(self, law: Any) -> float:
        """Between the laws at the end, for this initial law."""
        exact, learned = self.marginals(law)
        return float(self._integral(_kl_density(exact, learned)))

    def marginals(self, law: Any) -> tuple[Tensor, Tensor]:
        """Exact and learned log-density at ``y``, ``(m,)`` each."""
        log_weights = self.nodes.weights_of(law).log().unsqueeze(-1)
        return (log_weights + self.exact).logsumexp(0), (log_weights + self.learned).logsumexp(0)

    def mass(self, law: Any) -> float:
        """Total mass of the learned density, averaged over an initial law."""
        return float(self.nodes.weights_of(law) @ self._integral(self.learned.exp()))

    def _integral(self, values: Tensor) -> Tensor:
        # Laws vanish at the ends of the grid, so the sum is the trapezoidal rule.
        return values.sum(-1) * (self.y[1] - self.y[0])


def _kl_density(exact: Tensor, learned: Tensor) -> Tensor:
    """p log(p/q), 0 where p is."""
    density = exact.exp()
    return torch.where(density > 0.0, density * (exact - learned), 0.0)
