"""Samplers as Pyro guides."""

from pyro_boltzmann.guides.auto_stochastic_flow import AutoStochasticFlow, WeightedPath
from pyro_boltzmann.guides.base import PathBase
from pyro_boltzmann.guides.path_ends import PathEnds, sample_ends, weigh_ends

__all__ = ["AutoStochasticFlow", "PathBase", "PathEnds", "WeightedPath", "sample_ends", "weigh_ends"]
