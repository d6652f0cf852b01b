"""Training objectives as Pyro ELBO objects."""

from pyro_boltzmann.infer.objectives.alpha2 import Alpha2
from pyro_boltzmann.infer.objectives.denoising import IDEM, BEnDEM, DenoisingObjective, EnDEM
from pyro_boltzmann.infer.objectives.flow_matching import FlowMatching
from pyro_boltzmann.infer.objectives.forward_kl import ForwardKL
from pyro_boltzmann.infer.objectives.log_variance import LogVariance
from pyro_boltzmann.infer.objectives.named import OBJECTIVE_NAMES, named_objective
from pyro_boltzmann.infer.objectives.path_objective import PathObjective
from pyro_boltzmann.infer.objectives.plates import learn_plates
from pyro_boltzmann.infer.objectives.prioritized_buffer import PrioritizedBuffer
from pyro_boltzmann.infer.objectives.reverse_kl import ReverseKL
from pyro_boltzmann.infer.objectives.target_score import TargetScoreMatching
from pyro_boltzmann.infer.objectives.trajectory_balance import TrajectoryBalance

__all__ = [
    "IDEM",
    "OBJECTIVE_NAMES",
    "Alpha2",
    "BEnDEM",
    "DenoisingObjective",
    "EnDEM",
    "FlowMatching",
    "ForwardKL",
    "LogVariance",
    "PathObjective",
    "PrioritizedBuffer",
    "ReverseKL",
    "TargetScoreMatching",
    "TrajectoryBalance",
    "learn_plates",
    "named_objective",
]
