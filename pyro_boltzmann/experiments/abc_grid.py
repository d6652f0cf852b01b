"""The published grid of transition probabilities of the ABC flow, by simulation and by a flow map."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_boltzmann.sde.systems import abc_truncated_normal

__all__ = ["CENTRES", "GridComparison", "compare_counts", "count_in_rectangle", "grid_centres", "is_in_rectangle"]

CENTRES = 22
"""Along each axis."""
_TOGETHER = 22
"""Centres whose draws are carried together."""

Ends = Callable[[Tensor], Tensor]
"""Initial states ``(n, 3)`` to states at the end."""


def grid_centres(number: int = CENTRES) -> list[tuple[float, float]]:
    """Centres :math:`(x_0, z_0)` from 0 to :math:`2\\pi` along both axes, z the slower."""
    axis = np.linspace(0.0, 2.0 * math.pi, number).tolist()
    return [(x, z) for z in axis for x in axis]


def is_in_rectangle(state: Tensor) -> Tensor:
    r"""Whether :math:`x \in [0, \pi]` and :math:`z \in [2\pi, 3\pi]`, for states ``(*batch, 3)``."""
    x, z = state[..., 0], state[..., 2]
    return (x >= 0.0) & (x <= math.pi) & (z >= 2.0 * math.pi) & (z <= 3.0 * math.pi)


@torch.no_grad()
def count_in_rectangle(ends: Ends, draws: int, seed: int, number: int = CENTRES) -> NDArray[np.int64]:
    """How many of the draws from the truncated normal law around each centre (with :math:`y_0 = \\pi`) end in the
    rectangle, ``(number, number)``: rows are those of one z.

    :param ends: may use torch's global generator, which is seeded.
    """
    counts: list[int] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        centres = grid_centres(number)
        for first in range(0, len(centres), _TOGETHER):
            some = centres[first : first + _TOGETHER]
            x0 = torch.cat([abc_truncated_normal(x, math.pi, z).sample((draws,)) for x, z in some])
            counts += is_in_rectangle(ends(x0)).view(len(some), draws).sum(-1).tolist()
    return np.asarray(counts, dtype=np.int64).reshape(number, number)


@dataclass(frozen=True)
class GridComparison:
    r"""Two grids of counts.

    :ivar z: :math:`(\hat p - \hat q) / \sqrt{\bar p (1 - \bar p)(1/n + 1/m)}` of each cell, :math:`\bar p` of both
        together; NaN where neither has a count.
    :ivar rms: root of the mean of :math:`z^2`, whose expectation is :math:`(n + m) / (n + m - 1)` for equal laws.
    :ivar rms_error: standard deviation of ``rms`` for equal laws, :math:`1/\sqrt{2k}` over k cells.
    :ivar bias: rms of the differences of the probabilities beyond their sampling errors; 0 if there is nothing beyond.
    """

    z: NDArray[np.float64]
    rms: float
    rms_error: float
    largest: float
    bias: float
    num_cells: int

    def plain(self) -> dict[str, Any]:
        """For JSON; NaN as ``None``."""
        z = [[None if math.isnan(cell) else cell for cell in row] for row in self.z.tolist()]
        return {**vars(self), "z": z}


def compare_counts(
    first: NDArray[np.int64], draws_first: int, second: NDArray[np.int64], draws_second: int
) -> GridComparison:
    """Compare the shares of counts in each cell, from independent draws.

    >>> result = compare_counts(np.array([[10, 0]]), 100, np.array([[10, 0]]), 100)
    >>> result.rms, result.num_cells
    (0.0, 1)
    """
    p, q = first / draws_first, second / draws_second
    pooled = (first + second) / (draws_first + draws_second)
    variance = pooled * (1.0 - pooled) * (1.0 / draws_first + 1.0 / draws_second)
    z = np.full(p.shape, np.nan)
    counted = variance > 0.0
    z[counted] = (p - q)[counted] / np.sqrt(variance[counted])
    number = int(counted.sum())
    beyond = float(np.mean((p - q) ** 2 - variance))
    return GridComparison(
        z=z,
        rms=float(np.sqrt(np.mean(z[counted] ** 2))) if number else math.nan,
        rms_error=1.0 / math.sqrt(2.0 * max(1, number)),
        largest=float(np.abs(z[counted]).max()) if number else math.nan,
        bias=math.sqrt(max(0.0, beyond)),
        num_cells=number,
    )
