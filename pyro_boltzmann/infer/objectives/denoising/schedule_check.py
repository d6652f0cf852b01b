"""Whether the noise of a guide fits the target, as far as the points that it found can tell."""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor

from pyro_boltzmann.diagnostics.weights import kish_ess
from pyro_boltzmann.diffusion.networks import PreconditionedEnergy
from pyro_boltzmann.energies.evaluation import energy_and_gradient
from pyro_boltzmann.guides.auto_diffusion import AutoDiffusion

__all__ = ["LOOKS", "truncated_log_weights", "warn_of_misfit"]

LOOKS = 5
"""Batches of new points that are looked at, the first ones after the draws of the base."""
FEWEST_EFFECTIVE = 20.0
"""Effective points below which nothing can be said."""


def truncated_log_weights(energy: Tensor, log_q: Tensor) -> Tensor:
    r"""Log path weights :math:`-u - \log q` of a batch, each no more than :math:`\sqrt n` times their mean; zero weight
    where they are not finite.

    Source: Ionides, Truncated importance sampling (2008).

    >>> truncated_log_weights(torch.tensor([0.0, 0.0, -9.0, torch.nan]), torch.zeros(4)).softmax(0)[2:]
    tensor([0.9995, 0.0000], dtype=torch.float64)
    """
    log_weights = -energy.double() - log_q
    log_weights = torch.where(log_weights.isfinite(), log_weights, -torch.inf)
    return log_weights.clamp_max(log_weights.logsumexp(0) - 0.5 * math.log(len(energy)))


@torch.no_grad()
def warn_of_misfit(guide: AutoDiffusion, x: Tensor, log_q: Tensor, *, silent: bool = False) -> bool:
    """Warn if the schedule cannot serve the target as a batch of new points shows it, weighted by path weights.

    Costs one gradient a point. Points of a sampler that is hardly trained are nothing like the target: without weights
    they raise false alarms (clashing particles), and where fewer than 20 of them count, nothing is said. So silence is
    no proof. Nor is anything said of energies of which nothing else asks a gradient.

    :param x: the points, ``(n, dim)``.
    :param log_q: log densities of their paths, the noising process's divided out, ``(n,)``.
    :param silent: say nothing, at the same cost: a run that was resumed costs what an unbroken one does.
    :return: whether there is a misfit.
    """
    if isinstance(guide.field, PreconditionedEnergy) and guide.field.target is None:
        return False
    energy, gradient = energy_and_gradient(guide.energy, x)
    usable = x.isfinite().all(-1) & gradient.isfinite().all(-1)
    log_weights = truncated_log_weights(torch.where(usable, energy, torch.inf), log_q)
    effective = kish_ess(log_weights) * len(x) if bool(log_weights.isfinite().any()) else 0.0
    if effective < FEWEST_EFFECTIVE:
        return False
    x, gradient = (torch.where(usable.unsqueeze(-1), rows, 0.0) for rows in (x, gradient))
    problem = guide.measure(x, gradient, log_weights).misfit(guide.schedule)
    if problem is not None and not silent:
        warnings.warn(
            f"as far as {effective:.0f} effective points of the sampler can tell, {problem}. Build the guide with that "
            "schedule= (diffusion.GeometricSchedule), or with a frame= that says where the target lives (pb.Frame)",
            UserWarning,
            stacklevel=2,
        )
    return problem is not None
