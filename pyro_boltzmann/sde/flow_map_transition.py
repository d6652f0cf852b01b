"""A flow map at given conditions, as a distribution."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

if TYPE_CHECKING:
    from pyro_boltzmann.sde.flow_map import FlowMap

__all__ = ["FlowMapTransition"]


class FlowMapTransition(TorchDistribution):
    r"""The law :math:`p_t(y \mid x_0, c)` of a :class:`FlowMap`, of survivors where trajectories can exit.

    Draws are differentiable in :math:`x_0`, t and c; so is the density, in y too. What depends on the conditions alone
    is computed once.

    :param flow_map: the map.
    :param x0: ``(*batch, d)``.
    :param time: a number, or ``(*batch)``.
    :param params: ``(*batch, param_dim)``.

    >>> from pyro_boltzmann.sde import FlowMap
    >>> law = FlowMap(2, time=1.0).condition(torch.zeros(5, 2), 1.0)
    >>> law.batch_shape, law.event_shape, law.rsample((3,)).shape
    (torch.Size([5]), torch.Size([2]), torch.Size([3, 5, 2]))
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012 - torch's own spelling
    has_rsample = True

    def __init__(
        self,
        flow_map: FlowMap,
        x0: Tensor,
        time: float | Tensor,
        params: Tensor | None = None,
        *,
        validate_args: bool | None = None,
    ) -> None:
        self.flow_map = flow_map
        self.x0, self.time, self.params = flow_map.arguments(x0, time, params)
        self._start = flow_map.start(self.x0, self.time, self.params)
        super().__init__(self.x0.shape[:-1], self.x0.shape[-1:], validate_args=validate_args)

    @constraints.dependent_property(is_discrete=False, event_dim=1)
    def support(self) -> constraints.Constraint:
        return self.flow_map.walls.support

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        z = torch.randn(shape, dtype=self.x0.dtype, device=self.x0.device)
        return self.flow_map.fold(self.flow_map.free_state(z, self._start), self._start)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return self.flow_map.density(value, self._start)

    def expand(self, batch_shape: Any, _instance: Any = None) -> FlowMapTransition:
        batch = torch.Size(batch_shape)
        params = None if self.params is None else self.params.expand(*batch, -1)
        return FlowMapTransition(self.flow_map, self.x0.expand(*batch, -1), self.time, params, validate_args=False)
