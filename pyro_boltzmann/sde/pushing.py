"""Initial laws carried through a flow map: draws, densities, and whether two short steps make one long one."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from pyro_boltzmann.diagnostics.metrics.kolmogorov import KolmogorovSmirnov, ks_test

if TYPE_CHECKING:
    from pyro_boltzmann.sde.flow_map import FlowMap

__all__ = ["ChapmanKolmogorov", "MarginalLogProb", "Pushed", "chapman_kolmogorov", "marginal_log_prob", "push"]

_ROWS = 100_000
"""Pairs of a state and an initial state that are scored at a time."""


class Pushed(NamedTuple):
    """Draws carried through a flow map.

    :ivar x0: initial states ``(n, d)``.
    :ivar state: final states ``(n, d)``; where ``exited``, they are of no meaning.
    :ivar exited: ``(n,)``, drawn with the map's probability of exit.
    :ivar outside: ``(n,)``, whether the map had to extrapolate (only with ``outside="warn"``).
    """

    x0: Tensor
    state: Tensor
    exited: Tensor
    outside: Tensor


class MarginalLogProb(NamedTuple):
    """A marginal density, averaged over draws of the initial law.

    :ivar log_prob: ``(*shape)``, float64.
    :ivar std_error: of ``log_prob``, by the delta method.
    :ivar effective: the effective number of initial states that the average rests on, in draws; where it is small,
        neither number above can be relied on.
    """

    log_prob: Tensor
    std_error: Tensor
    effective: Tensor


class ChapmanKolmogorov(NamedTuple):
    """How far two steps of s and t are from one of s + t.

    :ivar marginals: a two-sample Kolmogorov-Smirnov test with its floor for each coordinate of the survivors.
    :ivar survival: survivors' shares after one step and after two.
    :ivar survival_error: standard error of their difference.
    """

    marginals: list[KolmogorovSmirnov]
    survival: tuple[float, float]
    survival_error: float


@torch.no_grad()
def push(
    flow_map: FlowMap, initial: Any, time: float | Tensor, num_samples: int, params: Tensor | None = None
) -> Pushed:
    r"""Draw :math:`x_0 \sim p_0`, whether it exits, and :math:`y \sim p_t(y \mid x_0, c)`.

    :param initial: a distribution with event shape ``(d,)`` and no batch.
    :param time: a number, or ``(num_samples,)``.
    :param params: ``(param_dim,)``, or ``(num_samples, param_dim)``.
    :raises ValueError: if draws lie outside the training domain of a map that refuses such questions.

    >>> import pyro.distributions as dist
    >>> from pyro_boltzmann.sde import FlowMap
    >>> push(FlowMap(1, time=1.0), dist.Normal(0.0, 1.0).expand([1]).to_event(1), 1.0, 10).state.shape
    torch.Size([10, 1])
    """
    x0 = initial.sample((num_samples,)).to(flow_map.scale_unit.dtype)
    start = flow_map.start(x0, time, params)
    state = flow_map.fold(flow_map.free_state(torch.randn_like(x0), start), start)
    exited = torch.rand_like(x0[..., 0]) < flow_map.logits(start).sigmoid()
    return Pushed(x0, state, exited, flow_map.is_outside(x0, time, params))


def marginal_log_prob(
    flow_map: FlowMap,
    y: Tensor,
    initial: Any,
    time: float | Tensor,
    num_samples: int = 1000,
    params: Tensor | None = None,
) -> MarginalLogProb:
    r"""The density of the state at time t for an initial law, by averaging over n draws of it,

    .. math:: \hat p_t(y) = \frac1n \sum_i w_i, \qquad w_i = p_t(y \mid x_0^i)\,[1 - P(\text{exit} \mid x_0^i)], \qquad
              \operatorname{se}(\log\hat p) = \frac{\operatorname{sd}(w)}{\sqrt n\,\bar w} .

    Its integral over y is the probability of survival. The same draws serve all y; :math:`\log\hat p` is differentiable
    in y and, where the initial law can be reparametrised, in its parameters.

    :param y: ``(*shape, d)``.
    :param initial: a distribution with event shape ``(d,)`` and no batch.
    :param time: a number.
    :param num_samples: n.
    :param params: ``(param_dim,)``.

    >>> import pyro.distributions as dist
    >>> from pyro_boltzmann.sde import FlowMap
    >>> start = dist.Normal(0.0, 1.0).expand([1]).to_event(1)
    >>> result = marginal_log_prob(FlowMap(1, time=1.0), torch.zeros(3, 1), start, 1.0)
    >>> result.log_prob.shape, bool((result.std_error < 0.05).all())
    (torch.Size([3]), True)
    """
    draw = initial.rsample if initial.has_rsample else initial.sample
    x0 = draw((num_samples,)).to(flow_map.scale_unit.dtype)
    start = flow_map.start(x0, time, params)
    log_stay = functional.logsigmoid(-flow_map.logits(start))
    flat = y.reshape(-1, 1, y.shape[-1])
    parts = [flow_map.density(rows, start) + log_stay for rows in flat.split(max(1, _ROWS // num_samples))]
    log_w = torch.cat(parts).double()
    log_prob = log_w.logsumexp(-1) - math.log(num_samples)
    effective = (2.0 * log_w.detach().logsumexp(-1) - (2.0 * log_w.detach()).logsumexp(-1)).exp()
    # var(w) / mean(w)^2 = n sum(w^2) / sum(w)^2 - 1, with n - 1 in place of n in the variance.
    relative = ((num_samples / effective - 1.0).clamp_min(0.0) / max(1, num_samples - 1)).sqrt()
    shape = y.shape[:-1]
    return MarginalLogProb(log_prob.reshape(shape), relative.reshape(shape), effective.reshape(shape))


@torch.no_grad()
def chapman_kolmogorov(
    flow_map: FlowMap, x0: Tensor, first: float, second: float, params: Tensor | None = None
) -> ChapmanKolmogorov:
    r"""Compare draws of both sides of :math:`p_{s+t}(y \mid x_0) = \int p_t(y \mid x_s)\,p_s(x_s \mid x_0)\,dx_s`.

    The law of a Markov process satisfies this identity; a flow map that was trained on each time by itself does so as
    far as it is right.

    :param flow_map: a map of all times up to ``first + second``, whose training domain holds the states at ``first``.
    :param x0: ``(n, d)``, one draw each way for each.
    :param first: s.
    :param second: t.
    :param params: ``(param_dim,)``, or ``(n, param_dim)``.
    :raises ValueError: if the map does not cover these times, or fewer than two trajectories survive.
    """
    once, exited = _step(flow_map, x0, first + second, params)
    middle, exited_first = _step(flow_map, x0, first, params)
    kept = None if params is None else params.expand(len(x0), -1)[~exited_first]
    twice, exited_second = _step(flow_map, middle[~exited_first], second, kept)
    once, twice = once[~exited], twice[~exited_second]
    if min(len(once), len(twice)) < 2:
        raise ValueError("fewer than two trajectories survive, too few to compare; take more or shorter ones")
    marginals = [ks_test(a.cpu().numpy(), b.cpu().numpy()) for a, b in zip(once.T, twice.T, strict=True)]
    survival = (len(once) / len(x0), len(twice) / len(x0))
    pooled = 0.5 * (survival[0] + survival[1])
    return ChapmanKolmogorov(marginals, survival, math.sqrt(2.0 * pooled * (1.0 - pooled) / len(x0)))


def _step(flow_map: FlowMap, x0: Tensor, time: float, params: Tensor | None) -> tuple[Tensor, Tensor]:
    start = flow_map.start(x0, time, params)
    state = flow_map.fold(flow_map.free_state(torch.randn_like(start.x0), start), start)
    return state, torch.rand_like(state[..., 0]) < flow_map.logits(start).sigmoid()
