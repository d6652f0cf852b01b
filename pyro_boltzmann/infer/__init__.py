"""Inference: objectives, training, importance sampling."""

from pyro_boltzmann.infer.checkpoint import load_checkpoint, save_checkpoint
from pyro_boltzmann.infer.fit import FitResult, Phase, fit
from pyro_boltzmann.infer.importance import importance_sample
from pyro_boltzmann.infer.objectives import ForwardKL, ReverseKL

__all__ = [
    "FitResult",
    "ForwardKL",
    "Phase",
    "ReverseKL",
    "fit",
    "importance_sample",
    "load_checkpoint",
    "save_checkpoint",
]
