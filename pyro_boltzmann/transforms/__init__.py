"""Bijections of x: what Pyro and zuko lack, and one fused call for all of them."""

from pyro_boltzmann.transforms.conditional_layer import ConditionalLayer
from pyro_boltzmann.transforms.continuous import (
    ConstantKernel,
    EmbeddedAtomField,
    FieldSum,
    GaussianKernels,
    KernelField,
    RadialKernels,
    SplineKernels,
    VelocityField,
)
from pyro_boltzmann.transforms.elementwise_affine import ElementwiseAffine
from pyro_boltzmann.transforms.fused import FusedTransform
from pyro_boltzmann.transforms.gauge import GaugeFixedEnergy, ParticleGauge
from pyro_boltzmann.transforms.inverse import InverseTransform
from pyro_boltzmann.transforms.ladj import call_and_ladj, inverse_and_ladj
from pyro_boltzmann.transforms.mean_free import MeanFreeBasis, helmert_basis
from pyro_boltzmann.transforms.particle_pairs import ParticlePairs, RadialFeatures
from pyro_boltzmann.transforms.pullback import PullbackEnergy
from pyro_boltzmann.transforms.pushforward import PushforwardEnergy
from pyro_boltzmann.transforms.symmetry import ParticleElement, ParticleSymmetry, random_orthogonal

__all__ = [
    "ConditionalLayer",
    "ConstantKernel",
    "ElementwiseAffine",
    "EmbeddedAtomField",
    "FieldSum",
    "FusedTransform",
    "GaugeFixedEnergy",
    "GaussianKernels",
    "InverseTransform",
    "KernelField",
    "MeanFreeBasis",
    "ParticleElement",
    "ParticleGauge",
    "ParticlePairs",
    "ParticleSymmetry",
    "PullbackEnergy",
    "PushforwardEnergy",
    "RadialFeatures",
    "RadialKernels",
    "SplineKernels",
    "VelocityField",
    "call_and_ladj",
    "helmert_basis",
    "inverse_and_ladj",
    "random_orthogonal",
]
