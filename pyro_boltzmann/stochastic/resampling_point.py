"""A place in a path where its draws may be resampled."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from pyro_boltzmann.energies.evaluation import Energy
from pyro_boltzmann.energies.held import hold
from pyro_boltzmann.energies.memo import EnergyMemo
from pyro_boltzmann.stochastic.block import BlockResult, StochasticBlock, StreamResult
from pyro_boltzmann.stochastic.info import BlockInfo

__all__ = ["ResamplingPoint", "resampling_point"]


class ResamplingPoint(StochasticBlock):
    r"""The identity, with an energy: :math:`e^{-f(x)}` is the density by which the draws that arrive here may be
    resampled (:func:`~pyro_boltzmann.importance_sample` with ``resample_below``).

    Blocks that have an energy of their own are such places by themselves; this one is for learned densities, and for
    places behind flow layers. Any positive density keeps the estimate of Z unbiased. A random one is drawn once for
    each draw that arrives, and the same numbers are used in what follows.

    :param energy: :math:`f`, ``(*batch, dim) -> (*batch)``; held outside the module tree.
    :param dim: dimension of x.
    :param with_gradient: whether the block behind takes the gradient of :math:`f` at the same place. Then both are
        computed here in one pass, while paths are streamed without a graph, and the ESS there costs nothing.

    >>> import torch
    >>> point = ResamplingPoint(lambda x: x.square().sum(-1), 2)
    >>> point(torch.ones(3, 2)).shape, point.noise_dim
    (torch.Size([3, 2]), 0)
    """

    def __init__(self, energy: Energy, dim: int, *, with_gradient: bool = False) -> None:
        super().__init__(dim, ())
        self.energy = hold(energy)
        self.with_gradient = with_gradient

    def run(self, x: Tensor, noise: Tensor, memo: EnergyMemo | None = None, *, inverse: bool = False) -> BlockResult:
        memo = EnergyMemo() if memo is None else memo
        return BlockResult(x, noise, x.new_zeros(x.shape[:-1]), memo, BlockInfo.gather([]))

    def stream(
        self, x: Tensor, memo: EnergyMemo | None = None, generator: Generator | None = None, *, inverse: bool = False
    ) -> StreamResult:
        memo = EnergyMemo() if memo is None else memo
        if self.with_gradient and not inverse and not torch.is_grad_enabled():
            memo.gradient(self.energy, x)
        return StreamResult(x, x.new_zeros(x.shape[:-1]), memo, BlockInfo.gather([]))


def resampling_point(energy: Energy, dim: int) -> ResamplingPoint:
    """A :class:`ResamplingPoint`."""
    return ResamplingPoint(energy, dim)
