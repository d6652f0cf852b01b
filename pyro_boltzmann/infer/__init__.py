"""Inference: objectives, training, importance sampling, tempered reference samplers."""

from pyro_boltzmann.infer.checkpoint import load_checkpoint, save_checkpoint
from pyro_boltzmann.infer.fit import FitResult, Phase, fit
from pyro_boltzmann.infer.importance import importance_sample
from pyro_boltzmann.infer.objectives import (
    Alpha2,
    ForwardKL,
    LogVariance,
    PrioritizedBuffer,
    ReverseKL,
    TargetScoreMatching,
    TrajectoryBalance,
)
from pyro_boltzmann.infer.tempering import Proposal, parallel_tempering, smc

__all__ = [
    "Alpha2",
    "FitResult",
    "ForwardKL",
    "LogVariance",
    "Phase",
    "PrioritizedBuffer",
    "Proposal",
    "ReverseKL",
    "TargetScoreMatching",
    "TrajectoryBalance",
    "fit",
    "importance_sample",
    "load_checkpoint",
    "parallel_tempering",
    "save_checkpoint",
    "smc",
]
