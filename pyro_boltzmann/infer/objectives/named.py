"""Objectives by name."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pyro_boltzmann.infer.objectives.alpha2 import Alpha2
from pyro_boltzmann.infer.objectives.denoising import IDEM, BEnDEM, DenoisingObjective, EnDEM
from pyro_boltzmann.infer.objectives.flow_matching import FlowMatching
from pyro_boltzmann.infer.objectives.log_variance import LogVariance
from pyro_boltzmann.infer.objectives.path_objective import PathObjective
from pyro_boltzmann.infer.objectives.target_score import TargetScoreMatching
from pyro_boltzmann.infer.objectives.trajectory_balance import TrajectoryBalance

__all__ = ["OBJECTIVE_NAMES", "named_objective"]

OBJECTIVE_NAMES = (
    *("reverse_kl", "forward_kl", "log_variance", "trajectory_balance", "alpha_2", "target_score"),
    *("idem", "endem", "bendem", "flow_matching"),
)
"""What :func:`~pyro_boltzmann.fit` takes as ``objective``."""


def named_objective(
    name: str, num_particles: int, data: Tensor | None, log_weights: Tensor | None, weight_power: float
) -> PathObjective | None:
    """The objective called ``name``; ``None`` for the two that phases mix.

    :raises ValueError: for data that the objective has no use for.

    >>> type(named_objective("alpha_2", 32, None, None, 1.0)).__name__
    'Alpha2'
    """
    if name in ("log_variance", "trajectory_balance"):
        settings: dict[str, Any] = {"data": data, "log_weights": log_weights, "weight_power": weight_power}
        return (LogVariance if name == "log_variance" else TrajectoryBalance)(num_particles, **settings)
    if name == "alpha_2":
        if data is not None:
            raise ValueError("alpha_2 anneals its own draws and has no use for data; leave data out")
        return Alpha2(num_particles)
    if name == "target_score":
        if weight_power != 1:
            raise ValueError("target_score learns the target itself; weight_power has no use there, leave it out")
        return TargetScoreMatching(num_particles, data=data, log_weights=log_weights)
    if name == "flow_matching":
        if data is None:
            raise ValueError(
                "flow_matching needs data: pass data= with unconstrained latents (n, latent_dim) or weighted draws"
            )
        return FlowMatching(data, log_weights, num_particles, weight_power=weight_power)
    denoising: dict[str, type[DenoisingObjective]] = {"idem": IDEM, "endem": EnDEM, "bendem": BEnDEM}
    if name in denoising:
        if data is not None:
            raise ValueError(
                f"{name} learns from the energy at points of its own and has no use for data; leave it out"
            )
        return denoising[name](num_particles)
    return None
