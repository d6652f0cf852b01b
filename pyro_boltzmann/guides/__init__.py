"""Samplers as Pyro guides."""

from pyro_boltzmann.guides.amortized_stochastic_flow import AmortizedStochasticFlow
from pyro_boltzmann.guides.auto_diffusion import AutoDiffusion
from pyro_boltzmann.guides.auto_stochastic_flow import AutoStochasticFlow, WeightedPath
from pyro_boltzmann.guides.base import PathBase
from pyro_boltzmann.guides.frame import Frame
from pyro_boltzmann.guides.path_ends import PathEnds, sample_ends, weigh_ends

__all__ = [
    "AmortizedStochasticFlow",
    "AutoDiffusion",
    "AutoStochasticFlow",
    "Frame",
    "PathBase",
    "PathEnds",
    "WeightedPath",
    "sample_ends",
    "weigh_ends",
]
