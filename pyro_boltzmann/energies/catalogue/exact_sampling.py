"""Exact independent samples of densities in one or two dimensions: rejection from a cell-wise constant envelope."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["GridRejectionSampler"]


class GridRejectionSampler:
    r"""Rejection sampling from an envelope that is constant on each cell of a grid.

    With :math:`u_c` the energy at the centre of cell :math:`c` and :math:`m_c` a bound of :math:`u_c - u(x)` in the
    cell, a cell is drawn with probability :math:`\propto e^{-u_c + m_c}`, :math:`x` uniformly in it, and kept with
    probability :math:`e^{-u(x) + u_c - m_c} \le 1`. The law of the kept points is exactly :math:`\pi` restricted to
    the box, whatever the width of the cells.

    The bound is half the largest energy difference to a neighbouring centre, summed over the axes, plus ``slack``: it
    holds for any locally quadratic energy whose mixed second difference is below ``4 * slack``.

    :param energy: maps ``(*batch, d)`` to ``(*batch)``.
    :param low: lower corner of the box, of length d.
    :param high: upper corner.
    :param cells: number of cells per axis.

    >>> sampler = GridRejectionSampler(lambda x: 0.5 * x.square().sum(-1), [-9.0], [9.0], [256])
    >>> x = sampler.sample(10000, torch.Generator().manual_seed(0))
    >>> x.shape, bool((x.var() - 1).abs() < 0.07)
    (torch.Size([10000, 1]), True)
    """

    def __init__(
        self,
        energy: Callable[[Tensor], Tensor],
        low: Sequence[float],
        high: Sequence[float],
        cells: Sequence[int],
        *,
        slack: float = 0.02,
    ) -> None:
        self.energy = energy
        self._low = torch.tensor(low, dtype=torch.float64)
        self._width = (torch.tensor(high, dtype=torch.float64) - self._low) / torch.tensor(cells, dtype=torch.float64)
        self._shape = tuple(cells)
        axes = [
            lo + w * (torch.arange(n, dtype=torch.float64) + 0.5)
            for lo, w, n in zip(self._low.tolist(), self._width.tolist(), cells, strict=True)
        ]
        u = energy(torch.stack(torch.meshgrid(*axes, indexing="ij"), -1))
        margin = torch.full_like(u, slack)
        for axis in range(u.dim()):
            difference = u.diff(dim=axis).abs()
            edge = torch.zeros_like(u.narrow(axis, 0, 1))
            margin += 0.5 * torch.maximum(torch.cat([edge, difference], axis), torch.cat([difference, edge], axis))
        # The offset keeps exp() in range where the density is not negligible.
        self._bound = (u - margin).flatten()
        weights = (self._bound.min() - self._bound).exp()
        self._cumulative = weights.cumsum(0) / weights.sum()

    def sample(self, num_samples: int, generator: torch.Generator | None = None) -> Tensor:
        """Independent samples of shape ``(num_samples, d)`` in float64 on the generator's device."""
        device = torch.device("cpu") if generator is None else generator.device
        kept: list[Tensor] = []
        missing = num_samples
        while missing > 0:
            x = self._propose(missing + missing // 4 + 16, generator, device)[:missing]
            kept.append(x)
            missing -= len(x)
        return torch.cat(kept) if kept else torch.empty(0, len(self._shape), dtype=torch.float64, device=device)

    def _propose(self, number: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
        uniform = torch.rand(2 + len(self._shape), number, generator=generator, device=device, dtype=torch.float64)
        cell = torch.searchsorted(self._cumulative.to(device), uniform[0], right=True)
        cell = cell.clamp(max=self._cumulative.numel() - 1)
        index = torch.stack(torch.unravel_index(cell, self._shape), -1)
        x = self._low.to(device) + self._width.to(device) * (index + uniform[2:].mT)
        return x[uniform[1].log() < self._bound.to(device)[cell] - self.energy(x)]
