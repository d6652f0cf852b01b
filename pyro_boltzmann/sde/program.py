"""A simulation as a Pyro program: inference through the simulator."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_boltzmann.exceptions import ShapeError
from pyro_boltzmann.sde.equation import SDE
from pyro_boltzmann.sde.schemes import scheme_of

__all__ = ["SDEProgram"]


class SDEProgram:
    r"""A Pyro program that draws an initial state and the noise of all steps, and returns the state at the end.

    Sites, for ``name="x"``: ``x_0`` from the initial law; ``x_noise``, one standard normal site of shape
    ``(num_steps, num_normals, d)`` for all increments; ``x_T``, the deterministic result. The state at the end is
    differentiable in both, and the program serves inside a larger one that observes it: with NUTS, autoguides and
    vectorised ELBOs, where there are few steps.

    :param sde: the equation, without absorbing boundaries.
    :param initial: a distribution with event shape ``(d,)``.
    :param time: how long.
    :param num_steps: equal steps.
    :param scheme: as in :func:`simulate`.
    :param name: of the sites.
    :raises ValueError: if the equation has absorbing boundaries, or a number is not usable.
    :raises ShapeError: if the initial law has another event shape.

    >>> start = dist.Normal(0.0, 1.0).expand([1]).to_event(1)
    >>> decay = SDE(lambda x: -x, 0.5, event_dim=1).model(start, time=1.0, num_steps=10)
    >>> def program(observed):
    ...     x = decay()
    ...     pyro.sample("y", dist.Normal(x, 0.1).to_event(1), obs=observed)
    >>> trace = pyro.poutine.trace(program).get_trace(torch.tensor([0.3]))
    >>> [name for name in trace.stochastic_nodes], trace.nodes["x_noise"]["value"].shape
    (['x_0', 'x_noise'], torch.Size([10, 1, 1]))
    """

    def __init__(
        self, sde: SDE, initial: Any, time: float, num_steps: int, *, scheme: str = "euler", name: str = "x"
    ) -> None:
        if sde.absorbing:
            raise ValueError(
                f"a program cannot follow trajectories to absorbing boundaries, which end it: {sde.absorbing[0]}; use "
                "simulate, or an equation without them"
            )
        if not (math.isfinite(time) and time > 0.0) or num_steps < 1:
            raise ValueError(f"a program needs time > 0 and num_steps >= 1, got {time} and {num_steps}")
        if tuple(initial.event_shape) != (sde.event_dim,):
            raise ShapeError(
                f"the initial law must have event shape ({sde.event_dim},), got {tuple(initial.event_shape)}; "
                "call .to_event(1) on a distribution of independent coordinates"
            )
        self.sde, self.initial, self.time, self.num_steps = sde, initial, float(time), num_steps
        self.scheme, self.name = scheme_of(scheme), name

    def __call__(self, params: Tensor | None = None) -> Tensor:
        """Draw and return the state at the end, ``(*batch, d)``.

        :param params: parameters ``(*batch, param_dim)`` of the equation, for example drawn by the caller.
        """
        start = pyro.sample(f"{self.name}_0", self.initial)
        shape = (self.num_steps, self.scheme.num_normals, self.sde.event_dim)
        standard = dist.Normal(torch.zeros((), dtype=start.dtype, device=start.device), 1.0)
        noise = pyro.sample(f"{self.name}_noise", standard.expand(shape).to_event(3))
        return pyro.deterministic(f"{self.name}_T", self.end(start, noise, params), event_dim=1)

    def end(self, start: Tensor, noise: Tensor, params: Tensor | None = None) -> Tensor:
        """The state at the end as a function of what is drawn.

        :param start: ``(*batch, d)``.
        :param noise: ``(*batch, num_steps, num_normals, d)``.
        :param params: ``(*batch, param_dim)``.
        """
        batches = [start.shape[:-1], noise.shape[:-3]] + ([] if params is None else [params.shape[:-1]])
        batch = torch.broadcast_shapes(*batches)
        x = start.expand(*batch, start.shape[-1])
        noise = noise.expand(*batch, *noise.shape[-3:])
        if params is not None:
            params = params.expand(*batch, params.shape[-1])
        dt = self.time / self.num_steps
        for normals in noise.unbind(-3):
            y, _ = self.scheme.step(self.sde, x, dt, normals.unbind(-2), params)
            x = self.sde.fold(y)
        return x
