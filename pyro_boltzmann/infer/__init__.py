"""Inference: objectives, training, importance sampling, tempered reference samplers."""

from pyro_boltzmann.infer.checkpoint import load_checkpoint, save_checkpoint
from pyro_boltzmann.infer.conditional_fit import ConditionalFit
from pyro_boltzmann.infer.fit import FitResult, Phase, fit
from pyro_boltzmann.infer.fit_conditional import fit_conditional
from pyro_boltzmann.infer.fit_flow_map import fit_flow_map
from pyro_boltzmann.infer.flow_map_loss import flow_map_loss
from pyro_boltzmann.infer.importance import importance_sample
from pyro_boltzmann.infer.minima import Minima, find_minima
from pyro_boltzmann.infer.muon import MuonAdam
from pyro_boltzmann.infer.objectives import (
    IDEM,
    Alpha2,
    BEnDEM,
    DenoisingObjective,
    EnDEM,
    FlowMatching,
    ForwardKL,
    LogVariance,
    PrioritizedBuffer,
    ReverseKL,
    TargetScoreMatching,
    TrajectoryBalance,
)
from pyro_boltzmann.infer.pairing import align_particles, pair_by_transport
from pyro_boltzmann.infer.tempering import Proposal, parallel_tempering, smc

__all__ = [
    "IDEM",
    "Alpha2",
    "BEnDEM",
    "ConditionalFit",
    "DenoisingObjective",
    "EnDEM",
    "FitResult",
    "FlowMatching",
    "ForwardKL",
    "LogVariance",
    "Minima",
    "MuonAdam",
    "Phase",
    "PrioritizedBuffer",
    "Proposal",
    "ReverseKL",
    "TargetScoreMatching",
    "TrajectoryBalance",
    "align_particles",
    "find_minima",
    "fit",
    "fit_conditional",
    "fit_flow_map",
    "flow_map_loss",
    "importance_sample",
    "load_checkpoint",
    "pair_by_transport",
    "parallel_tempering",
    "save_checkpoint",
    "smc",
]
