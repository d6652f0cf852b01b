"""Stochastic differential equations as programs: simulation, exact laws, data for flow maps, named systems."""

from pyro_boltzmann.sde.absorbed import AbsorbedBrownianTransition
from pyro_boltzmann.sde.boundaries import Absorbing, Boundary, Clamped, Periodic, Reflecting
from pyro_boltzmann.sde.equation import SDE
from pyro_boltzmann.sde.exact import BrownianTransition, GaussianTransition, OrnsteinUhlenbeckTransition
from pyro_boltzmann.sde.laws import MaxwellianMomentum, ProductLaw, TruncatedNormal
from pyro_boltzmann.sde.program import SDEProgram
from pyro_boltzmann.sde.schemes import SCHEMES, Scheme
from pyro_boltzmann.sde.simulation import SimulationResult, simulate
from pyro_boltzmann.sde.transition_data import TransitionData
from pyro_boltzmann.sde.transitions import draw_transitions

__all__ = [
    "SCHEMES",
    "SDE",
    "AbsorbedBrownianTransition",
    "Absorbing",
    "Boundary",
    "BrownianTransition",
    "Clamped",
    "GaussianTransition",
    "MaxwellianMomentum",
    "OrnsteinUhlenbeckTransition",
    "Periodic",
    "ProductLaw",
    "Reflecting",
    "SDEProgram",
    "Scheme",
    "SimulationResult",
    "TransitionData",
    "TruncatedNormal",
    "draw_transitions",
    "simulate",
]
