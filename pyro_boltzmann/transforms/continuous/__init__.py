"""Velocity fields of continuous flows, with their divergence in closed form."""

from pyro_boltzmann.transforms.continuous.embedded_atom_field import EmbeddedAtomField
from pyro_boltzmann.transforms.continuous.field_sum import FieldSum
from pyro_boltzmann.transforms.continuous.kernel_field import KernelField
from pyro_boltzmann.transforms.continuous.pair_columns import PairColumns
from pyro_boltzmann.transforms.continuous.particle_field import ParticleField
from pyro_boltzmann.transforms.continuous.radial_kernels import ConstantKernel, GaussianKernels, RadialKernels
from pyro_boltzmann.transforms.continuous.spline_kernels import SplineKernels
from pyro_boltzmann.transforms.continuous.velocity_field import VelocityField

__all__ = [
    "ConstantKernel",
    "EmbeddedAtomField",
    "FieldSum",
    "GaussianKernels",
    "KernelField",
    "PairColumns",
    "ParticleField",
    "RadialKernels",
    "SplineKernels",
    "VelocityField",
]
