"""Proposals for the points of a denoising estimator that know more than the noise does."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from pyro_boltzmann.exceptions import ShapeError

__all__ = ["BufferProposal", "DenoisingProposal"]

# Densities of points under kernels held at once: a megabyte in float32, which stays in the caches.
WORKING_SET = 2**18
# Below this an exponential is nothing beside one; where it underflows, it takes a hundred times as long.
LOWEST = -80.0
NEIGHBOURS = 10
QUERIES = 1000


class DenoisingProposal(Protocol):
    r"""Where the points of an estimator come from, in place of :math:`N(x, h)`."""

    def draw(
        self, x: Tensor, variance: Tensor, num_noise: int, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        r"""Points ``(batch, num_noise, dim)`` around ``x`` ``(batch, dim)`` and
        :math:`\log N(y; x, h) - \log q(y)` ``(batch, num_noise)`` with the variances :math:`h > 0` ``(batch)``."""


class BufferProposal:
    r"""Draws points near :math:`x` from a buffer of earlier draws of the target, and others from the noise.

    A kernel density :math:`\hat\pi(y) = \sum_j \omega_j N(y; x_j, \kappa I)` of the buffer has under noise the
    posterior

    .. math::

        \hat\pi(y \mid x) = \sum_j r_j(x)\, N\!\left(y;\ \frac{\kappa x + h x_j}{\kappa + h},\
        \frac{\kappa h}{\kappa + h} I \right), \qquad r_j(x) \propto \omega_j N(x; x_j, (\kappa + h) I).

    Here ``num_centres`` of its components are drawn from :math:`r(x)`; the share :math:`1 - a` of the points comes from
    them, evenly, and the share :math:`a` from :math:`N(x, h)`. All points are weighted with the density of the whole
    mixture (balance heuristic of multiple importance sampling),

    .. math::

        \frac{q(y)}{N(y; x, h)} = a + (1 - a) \frac1J \sum_j \frac{N(y; x_{c_j}, \kappa)}{N(x; x_{c_j}, \kappa + h)} ,

    which, given the centres, is exact: :math:`e^{-E_K}` stays unbiased, whatever the buffer holds. No weight is
    more than :math:`1/a` times what it is without the buffer, so that modes which the buffer lacks are still met.

    :param points: the buffer, ``(M, dim)``.
    :param log_weights: of its points, ``(M)``, not normalised; equal if not given.
    :param bandwidth: :math:`\kappa`; by default half the median squared distance to the tenth nearest neighbour, per
        dimension.
    :param noise_share: :math:`a`, above zero.
    :param num_centres: :math:`J`, at most; the cost grows with :math:`K J`.
    :raises ShapeError: if the arguments do not fit together, or the bandwidth is not positive.

    Sources: Veach and Guibas, Optimally Combining Sampling Techniques (1995); Hesterberg, Weighted Average Importance
    Sampling and Defensive Mixture Distributions (1995).

    >>> from pyro_boltzmann.diffusion import noised_energy
    >>> from pyro_boltzmann.energies.catalogue import catalogue
    >>> target = catalogue["gmm40"]
    >>> proposal = BufferProposal(target.sample(1000))
    >>> noised_energy(target, torch.zeros(3, 2), 50.0**2, 100, proposal=proposal).shape
    torch.Size([3])
    """

    def __init__(
        self,
        points: Tensor,
        log_weights: Tensor | None = None,
        *,
        bandwidth: float | None = None,
        noise_share: float = 0.2,
        num_centres: int = 128,
    ) -> None:
        if points.dim() != 2 or not len(points) or not bool(points.isfinite().all()):
            raise ShapeError(f"points must be finite and of shape (M, dim), M > 0, got {tuple(points.shape)}")
        if log_weights is not None and (log_weights.shape != points.shape[:1] or not _usable(log_weights)):
            raise ShapeError(
                f"log_weights must have the shape ({len(points)},) of the buffer, not all -inf, no NaN and no +inf; "
                f"got {tuple(log_weights.shape)}"
            )
        if not 0.0 < noise_share <= 1.0 or num_centres < 1:
            raise ShapeError(
                f"noise_share must be in (0, 1] and num_centres at least 1, got {noise_share} and {num_centres}; "
                "without a share of noise, modes that the buffer lacks would be lost"
            )
        self.points = points.detach()
        self.log_weights = points.new_zeros(len(points)) if log_weights is None else log_weights.detach().to(points)
        self.bandwidth = _bandwidth(self.points) if bandwidth is None else float(bandwidth)
        if not 0.0 < self.bandwidth < math.inf:
            raise ShapeError(
                f"the bandwidth must be positive and finite, got {self.bandwidth}; where points of the buffer stand "
                "many times, pass bandwidth=..., about the variance within a mode"
            )
        self.noise_share = noise_share
        self.num_centres = num_centres

    @torch.no_grad()
    def draw(
        self, x: Tensor, variance: Tensor, num_noise: int, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        """See :class:`DenoisingProposal`."""
        if x.shape[-1] != self.points.shape[-1]:
            raise ShapeError(f"the buffer has dimension {self.points.shape[-1]}, but x has {x.shape[-1]}")
        step = max(1, WORKING_SET // max(num_noise * self.num_centres, len(self.points)))
        parts = [
            self._draw(rows, h, num_noise, generator)
            for rows, h in zip(x.split(step), variance.unsqueeze(-1).split(step), strict=True)
        ]
        points, log_ratio = zip(*parts, strict=True)
        return torch.cat(points), torch.cat(log_ratio)

    def _draw(self, x: Tensor, h: Tensor, num_noise: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        from_noise = min(num_noise, max(1, round(self.noise_share * num_noise)))
        from_buffer = num_noise - from_noise
        z = torch.randn(*x.shape[:1], num_noise, x.shape[1], generator=generator, dtype=x.dtype, device=x.device)
        width = h.sqrt().expand(-1, num_noise)
        if not from_buffer:
            return z.mul_(width.unsqueeze(-1)).add_(x.unsqueeze(1)), torch.zeros_like(width)
        points, log_weights = self.points.to(x), self.log_weights.to(x)
        spread = h + self.bandwidth
        log_near = log_weights - _square_distances(x, points) / (2.0 * spread)
        number = min(self.num_centres, from_buffer)
        chosen = torch.multinomial(log_near.softmax(-1), number, replacement=True, generator=generator)
        centres = points[chosen]  # (batch, J, dim)
        # Each centre has its turn, the first ones perhaps once more.
        turn = torch.arange(from_buffer, device=x.device) % number
        share = torch.bincount(turn, minlength=number).to(x) / num_noise
        means = torch.lerp(x.unsqueeze(1), centres, (h / spread).unsqueeze(-1))[:, turn]
        narrow = (h * self.bandwidth / spread).sqrt().expand(-1, from_buffer)
        width = torch.cat([width[:, :from_noise], narrow], -1)
        y = z.mul_(width.unsqueeze(-1)).add_(torch.cat([x.unsqueeze(1).expand(-1, from_noise, -1), means], 1))
        dim = x.shape[-1]
        at_x = _square_distances(x.unsqueeze(1), centres).squeeze(1) / (2.0 * spread)
        constant = share.log() + at_x + 0.5 * dim * (spread / self.bandwidth).log()
        log_kernels = _square_distances(y, centres).div_(-2.0 * self.bandwidth).add_(constant.unsqueeze(1))
        # The noise's share bounds the sum from below, so what underflows beside it need not be computed.
        noise = math.log(from_noise / num_noise)
        top = log_kernels.amax(-1, keepdim=True).clamp_min_(noise)
        total = log_kernels.sub_(top).clamp_min_(LOWEST).exp_().sum(-1, keepdim=True).add_((noise - top).exp())
        return y, total.log_().add_(top).squeeze(-1).neg_()


def _square_distances(first: Tensor, second: Tensor) -> Tensor:
    """``(..., n, m)`` of ``(..., n, dim)`` and ``(..., m, dim)``, by differences: expanded, float32 would cancel."""
    total = (first[..., 0].unsqueeze(-1) - second[..., 0].unsqueeze(-2)).square_()
    for a, b in zip(first.unbind(-1)[1:], second.unbind(-1)[1:], strict=True):
        difference = a.unsqueeze(-1) - b.unsqueeze(-2)
        total.addcmul_(difference, difference)
    return total


def _usable(log_weights: Tensor) -> bool:
    return bool((log_weights < torch.inf).all() and (log_weights > -torch.inf).any())


def _bandwidth(points: Tensor) -> float:
    """From distances to near neighbours: a spread over all points would be that between the modes."""
    if len(points) < 2:
        raise ShapeError("a buffer of one point has no bandwidth of its own; pass bandwidth=...")
    queries = points[:: max(1, len(points) // QUERIES)]
    neighbours = min(NEIGHBOURS, len(points) - 1)
    distances = torch.cdist(queries, points, compute_mode="donot_use_mm_for_euclid_dist")
    near = distances.kthvalue(neighbours + 1, -1).values
    return 0.5 * float(near.square().median()) / points.shape[-1]
