"""Training objectives as Pyro ELBO objects."""

from pyro_boltzmann.infer.objectives.forward_kl import ForwardKL
from pyro_boltzmann.infer.objectives.path_objective import PathObjective
from pyro_boltzmann.infer.objectives.plates import learn_plates
from pyro_boltzmann.infer.objectives.reverse_kl import ReverseKL

__all__ = ["ForwardKL", "PathObjective", "ReverseKL", "learn_plates"]
