"""Stochastic blocks: bijections of (x, noise), and their composition with flows."""

from pyro_boltzmann.stochastic.block import BlockResult, StepResult, StochasticBlock, StreamResult
from pyro_boltzmann.stochastic.euler_maruyama import EulerMaruyamaTransform, euler_maruyama
from pyro_boltzmann.stochastic.info import BlockInfo, StepInfo
from pyro_boltzmann.stochastic.langevin import LangevinTransform, langevin
from pyro_boltzmann.stochastic.leapfrog import LeapfrogTransform, leapfrog
from pyro_boltzmann.stochastic.metropolis import MetropolisAdjusted, metropolis_adjusted
from pyro_boltzmann.stochastic.noise import NoisePart
from pyro_boltzmann.stochastic.path import PathResult, PathTransform
from pyro_boltzmann.stochastic.random_walk import RandomWalkTransform, random_walk
from pyro_boltzmann.stochastic.resampling_point import ResamplingPoint, resampling_point
from pyro_boltzmann.stochastic.underdamped import UnderdampedLangevinTransform, underdamped_langevin

__all__ = [
    "BlockInfo",
    "BlockResult",
    "EulerMaruyamaTransform",
    "LangevinTransform",
    "LeapfrogTransform",
    "MetropolisAdjusted",
    "NoisePart",
    "PathResult",
    "PathTransform",
    "RandomWalkTransform",
    "ResamplingPoint",
    "StepInfo",
    "StepResult",
    "StochasticBlock",
    "StreamResult",
    "UnderdampedLangevinTransform",
    "euler_maruyama",
    "langevin",
    "leapfrog",
    "metropolis_adjusted",
    "random_walk",
    "resampling_point",
    "underdamped_langevin",
]
