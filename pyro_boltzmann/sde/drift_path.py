"""The deterministic flow of a drift: where an SDE would go without its noise."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pyro_boltzmann.sde.walls import Walls

__all__ = ["drift_path"]


def drift_path(
    drift: Callable[..., Tensor], x0: Tensor, time: Tensor, params: Tensor | None, walls: Walls, num_steps: int
) -> Tensor:
    r"""Points of the solution of :math:`dx = b(x, c)\,dt` by ``num_steps`` equal Runge-Kutta steps of order four.

    The points stand at the times t, t/2, t/4, t/8, as far as they are whole numbers of steps, in ascending order.
    Drifts need not be defined outside the domain: they are evaluated at the nearest state inside, and points are
    brought inside too (but not wrapped).

    :param drift: ``drift(x)``, or ``drift(x, c)`` where there are parameters.
    :param x0: ``(*batch, d)``.
    :param time: ``(*batch)``.
    :param params: ``(*batch, param_dim)``.
    :return: ``(*batch, points, d)``.

    >>> drift_path(lambda x: -x, torch.ones(1), torch.tensor(1.0), None, Walls([], 1), 2).flatten()
    tensor([0.6068, 0.3682])
    """
    step = (time / num_steps).unsqueeze(-1)
    arguments = () if params is None else (params,)
    marks = marked_steps(num_steps)

    def velocity(x: Tensor) -> Tensor:
        return drift(walls.nearest(x), *arguments)

    x, points = x0, []
    for number in range(1, num_steps + 1):
        k1 = velocity(x)
        k2 = velocity(x + 0.5 * step * k1)
        k3 = velocity(x + 0.5 * step * k2)
        k4 = velocity(x + step * k3)
        x = walls.nearest(x + step / 6.0 * (k1 + 2.0 * (k2 + k3) + k4))
        if number in marks:
            points.append(x)
    return torch.stack(points, -2)


def marked_steps(num_steps: int) -> list[int]:
    """Steps after which there is a point of the path."""
    return sorted({num_steps // part for part in (1, 2, 4, 8) if num_steps % part == 0})
