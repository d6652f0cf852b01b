"""One Metropolis-adjusted move of every particle."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_boltzmann.energies.evaluation import Energy, energy_value
from pyro_boltzmann.infer.tempering.ensemble import Ensemble
from pyro_boltzmann.infer.tempering.kernel import Kernel
from pyro_boltzmann.infer.tempering.leapfrog import Leapfrog
from pyro_boltzmann.infer.tempering.preconditioner import Preconditioner

__all__ = ["Moves", "move"]


class Moves(NamedTuple):
    """The particles after a move, and with which probability each was accepted."""

    ensemble: Ensemble
    acceptance: Tensor


def move(
    ensemble: Ensemble,
    reference: Energy,
    target: Energy,
    position: float | Tensor,
    kernel: Kernel,
    step_size: float | Tensor,
    scale: Preconditioner,
) -> Moves:
    r"""One Metropolis-adjusted move of every particle at :math:`u_\lambda = u_0 + \lambda (u - u_0)`.

    Leapfrog trajectories (Neal, arXiv 1206.1901) of ``kernel.num_steps`` steps in the variables of ``scale``, or one
    step of a random walk. A move is rejected where anything is not finite.

    :param position: :math:`\lambda > 0`, a number, or a tensor that broadcasts with ``(*batch)``.
    :param step_size: in the variables of ``scale``; likewise.
    """
    x = ensemble.x
    step = x.new_empty((*x.shape[:-1], 1)).uniform_(1.0 - kernel.jitter, 1.0 + kernel.jitter)
    noise = torch.randn_like(x, memory_format=torch.contiguous_format)
    step *= step_size.unsqueeze(-1) if isinstance(step_size, Tensor) else step_size
    if kernel.name == "rwm":
        after = _walked(ensemble, reference, target, position, torch.addcmul(x, step, scale.outward(noise)))
        fall = _fall(ensemble, after, position)
    else:
        leapfrog = Leapfrog(reference, target, position, step, scale, x)
        after, momentum = leapfrog.trajectory(ensemble, noise, kernel.num_steps)
        kinetic = torch.mul(momentum, momentum).addcmul_(noise, noise, value=-1.0).sum(-1)
        fall = torch.sub(_fall(ensemble, after, position), kinetic, alpha=0.5)
    # An energy of -inf is no better than one of +inf: the target is undefined there.
    acceptance = fall.nan_to_num(nan=-torch.inf, posinf=-torch.inf).exp_().clamp_max_(1.0)
    return Moves(after.where(torch.rand_like(acceptance) < acceptance, ensemble), acceptance)


def _walked(ensemble: Ensemble, reference: Energy, target: Energy, position: float | Tensor, x: Tensor) -> Ensemble:
    base = ensemble.reference if _is_end(position) else energy_value(reference, x)
    return Ensemble(x, base, energy_value(target, x), None, None)


def _is_end(position: float | Tensor) -> bool:
    """Whether this is the end of the ladder, where the reference has no say and is not asked."""
    return not isinstance(position, Tensor) and position == 1.0


def _fall(before: Ensemble, after: Ensemble, position: float | Tensor) -> Tensor:
    r""":math:`u_\lambda` before less after."""
    fall = before.target - after.target
    if _is_end(position):
        return fall
    base = before.reference - after.reference
    if isinstance(position, Tensor):
        return base + position * (fall - base)
    return torch.add(base, fall - base, alpha=position)
