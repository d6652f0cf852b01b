"""The likelihood of transitions under a flow map."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from pyro_boltzmann.sde.flow_map import FlowMap

__all__ = ["TransitionRows", "flow_map_loss"]


class TransitionRows(NamedTuple):
    """Transitions that are checked, with their deterministic paths."""

    x0: Tensor
    time: Tensor
    state: Tensor
    exited: Tensor
    params: Tensor | None
    path: Tensor


def flow_map_loss(
    flow_map: FlowMap,
    x0: Tensor,
    time: Tensor,
    state: Tensor,
    exited: Tensor,
    params: Tensor | None = None,
    path: Tensor | None = None,
) -> Tensor:
    r"""The negative log-likelihood of each transition, ``(n)``:

    .. math:: -\log P(\text{exit} \mid x_0, t, c) \ \text{ or } \
              -\log P(\text{stay} \mid x_0, t, c) - \log p_t(y \mid x_0, c) .

    States on clamped ends are spread beyond them at random (:meth:`Walls.dequantise`), so for those this is the
    estimate of a bound.

    :param x0: ``(n, d)``.
    :param time: ``(n)``.
    :param state: ``(n, d)``.
    :param exited: ``(n)``.
    :param params: ``(n, param_dim)``.
    :param path: what :meth:`FlowMap.path` gives, if it is known.
    """
    start = flow_map.unchecked_start(x0, time, params, path)
    if flow_map.exit is None:
        inside, stays = state, None
    else:
        logits = flow_map.logits(start)
        stays = functional.logsigmoid(-logits)
        # Any state of the domain in place of those that do not count, so that no gradient is NaN.
        inside = torch.where(exited.unsqueeze(-1), x0, state)
    if flow_map.walls.has_atoms:
        inside = flow_map.dequantise(inside, start)
    log_prob = flow_map.density(inside, start, dequantised=flow_map.walls.has_atoms)
    if stays is None:
        return -log_prob
    return -torch.where(exited, functional.logsigmoid(logits), stays + log_prob)
