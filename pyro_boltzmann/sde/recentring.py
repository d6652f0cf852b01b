"""Small errors of a flow map's mean, removed by least squares after training."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from pyro_boltzmann.sde.flow_map_base import Transitions

if TYPE_CHECKING:
    from pyro_boltzmann.sde.flow_map import FlowMap

__all__ = ["recentre"]

_ROWS = 8192


@torch.no_grad()
def recentre(flow_map: FlowMap, data: Transitions, *, ridge: float = 1e-6) -> None:
    r"""Regress the latents of a trained map on its embedding, and take the fit out of them,

    .. math:: z - (A\, e(x_0, t, c) + b) \sim \mathcal N(0, I), \qquad
              (A, b) = \arg\min \sum_i |z_i - A e_i - b|^2 ,

    over those that have stayed. Stochastic gradients leave small errors of the mean everywhere, which repeated steps
    add up; this is their least-squares solution over all rows. To be done once, after training, with at least as many
    rows as training has seen.

    :param flow_map: changed in place; draws and density stay those of one law.
    :param data: transitions.
    :param ridge: of the normal equations, as a share of their mean diagonal.
    :raises ValueError: if states have several preimages, as with reflecting ends, so that latents are not known.

    >>> from types import SimpleNamespace
    >>> from pyro_boltzmann.sde import FlowMap
    >>> x0 = torch.randn(500, 1)
    >>> data = SimpleNamespace(x0=x0, time=1.0, state=x0 + torch.randn(500, 1), exited=None, params=None)
    >>> flow_map = FlowMap(1, time=1.0)
    >>> flow_map.standardise(data)
    >>> recentre(flow_map, data)
    """
    if not flow_map.walls.is_bijective:
        raise ValueError(
            "recentre needs states with one preimage each, and this map has reflecting, periodic or clamped ends; "
            "use the map as it was trained"
        )
    x0, t, params = flow_map.arguments(data.x0, data.time, data.params)
    t, size = t.expand(len(x0)), flow_map.centre_slope.shape[1] + 1
    gram, moment = x0.new_zeros(size, size).double(), x0.new_zeros(size, flow_map.event_dim).double()
    stayed = torch.ones_like(t, dtype=torch.bool) if data.exited is None else ~data.exited
    for rows in stayed.nonzero()[:, 0].split(_ROWS):
        start = flow_map.unchecked_start(x0[rows], t[rows], None if params is None else params[rows])
        z, _ = flow_map.base(flow_map.preimages(data.state[rows], start).u[0], start)
        e = torch.cat([start.embedding, torch.ones_like(z[:, :1])], -1).double()
        gram, moment = gram + e.T @ e, moment + e.T @ z.double()
    gram = gram + ridge * gram.diagonal().mean() * torch.eye(size, dtype=gram.dtype, device=gram.device)
    solution = torch.linalg.solve(gram, moment).to(flow_map.centre_slope)
    flow_map.centre_slope.add_(solution[:-1].T)
    flow_map.centre_offset.add_(solution[-1])
