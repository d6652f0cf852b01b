"""Memory layout of long, thin batches of states."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["by_columns", "goes_by_columns", "is_dense"]

COLUMNS_UP_TO = 32
"""States of at most this many dimensions are kept column by column while they are streamed."""


def by_columns(x: Tensor) -> Tensor:
    """The same values, stored so that each coordinate is contiguous in memory.

    Low-dimensional states are long and thin: element-wise work then runs along a coordinate of all particles at once
    instead of along two or three numbers of one particle. Where a graph is kept, nothing is moved.
    """
    if torch.is_grad_enabled() or not goes_by_columns(tuple(x.shape)) or x.stride(0) == 1:
        return x
    return x.mT.contiguous().mT


def goes_by_columns(shape: tuple[int, ...]) -> bool:
    return len(shape) == 2 and 1 < shape[1] <= COLUMNS_UP_TO


def is_dense(x: Tensor) -> bool:
    """Whether every element has a place of its own in one block of memory, stored by rows or by columns."""
    return x.is_contiguous() or (x.dim() == 2 and x.mT.is_contiguous())
