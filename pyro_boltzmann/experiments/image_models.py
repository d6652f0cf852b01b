"""The models of the image experiment: published flows with and without Metropolis steps, and ours."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any, cast

import pyro.distributions.transforms as T
import torch
from pyro.nn import DenseNN
from torch import nn

from pyro_boltzmann.energies import AnnealedEnergy, Energy, NormalEnergy
from pyro_boltzmann.guides import AutoStochasticFlow
from pyro_boltzmann.stochastic import MetropolisAdjusted, RandomWalkTransform

__all__ = [
    "FAMILIES",
    "OURS_STEPS",
    "ImageModel",
    "followed_by_steps",
    "ours",
    "published",
    "with_steps",
]

FAMILIES = ("rnvp", "rnvp_snf", "nsf", "nsf_snf")
BOUND = 4.0
"""Splines act on [-4, 4]; the picture ends at 3.5."""
HIDDEN = [64, 64, 64]
PUBLISHED_BINS, PUBLISHED_STEPS, PUBLISHED_SCALE = 20, 10, 0.1

OURS_LAYERS, OURS_BINS, OURS_STEPS = 4, 24, 20
OURS_SCALES = (2.0, 1.0, 0.5, 0.25, 0.1)
"""Of one step after another, again and again: the long ones level masses of regions, the short ones details."""

TRAINING_SECONDS = 30.0
MOST_UPDATES, FEWEST_UPDATES = 2000, 200
SECONDS_A_LAYER = {"rnvp": 0.003, "nsf": 0.009}
SECONDS_A_BLOCK = 0.03
"""About what an update takes; a fixed table, so that the number of updates follows from the model alone."""


@dataclass(frozen=True)
class ImageModel:
    """A path of blocks, and the number of updates it is trained for."""

    name: str
    num_layers: int
    num_updates: int
    blocks: Callable[[Energy, int], list[Any]]


def published(family: str, num_layers: int) -> ImageModel:
    """A flow of ``num_layers`` couplings, the coordinates swapped after each; with ``_snf`` ten Metropolis steps after
    every second one, annealed from the Gaussian base to the picture.

    All get about the same training time (the published 2000 updates at most).
    """
    kind = family.removesuffix("_snf")
    num_blocks = num_layers // 2 if family != kind else 0
    seconds = SECONDS_A_LAYER[kind] * num_layers + SECONDS_A_BLOCK * num_blocks
    updates = min(MOST_UPDATES, max(FEWEST_UPDATES, round(TRAINING_SECONDS / seconds)))

    def blocks(energy: Energy, dim: int) -> list[Any]:
        path: list[Any] = []
        for layer in range(1, num_layers + 1):
            path += [_coupling(kind), T.Permute(torch.tensor([1, 0]))]
            if num_blocks and layer % 2 == 0:
                annealed = AnnealedEnergy(NormalEnergy(), energy, layer / num_layers)
                walk = RandomWalkTransform(2, PUBLISHED_SCALE, num_steps=PUBLISHED_STEPS)
                path.append(MetropolisAdjusted(walk, annealed))
        return path

    return ImageModel(f"{family}_{num_layers}", num_layers, updates, blocks)


def _coupling(kind: str) -> Any:
    if kind == "rnvp":
        return T.affine_coupling(2, HIDDEN, split_dim=1)
    return _spline_coupling(PUBLISHED_BINS)


def _spline_coupling(count_bins: int) -> Any:
    """A spline coupling whose network starts with even knots, close to the identity: a deep stack of random splines is
    a plaid that takes long to unlearn.
    """
    net = DenseNN(1, HIDDEN, param_dims=[count_bins, count_bins, count_bins - 1, count_bins])
    last = cast(nn.Linear, net.layers[-1])
    with torch.no_grad():
        last.weight.mul_(0.1)
        last.bias.zero_()
        last.bias[2 * count_bins : 3 * count_bins - 1] = math.log(math.e - 1)  # softplus of this is one
    return T.SplineCoupling(2, 1, net, count_bins=count_bins, bound=BOUND, identity=True)


def ours(name: str, num_updates: int) -> ImageModel:
    """Four spline couplings; the Metropolis steps come behind the trained flow (:func:`followed_by_steps`)."""

    def blocks(energy: Energy, dim: int) -> list[Any]:
        couplings = [_spline_coupling(OURS_BINS) for _ in range(OURS_LAYERS)]
        return [part for coupling in couplings for part in (coupling, T.Permute(torch.tensor([1, 0])))]

    return ImageModel(name, OURS_LAYERS, num_updates, blocks)


def followed_by_steps(program: Any, guide: AutoStochasticFlow, num_steps: int) -> AutoStochasticFlow:
    """A guide on the same trained layers, with Metropolis steps on the target itself behind them."""
    layers = [block for block, _ in guide.get_transform()._directed() if not isinstance(block, MetropolisAdjusted)]
    return AutoStochasticFlow(program, lambda energy, dim: [*layers, _walk(num_steps, energy)])


def with_steps(program: Any, guide: AutoStochasticFlow, num_steps: int) -> AutoStochasticFlow:
    """A guide on the same trained layers, with this many Metropolis steps in each block instead of its own."""

    def again(block: Any) -> Any:
        if not isinstance(block, MetropolisAdjusted):
            return block
        scale = cast(RandomWalkTransform, block.proposal).scale
        return MetropolisAdjusted(RandomWalkTransform(2, float(scale), num_steps=num_steps), block.energy)

    path = [again(block) for block, _ in guide.get_transform()._directed()]
    return AutoStochasticFlow(program, lambda energy, dim: path)


def _walk(num_steps: int, energy: Energy) -> MetropolisAdjusted:
    scales = list(islice(cycle(OURS_SCALES), num_steps))
    return MetropolisAdjusted(RandomWalkTransform(2, scales, num_steps=num_steps), energy)
