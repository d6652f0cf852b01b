"""Continuous flows: velocity fields, their divergences, and the transform that integrates them."""

from pyro_boltzmann.transforms.continuous.continuous_transform import ContinuousTransform, SolverErrors
from pyro_boltzmann.transforms.continuous.divergence import Hutchinson, exact_divergence, hutchinson_divergence
from pyro_boltzmann.transforms.continuous.embedded_atom_field import EmbeddedAtomField
from pyro_boltzmann.transforms.continuous.field_sum import FieldSum
from pyro_boltzmann.transforms.continuous.graph_field import GraphField
from pyro_boltzmann.transforms.continuous.kernel_field import KernelField
from pyro_boltzmann.transforms.continuous.kernel_flow import KernelFlow
from pyro_boltzmann.transforms.continuous.mlp_field import MLPField
from pyro_boltzmann.transforms.continuous.network_field import NetworkField
from pyro_boltzmann.transforms.continuous.pair_columns import PairColumns
from pyro_boltzmann.transforms.continuous.particle_field import ParticleField
from pyro_boltzmann.transforms.continuous.radial_kernels import ConstantKernel, GaussianKernels, RadialKernels
from pyro_boltzmann.transforms.continuous.spline_kernels import SplineKernels
from pyro_boltzmann.transforms.continuous.velocity_field import VelocityField

__all__ = [
    "ConstantKernel",
    "ContinuousTransform",
    "EmbeddedAtomField",
    "FieldSum",
    "GaussianKernels",
    "GraphField",
    "Hutchinson",
    "KernelField",
    "KernelFlow",
    "MLPField",
    "NetworkField",
    "PairColumns",
    "ParticleField",
    "RadialKernels",
    "SolverErrors",
    "SplineKernels",
    "VelocityField",
    "exact_divergence",
    "hutchinson_divergence",
]
