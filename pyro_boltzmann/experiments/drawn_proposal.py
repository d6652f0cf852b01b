"""Draws of a flow as the start of sequential Monte Carlo, whose densities are known where they were drawn."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_boltzmann.exceptions import EnergyError
from pyro_boltzmann.infer import Proposal

__all__ = ["drawn_proposal"]


class _KnownDensity:
    """The negative log-density of given draws, and of nothing else."""

    is_reference = True

    def __init__(self, x: Tensor, log_q: Tensor) -> None:
        self.x, self.log_q = x, log_q

    def __call__(self, x: Tensor) -> Tensor:
        if x.shape[-1:] != self.x.shape[-1:] or len(x) > len(self.x) or not torch.equal(x, self.x[: len(x)]):
            raise EnergyError(
                "the density of these draws is known where they were drawn only; let the first temperature be the "
                "target's own, with a small conditional_ess"
            )
        return -self.log_q[: len(x)].to(x)

    def energy_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient, which no move at the target's own temperature asks for, is NaN."""
        return self(x), torch.full_like(x, torch.nan)


def drawn_proposal(x: Tensor, log_q: Tensor) -> Proposal:
    r"""A proposal for :func:`~pyro_boltzmann.smc` that hands out the given independent draws, in their order.

    The density of a flow of networks at other points takes an equation to be solved backwards with its divergence, and
    its gradient several times that: too much for each step of each move. Where the flow is close to the target
    nothing is lost: the ladder is the single step from the flow to the target, so that the draws are weighted by
    :math:`e^{-u(x)} / q(x)`, resampled, and moved by the target's own moves. Moves at another temperature would ask for
    the density elsewhere, and are refused.

    :param x: ``(n, dim)``; rows that are not finite get weight zero.
    :param log_q: exact log-densities ``(n,)``, of the map that made the draws.
    :raises EnergyError: while sampling, if the ladder has a second temperature.

    >>> from pyro_boltzmann import smc
    >>> x = 0.5 * torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
    >>> log_q = torch.distributions.Normal(0.0, 0.5).log_prob(x).sum(-1)
    >>> draws = smc(lambda x: 2.5 * x.square().sum(-1), dim=2, num_samples=500, proposal=drawn_proposal(x, log_q),
    ...             conditional_ess=1e-6, seed=0, progress=False)
    >>> abs(draws.log_normalizer - 0.2285) < 0.1, draws.info["smc"]["positions"]  # log(2 pi / 5)
    (True, [1.0])
    """
    bad = ~(x.isfinite().all(-1) & log_q.isfinite())
    # An infinite density is a weight of zero, wherever the row is put.
    x, log_q = torch.where(bad.unsqueeze(-1), 0.0, x), torch.where(bad, torch.inf, log_q)

    def sample(number: int) -> Tensor:
        if number > len(x):
            raise ValueError(f"{number} draws were asked for, {len(x)} are there")
        return x[:number].clone()

    return Proposal(_KnownDensity(x, log_q), sample)
