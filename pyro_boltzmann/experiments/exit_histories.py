"""How many trajectories have exited by a time, and where the others are: by simulation, or by a flow map."""

from __future__ import annotations

import time as clock
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from pyro_boltzmann.experiments.run_metrics import stream_seed
from pyro_boltzmann.infer.randomness import seeded
from pyro_boltzmann.sde import SDE, FlowMap, TransitionData, simulate

__all__ = [
    "ExitHistory",
    "composed_history",
    "direct_history",
    "from_the_start",
    "history_of",
    "neighbours",
    "visited_states",
]

BLOCK = 16_384
"""Rows that a flow map moves at a time."""


@dataclass(frozen=True)
class ExitHistory:
    """What became of an ensemble.

    :ivar times: at which it was looked at.
    :ivar size: of the ensemble.
    :ivar survivors: states at these times of those that have not exited, ``(n_k, d)``.
    :ivar seconds: CPU time.
    :ivar outside: states that a map left outside of what it was trained on, and that went on from the nearest state
        inside.
    """

    times: list[float]
    size: int
    survivors: list[Tensor]
    seconds: float
    outside: int = 0

    @property
    def exits(self) -> list[float]:
        """Share of the ensemble that has exited by each time."""
        return [1.0 - len(states) / self.size for states in self.survivors]

    def shares(self, region: Callable[[Tensor], Tensor]) -> list[float]:
        """Share of the ensemble that is in a region ``(n, d) -> (n)`` at each time."""
        return [float(region(states).sum()) / self.size for states in self.survivors]


def history_of(states: Tensor, exited: Tensor, stride: float, seconds: float) -> ExitHistory:
    """The history that :func:`visited_states` gave.

    :param seconds: that it took.
    """
    times = [stride * number for number in range(1, len(states))]
    kept = [x[~gone] for x, gone in zip(states[1:], exited[1:], strict=True)]
    return ExitHistory(times, states.shape[1], kept, seconds)


@torch.no_grad()
def composed_history(
    flow_map: FlowMap, x0: Tensor, stride: float, num_strides: int, *, every: int, seed: int
) -> ExitHistory:
    """One flow map of a short time, applied again and again.

    :param stride: the time of the map.
    :param every: strides between two looks.
    """
    begin, x, kept, outside = clock.process_time(), x0, [], 0
    low, high = flow_map.domain.low[: x0.shape[-1]], flow_map.domain.high[: x0.shape[-1]]
    with seeded(seed):
        for number in range(1, num_strides + 1):
            if number > 1:
                nearest = x.clamp(low, high)
                outside += int((nearest != x).any(-1).sum())
                x = nearest
            state, exited = _move(flow_map, x, stride)
            x = state[~exited]
            if number % every == 0:
                kept.append(x)
    times = [stride * every * number for number in range(1, len(kept) + 1)]
    return ExitHistory(times, len(x0), kept, clock.process_time() - begin, outside)


@torch.no_grad()
def direct_history(flow_map: FlowMap, x0: Tensor, times: Sequence[float], *, seed: int) -> ExitHistory:
    """A flow map of all times, applied once for each look; looks are independent given ``x0``."""
    start = clock.process_time()
    kept = []
    with seeded(seed):
        for time in times:
            state, exited = _move(flow_map, x0, time)
            kept.append(state[~exited])
    return ExitHistory(list(times), len(x0), kept, clock.process_time() - start)


def _move(flow_map: FlowMap, x0: Tensor, time: float) -> tuple[Tensor, Tensor]:
    states, exited = [], []
    for x in x0.split(BLOCK):
        start = flow_map.start(x, time)
        gone = torch.rand_like(x[:, 0]) < flow_map.logits(start).sigmoid()
        states.append(flow_map.fold(flow_map.free_state(torch.randn_like(x), start), start))
        exited.append(gone)
    if not states:
        return x0, torch.zeros(0, dtype=torch.bool)
    return torch.cat(states), torch.cat(exited)


def visited_states(
    sde: SDE, x0: Tensor, stride: float, num_strides: int, *, step_size: float, seed: int
) -> tuple[Tensor, Tensor]:
    """States of trajectories at the ends of strides, ``(num_strides + 1, n, d)``, and whether they had exited.

    Each pair of neighbours is a transition over one stride, each pair with the first a transition over several.
    """
    states, exited = [x0], [torch.zeros(len(x0), dtype=torch.bool)]
    for number in range(num_strides):
        x, gone = states[-1].clone(), exited[-1].clone()
        alive = (~gone).nonzero()[:, 0]
        result = simulate(sde, x[alive], stride, step_size=step_size, seed=stream_seed(seed, f"stride {number}"))
        x[alive], gone[alive] = result.state, result.exited
        states.append(x)
        exited.append(gone)
    return torch.stack(states), torch.stack(exited)


def neighbours(states: Tensor, exited: Tensor, stride: float) -> TransitionData:
    """All transitions over one stride among :func:`visited_states`."""
    alive = ~exited[:-1]
    x0 = states[:-1][alive]
    return TransitionData(x0, torch.full((len(x0),), stride), states[1:][alive], exited[1:][alive])


def from_the_start(states: Tensor, exited: Tensor, stride: float, each: int, *, seed: int) -> TransitionData:
    """Transitions from the initial states over ``each`` random numbers of strides."""
    last, n, d = len(states) - 1, states.shape[1], states.shape[2]
    draw = partial(torch.randint, 1, last + 1, (each, n))
    number = draw(generator=torch.Generator().manual_seed(seed))
    rows = torch.arange(n).expand(each, n)
    x0 = states[0].expand(each, n, d)
    times = number.to(states) * stride
    return TransitionData(
        x0.reshape(-1, d), times.reshape(-1), states[number, rows].reshape(-1, d), exited[number, rows].reshape(-1)
    )
