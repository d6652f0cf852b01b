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
from pyro_boltzmann.diffusion.noised import NoisedEnergy
from pyro_boltzmann.diffusion.reverse import DiffusionField, ReverseDiffusion, reverse_diffusion
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
    "DiffusionField",
    "EnergyMLP",
    "EquivariantNetwork",
    "FourierFeatures",
    "GeometricSchedule",
    "InvariantNetwork",
    "LinearSchedule",
    "NoiseEmbedding",
    "NoiseSchedule",
    "NoisedEnergy",
    "ParticlePairs",
    "PowerSchedule",
    "PreconditionedEnergy",
    "PreconditionedScore",
    "QuadraticSchedule",
    "RadialFeatures",
    "ReverseDiffusion",
    "ScoreMLP",
    "noise_schedule",
    "reverse_diffusion",
]
