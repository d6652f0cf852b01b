"""Noised points around a batch of states, stored the way energies are quickest on them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_boltzmann.diffusion.proposals import DenoisingProposal
from pyro_boltzmann.energies.columns import COLUMNS_UP_TO
from pyro_boltzmann.exceptions import ShapeError

__all__ = ["NoisedPoints", "draw_noised"]


class NoisedPoints(NamedTuple):
    r"""Points :math:`y_{bk}` around states :math:`x_b`.

    :ivar points: ``(batch, K, dim)``.
    :ivar noise: :math:`z = (y - x) / \sqrt h`, of the same shape; ``None`` if it was not asked for.
    :ivar log_ratio: :math:`\log N(y; x, h) - \log q(y)`, ``(batch, K)``; ``None`` where :math:`q` is :math:`N(x, h)`.
    """

    points: Tensor
    noise: Tensor | None
    log_ratio: Tensor | None


def draw_noised(
    x: Tensor,
    variance: Tensor,
    num_noise: int,
    *,
    keep_noise: bool,
    antithetic: bool = False,
    proposal: DenoisingProposal | None = None,
    generator: torch.Generator | None = None,
) -> NoisedPoints:
    """``num_noise`` points around each row of ``x`` ``(batch, dim)``, with ``variance`` ``(batch)``.

    Antithetic points :math:`x + \\sqrt h z` and :math:`x - \\sqrt h z` are ``num_noise / 2`` apart.

    :raises ShapeError: if a proposal returns tensors of other shapes.
    """
    scale = variance.sqrt()
    if proposal is not None:
        y, log_ratio = proposal.draw(x, variance, num_noise, generator)
        expected = (len(x), num_noise, x.shape[-1])
        if y.shape != expected or log_ratio.shape != expected[:2]:
            raise ShapeError(
                f"a proposal must return points of shape {expected} and log ratios of shape {expected[:2]}, got "
                f"{tuple(y.shape)} and {tuple(log_ratio.shape)}"
            )
        z = (y - x.unsqueeze(1)) / scale[:, None, None] if keep_noise else None
        return NoisedPoints(y, z, log_ratio)
    drawn = num_noise // 2 if antithetic else num_noise
    # Long, thin batches go column by column: see energies/columns.py.
    columns = x.shape[-1] <= COLUMNS_UP_TO
    shape = (x.shape[-1], len(x), drawn) if columns else (len(x), drawn, x.shape[-1])
    z = torch.randn(shape, generator=generator, dtype=x.dtype, device=x.device)
    if antithetic:
        z = torch.cat([z, -z], 2 if columns else 1)
    centre, width = (x.mT.unsqueeze(-1), scale[:, None]) if columns else (x.unsqueeze(1), scale[:, None, None])
    y = (z * width if keep_noise else z.mul_(width)).add_(centre)
    if columns:
        y, z = y.permute(1, 2, 0), z.permute(1, 2, 0)
    return NoisedPoints(y, z if keep_noise else None, None)
