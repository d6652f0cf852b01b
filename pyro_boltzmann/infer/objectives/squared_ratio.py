"""Annealed importance sampling of what the alpha-2 divergence is the normaliser of."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_boltzmann.energies.annealed import AnnealedEnergy
from pyro_boltzmann.energies.evaluation import Energy
from pyro_boltzmann.energies.memo import EnergyMemo
from pyro_boltzmann.guides import AutoStochasticFlow, WeightedPath
from pyro_boltzmann.guides.path_ends import sample_ends
from pyro_boltzmann.stochastic import LeapfrogTransform, MetropolisAdjusted
from pyro_boltzmann.stochastic.path import PathTransform
from pyro_boltzmann.transforms import PushforwardEnergy
from pyro_boltzmann.transforms.ladj import default_dtype

__all__ = ["AnnealedRatio", "SquaredRatioAnnealing", "SquaredRatioEnergy"]

ADAPT_RATE = 0.1
"""Of the step sizes, towards the best acceptance rate of Hamiltonian Monte Carlo."""


class SquaredRatioEnergy(AnnealedEnergy):
    r"""The energies from a density q to :math:`p^2 / q`,

    .. math:: u_\beta = (1 - 2 \beta)\, u_q + 2 \beta\, u, \qquad u_q = -\log q .

    Half-way it is the target alone.

    >>> float(SquaredRatioEnergy(lambda x: 3 * x.sum(-1), lambda x: x.sum(-1), 1.0)(torch.ones(1)))  # 2 - 3
    -1.0
    """

    def components(self) -> list[tuple[float | Tensor, Energy]]:
        position = self.position
        pairs = [(1.0 - 2.0 * position, self._ends[0]), (2.0 * position, self._ends[1])]
        return [(c, e) for c, e in pairs if isinstance(c, Tensor) or c != 0.0]


class AnnealedRatio(NamedTuple):
    r"""Weighted draws of :math:`p^2/q`.

    :ivar z: ``(n, dim)``.
    :ivar log_weight: ``(n,)`` float64.
    :ivar log_q: ``(n,)`` float64, log densities under q.
    :ivar starts: the draws of q that they started from, with their weights for p.
    """

    z: Tensor
    log_weight: Tensor
    log_q: Tensor
    starts: WeightedPath


class SquaredRatioAnnealing:
    r"""Draws of a guide made of flow layers, annealed to :math:`p^2 / q` by Hamiltonian Monte Carlo.

    One Metropolis-tested trajectory at each of K energies :math:`u_\beta,\ \beta = k / (K + 1)`; the weights are those
    of annealed importance sampling. Step sizes are adapted by acceptance rate.

    :param guide: made of flow layers, and built.
    :param num_rungs: K >= 1.
    :param num_leapfrog: steps of a trajectory.
    :param step_size: where the step sizes start.

    Source: Midgley et al., arXiv 2208.01893, section 3.2; Neal, Annealed importance sampling, 2001.
    """

    def __init__(self, guide: AutoStochasticFlow, num_rungs: int, num_leapfrog: int, step_size: float) -> None:
        path = guide._built_path
        assert path is not None and not path.noise_dim

        def base(x: Tensor) -> Tensor:
            return -guide._base_log_prob((x - guide.base_loc) / guide.base_scale).to(x.dtype)

        self.guide = guide
        self.flow_energy = PushforwardEnergy(base, [path])
        with default_dtype(guide.base_loc.dtype):
            energies = [
                SquaredRatioEnergy(self.flow_energy, guide.energy, rung / (num_rungs + 1))
                for rung in range(1, num_rungs + 1)
            ]
            self.blocks = [
                MetropolisAdjusted(LeapfrogTransform(energy, path.dim, step_size, num_leapfrog), energy, adapt=True)
                for energy in energies
            ]
            self.path = PathTransform(self.blocks, path.dim).to(guide.base_loc.device)

    @property
    def log_step_sizes(self) -> Tensor:
        """``(num_rungs,)``, a copy."""
        return torch.stack([block._scale() for block in self.blocks]).detach().clone()

    @log_step_sizes.setter
    def log_step_sizes(self, values: Tensor) -> None:
        with torch.no_grad():
            for block, value in zip(self.blocks, values, strict=True):
                block._scale().copy_(value)

    @torch.no_grad()
    def draw(self, num_samples: int, *args: Any, **kwargs: Any) -> AnnealedRatio:
        """Independent draws, the model called with these arguments, and one step of the adaptation."""
        ends = sample_ends(self.guide, num_samples, *args, with_energy=False, **kwargs)
        energy = self.guide.energy
        x, log_q = ends.joint, ends.log_q
        assert log_q is not None
        memo = EnergyMemo()
        result = self.path.stream(x, memo)
        start = memo.value(energy, x)  # the first trajectory has left it there
        end_log_q = -result.memo.value(self.flow_energy, result.x).double()
        log_weight = -2.0 * result.memo.value(energy, result.x).double() - end_log_q + result.log_ratio - log_q
        for block, info in zip(self.blocks, result.infos, strict=True):
            assert info is not None
            block.adapt_scale(info, ADAPT_RATE)
        starts = WeightedPath(x, -start.double() - log_q, log_q, start, ends.infos)
        return AnnealedRatio(result.x, log_weight, end_log_q, starts)
