"""What a flow map's networks see of the initial state, the time and the parameters."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pyro_boltzmann.sde.walls import Walls

__all__ = ["StartFeatures", "TimeFeatures"]


class TimeFeatures(nn.Module):
    r""":math:`(2\tau - 1,\ 2\sqrt\tau - 1)` of :math:`\tau = t/\bar t`; nothing where there is one time only.

    >>> TimeFeatures(4.0, is_fixed=False)(torch.tensor([1.0]))
    tensor([[-0.5000,  0.0000]])
    """

    def __init__(self, longest: float, *, is_fixed: bool) -> None:
        super().__init__()
        self.longest, self.is_fixed = longest, is_fixed

    @property
    def num_features(self) -> int:
        return 0 if self.is_fixed else 2

    def forward(self, time: Tensor) -> Tensor:
        """Times ``(*batch)`` to ``(*batch, num_features)``."""
        if self.is_fixed:
            return time.new_zeros(*time.shape, 0)
        share = time / self.longest
        return torch.stack([2.0 * share - 1.0, 2.0 * share.sqrt() - 1.0], -1)


class StartFeatures(nn.Module):
    r"""Features of :math:`(x_0, t, c)`.

    A periodic coordinate of period P gives :math:`\sin` and :math:`\cos` of :math:`2\pi k x / P`,
    :math:`k = 1 \dots K`, so that a map built on them has this period exactly; any other is standardised by constants
    that are buffers. A wall at distance r gives :math:`\tanh(r / \delta)` and :math:`\tanh(r / 4\delta)`,
    :math:`\delta` being the diffusion length at time t. Points of the deterministic flow are seen as :math:`x_0` is,
    and by how far they are from it in units of :math:`\delta`.

    :param event_dim: d.
    :param walls: the boundaries.
    :param periods: of each coordinate, ``None`` for those that are not periodic.
    :param time: features of the time.
    :param param_dim: dimension of c.
    :param harmonics: K.
    :param num_points: points of the deterministic flow, 0 for a map without drift.
    """

    x_mean: Tensor
    x_scale: Tensor
    param_mean: Tensor
    param_scale: Tensor

    def __init__(
        self,
        event_dim: int,
        walls: Walls,
        periods: Sequence[float | None],
        time: TimeFeatures,
        *,
        param_dim: int,
        harmonics: int,
        num_points: int,
    ) -> None:
        super().__init__()
        self.walls, self.time, self.harmonics, self.num_points = walls, time, harmonics, num_points
        self.periodic = [(i, period) for i, period in enumerate(periods) if period is not None]
        self.plain = [i for i, period in enumerate(periods) if period is None]
        self.register_buffer("x_mean", torch.zeros(event_dim))
        self.register_buffer("x_scale", torch.ones(event_dim))
        self.register_buffer("param_mean", torch.zeros(param_dim))
        self.register_buffer("param_scale", torch.ones(param_dim))
        self.ends = [(index, end) for index in self.plain for end in walls.domain(index) if math.isfinite(end)]

    @property
    def num_linear(self) -> int:
        """Of :meth:`linear`."""
        return len(self.plain) + len(self.param_mean) + self.num_points * len(self.x_mean)

    @property
    def num_features(self) -> int:
        """Of :meth:`forward`."""
        of_state = len(self.plain) + 2 * self.harmonics * len(self.periodic)
        of_path = self.num_points * (of_state + len(self.x_mean))
        return of_state + of_path + len(self.param_mean) + 2 * len(self.ends) + self.time.num_features

    def linear(self, x0: Tensor, params: Tensor | None, path: Tensor, scale: Tensor) -> Tensor:
        """Standardised plain coordinates and parameters, and ways along the path in diffusion lengths,
        ``(*batch, num_linear)``. Arguments as in :meth:`forward`."""
        parts = [((x0 - self.x_mean) / self.x_scale)[..., self.plain]]
        parts += [(point - x0) / scale for point in path.unbind(-2)[: self.num_points]]
        if params is not None:
            standard = (params - self.param_mean) / self.param_scale
            parts.append(standard.expand(*x0.shape[:-1], standard.shape[-1]))
        return torch.cat(parts, -1)

    def forward(self, x0: Tensor, time: Tensor, params: Tensor | None, path: Tensor, scale: Tensor) -> Tensor:
        """Features ``(*batch, num_features)``.

        :param x0: ``(*batch, d)``.
        :param time: ``(*batch)``.
        :param params: ``(*batch, param_dim)``, if there are any.
        :param path: points of the deterministic flow ``(*batch, points, d)``; left alone if ``num_points`` is 0.
        :param scale: diffusion lengths ``(*batch, d)``.
        """
        parts = [self.linear(x0, params, path, scale), self.time(time), *self._harmonics(x0)]
        for point in path.unbind(-2)[: self.num_points]:
            parts += [((point - self.x_mean) / self.x_scale)[..., self.plain], *self._harmonics(point)]
        for index, wall in self.ends:
            distance = (x0[..., index] - wall) / scale[..., index]
            parts.append(torch.stack([distance.tanh(), (0.25 * distance).tanh()], -1))
        return torch.cat(parts, -1)

    def _harmonics(self, x: Tensor) -> list[Tensor]:
        parts = []
        for index, period in self.periodic:
            turn = (2.0 * math.pi / period) * x[..., index]
            # Angle addition: one sine and one cosine for all harmonics.
            sine, cosine = turn.sin(), turn.cos()
            s, c = sine, cosine
            for number in range(self.harmonics):
                if number:
                    s, c = s * cosine + c * sine, c * cosine - s * sine
                parts.append(torch.stack([s, c], -1))
        return parts
