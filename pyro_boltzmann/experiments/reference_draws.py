"""Reference samples of targets without an exact sampler: sequential Monte Carlo, equally weighted."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_boltzmann.diagnostics.resampling import systematic
from pyro_boltzmann.energies.catalogue import Target
from pyro_boltzmann.energies.evaluation import energy_value
from pyro_boltzmann.experiments.run_distances import BLOCK, FLOOR_REPEATS
from pyro_boltzmann.experiments.run_metrics import ExactDraws, stream_seed
from pyro_boltzmann.experiments.threads import one_thread
from pyro_boltzmann.infer import smc

__all__ = ["REFERENCES", "draw_by_smc", "draw_reference"]

REFERENCES: dict[str, float] = {"dw4": math.sqrt(6.0)}
"""Targets that sequential Monte Carlo samples well in seconds, with the standard deviation of its Gaussian start."""


@torch.no_grad()
def draw_reference(target: Target | None, num_samples: int, seed: int) -> ExactDraws | None:
    """As many draws as a distance and its floor need, in random order; ``None`` where there is no such recipe.

    For distances alone: bounds and weights ask for exact samples.

    :param num_samples: of the run.
    :param seed: of the run.
    """
    if target is None or target.has_exact_sampler or target.name not in REFERENCES:
        return None
    number = (2 * FLOOR_REPEATS + 1) * min(num_samples, BLOCK)
    z = draw_by_smc(target, number, seed, scale=REFERENCES[target.name], num_samples=max(4000, number))
    return ExactDraws(z, energy_value(target.energy, z))


@torch.no_grad()
def draw_by_smc(target: Target, number: int, seed: int, *, scale: float, num_samples: int) -> Tensor:
    """Equally weighted draws ``(number, dim)`` of one run of sequential Monte Carlo, in random order.

    :param scale: standard deviation of its Gaussian start.
    :param num_samples: its particles.
    """
    with one_thread():
        draws = smc(
            target.energy,
            dim=target.dim,
            proposal=scale,
            num_samples=num_samples,
            num_moves=4,
            seed=stream_seed(seed, "reference"),
            progress=False,
        )
    generator = torch.Generator().manual_seed(stream_seed(seed, "reference order"))
    chosen = systematic(draws.log_weights, number, generator)
    # Copies of one draw stand together, and blocks of them are compared with each other.
    z: Tensor = draws.samples["x"][chosen[torch.randperm(number, generator=generator)]]
    return z
