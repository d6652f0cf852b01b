"""Diffusion samplers: noise schedules, energy and score networks."""

from pyro_boltzmann.diffusion.networks import (
    EnergyMLP,
    EquivariantNetwork,
    FourierFeatures,
    InvariantNetwork,
    NoiseEmbedding,
    ParticlePairs,
    PreconditionedEnergy,
    PreconditionedScore,
    RadialFeatures,
    ScoreMLP,
)
from pyro_boltzmann.diffusion.schedules import (
    CosineSchedule,
    GeometricSchedule,
    LinearSchedule,
    NoiseSchedule,
    PowerSchedule,
    QuadraticSchedule,
    noise_schedule,
)

__all__ = [
    "CosineSchedule",
    "EnergyMLP",
    "EquivariantNetwork",
    "FourierFeatures",
    "GeometricSchedule",
    "InvariantNetwork",
    "LinearSchedule",
    "NoiseEmbedding",
    "NoiseSchedule",
    "ParticlePairs",
    "PowerSchedule",
    "PreconditionedEnergy",
    "PreconditionedScore",
    "QuadraticSchedule",
    "RadialFeatures",
    "ScoreMLP",
    "noise_schedule",
]
