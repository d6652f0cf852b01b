"""Inference: objectives, training, importance sampling."""

from pyro_boltzmann.infer.checkpoint import load_checkpoint, save_checkpoint
from pyro_boltzmann.infer.fit import FitResult, Phase, fit
from pyro_boltzmann.infer.importance import importance_sample
from pyro_boltzmann.infer.objectives import (
    Alpha2,
    ForwardKL,
    LogVariance,
    PrioritizedBuffer,
    ReverseKL,
    TrajectoryBalance,
)

__all__ = [
    "Alpha2",
    "FitResult",
    "ForwardKL",
    "LogVariance",
    "Phase",
    "PrioritizedBuffer",
    "ReverseKL",
    "TrajectoryBalance",
    "fit",
    "importance_sample",
    "load_checkpoint",
    "save_checkpoint",
]
