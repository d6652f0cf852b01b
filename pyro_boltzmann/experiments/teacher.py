"""Annealed importance sampling as a teacher: weighted draws of a target that cover its modes, from its energy alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro.distributions.transforms as T
from torch import Tensor

from pyro_boltzmann.diagnostics import WeightedSamples
from pyro_boltzmann.energies import AnnealedEnergy, Energy, EvaluationCount, NormalEnergy
from pyro_boltzmann.experiments.adaptation import adapt_scales
from pyro_boltzmann.guides import AutoStochasticFlow
from pyro_boltzmann.infer import importance_sample
from pyro_boltzmann.stochastic import LeapfrogTransform, MetropolisAdjusted
from pyro_boltzmann.transforms import PushforwardEnergy

__all__ = ["annealed_teacher"]

NUM_RUNGS = 32
LEAPFROG_STEPS = 3


def annealed_teacher(
    model: Callable[..., Any], dim: int, centre: Tensor, width: Tensor, *, seed: int, num_samples: int
) -> tuple[WeightedSamples, EvaluationCount]:
    r"""Weighted draws by Hamiltonian Monte Carlo annealed from :math:`N(\text{centre}, \text{width}^2)` to the target.

    This is an untrained path of the package's own blocks. Reverse KL alone can settle on one mode and never see
    another; a flow that starts from these draws has seen every mode that annealing reaches. The ladder is quadratic
    in the rung, and step sizes are adapted by acceptance rate.

    :return: the draws, with their unconstrained latents in ``info["z"]``, and what adapting cost on top.
    """

    def blocks(energy: Energy, latent_dim: int) -> list[Any]:
        frame = T.AffineTransform(centre, width)
        reference = PushforwardEnergy(NormalEnergy(), [frame])
        rungs = [AnnealedEnergy(reference, energy, (rung / NUM_RUNGS) ** 2) for rung in range(1, NUM_RUNGS + 1)]
        proposals = [LeapfrogTransform(rung, dim, 0.4 / dim**0.25, LEAPFROG_STEPS, mass=width**-2.0) for rung in rungs]
        return [frame] + [MetropolisAdjusted(p, rung, adapt=True) for p, rung in zip(proposals, rungs, strict=True)]

    guide = AutoStochasticFlow(model, blocks, latent_dim=dim)
    adapting = adapt_scales(guide, seed, rounds=20, num_particles=200)
    return importance_sample(model, guide, num_samples=num_samples, seed=seed), adapting
