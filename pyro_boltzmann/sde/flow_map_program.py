"""A flow map as a Pyro program: inference through it instead of through a simulation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyro
import pyro.distributions as dist
from torch import Tensor

from pyro_boltzmann.exceptions import ShapeError

if TYPE_CHECKING:
    from pyro_boltzmann.sde.flow_map import FlowMap

__all__ = ["FlowMapProgram"]


class FlowMapProgram:
    r"""A Pyro program that draws :math:`x_0` from an initial law and :math:`x \sim p_t(x \mid x_0, c)`.

    Sites: ``x0``, ``x`` and, where trajectories can exit, ``exited`` in between; then ``x`` counts only where
    ``exited`` is false (observe ``exited``, or use enumeration or Monte Carlo for it; NUTS cannot draw it). It serves
    inside larger programs, which observe ``x`` through noise. An initial law with unknown parameters is drawn by the
    caller and passed to the call.

    :param flow_map: trained.
    :param initial: a distribution with event shape ``(d,)``, which a call may replace.
    :param time: a number, or times that broadcast against the batch of ``initial``.
    :raises ShapeError: if the initial law has another event shape.

    >>> import torch
    >>> from pyro_boltzmann.sde import FlowMap
    >>> flow_map = FlowMap(1, time=1.0)
    >>> carry = flow_map.model(dist.Normal(0.0, 1.0).expand([1]).to_event(1), time=1.0)
    >>> def program(observed):
    ...     x = carry()
    ...     pyro.sample("y", dist.Normal(x, 0.1).to_event(1), obs=observed)
    >>> trace = pyro.poutine.trace(program).get_trace(torch.tensor([0.3]))
    >>> trace.stochastic_nodes
    ['x0', 'x']
    """

    def __init__(self, flow_map: FlowMap, initial: Any, time: float | Tensor) -> None:
        self.flow_map, self.initial, self.time = flow_map, initial, time
        self._check(initial)

    def __call__(self, params: Tensor | None = None, initial: Any = None) -> Tensor:
        """Draw and return the final state, ``(*batch, d)``.

        :param params: parameters ``(*batch, param_dim)``, for example drawn by the caller.
        :param initial: an initial law in place of the program's own.
        """
        if initial is not None:
            self._check(initial)
        x0 = pyro.sample("x0", self.initial if initial is None else initial)
        law = self.flow_map.condition(x0, self.time, params)
        if self.flow_map.exit is None:
            state: Tensor = pyro.sample("x", law)
            return state
        logits = self.flow_map.logits(self.flow_map.start(x0, self.time, params))
        exited = pyro.sample("exited", dist.Bernoulli(logits=logits)).bool()
        state = pyro.sample("x", law.mask(~exited))  # type: ignore[no-untyped-call]
        return state

    def _check(self, initial: Any) -> None:
        if tuple(initial.event_shape) != (self.flow_map.event_dim,):
            raise ShapeError(
                f"the initial law must have event shape ({self.flow_map.event_dim},), got "
                f"{tuple(initial.event_shape)}; call .to_event(1) on a distribution of independent coordinates"
            )
