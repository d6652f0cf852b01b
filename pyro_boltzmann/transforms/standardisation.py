"""Units of data: a mean and a scale for each column, kept with the model."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyro_boltzmann.exceptions import ShapeError

__all__ = ["Standardisation"]


class Standardisation(nn.Module):
    r"""Columns in units of their own mean and standard deviation, :math:`(x - \mu)/s`, and the box that they fill.

    All are buffers, so that they travel with ``state_dict``; 0, 1 and all of space until :meth:`fit` is called. A
    column that does not vary keeps :math:`s = 1`.

    :param dim: number of columns.

    >>> units = Standardisation(2)
    >>> units.fit(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))
    >>> units.standard(torch.tensor([[3.0, 6.0]]))
    tensor([[0.7071, 1.0000]])
    """

    mean: Tensor
    scale: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))
        self.register_buffer("low", torch.full((dim,), -torch.inf))
        self.register_buffer("high", torch.full((dim,), torch.inf))

    @property
    def log_volume(self) -> Tensor:
        r""":math:`\sum \log s`: what a log-density in these units exceeds that of the data by."""
        return self.scale.log().sum()

    def fit(self, x: Tensor) -> None:
        """Take mean and standard deviation of the rows ``(n, dim)``.

        :raises ShapeError: for another shape, or fewer than two rows.
        :raises ValueError: if a number is not finite.
        """
        if x.shape[1:] != self.mean.shape or len(x) < 2:
            raise ShapeError(f"units are fitted to (n, {len(self.mean)}) with n >= 2, got {tuple(x.shape)}")
        if not bool(x.isfinite().all()):
            raise ValueError(f"{int((~x.isfinite()).any(-1).sum())} of {len(x)} rows are not finite; leave them out")
        exact = x.detach().double()
        spread = exact.std(0)
        noise = 1e-12 * exact.abs().amax(0)  # a constant column in float64 has a spread of rounding errors
        self.mean.copy_(exact.mean(0))
        self.scale.copy_(torch.where(spread > noise, spread, 1.0))
        self.low.copy_(x.detach().amin(0))
        self.high.copy_(x.detach().amax(0))

    def outside(self, x: Tensor, margin: float = 0.0) -> Tensor:
        """Whether rows lie outside of the box of the data that :meth:`fit` saw: ``(*batch, dim)`` to ``(*batch)``. NaN
        does.

        :param margin: by which the box is widened on each side, as a share of its width.
        """
        slack = margin * (self.high - self.low) if margin else 0.0
        return ~((x >= self.low - slack) & (x <= self.high + slack)).all(-1)

    def standard(self, x: Tensor) -> Tensor:
        """Data to standard units."""
        return (x - self.mean) / self.scale

    def original(self, x: Tensor) -> Tensor:
        """Standard units to data."""
        return self.mean + self.scale * x
