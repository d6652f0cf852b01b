"""Benchmark targets with exact constants and known truths.

>>> target = catalogue["double_well"]
>>> target.sample(5).shape, round(target.log_z, 5)
(torch.Size([5, 2]), 10.29348)
"""

from __future__ import annotations

from pyro_boltzmann.energies.catalogue.breast_cancer import BreastCancer
from pyro_boltzmann.energies.catalogue.brownian import Brownian
from pyro_boltzmann.energies.catalogue.closed_form import ClosedForm
from pyro_boltzmann.energies.catalogue.contract import TargetContract
from pyro_boltzmann.energies.catalogue.double_well import DoubleWell
from pyro_boltzmann.energies.catalogue.double_well_particles import DW2, DW4, DoubleWellParticles
from pyro_boltzmann.energies.catalogue.funnel import Funnel
from pyro_boltzmann.energies.catalogue.gmm40 import GMM40
from pyro_boltzmann.energies.catalogue.image import ImageDensity
from pyro_boltzmann.energies.catalogue.lennard_jones import LennardJones
from pyro_boltzmann.energies.catalogue.many_well import ManyWell
from pyro_boltzmann.energies.catalogue.muller_brown import MullerBrown
from pyro_boltzmann.energies.catalogue.particles import PairTarget, ParticleTarget
from pyro_boltzmann.energies.catalogue.posteriors import (
    PosteriorTarget,
    eight_schools,
    eight_schools_centered,
    logistic_regression,
)
from pyro_boltzmann.energies.catalogue.registry import Catalogue, UnknownTargetError
from pyro_boltzmann.energies.catalogue.seeds import Seeds
from pyro_boltzmann.energies.catalogue.target import Target, TruthUnavailableError

__all__ = [
    "DW2",
    "DW4",
    "GMM40",
    "BreastCancer",
    "Brownian",
    "Catalogue",
    "ClosedForm",
    "DoubleWell",
    "DoubleWellParticles",
    "Funnel",
    "ImageDensity",
    "LennardJones",
    "ManyWell",
    "MullerBrown",
    "PairTarget",
    "ParticleTarget",
    "PosteriorTarget",
    "Seeds",
    "Target",
    "TargetContract",
    "TruthUnavailableError",
    "UnknownTargetError",
    "catalogue",
    "eight_schools",
    "eight_schools_centered",
    "logistic_regression",
]

catalogue = Catalogue()
