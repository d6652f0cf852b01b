"""Networks of a state and a noise level, and how they are preconditioned so that their ends are right."""

from pyro_boltzmann.diffusion.networks.embedding import NoiseEmbedding
from pyro_boltzmann.diffusion.networks.equivariant import EquivariantNetwork, InvariantNetwork
from pyro_boltzmann.diffusion.networks.mlp import EnergyMLP, ScoreMLP
from pyro_boltzmann.diffusion.networks.preconditioned import PreconditionedEnergy, PreconditionedScore
from pyro_boltzmann.transforms.fourier_features import FourierFeatures

__all__ = [
    "EnergyMLP",
    "EquivariantNetwork",
    "FourierFeatures",
    "InvariantNetwork",
    "NoiseEmbedding",
    "PreconditionedEnergy",
    "PreconditionedScore",
    "ScoreMLP",
]
