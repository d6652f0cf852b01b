"""Named stochastic differential equations with their initial laws, times and, where known, exact transitions."""

from __future__ import annotations

from collections.abc import Callable

from pyro_boltzmann.sde.systems.abc_flow import abc_flow, abc_truncated_normal
from pyro_boltzmann.sde.systems.brownian import absorbed_brownian_motion, brownian_motion, four_initial_laws
from pyro_boltzmann.sde.systems.collisions import CollisionRates, Collisions
from pyro_boltzmann.sde.systems.gradient import double_well_diffusion, gradient_diffusion
from pyro_boltzmann.sde.systems.ornstein_uhlenbeck import ornstein_uhlenbeck
from pyro_boltzmann.sde.systems.runaway import RunawayElectrons, runaway_electrons, runaway_initial
from pyro_boltzmann.sde.systems.system import System

__all__ = [
    "SYSTEMS",
    "CollisionRates",
    "Collisions",
    "RunawayElectrons",
    "System",
    "abc_flow",
    "abc_truncated_normal",
    "absorbed_brownian_motion",
    "brownian_motion",
    "double_well_diffusion",
    "four_initial_laws",
    "gradient_diffusion",
    "ornstein_uhlenbeck",
    "runaway_electrons",
    "runaway_initial",
]

SYSTEMS: dict[str, Callable[..., System]] = {
    "abc": abc_flow,
    "absorbed-brownian": absorbed_brownian_motion,
    "brownian": brownian_motion,
    "double-well": double_well_diffusion,
    "ornstein-uhlenbeck": ornstein_uhlenbeck,
    "runaway": runaway_electrons,
}
"""Makers of the named systems."""
