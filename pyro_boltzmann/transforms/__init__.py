"""Bijections of x: what Pyro and zuko lack, and one fused call for all of them."""

from pyro_boltzmann.transforms.conditional_layer import ConditionalLayer
from pyro_boltzmann.transforms.continuous import (
    ConstantKernel,
    ContinuousTransform,
    EmbeddedAtomField,
    FieldSum,
    GaussianKernels,
    GraphField,
    Hutchinson,
    KernelField,
    KernelFlow,
    MLPField,
    NetworkField,
    RadialKernels,
    SolverErrors,
    SplineKernels,
    VelocityField,
    exact_divergence,
    hutchinson_divergence,
)
from pyro_boltzmann.transforms.elementwise_affine import ElementwiseAffine
from pyro_boltzmann.transforms.fused import FusedTransform
from pyro_boltzmann.transforms.gauge import GaugeFixedEnergy, ParticleGauge
from pyro_boltzmann.transforms.inverse import InverseTransform
from pyro_boltzmann.transforms.ladj import call_and_ladj, inverse_and_ladj
from pyro_boltzmann.transforms.mean_free import MeanFreeBasis, helmert_basis
from pyro_boltzmann.transforms.message_passing import MessagePassing
from pyro_boltzmann.transforms.particle_pairs import ParticlePairs, RadialFeatures
from pyro_boltzmann.transforms.polishing import PolishResult, polish
from pyro_boltzmann.transforms.pseudo_reversible import PseudoReversibleFlow, PseudoReversibleTransform
from pyro_boltzmann.transforms.pseudo_reversible_checks import DensityGap, Folds, MassEstimate
from pyro_boltzmann.transforms.pullback import PullbackEnergy
from pyro_boltzmann.transforms.pushforward import PushforwardEnergy
from pyro_boltzmann.transforms.rational_quadratic import num_spline_parameters, rational_quadratic_spline
from pyro_boltzmann.transforms.spline_couplings import SplineCouplings
from pyro_boltzmann.transforms.standardisation import Standardisation
from pyro_boltzmann.transforms.symmetry import ParticleElement, ParticleSymmetry, random_orthogonal
from pyro_boltzmann.transforms.tanh_network import ConditionalMap, TanhNetwork

__all__ = [
    "ConditionalLayer",
    "ConditionalMap",
    "ConstantKernel",
    "ContinuousTransform",
    "DensityGap",
    "ElementwiseAffine",
    "EmbeddedAtomField",
    "FieldSum",
    "Folds",
    "FusedTransform",
    "GaugeFixedEnergy",
    "GaussianKernels",
    "GraphField",
    "Hutchinson",
    "InverseTransform",
    "KernelField",
    "KernelFlow",
    "MLPField",
    "MassEstimate",
    "MeanFreeBasis",
    "MessagePassing",
    "NetworkField",
    "ParticleElement",
    "ParticleGauge",
    "ParticlePairs",
    "ParticleSymmetry",
    "PolishResult",
    "PseudoReversibleFlow",
    "PseudoReversibleTransform",
    "PullbackEnergy",
    "PushforwardEnergy",
    "RadialFeatures",
    "RadialKernels",
    "SolverErrors",
    "SplineCouplings",
    "SplineKernels",
    "Standardisation",
    "TanhNetwork",
    "VelocityField",
    "call_and_ladj",
    "exact_divergence",
    "helmert_basis",
    "hutchinson_divergence",
    "inverse_and_ladj",
    "num_spline_parameters",
    "polish",
    "random_orthogonal",
    "rational_quadratic_spline",
]
