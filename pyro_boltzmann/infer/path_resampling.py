"""Resampling inside a trained path: a stochastic flow becomes sequential Monte Carlo with learned transports."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Generator, Tensor

from pyro_boltzmann.diagnostics.resampling import RESAMPLERS
from pyro_boltzmann.diagnostics.weights import kish_ess
from pyro_boltzmann.energies.memo import EnergyMemo
from pyro_boltzmann.stochastic.block import StochasticBlock
from pyro_boltzmann.stochastic.resampling_point import ResamplingPoint

__all__ = ["PathResampler"]


class PathResampler:
    r"""Resamples a batch of paths after a block with an energy :math:`u_k` where the ESS of

    .. math:: \log w_k = S_k - \log q_0(x_0) - u_k(x_k)

    has fallen below a fraction. The paths that are left go on with the batch's mean weight, and pay for
    :math:`e^{-u_k}` by the very numbers that chose them. Whatever :math:`u_k` is, :math:`E[\hat Z] = Z`: a path where
    it is not finite may return to the support of the target, so it is kept with the smallest weight of the others.

    :param below: fraction in (0, 1).
    :param method: a name in ``RESAMPLERS``.
    :param generator: of the resampling; torch's global one unless given.
    :ivar roots: by batch, the first path that each end state descends from.
    :ivar ess: by position, the ESS of :math:`w_k` in each batch, before any resampling there.
    :ivar resampled: by position, in how many batches the paths were resampled.
    :raises ValueError: for a fraction or a method that is none.

    Source: Arbel, Matthews and Doucet, arXiv 2102.07501, section 3; the last block's energy may be any
    (Del Moral, Doucet and Jasra 2006).
    """

    def __init__(self, below: float, method: str = "systematic", generator: Generator | None = None) -> None:
        if not 0.0 < below < 1.0:
            raise ValueError(f"resample_below must lie in (0, 1), a fraction of the batch, got {below}")
        if method not in RESAMPLERS:
            raise ValueError(f"resampler must be one of {sorted(RESAMPLERS)}, got {method!r}")
        self.below = below
        self.method = method
        self.generator = generator
        self.log_base = torch.zeros(0)
        self.roots: list[Tensor] = []
        self.ess: dict[int, list[float]] = {}
        self.resampled: dict[int, int] = {}

    def begin(self, log_base: Tensor) -> None:
        """A new batch of paths starts; ``log_base`` is the log-density of their base."""
        self.log_base = log_base
        first = sum(len(batch) for batch in self.roots)
        self.roots.append(torch.arange(first, first + len(log_base), device=log_base.device))

    def __call__(
        self, position: int, block: Any, x: Tensor, log_ratio: Tensor, memo: EnergyMemo
    ) -> tuple[Tensor, Tensor] | None:
        energy = self._energy(block, x, memo)
        if energy is None:
            return None
        free = log_ratio - self.log_base
        log_weights = free - energy
        finite = log_weights.isfinite()
        if not bool(finite.any()):
            return None
        ess = kish_ess(torch.where(finite, log_weights, -torch.inf))
        # Paths that overflowed are lost, here as at the end of the path.
        alive = free.isfinite() & x.isfinite().all(-1)
        if not bool(finite.all()):
            smallest = log_weights[finite].min()
            log_weights = torch.where(alive, torch.where(finite, log_weights, smallest), -torch.inf)
            energy = torch.where(finite, energy, free - smallest)
        self.ess.setdefault(position, []).append(ess)
        self.resampled.setdefault(position, 0)
        if ess >= self.below:
            return None
        self.resampled[position] += 1
        index = RESAMPLERS[self.method](log_weights, len(log_weights), self.generator)
        log_mean = log_weights.logsumexp(0) - math.log(len(log_weights))
        self.log_base = self.log_base[index]
        self.roots[-1] = self.roots[-1][index]
        return index, log_mean + energy[index] + self.log_base

    @staticmethod
    def _energy(block: Any, x: Tensor, memo: EnergyMemo) -> Tensor | None:
        if isinstance(block, ResamplingPoint):
            return memo.value(block.energy, x).double()
        if isinstance(block, StochasticBlock) and hasattr(block, "energy"):
            value = memo.known_value(block.energy)
            return None if value is None else value.double()
        return None
