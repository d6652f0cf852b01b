"""Forces that keep a block a bijection whatever the energy does."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_boltzmann.energies.annealed import AnnealedEnergy
from pyro_boltzmann.energies.held import HeldEnergy
from pyro_boltzmann.energies.memo import EnergyMemo

__all__ = ["bounded_gradient", "shift"]


def bounded_gradient(
    energy: AnnealedEnergy | HeldEnergy, x: Tensor, memo: EnergyMemo, max_force: float | None
) -> Tensor:
    r""":math:`\nabla u(x)` with non-finite rows set to zero and, on request, the norm clipped at ``max_force``.

    Both are deterministic functions of x, so a block that uses them at both ends of its step stays exact.
    """
    gradient = memo.gradient(energy, x)
    if max_force is None:
        return gradient
    norm = torch.linalg.vector_norm(gradient, dim=-1, keepdim=True).clamp_min(max_force)
    clipped: Tensor = gradient * (max_force / norm)
    return clipped


def shift(x: Tensor, scale: float | Tensor, direction: Tensor) -> Tensor:
    """``x + scale * direction``, in one pass where the scale is a number."""
    return torch.add(x, direction, alpha=scale) if isinstance(scale, float) else x + scale * direction
