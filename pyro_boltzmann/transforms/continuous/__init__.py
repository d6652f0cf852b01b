"""Continuous flows: velocity fields, their divergences, and the bijections that they make."""

from pyro_boltzmann.transforms.continuous.continuous_transform import ContinuousTransform, SolverErrors
from pyro_boltzmann.transforms.continuous.divergence import Hutchinson, exact_divergence, hutchinson_divergence
from pyro_boltzmann.transforms.continuous.graph_field import GraphField
from pyro_boltzmann.transforms.continuous.mlp_field import MLPField
from pyro_boltzmann.transforms.continuous.network_field import NetworkField
from pyro_boltzmann.transforms.continuous.velocity_field import VelocityField

__all__ = [
    "ContinuousTransform",
    "GraphField",
    "Hutchinson",
    "MLPField",
    "NetworkField",
    "SolverErrors",
    "VelocityField",
    "exact_divergence",
    "hutchinson_divergence",
]
