"""Denoising energy matching: diffusion samplers that learn from the energy alone."""

from pyro_boltzmann.infer.objectives.denoising.bendem import BEnDEM
from pyro_boltzmann.infer.objectives.denoising.bootstrap import bootstrap_gate, teacher_times
from pyro_boltzmann.infer.objectives.denoising.clipping import clip_scores
from pyro_boltzmann.infer.objectives.denoising.denoising_objective import DenoisingObjective
from pyro_boltzmann.infer.objectives.denoising.endem import EnDEM
from pyro_boltzmann.infer.objectives.denoising.idem import IDEM

__all__ = ["IDEM", "BEnDEM", "DenoisingObjective", "EnDEM", "bootstrap_gate", "clip_scores", "teacher_times"]
