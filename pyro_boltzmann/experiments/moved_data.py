"""More configurations from the ones at hand, by moves that keep the Boltzmann distribution."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_boltzmann.energies.catalogue.particles import ParticleTarget
from pyro_boltzmann.energies.memo import EnergyMemo
from pyro_boltzmann.infer.randomness import seeded
from pyro_boltzmann.stochastic import LeapfrogTransform, MetropolisAdjusted

__all__ = ["moved_copies"]

STEP_SIZES = (0.08, 0.1, 0.12)
"""Of the trajectories of a round, each of another length, so that no period is met every time."""
LEAPFROG_STEPS = 8


@torch.no_grad()
def moved_copies(target: ParticleTarget, rows: Tensor, rounds: int, *, seed: int) -> tuple[Tensor, int]:
    r"""Rows, and copies of them after each of some rounds of Hamiltonian Monte Carlo at :math:`e^{-u}`.

    Where the rows are draws of :math:`e^{-u}`, so are the copies: a flow that learns from them is told what lies
    between the rows, which is what it would otherwise overfit. How much of the weight lies in which well is still known
    from the rows alone, where barriers are high.

    :param rows: ``(n, dim)``.
    :param rounds: of three trajectories each.
    :param seed: of the moves.
    :return: ``((1 + rounds) n, dim)``, and how many gradients of the energy that took.

    >>> from pyro_boltzmann.energies.catalogue import catalogue
    >>> target = catalogue["dw2"]
    >>> rows, gradients = moved_copies(target, target.sample(10), 2, seed=0)
    >>> rows.shape, gradients
    (torch.Size([30, 2]), 490)
    """
    proposal = LeapfrogTransform(
        target.energy,
        target.dim,
        step_size=torch.tensor(STEP_SIZES),
        num_steps=LEAPFROG_STEPS,
        num_trajectories=len(STEP_SIZES),
    )
    block = MetropolisAdjusted(proposal, target.energy).to(rows)
    found, memo = [rows], EnergyMemo()
    with seeded(seed):
        for _ in range(rounds):
            moved = block.stream(found[-1], memo)
            found.append(moved.x.contiguous())
            memo = moved.memo
    return torch.cat(found), len(rows) * (1 + rounds * len(STEP_SIZES) * LEAPFROG_STEPS)
