"""Samplers that walk from a reference to the target through tempered densities: sequential Monte Carlo and parallel
tempering, and the moves and ladders that they share."""

from pyro_boltzmann.infer.tempering.parallel_tempering import parallel_tempering
from pyro_boltzmann.infer.tempering.proposal import Proposal
from pyro_boltzmann.infer.tempering.smc import smc

__all__ = ["Proposal", "parallel_tempering", "smc"]
