"""Minibatches of data, plain or weighted."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from pyro_boltzmann.exceptions import ShapeError

__all__ = ["WeightedData", "cumulative_weights", "draw_rows"]


class WeightedData:
    r"""Data drawn with replacement, row i in proportion to :math:`w_i^\rho`.

    Rows of weight zero are never drawn, so they may hold anything; equal rows add up.

    :param data: unconstrained latents ``(n, latent_dim)``.
    :param log_weights: :math:`\log w`, ``(n,)``; equal weights if not given.
    :param weight_power: :math:`\rho \ge 0`. Below one it softens the weights: the draws are then between the law that
        the data came from and their target, and each small mode is seen more often than the target has it.
    :raises TypeError: if the data are no tensor.
    :raises ShapeError: if there are no data or the shapes do not match.
    :raises ValueError: if data or weights are not finite (a weight may be zero), all weights are zero, or the power is
        negative.

    >>> data = WeightedData(torch.tensor([[0.0], [1.0]]), torch.tensor([-torch.inf, 0.0]))
    >>> data.draw(3)
    tensor([[1.],
            [1.],
            [1.]])
    """

    def __init__(self, data: Tensor, log_weights: Tensor | None = None, weight_power: float = 1.0) -> None:
        if not isinstance(data, Tensor):
            raise TypeError(
                f"data must be a tensor (n, latent_dim), got {type(data).__name__}; torch.as_tensor makes one"
            )
        if data.dim() != 2 or data.shape[0] == 0:
            raise ShapeError(f"data must have shape (n, latent_dim) with n >= 1, got {tuple(data.shape)}")
        if log_weights is not None and log_weights.shape != data.shape[:1]:
            raise ShapeError(f"log_weights must have shape {tuple(data.shape[:1])}, got {tuple(log_weights.shape)}")
        if not 0 <= weight_power < torch.inf:
            raise ValueError(f"weight_power must be finite and not negative, got {weight_power}")
        weighted = torch.ones_like(data[:, 0], dtype=torch.bool) if log_weights is None else log_weights > -torch.inf
        bad = int((~data[weighted.to(data.device)].isfinite().all(-1)).sum())
        if bad:
            raise ValueError(f"{bad} of {len(data)} rows of data are NaN or infinite; leave them out")
        self.data = data.detach()
        self._cumulative: Tensor | None = None
        if log_weights is not None:
            softened = torch.where(weighted | log_weights.isnan(), weight_power * log_weights.double(), -torch.inf)
            self._cumulative = cumulative_weights(softened)

    def draw(self, count: int) -> Tensor:
        """``(count, latent_dim)`` rows."""
        if self._cumulative is None:
            rows = torch.randint(self.data.shape[0], (count,), device=self.data.device)
        else:
            rows = draw_rows(self._cumulative, count).to(self.data.device)
        return self.data[rows]


def cumulative_weights(log_weights: Tensor) -> Tensor:
    """The distribution function of the rows, ``(n,)`` in float64.

    :raises ValueError: if a weight is NaN or infinite, or all are zero.
    """
    cumulative = log_weights.detach().double().softmax(0).cumsum(0)
    if not bool(cumulative[-1].isfinite()):
        raise ValueError(
            "the weights of the data must be finite or zero, and not all zero: some are NaN or +inf, or none counts"
        )
    return cumulative / cumulative[-1]


def draw_rows(cumulative: Tensor, count: int, generator: Generator | None = None) -> Tensor:
    """Indices ``(count,)`` of rows, independently and with replacement."""
    u = torch.rand(count, dtype=torch.float64, device=cumulative.device, generator=generator)
    return torch.searchsorted(cumulative, u, right=True).clamp_max(cumulative.shape[0] - 1)
