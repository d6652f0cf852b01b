"""How far noise that depends on the state carries a trajectory in a given time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from pyro_boltzmann.sde.walls import Walls

__all__ = ["LocalScale"]

_FLOOR = 1e-4
"""Least variance, as a share of the mean over the data: noise may vanish at some states."""
_CAP = 2.0
"""Largest width, in standard deviations of the increments of the data: noise that is confined does not spread on."""


class LocalScale(nn.Module):
    r"""Diffusion lengths along the deterministic path of an initial state,

    .. math:: \delta_i^{-2} = \Bigl[\varepsilon_i t + \int_0^t \sigma_i^2(x(s))\, ds\Bigr]^{-1}
                              + (2 \delta_{\mathrm{all}, i})^{-2},

    with the trapezoidal rule, :math:`\sigma_i^2 = \sum_j \sigma_{ij}^2`, and a floor and a cap that data give.

    :param diffusion: a number, ``(d,)``, ``(d, d)``, or ``f(x)`` (``f(x, c)``) with values of these shapes for each
        state; not trained.
    :param dim: d.
    :param walls: where absorbing ends are.
    :param fractions: times of the points of the path, in units of t; empty if there is no path.

    >>> local = LocalScale(lambda x: x, 1, Walls([], 1), [1.0])
    >>> x0, path = torch.ones(2, 1), torch.full((2, 1, 1), 3.0)
    >>> local.variance(x0, torch.tensor([1.0, 0.5]), None, path).flatten()
    tensor([5.0000, 2.5000])
    """

    floor: Tensor

    def __init__(
        self, diffusion: float | Tensor | Callable[..., Tensor], dim: int, walls: Walls, fractions: Sequence[float]
    ) -> None:
        super().__init__()
        self._diffusion = (diffusion,)  # a tuple keeps a module out of the module tree
        self.dim, self.walls = dim, walls
        times = [0.0, *fractions]
        gaps = [later - earlier for earlier, later in itertools.pairwise(times)] or [2.0]
        self.weights = [0.5 * (before + after) for before, after in zip([0.0, *gaps], [*gaps, 0.0], strict=True)]
        self.weights = self.weights if fractions else [1.0]
        self.ends = [(i, end) for i, ends in walls.absorbing.items() for end in ends if math.isfinite(end)]
        self.register_buffer("floor", torch.zeros(dim))

    @torch.no_grad()
    def observe(self, x0: Tensor, t: Tensor, params: Tensor | None, path: Tensor) -> None:
        """Take the floor from training data."""
        t = t.expand(x0.shape[:-1])
        self.floor.zero_()
        self.floor.copy_(_FLOOR * (self.variance(x0, t, params, path) / t.unsqueeze(-1)).mean(0))

    def variance(self, x0: Tensor, t: Tensor, params: Tensor | None, path: Tensor) -> Tensor:
        """Of the noise up to time t, ``(*batch, d)``.

        :param t: ``(*batch)``.
        :param path: ``(*batch, points, d)``; left alone if there are no fractions.
        """
        points = [x0, *path.unbind(-2)][: len(self.weights)]
        rate = sum(weight * self._rate(point, params) for weight, point in zip(self.weights, points, strict=True))
        return (rate + self.floor) * t.unsqueeze(-1)

    def forward(
        self, x0: Tensor, t: Tensor, params: Tensor | None, path: Tensor, whole: Tensor
    ) -> tuple[Tensor, Tensor]:
        r""":math:`\delta` ``(*batch, d)``, and distances to absorbing ends in units of the noise ``(*batch, K)``.

        :param whole: :math:`\delta_{\mathrm{all}}`, which broadcasts to ``(*batch, d)``.
        """
        variance = self.variance(x0, t, params, path)
        least = torch.finfo(x0.dtype).tiny
        scale = (1.0 / variance.clamp_min(least) + 1.0 / (_CAP * whole).square()).rsqrt()
        parts = [(x0[..., i] - end).abs() / variance[..., i].clamp_min(least).sqrt() for i, end in self.ends]
        return scale, torch.stack(parts, -1) if parts else x0[..., :0]

    def _rate(self, x: Tensor, params: Tensor | None) -> Tensor:
        """Variances a unit of time, which broadcast to ``(*batch, d)``."""
        diffusion = self._diffusion[0]
        if callable(diffusion):
            x = self.walls.nearest(x)
            diffusion = diffusion(x) if params is None else diffusion(x, params)
            is_matrix = diffusion.dim() == x.dim() + 1
        else:
            diffusion = torch.as_tensor(diffusion, dtype=x.dtype, device=x.device)
            is_matrix = diffusion.dim() == 2
        square = diffusion.square()
        return square.sum(-1) if is_matrix else square
