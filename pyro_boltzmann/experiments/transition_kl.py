"""KL divergences between an exact transition law of independent coordinates and a learned one, by Monte Carlo."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor

from pyro_boltzmann.experiments.transition_grid import InitialNodes, LogDensity
from pyro_boltzmann.sde import GaussianTransition

__all__ = ["Estimate", "conditional_kl", "draw_starts", "marginal_kl"]

_ROWS = 20_000


class Estimate(NamedTuple):
    """A number and its standard error."""

    value: float
    std_error: float


def draw_starts(
    nodes: InitialNodes, law: Any, num_samples: int, event_dim: int, *, generator: Generator | None = None
) -> Tensor:
    """Initial states ``(n, d)`` of independent coordinates, from the nodes of a law of one coordinate.

    :param law: with event shape ``(1,)``.
    """
    weights = nodes.weights_of(law)
    drawn = torch.multinomial(weights, num_samples * event_dim, replacement=True, generator=generator)
    return nodes.x[drawn].view(num_samples, event_dim)


@torch.no_grad()
def conditional_kl(
    transition: GaussianTransition,
    time: float,
    learned: LogDensity,
    x0: Tensor,
    *,
    is_normalised: bool = False,
    generator: Generator | None = None,
) -> Estimate:
    r""":math:`\mathbb E_{x_0} \mathrm{KL}(p(\cdot \mid x_0) \,\|\, q(\cdot \mid x_0))` from one exact state for each
    initial state, the mean of :math:`\log p - \log q`.

    :param x0: ``(n, d)``, in double precision; ``learned`` is given single precision.
    :param is_normalised: whether q is known to have mass one. Then :math:`\mathbb E_p[q/p] - 1 = 0` is added, and the
        standard error is one order smaller where q is close to p.

    >>> from pyro_boltzmann.sde import BrownianTransition
    >>> law = BrownianTransition()
    >>> conditional_kl(law, 1.0, lambda y, x0: law.log_prob(y, x0, 1.0), torch.zeros(100, 2).double()).value < 1e-6
    True
    """
    y = transition.sample(x0, time, generator=generator)
    log_ratio = _log_ratio(transition, time, learned, y, x0)
    return _mean(log_ratio.expm1() - log_ratio if is_normalised else -log_ratio)


@torch.no_grad()
def marginal_kl(
    transition: GaussianTransition,
    time: float,
    learned: LogDensity,
    nodes: InitialNodes,
    law: Any,
    event_dim: int,
    *,
    num_states: int = 1000,
    num_starts: int = 64,
    is_normalised: bool = False,
    generator: Generator | None = None,
) -> Estimate:
    r"""KL of the laws at the end, for an initial law of independent, equal coordinates, without any density estimate:

    .. math:: \mathrm{KL}(p_T \,\|\, q_T) = -\mathbb E_{y \sim p_T} \log
        \mathbb E_{x_0 \sim p(x_0 \mid y)} \Bigl[\frac{q(y \mid x_0)}{p(y \mid x_0)}\Bigr],

    since :math:`q_T(y) = \int q(y \mid x_0)\, p_0(x_0)\,dx_0` and :math:`p_0(x_0)\, p(y \mid x_0) = p_T(y)\, p(x_0 \mid
    y)`. The posterior is that of each coordinate on the quadrature nodes. The inner mean is over K draws; the bias of
    its logarithm, :math:`-\operatorname{var}(r) / 2 K \bar r^2` to leading order, is taken out.

    :param law: of one coordinate, with event shape ``(1,)``; ``transition`` must be the same in every coordinate.
    :param num_states: draws of y.
    :param num_starts: K.
    :param is_normalised: as in :func:`conditional_kl`.

    >>> from pyro_boltzmann.sde.systems import brownian_motion
    >>> system = brownian_motion()
    >>> nodes, law = InitialNodes.within(6.0), system.tests["normal"]
    >>> exact = lambda y, x0: system.transition.log_prob(y, x0, 1.0)
    >>> abs(marginal_kl(system.transition, 1.0, exact, nodes, law, 2, num_states=10).value) < 1e-5
    True
    """
    start = draw_starts(nodes, law, num_states, event_dim, generator=generator)
    y = transition.sample(start, time, generator=generator)
    prior = nodes.weights_of(law).log()
    logits = prior + transition.log_prob(y[..., None, None], nodes.x[:, None], time)
    chosen = torch.multinomial(
        logits.softmax(-1).view(-1, len(prior)), num_starts, replacement=True, generator=generator
    )
    x0 = nodes.x[chosen].view(num_states, event_dim, num_starts).transpose(1, 2)
    states = y.unsqueeze(1).expand(x0.shape)
    log_ratio = _log_ratio(transition, time, learned, states.reshape(-1, event_dim), x0.reshape(-1, event_dim)).view(
        num_states, num_starts
    )
    mean = log_ratio.logsumexp(-1) - math.log(num_starts)
    relative = (log_ratio - mean.unsqueeze(-1)).exp().var(-1)
    log_mean = mean + relative / (2.0 * num_starts)
    return _mean(mean.expm1() - log_mean if is_normalised else -log_mean)


def _mean(values: Tensor) -> Estimate:
    return Estimate(float(values.mean()), float(values.std()) / math.sqrt(len(values)))


def _log_ratio(transition: GaussianTransition, time: float, learned: LogDensity, y: Tensor, x0: Tensor) -> Tensor:
    """log q - log p, ``(n,)``; both at the single-precision numbers that ``learned`` is given."""
    parts = []
    for state, start in zip(y.float().split(_ROWS), x0.float().split(_ROWS), strict=True):
        exact = transition.log_prob(state.double(), start.double(), time)
        parts.append(learned(state, start).double() - exact)
    return torch.cat(parts)
