"""Adapt the scales of Metropolis blocks outside training."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch

from pyro_boltzmann.diagnostics import WeightedSamples
from pyro_boltzmann.energies import EvaluationCount, count_evaluations
from pyro_boltzmann.experiments.threads import one_thread
from pyro_boltzmann.guides import AmortizedStochasticFlow, AutoStochasticFlow
from pyro_boltzmann.stochastic import MetropolisAdjusted

__all__ = ["adapt_scales", "total_seconds"]

FEWEST_ROUNDS = 4


def adapt_scales(
    guide: AutoStochasticFlow | AmortizedStochasticFlow,
    seed: int,
    *args: Any,
    rounds: int = 15,
    num_particles: int = 500,
    max_seconds: float = math.inf,
    clock: Callable[[], float] = time.perf_counter,
) -> EvaluationCount:
    """Steer Metropolis scales to their acceptance rates with a decreasing rate, then leave them fixed.

    :param args: the model's arguments.
    :param max_seconds: stop early, but not before :data:`FEWEST_ROUNDS`.
    :param clock: what counts as seconds.
    """
    start = clock()
    blocks = [block for block, _ in guide.initialize(*args).get_transform()._directed()]
    if not any(isinstance(block, MetropolisAdjusted) for block in blocks):
        return EvaluationCount()
    generator = torch.Generator(_device(guide)).manual_seed(seed)
    with torch.no_grad(), one_thread(), count_evaluations() as count:
        for step in range(rounds):
            if step >= FEWEST_ROUNDS and clock() - start > max_seconds:
                break
            infos = guide.sample_paths(num_particles, *args, generator=generator).infos
            for block, info in zip(blocks, infos, strict=True):
                if isinstance(block, MetropolisAdjusted) and info is not None:
                    block.adapt_scale(info, rate=2.0 / (1 + step) ** 0.6)
    return count


def _device(guide: torch.nn.Module) -> torch.device:
    tensors = (*guide.parameters(), *guide.buffers())
    return tensors[0].device if tensors else torch.device("cpu")


def total_seconds(draws: WeightedSamples) -> float:
    """Wall time that weighted draws took."""
    seconds = draws.seconds
    return sum(seconds.values()) if isinstance(seconds, dict) else float(seconds or 0.0)
