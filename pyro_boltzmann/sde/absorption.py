"""Where and when a step reaches an absorbing boundary, by the law of the Brownian bridge."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from pyro_boltzmann.sde.boundaries import Absorbing
from pyro_boltzmann.sde.equation import is_matrix

__all__ = ["absorb"]

NEGLIGIBLE = 10.0
"""Crossings of a probability below exp(-20) are not drawn."""


def absorb(
    boundaries: tuple[Absorbing, ...],
    x: Tensor,
    y: Tensor,
    diffusion: float | Tensor,
    dt: float | Tensor,
    generator: Generator | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Which of the steps :math:`x \to y` end at a boundary, and where.

    Given both ends, a Brownian path at distances :math:`a` and :math:`c` from a plane has crossed it with probability
    :math:`\exp(-2ac / \sigma^2 h)`, and certainly if :math:`c \le 0`. If it has, the first time :math:`\tau` at the
    plane satisfies

    .. math:: \frac{\tau}{h - \tau} \sim \mathrm{InverseGaussian}\Bigl(\mu = \frac{a}{|c|},\
        \lambda = \frac{a^2}{\sigma^2 h}\Bigr),

    as the bridge's density :math:`\tau^{-3/2} (h - \tau)^{-1/2} e^{-a^2 / 2\sigma^2\tau - c^2 / 2\sigma^2(h - \tau)}`
    shows in that variable. Nothing is approximate where drift and diffusion are constant and one plane is near.

    :param boundaries: the planes.
    :param x: states inside, ``(n, d)``.
    :param y: the next states, ``(n, d)``, not folded.
    :param diffusion: at ``x``, as :meth:`SDE.coefficients` returns it.
    :param dt: the step, a number or ``(n, 1)``.
    :return: the rows that end, ``(k,)``; the fraction of the step after which they do, ``(k,)``; where, ``(k, d)``.
    """
    found: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    for boundary in boundaries:
        rate = _variance(diffusion, x, boundary.index) * (dt[:, 0] if isinstance(dt, Tensor) else dt)
        for end in boundary.ends.values():
            before, after = x[:, boundary.index], y[:, boundary.index]
            a, c = (before - end, after - end) if end == boundary.low else (end - before, end - after)
            rows = (a * c <= NEGLIGIBLE * rate if boundary.bridge else c <= 0.0).nonzero()[:, 0]
            if len(rows) == 0:
                continue
            fraction = torch.ones_like(rows, dtype=torch.float64)
            if boundary.bridge:
                a, c = a[rows].double(), c[rows].double()
                v = rate[rows].double() if isinstance(rate, Tensor) else torch.full_like(a, rate)
                has_crossed = (c <= 0.0) | (_uniform(a, generator) < (-2.0 * a * c / v).exp())
                rows = rows[has_crossed]
                fraction = _first_time(a[has_crossed], c[has_crossed].abs(), v[has_crossed], generator)
            found.append((rows, fraction, torch.full_like(fraction, end), torch.full_like(rows, boundary.index)))
    if not found:
        none = torch.empty(0, dtype=torch.long, device=x.device)
        return none, none.double(), x[none]
    rows, fraction, wall, index = _earliest(*(torch.cat(parts) for parts in zip(*found, strict=True)))
    place = torch.lerp(x[rows], y[rows], fraction.to(x).unsqueeze(-1))
    place.scatter_(-1, index.unsqueeze(-1), wall.to(x).unsqueeze(-1))
    return rows, fraction, place


def _earliest(rows: Tensor, fraction: Tensor, wall: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of a row that has reached several planes, the first one."""
    order = fraction.argsort(stable=True)
    order = order[rows[order].argsort(stable=True)]
    order = order[torch.cat([rows.new_ones(min(1, len(rows))), rows[order].diff()]) != 0]
    return rows[order], fraction[order], wall[order], index[order]


def _first_time(a: Tensor, c: Tensor, v: Tensor, generator: Generator | None) -> Tensor:
    """The fraction of the step at the first crossing, by the inverse Gaussian sampler.

    Source: Michael, Schucany and Haas, The American Statistician 30 (1976), 88.
    """
    mean = a / c.clamp_min(1e-9 * a)
    normal = torch.empty_like(a).normal_(generator=generator)
    q = mean * normal.square() * v / a.square()
    # The smaller root of the quadratic, in a form that does not cancel.
    small = mean * 2.0 / (2.0 + q + (q * (q + 4.0)).sqrt())
    odds = torch.where(_uniform(a, generator) * (mean + small) <= mean, small, mean.square() / small)
    return odds / (1.0 + odds)


def _uniform(like: Tensor, generator: Generator | None) -> Tensor:
    return torch.rand(like.shape, generator=generator, dtype=like.dtype, device=like.device)


def _variance(diffusion: float | Tensor, x: Tensor, index: int) -> float | Tensor:
    """Variance a unit of time of one coordinate: a number, or ``(n,)``."""
    if not isinstance(diffusion, Tensor):
        return diffusion**2
    rate = diffusion[..., index, :].square().sum(-1) if is_matrix(diffusion, x) else diffusion[..., index].square()
    return rate.expand(len(x))
