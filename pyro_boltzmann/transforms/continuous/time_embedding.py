"""Embeddings of the time of a flow."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from pyro_boltzmann.exceptions import ShapeError
from pyro_boltzmann.transforms.fourier_features import FourierFeatures

__all__ = ["TimeEmbedding", "times_of_rows"]


def times_of_rows(t: float | Tensor, x: Tensor) -> Tensor:
    """The time of each row of ``x`` flattened to ``(rows, dim)``, of shape ``(1,)`` or ``(rows,)`` in its dtype.

    :param t: a number, or a tensor that broadcasts to ``(*batch)``.
    :param x: ``(*batch, dim)``.
    :raises ShapeError: if the time does not broadcast to the batch shape.

    >>> x = torch.zeros(5, 3, 2)
    >>> times_of_rows(0.5, x).shape, times_of_rows(torch.ones(5, 1), x).shape
    (torch.Size([1]), torch.Size([15]))
    """
    times = torch.as_tensor(t, dtype=x.dtype, device=x.device)
    if times.numel() == 1:
        return times.reshape(1)
    try:
        return times.expand(x.shape[:-1]).reshape(-1)
    except RuntimeError:
        raise ShapeError(
            f"a time of shape {tuple(times.shape)} does not broadcast to the batch shape {tuple(x.shape[:-1])} of x "
            f"with shape {tuple(x.shape)}; pass one number, or one time for each row"
        ) from None


class TimeEmbedding(nn.Module):
    r"""A vector for each time in :math:`[0, 1]`, from t itself and its sines and cosines.

    The slowest wave has a quarter of a period in the unit interval; the fastest ones are kept slow, since a solver's
    steps must resolve them.

    :param out_features: the length of the vector.
    :param num_frequencies: of the waves.
    :param finest: the highest frequency, in radians per unit of time.

    >>> TimeEmbedding(16)(torch.tensor([0.0, 0.5, 1.0])).shape
    torch.Size([3, 16])
    """

    def __init__(self, out_features: int, *, num_frequencies: int = 6, finest: float = 4.0 * math.pi) -> None:
        super().__init__()
        self.features = FourierFeatures(num_frequencies, lowest=min(0.5 * math.pi, finest), highest=finest)
        self.linear = nn.Linear(1 + self.features.num_features, out_features)

    def forward(self, t: Tensor) -> Tensor:
        """Vectors ``(*shape, out_features)`` of times ``(*shape)``."""
        return silu(self.linear(torch.cat([t.unsqueeze(-1), self.features(t)], -1)))
