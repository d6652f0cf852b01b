"""What a draw costs and how good it is: schemes and steps of simulation, and a flow map, on the ABC flow."""

from __future__ import annotations

import math
import time as clock
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyro_boltzmann.diagnostics import ks_distance
from pyro_boltzmann.sde import simulate
from pyro_boltzmann.sde.systems import System

__all__ = ["REFERENCE", "SCHEMES", "Payback", "Scheme", "conditional_distance", "draws_a_second", "payback"]

Ends = Callable[[Tensor], Tensor]


class Scheme(NamedTuple):
    """A scheme of :func:`~pyro_boltzmann.sde.simulate` and its step."""

    scheme: str
    step_size: float

    @property
    def label(self) -> str:
        name = {"euler": "Euler", "runge_kutta": "Runge-Kutta"}[self.scheme]
        return f"{name}, step {self.step_size:g}"

    def ends(self, system: System) -> Ends:
        """Its simulation, with torch's global generator."""
        return lambda x0: (
            simulate(system.sde, x0, system.time, step_size=self.step_size, scheme=self.scheme, seed=_fresh()).state
        )


REFERENCE = Scheme("runge_kutta", 0.005)
SCHEMES = (
    Scheme("euler", 0.002),
    Scheme("euler", 0.01),
    Scheme("euler", 0.05),
    Scheme("runge_kutta", 0.02),
    Scheme("runge_kutta", 0.05),
    Scheme("runge_kutta", 0.1),
    Scheme("runge_kutta", 0.2),
    Scheme("runge_kutta", 0.4),
)


class Payback(NamedTuple):
    """After how many draws, and how many queries, a training has paid for itself; infinite if it never does."""

    draws: float
    queries: float


@torch.no_grad()
def draws_a_second(ends: Ends, x0: Tensor, *, repeats: int = 3) -> float:
    """Draws in a CPU second, of the quickest of some repeats.

    >>> draws_a_second(lambda x0: x0 + 1.0, torch.zeros(100, 3)) > 0.0
    True
    """
    seconds = []
    for _ in range(repeats):
        start = clock.process_time()
        ends(x0)
        seconds.append(clock.process_time() - start)
    return len(x0) / max(min(seconds), 1e-9)


@torch.no_grad()
def conditional_distance(samplers: Mapping[str, Ends], starts: Tensor, draws: int, seed: int) -> dict[str, float]:
    """How far samplers of the transition law are from the first of them: the mean, over initial states and coordinates,
    of the Kolmogorov-Smirnov distance between ``draws`` ends each. Marginal laws hide what conditional ones show.

    :param starts: initial states ``(k, d)``.
    """
    x0 = starts.repeat_interleave(draws, 0)
    reference: np.ndarray | None = None
    found: dict[str, float] = {}
    with torch.random.fork_rng(devices=[]):
        for number, (name, ends) in enumerate(samplers.items()):
            torch.manual_seed(seed + number)
            state = ends(x0).view(len(starts), draws, -1).double().numpy()
            if reference is None:
                reference = state
                continue
            found[name] = float(
                np.mean(
                    [
                        ks_distance(state[k, :, i], reference[k, :, i])
                        for k in range(len(starts))
                        for i in range(state.shape[-1])
                    ]
                )
            )
    return found


def payback(invested: float, quick: float, slow: float, query: int) -> Payback:
    """When the seconds invested are earned back by drawing ``quick`` instead of ``slow`` draws a second.

    :param query: draws of a query.

    >>> payback(100.0, 1000.0, 500.0, 20_000)
    Payback(draws=100000.0, queries=5.0)
    >>> payback(100.0, 500.0, 1000.0, 20_000).queries
    inf
    """
    gain = 1.0 / slow - 1.0 / quick
    draws = invested / gain if gain > 0.0 else math.inf
    return Payback(draws, draws / query)


def _fresh() -> int:
    return int(torch.randint(2**31, ()))
