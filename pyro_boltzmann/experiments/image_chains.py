"""Quality of the image draws against energy evaluations: chains alone, and chains behind flows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_boltzmann.energies import Energy, count_evaluations
from pyro_boltzmann.guides import AutoStochasticFlow
from pyro_boltzmann.infer import importance_sample
from pyro_boltzmann.stochastic import MetropolisAdjusted, RandomWalkTransform

__all__ = ["Curve", "chain_curve", "flow_curve"]

Curve = list[tuple[float, float]]
"""Evaluations a draw, and the KL of the draws."""
CHAINS_AT_ONCE = 50_000


@torch.no_grad()
def chain_curve(
    energy: Energy, kl: Callable[[Tensor], float], stops: Sequence[int], *, scale: float, num_samples: int, seed: int
) -> Curve:
    """Metropolis chains from the standard normal law, looked at after each of ``stops`` (increasing) steps.

    >>> energy = lambda x: 0.5 * x.square().sum(-1)
    >>> chain_curve(energy, lambda x: len(x), [1, 3], scale=0.5, num_samples=100, seed=0)
    [(2.0, 100), (4.0, 100)]
    """
    generator = torch.Generator().manual_seed(seed)
    seen: list[list[Tensor]] = [[] for _ in stops]
    spent = [0.0 for _ in stops]
    for done in range(0, num_samples, CHAINS_AT_ONCE):
        x = torch.randn(min(CHAINS_AT_ONCE, num_samples - done), 2, generator=generator)
        memo, before = None, 0
        with count_evaluations() as count:
            for index, stop in enumerate(stops):
                walk = RandomWalkTransform(2, scale, num_steps=stop - before)
                result = MetropolisAdjusted(walk, energy).stream(x, memo, generator)
                x, memo, before = result.x, result.memo, stop
                seen[index].append(x.clone())
                spent[index] += count.values
    return [(total / num_samples, kl(torch.cat(parts))) for total, parts in zip(spent, seen, strict=True)]


def flow_curve(
    program: Any,
    guides: Iterable[AutoStochasticFlow],
    kl: Callable[[Tensor], float],
    *,
    num_samples: int,
    seed: int,
) -> Curve:
    """Draws of each guide: one stochastic flow with various numbers of steps, say."""
    curve = []
    for guide in guides:
        draws = importance_sample(program, guide, num_samples=num_samples, seed=seed)
        curve.append((sum(draws.evaluations["sample"].values()) / num_samples, kl(draws.samples["x"])))
    return curve
