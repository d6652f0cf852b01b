"""Stochastic differential equations, and conditional flow maps of them."""

from pyro_boltzmann.sde.boundaries import Absorbing, Boundary, Clamped, Periodic, Reflecting
from pyro_boltzmann.sde.drift_path import drift_path
from pyro_boltzmann.sde.flow_map import FlowMap, Mass, RoundTrip
from pyro_boltzmann.sde.flow_map_base import Transitions
from pyro_boltzmann.sde.flow_map_program import FlowMapProgram
from pyro_boltzmann.sde.flow_map_transition import FlowMapTransition
from pyro_boltzmann.sde.linear_path import LinearPath
from pyro_boltzmann.sde.pushing import (
    ChapmanKolmogorov,
    MarginalLogProb,
    Pushed,
    chapman_kolmogorov,
    marginal_log_prob,
    push,
)
from pyro_boltzmann.sde.training_domain import OutsideDomainWarning, TrainingDomain
from pyro_boltzmann.sde.walls import Preimages, Walls

__all__ = [
    "Absorbing",
    "Boundary",
    "ChapmanKolmogorov",
    "Clamped",
    "FlowMap",
    "FlowMapProgram",
    "FlowMapTransition",
    "LinearPath",
    "MarginalLogProb",
    "Mass",
    "OutsideDomainWarning",
    "Periodic",
    "Preimages",
    "Pushed",
    "Reflecting",
    "RoundTrip",
    "TrainingDomain",
    "Transitions",
    "Walls",
    "chapman_kolmogorov",
    "drift_path",
    "marginal_log_prob",
    "push",
]
