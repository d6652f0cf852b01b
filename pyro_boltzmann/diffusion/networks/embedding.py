"""Embeddings of noise levels."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from pyro_boltzmann.exceptions import ShapeError
from pyro_boltzmann.transforms.fourier_features import FourierFeatures

__all__ = ["SOFTPLUS_IS_ONE", "NoiseEmbedding", "variance_of_rows"]

SOFTPLUS_IS_ONE = math.log(math.expm1(1.0))
"""Where softplus is 1: the bias of an output that must be positive and start at one."""


def variance_of_rows(variance: float | Tensor, x: Tensor) -> Tensor:
    """The variance of each row of ``x`` flattened to ``(rows, dim)``: float64, of shape ``(1,)`` or ``(rows,)``.

    One variance for all rows stays one number, so that what depends on it alone is computed once.

    :param variance: a number, or a tensor that broadcasts to ``(*batch)``.
    :param x: ``(*batch, dim)``.
    :raises ShapeError: if the variance does not broadcast to the batch shape.

    >>> x = torch.zeros(5, 3, 2)
    >>> variance_of_rows(2.0, x).shape, variance_of_rows(torch.ones(5, 1), x).shape
    (torch.Size([1]), torch.Size([15]))
    """
    h = torch.as_tensor(variance, dtype=torch.float64, device=x.device)
    if h.numel() == 1:
        return h.reshape(1)
    batch = x.shape[:-1]
    try:
        return h.expand(batch).reshape(-1)
    except RuntimeError:
        raise ShapeError(
            f"a variance of shape {tuple(h.shape)} does not broadcast to the batch shape {tuple(batch)} of x with "
            f"shape {tuple(x.shape)}; pass one number, or one variance for each row"
        ) from None


class NoiseEmbedding(nn.Module):
    r"""A vector for each noise level, from Fourier features of its logarithm

    .. math:: \ell = \tfrac12 \log (h + \sigma_0^2),

    which is finite at :math:`h = 0`. Equal ratios of noise are equally far apart, whatever the schedule.

    :param out_features: the length of the vector.
    :param smallest_sigma: :math:`\sigma_0`, below which noise levels are not told apart.
    :param num_frequencies: the number of frequencies of :math:`\ell`.
    :param finest: the highest frequency, in radians for each factor e of noise.

    >>> embedding = NoiseEmbedding(16)
    >>> embedding(torch.tensor([0.0, 1e-4, 1.0])).shape
    torch.Size([3, 16])
    """

    def __init__(
        self, out_features: int, *, smallest_sigma: float = 1e-4, num_frequencies: int = 12, finest: float = 8.0
    ) -> None:
        super().__init__()
        if not smallest_sigma > 0.0:
            raise ValueError(f"smallest_sigma must be positive, got {smallest_sigma}")
        self.smallest_sigma = smallest_sigma
        self.features = FourierFeatures(num_frequencies, lowest=min(0.25, finest), highest=finest)
        self.linear = nn.Linear(1 + self.features.num_features, out_features)

    def forward(self, variance: Tensor) -> Tensor:
        """Vectors ``(*shape, out_features)`` of variances ``(*shape)``."""
        log_sigma = 0.5 * (variance.to(torch.float64) + self.smallest_sigma**2).log()
        log_sigma = log_sigma.to(self.linear.weight.dtype)
        features = torch.cat([0.25 * log_sigma.unsqueeze(-1), self.features(log_sigma)], -1)
        return nn.functional.silu(self.linear(features))
