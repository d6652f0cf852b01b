"""Diffusion samplers: estimators of noised energies and scores, proposals for them."""

from pyro_boltzmann.diffusion.estimators import (
    DenoisingEstimate,
    bootstrapped_energy,
    bootstrapped_estimate,
    denoising_estimate,
    noised_energy,
    noised_score,
)
from pyro_boltzmann.diffusion.proposals import BufferProposal, DenoisingProposal

__all__ = [
    "BufferProposal",
    "DenoisingEstimate",
    "DenoisingProposal",
    "bootstrapped_energy",
    "bootstrapped_estimate",
    "denoising_estimate",
    "noised_energy",
    "noised_score",
]
