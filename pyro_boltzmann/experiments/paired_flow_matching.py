"""Flow matching on pairs that are chosen once, before the training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_boltzmann.guides import AutoStochasticFlow
from pyro_boltzmann.infer import FlowMatching, pair_by_transport
from pyro_boltzmann.infer.randomness import seeded
from pyro_boltzmann.transforms import MeanFreeBasis, ParticleSymmetry

__all__ = ["BLOCK", "PairedFlowMatching", "draw_pairs"]

BLOCK = 64
"""Rows among which base draws are exchanged."""


class PairedFlowMatching(FlowMatching):
    r"""Flow matching whose minibatches come from a pool of pairs :math:`(x_0, x_1)` of :func:`draw_pairs`.

    Pairing by transport costs more than an update of a small network; a pool that is larger than the data many times
    over is used several times.

    :param data: ``(n, dim)``.
    :param scale: standard deviation of the guide's base.
    :param num_pairs: in the pool.
    :param num_particles: pairs for each evaluation.
    :param time_power: see :class:`~pyro_boltzmann.FlowMatching`.
    :param block: rows among which base draws are exchanged.
    :param basis: of the particles, to align pairs: for fields that know the symmetry.
    :param symmetry: moves the data at random, for fields that do not know it.
    :param seed: of the pool.

    >>> objective = PairedFlowMatching(torch.randn(50, 6), 1.0, num_pairs=200, num_particles=32)
    >>> objective.pool[0].shape
    torch.Size([200, 6])
    """

    def __init__(
        self,
        data: Tensor,
        scale: float,
        *,
        num_pairs: int,
        num_particles: int = 256,
        time_power: float = 1.0,
        block: int = BLOCK,
        basis: MeanFreeBasis | None = None,
        symmetry: ParticleSymmetry | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(data, num_particles=num_particles, time_power=time_power)
        self.pool = draw_pairs(data, scale, num_pairs, block=block, basis=basis, symmetry=symmetry, seed=seed)
        self._chosen = {"scale": scale, "num_pairs": num_pairs, "block": block, "seed": seed}
        self._chosen |= {"aligned": basis is not None, "augmented": symmetry is not None}

    @torch.no_grad()
    def pairs(self, guide: AutoStochasticFlow) -> tuple[Tensor, Tensor]:
        x0, x1 = self.pool
        rows = torch.randint(len(x0), (self.num_particles,))
        return x0[rows].to(guide.base_loc), x1[rows].to(guide.base_loc)

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), **self._chosen}


@torch.no_grad()
def draw_pairs(
    data: Tensor,
    scale: float,
    num_pairs: int,
    *,
    block: int = BLOCK,
    basis: MeanFreeBasis | None = None,
    symmetry: ParticleSymmetry | None = None,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    r"""Draws of :math:`\mathcal N(0, s^2)` and data, ``(num_pairs, dim)`` each, paired by
    :func:`~pyro_boltzmann.infer.pair_by_transport` within blocks; each datum comes up equally often, but for one.

    The parameters are those of :class:`PairedFlowMatching`.
    """
    with seeded(seed):
        rounds = -(-num_pairs // len(data))
        rows = torch.cat([torch.randperm(len(data)) for _ in range(rounds)])[:num_pairs]
        x1 = data[rows] if symmetry is None else symmetry.augment(data[rows])
        return pair_by_transport(scale * torch.randn_like(x1), x1, basis, block=block, seed=seed), x1
