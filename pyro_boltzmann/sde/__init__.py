"""Stochastic differential equations as programs: simulation, exact laws, data, and flow maps that replace them."""

from pyro_boltzmann.sde.absorbed import AbsorbedBrownianTransition
from pyro_boltzmann.sde.boundaries import Absorbing, Boundary, Clamped, Periodic, Reflecting
from pyro_boltzmann.sde.drift_path import drift_path
from pyro_boltzmann.sde.equation import SDE
from pyro_boltzmann.sde.exact import BrownianTransition, GaussianTransition, OrnsteinUhlenbeckTransition
from pyro_boltzmann.sde.exit_head import ExitHead, crossing_logit
from pyro_boltzmann.sde.flow_map import FlowMap, Mass, RoundTrip
from pyro_boltzmann.sde.flow_map_base import Transitions
from pyro_boltzmann.sde.flow_map_program import FlowMapProgram
from pyro_boltzmann.sde.flow_map_transition import FlowMapTransition
from pyro_boltzmann.sde.laws import MaxwellianMomentum, ProductLaw, TruncatedNormal
from pyro_boltzmann.sde.linear_path import LinearPath
from pyro_boltzmann.sde.local_scale import LocalScale
from pyro_boltzmann.sde.program import SDEProgram
from pyro_boltzmann.sde.pushing import (
    ChapmanKolmogorov,
    MarginalLogProb,
    Pushed,
    chapman_kolmogorov,
    marginal_log_prob,
    push,
)
from pyro_boltzmann.sde.recentring import recentre
from pyro_boltzmann.sde.schemes import SCHEMES, Scheme
from pyro_boltzmann.sde.simulation import SimulationResult, simulate
from pyro_boltzmann.sde.training_domain import OutsideDomainWarning, TrainingDomain
from pyro_boltzmann.sde.transition_data import TransitionData
from pyro_boltzmann.sde.transitions import draw_transitions
from pyro_boltzmann.sde.walls import Preimages, Walls

__all__ = [
    "SCHEMES",
    "SDE",
    "AbsorbedBrownianTransition",
    "Absorbing",
    "Boundary",
    "BrownianTransition",
    "ChapmanKolmogorov",
    "Clamped",
    "ExitHead",
    "FlowMap",
    "FlowMapProgram",
    "FlowMapTransition",
    "GaussianTransition",
    "LinearPath",
    "LocalScale",
    "MarginalLogProb",
    "Mass",
    "MaxwellianMomentum",
    "OrnsteinUhlenbeckTransition",
    "OutsideDomainWarning",
    "Periodic",
    "Preimages",
    "ProductLaw",
    "Pushed",
    "Reflecting",
    "RoundTrip",
    "SDEProgram",
    "Scheme",
    "SimulationResult",
    "TrainingDomain",
    "TransitionData",
    "Transitions",
    "TruncatedNormal",
    "Walls",
    "chapman_kolmogorov",
    "crossing_logit",
    "draw_transitions",
    "drift_path",
    "marginal_log_prob",
    "push",
    "recentre",
    "simulate",
]
