"""Gaussian targets whose noised energies the untrained networks know exactly, and a mixture in one dimension."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

import pyro_boltzmann as pb
from pyro_boltzmann.diffusion import EnergyMLP, GeometricSchedule, ScoreMLP
from pyro_boltzmann.guides.auto_diffusion import Frame

SIGMAS = 4.5
MEAN, SCALE = 0.7, 1.3
MIXTURE_LOG_Z = 0.7
_CENTRES, _WIDTH = torch.tensor([-2.0, 2.5]), 0.6


def gaussian_energy(x: Tensor) -> Tensor:
    """The normalised N(MEAN, SCALE^2 I)."""
    square = ((x - MEAN) / SCALE).square().sum(-1)
    return 0.5 * square + x.shape[-1] * (math.log(SCALE) + 0.5 * math.log(2 * math.pi))


def noised_gaussian(x: Tensor, variance: Tensor) -> Tensor:
    """Its exact energy under noise."""
    wide = variance + SCALE**2
    return 0.5 * (x - MEAN).square().sum(-1) / wide + 0.5 * x.shape[-1] * (2 * math.pi * wide).log()


def mixture_energy(x: Tensor) -> Tensor:
    """Two wells in one dimension, with log Z = MIXTURE_LOG_Z."""
    logs = -0.5 * ((x - _CENTRES) / _WIDTH).square() - math.log(_WIDTH * math.sqrt(2 * math.pi))
    return -(logs + torch.tensor([0.3, 0.7]).log()).logsumexp(-1) - MIXTURE_LOG_Z


def diffusion(energy: Any, dim: int, kind: str, **options: Any) -> tuple[Any, Any]:
    """A model and its guide, small enough for tests."""
    torch.manual_seed(5)
    model = pb.BoltzmannModel(energy, dim)
    network = (EnergyMLP if kind == "energy" else ScoreMLP)(dim, 32, 2, num_frequencies=4, finest=8.0)
    settings = {"num_steps": 30, "schedule": GeometricSchedule(0.1, 2.0), "use_target": False, **options}
    return model, pb.AutoDiffusion(model, network, kind=kind, **settings)


def exact_gaussian(dim: int, kind: str, **options: Any) -> tuple[Any, Any]:
    """A guide that is exact before it is trained, because its frame is the target."""
    frame = Frame(torch.full((dim,), MEAN), torch.full((dim,), SCALE), SCALE)
    return diffusion(gaussian_energy, dim, kind, frame=frame, **options)
