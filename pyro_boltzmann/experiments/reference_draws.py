"""Reference samples of targets without an exact sampler: sequential Monte Carlo, equally weighted."""

from __future__ import annotations

import math

import torch

from pyro_boltzmann.diagnostics.resampling import systematic
from pyro_boltzmann.energies.catalogue import Target
from pyro_boltzmann.energies.evaluation import energy_value
from pyro_boltzmann.experiments.run_distances import BLOCK, FLOOR_REPEATS
from pyro_boltzmann.experiments.run_metrics import ExactDraws, stream_seed
from pyro_boltzmann.experiments.threads import one_thread
from pyro_boltzmann.infer import smc

__all__ = ["REFERENCES", "draw_reference"]

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
    with one_thread():
        draws = smc(
            target.energy,
            dim=target.dim,
            proposal=REFERENCES[target.name],
            num_samples=max(4000, number),
            num_moves=4,
            seed=stream_seed(seed, "reference"),
            progress=False,
        )
    generator = torch.Generator().manual_seed(stream_seed(seed, "reference order"))
    chosen = systematic(draws.log_weights, number, generator)
    # Copies of one draw stand together, and blocks of them are compared with each other.
    z = draws.samples["x"][chosen[torch.randperm(number, generator=generator)]]
    return ExactDraws(z, energy_value(target.energy, z))
