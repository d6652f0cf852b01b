"""Diffusion samplers: noise schedules, networks, estimators of noised energies and scores, the reverse process."""

from pyro_boltzmann.diffusion.estimators import (
    DenoisingEstimate,
    bootstrapped_energy,
    bootstrapped_estimate,
    denoising_estimate,
    noised_energy,
    noised_score,
)
from pyro_boltzmann.diffusion.networks import (
    EnergyMLP,
    EquivariantNetwork,
    FourierFeatures,
    InvariantNetwork,
    NoiseEmbedding,
    PreconditionedEnergy,
    PreconditionedScore,
    ScoreMLP,
)
from pyro_boltzmann.diffusion.noised import EstimatedEnergy, NoisedEnergy
from pyro_boltzmann.diffusion.proposals import BufferProposal, DenoisingProposal
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
    "BufferProposal",
    "CosineSchedule",
    "DenoisingEstimate",
    "DenoisingProposal",
    "DiffusionField",
    "EnergyMLP",
    "EquivariantNetwork",
    "EstimatedEnergy",
    "FourierFeatures",
    "GeometricSchedule",
    "InvariantNetwork",
    "LinearSchedule",
    "NoiseEmbedding",
    "NoiseSchedule",
    "NoisedEnergy",
    "PowerSchedule",
    "PreconditionedEnergy",
    "PreconditionedScore",
    "QuadraticSchedule",
    "ReverseDiffusion",
    "ScoreMLP",
    "bootstrapped_energy",
    "bootstrapped_estimate",
    "denoising_estimate",
    "noise_schedule",
    "noised_energy",
    "noised_score",
    "reverse_diffusion",
]
