"""Where a flow map was trained, and what becomes of questions about other places."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pyro_boltzmann.exceptions import OutsideDomainWarning

__all__ = ["OutsideDomainWarning", "TrainingDomain"]


class TrainingDomain(nn.Module):
    """Ranges of initial states, times and parameters in the training data; buffers, so that a state dict has them.

    Ranges of data are widened by ``margin`` of their width on each side, since extremes of a sample lie inside those of
    its law, but times not beyond those that the map is for, and states not beyond the ends of the domain. Periodic
    coordinates are never outside.

    :param event_dim: d.
    :param times: the shortest and the longest time that the map is for, the range until there are data.
    :param param_dim: dimension of the parameters.
    :param periodic: indices of the periodic coordinates.
    :param margin: share of the width.
    :param ends: of each coordinate, infinite where it is open; open by default.

    >>> domain = TrainingDomain(1, (0.5, 2.0), 0, [])
    >>> domain.observe(torch.tensor([[0.0], [1.0]]), torch.tensor([0.5, 2.0]), None)
    >>> domain.is_outside(torch.tensor([[0.5], [3.0]]), torch.tensor(1.0), None)
    tensor([False,  True])
    """

    low: Tensor
    high: Tensor

    def __init__(
        self,
        event_dim: int,
        times: tuple[float, float],
        param_dim: int,
        periodic: list[int],
        *,
        margin: float = 0.02,
        ends: Sequence[tuple[float, float]] | None = None,
    ) -> None:
        super().__init__()
        self.event_dim, self.param_dim, self.margin = event_dim, param_dim, margin
        self.periodic = list(periodic)
        self.ends = list(ends or [(-math.inf, math.inf)] * event_dim)
        self.names = [f"x0[{i}]" for i in range(event_dim)] + ["time"] + [f"params[{i}]" for i in range(param_dim)]
        self.register_buffer("low", torch.full((len(self.names),), -math.inf))
        self.register_buffer("high", torch.full((len(self.names),), math.inf))
        # A tolerance for the rounding of times.
        self.times = (times[0] * (1.0 - 1e-5), times[1] * (1.0 + 1e-5))
        self.low[event_dim], self.high[event_dim] = self.times

    @torch.no_grad()
    def observe(self, x0: Tensor, time: Tensor, params: Tensor | None) -> None:
        """Take the ranges of training data: ``(n, d)``, ``(n)`` or one time, ``(n, param_dim)``."""
        for number, column in enumerate(self._columns(x0, time, params)):
            low, high = column.min(), column.max()
            slack = self.margin * (high - low)
            self.low[number], self.high[number] = low - slack, high + slack
        for number, (lowest, highest) in enumerate(self.ends):
            self.low[number].clamp_(min=lowest)
            self.high[number].clamp_(max=highest)
        at = self.event_dim
        self.low[at], self.high[at] = self.low[at].clamp_min(self.times[0]), self.high[at].clamp_max(self.times[1])
        self.low[self.periodic], self.high[self.periodic] = -math.inf, math.inf

    def is_outside(self, x0: Tensor, time: Tensor, params: Tensor | None) -> Tensor:
        """Which rows lie outside; shapes broadcast to ``(*batch)``. NaN is outside."""
        outside = torch.zeros((), dtype=torch.bool, device=x0.device)
        for number, column in enumerate(self._columns(x0, time, params)):
            outside = outside | ~((column >= self.low[number]) & (column <= self.high[number]))
        return outside

    def check(self, x0: Tensor, time: Tensor, params: Tensor | None, reaction: str) -> None:
        """:raises ValueError: if a row lies outside and ``reaction`` is ``"raise"``; with ``"warn"`` it warns."""
        for number, column in enumerate(self._columns(x0.detach(), time.detach(), params)):
            outside = ~((column >= self.low[number]) & (column <= self.high[number]))
            if not bool(outside.any()):
                continue
            values = column[outside]
            message = (
                f"{self.names[number]} lies outside the range of the training data, [{float(self.low[number]):.6g}, "
                f"{float(self.high[number]):.6g}], in {outside.double().mean():.3%} of the rows (values from "
                f"{float(values.min()):.6g} to {float(values.max()):.6g}); train on data that cover it, or set "
                'outside="warn" to extrapolate'
            )
            if reaction == "raise":
                raise ValueError(message)
            warnings.warn(message, OutsideDomainWarning, stacklevel=3)

    def _columns(self, x0: Tensor, time: Tensor, params: Tensor | None) -> list[Tensor]:
        return [*x0.unbind(-1), time, *([] if params is None else params.unbind(-1))]
