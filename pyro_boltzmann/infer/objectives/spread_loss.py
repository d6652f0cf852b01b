"""How the spread of a diffusion's field is learned beside its score or energy."""

from __future__ import annotations

from torch import Tensor

__all__ = ["SPREAD_WEIGHT", "spread_loss"]

SPREAD_WEIGHT = 0.1
"""What the spread's term counts beside the regression, of which it must not take the network."""


def spread_loss(spread: Tensor, seen: Tensor, known: Tensor | None = None) -> Tensor:
    r"""The mean of :math:`k \log r + v / r` over dimensions, ``(n,)``: least where r is the mean of v over that of k.

    :param spread: r, ``(n, dim)``, or ``(n, 1)`` for one of all dimensions.
    :param seen: v, ``(n, dim)``.
    :param known: k, ``(n, 1)``; 1 unless given.

    >>> import torch
    >>> spread_loss(torch.ones(2, 1), torch.tensor([[0.0, 2.0], [1.0, 5.0]]))
    tensor([1., 3.])
    """
    if spread.shape[-1] == 1:
        seen = seen.mean(-1, keepdim=True)
    log = spread.log()
    return ((log if known is None else known * log) + seen / spread).mean(-1)
