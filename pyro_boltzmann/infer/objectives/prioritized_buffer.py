"""Weighted points kept from update to update, drawn in proportion to their weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from pyro_boltzmann.exceptions import ShapeError
from pyro_boltzmann.infer.objectives.weighted_data import cumulative_weights, draw_rows

__all__ = ["BufferRows", "PrioritizedBuffer"]


class BufferRows(NamedTuple):
    """Points ``(n, width)``, their log weights ``(n,)`` and log densities ``(n,)`` when they were last looked at."""

    points: Tensor
    log_weights: Tensor
    log_q: Tensor


class PrioritizedBuffer:
    r"""A replay buffer: the newest ``capacity`` weighted points, drawn with replacement in proportion to their weights.

    No stored tensor is ever written to: additions and new weights make new ones, so what :meth:`state` returned stays
    as it was.

    :param capacity: points kept; the oldest leave first.
    :raises ValueError: if it is not positive.

    Source: Midgley, Stimper, Simm, Schoelkopf and Hernandez-Lobato, arXiv 2208.01893, section 3.3.

    >>> buffer = PrioritizedBuffer(2)
    >>> buffer.add(torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([9.0, 0.0, 1.0]), torch.zeros(3))
    >>> buffer.rows.points.flatten()
    tensor([2., 3.])
    >>> index, rows = buffer.draw(5)
    >>> rows.points.shape
    torch.Size([5, 1])
    """

    def __init__(self, capacity: int) -> None:
        if isinstance(capacity, bool) or not isinstance(capacity, int) or capacity < 1:
            raise ValueError(f"the capacity of a buffer must be a positive integer, got {capacity!r}")
        self.capacity = capacity
        self.rows: BufferRows | None = None

    def __len__(self) -> int:
        return 0 if self.rows is None else len(self.rows.points)

    def clear(self) -> None:
        """Forget everything."""
        self.rows = None

    def add(self, points: Tensor, log_weights: Tensor, log_q: Tensor) -> None:
        """Put points ``(n, width)`` in. Those of weight zero, and those that are not finite, are left out.

        :raises ShapeError: if they do not fit together, or have another width than the points there.
        """
        new = BufferRows(points.detach(), log_weights.detach().double(), log_q.detach().double())
        widths = {points.shape[-1]} if self.rows is None else {points.shape[-1], self.rows.points.shape[-1]}
        if points.dim() != 2 or not log_weights.shape == log_q.shape == points.shape[:1] or len(widths) > 1:
            raise ShapeError(
                "a buffer takes points (n, width) of one width with log_weights and log_q (n,), got "
                f"{tuple(points.shape)}, {tuple(log_weights.shape)} and {tuple(log_q.shape)}"
            )
        good = new.points.isfinite().all(-1) & new.log_weights.isfinite() & new.log_q.isfinite()
        if not bool(good.all()):
            new = BufferRows(*(column[good] for column in new))
        old = self.rows
        joined = new if old is None else BufferRows(*(torch.cat(pair) for pair in zip(old, new, strict=True)))
        if len(joined.points):
            self.rows = BufferRows(*(column[-self.capacity :] for column in joined))

    def draw(self, count: int, generator: Generator | None = None) -> tuple[Tensor, BufferRows]:
        """Where ``count`` drawn points stand, ``(count,)``, valid until the next addition, and the points.

        :raises ValueError: if the buffer is empty.
        """
        if self.rows is None:
            raise ValueError("the buffer is empty; add points of finite weight first")
        index = draw_rows(cumulative_weights(self.rows.log_weights), count, generator)
        return index, BufferRows(*(column[index] for column in self.rows))

    def reweigh(self, index: Tensor, log_weights: Tensor, log_q: Tensor) -> None:
        """New log weights and densities of the points at ``index``; what is not finite changes nothing."""
        if self.rows is None:
            raise ValueError("the buffer is empty; there is nothing to weigh anew")
        good = log_weights.isfinite() & log_q.isfinite()
        index = index[good]
        self.rows = BufferRows(
            self.rows.points,
            self.rows.log_weights.index_put((index,), log_weights.detach().double()[good]),
            self.rows.log_q.index_put((index,), log_q.detach().double()[good]),
        )

    def state(self) -> dict[str, Tensor]:
        """The rows by name; nothing if there are none."""
        return {} if self.rows is None else dict(self.rows._asdict())

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what :meth:`state` returned."""
        self.rows = BufferRows(**{name: tensors[name] for name in BufferRows._fields}) if tensors else None
