"""The flow maps of the experiments on stochastic differential equations, and their training."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from pyro_boltzmann.experiments.transition_grid import LogDensity
from pyro_boltzmann.infer import fit_conditional, fit_flow_map
from pyro_boltzmann.sde import FlowMap, TransitionData
from pyro_boltzmann.sde.flow_map_base import Start, Transitions
from pyro_boltzmann.sde.systems import System
from pyro_boltzmann.transforms import PseudoReversibleFlow

__all__ = ["BareFlowMap", "Cost", "density_of", "exact_transitions", "in_chunks", "learn_flow_map", "learn_pair"]

SCORED = 16_384
"""Rows that are scored at a time."""


@dataclass(frozen=True)
class Cost:
    """What a training took.

    :ivar updates: made; of the flow map, including those after the best.
    :ivar seconds: wall time.
    :ivar cpu_seconds: of flow maps; of pseudo-reversible flows, whose training does not count them, the wall time.
    :ivar stopped: why.
    """

    updates: int
    seconds: float
    cpu_seconds: float
    stopped: str

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


class BareFlowMap(FlowMap):
    r"""A flow map that is told nothing: neither increments nor the linear path, only spline couplings,

    .. math:: y = m + s\, F(z; x_0),

    with the mean m and the standard deviation s of all final states. On Brownian motion and Ornstein-Uhlenbeck
    processes the linear path of a :class:`~pyro_boltzmann.sde.FlowMap` alone is exact, and tells nothing of what a
    network learns. For one time and no boundaries.
    """

    def change(self, y: Tensor, x0: Tensor) -> Tensor:
        return y

    @torch.no_grad()
    def standardise(self, data: Transitions, *, margin: float = 0.02) -> None:
        super().standardise(data, margin=margin)
        linear = self.linear
        linear.slope.zero_()
        linear.offset.copy_((data.state / self.scale_unit).mean(0))
        linear.log_diagonal.zero_()
        linear.off_diagonal.zero_()
        linear.requires_grad_(False)

    def unchecked_start(self, x0: Tensor, t: Tensor, params: Tensor | None, path: Tensor | None = None) -> Start:
        start = super().unchecked_start(x0, t, params, path)
        return start._replace(x0=torch.zeros_like(start.x0))


def exact_transitions(
    system: System, time: float | tuple[float, float], num_pairs: int, *, seed: int, initial: Any = None
) -> TransitionData:
    """Transitions of a system whose law is known, at one time or at uniform times in an interval.

    >>> from pyro_boltzmann.sde.systems import ornstein_uhlenbeck
    >>> exact_transitions(ornstein_uhlenbeck(2), 1.0, 10, seed=0).state.shape
    torch.Size([10, 2])
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        x0 = (system.initial if initial is None else initial).sample((num_pairs,))
    generator = Generator().manual_seed(seed + 1)
    low, high = time if isinstance(time, tuple) else (time, time)
    times = (low + (high - low) * torch.rand(num_pairs, generator=generator)).clamp(low, high)
    state = system.transition.sample(x0, times, generator=generator)
    return TransitionData(x0, times, state, torch.zeros(num_pairs, dtype=torch.bool))


def learn_flow_map(
    make: Callable[[], FlowMap], data: TransitionData, *, checkpoint: Path | None, seed: int, **settings: Any
) -> tuple[FlowMap, Cost]:
    """Make a flow map and train it, or take it from its checkpoint.

    :param settings: of :func:`~pyro_boltzmann.infer.fit_flow_map`.
    """
    flow_map = _made(make, seed)
    result = fit_flow_map(flow_map, data, checkpoint=checkpoint, seed=seed, progress=False, **settings)
    return flow_map, Cost(result.steps, result.seconds, result.cpu_seconds, result.stopped)


def learn_pair(
    make: Callable[[], PseudoReversibleFlow],
    data: TransitionData,
    *,
    checkpoint: Path | None,
    seed: int,
    batch_size: int,
    **settings: Any,
) -> tuple[PseudoReversibleFlow, Cost]:
    """The same for a pseudo-reversible flow.

    :param settings: of :func:`~pyro_boltzmann.infer.fit_conditional`.
    """
    flow = _made(make, seed)
    result = fit_conditional(
        flow, data.x0, data.state, checkpoint=checkpoint, seed=seed, progress=False, batch_size=batch_size, **settings
    )
    shown = len(data) - len(result.held_out)
    updates = result.epochs * math.ceil(shown / batch_size)
    return flow, Cost(updates, result.seconds, result.seconds, result.stopped)


def density_of(model: FlowMap | PseudoReversibleFlow, time: float) -> LogDensity:
    """The log-density of either kind of map at one time, without a graph."""

    def log_prob(y: Tensor, x0: Tensor) -> Tensor:
        with torch.no_grad():
            return model.log_prob(y, x0, time) if isinstance(model, FlowMap) else model.log_prob(y, x0)

    return log_prob


def in_chunks(function: Callable[..., Tensor], *columns: Tensor) -> Tensor:
    """The function of rows, some at a time."""
    parts = zip(*(column.split(SCORED) for column in columns), strict=True)
    return torch.cat([function(*part) for part in parts])


def _made(make: Callable[[], Any], seed: int) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()
