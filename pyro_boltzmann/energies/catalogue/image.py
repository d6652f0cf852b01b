"""A picture as a density: exact values, forces, draws and bin probabilities from one table of pixels."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_boltzmann.energies.catalogue.closed_form import ClosedForm
from pyro_boltzmann.energies.catalogue.picture import (
    FLAMES,
    PIXELS,
    PIXELS_PER_UNIT,
    STROKE_RADIUS,
    STROKES,
    draw_picture,
)
from pyro_boltzmann.energies.catalogue.target import Target
from pyro_boltzmann.exceptions import ShapeError

__all__ = ["ImageDensity"]

EDGE_BLUR = 3.0
HALO_BLURS = (10.0, 20.0, 50.0)
HALO_WEIGHT = 0.01
# Standard deviation of the density's fall outside the picture.
MARGIN = 0.05
# Distance of the outermost pixel centres from the middle.
EDGE = (0.5 * PIXELS - 0.5) / PIXELS_PER_UNIT
# Sums over the table of heights; the mean energy by three Gauss-Legendre nodes a cell and axis.
LOG_Z = 2.376253710899
MEAN_ENERGY = 0.527254238639


class ImageDensity(ClosedForm, Target):
    r"""The density of a picture in :math:`[-3.5, 3.5]^2`, dark where there is much probability.

    From a grey picture :math:`I` (0 black, 1 white; see :func:`draw_picture`) and Gaussian filters :math:`G_s` of
    :math:`s` pixels, pixel :math:`(i, j)` gets the height

    .. math:: V = 1 - G_3(I) + 0.01\, (G_{10} + G_{20} + G_{50})(I),

    divided by its maximum. The density is their bilinear interpolation between the centres of pixels: a sum of
    products of hat functions :math:`\varphi` of the two coordinates.

    .. math:: e^{-u(x, y)} = \sum_{ij} V_{ij}\, \varphi_i(x)\, \varphi_j(y)

    Beyond the outermost centres, at :math:`\pm 3.495`, the outermost hats fall off as :math:`e^{-d^2 / 2 \sigma^2}`
    with the distance, :math:`\sigma = 0.05`. So :math:`u` is continuous everywhere, with a true gradient outside as
    well, and smooth but for kinks between pixels. Draws are exact: a hat, then a point under it. :attr:`log_z` and
    :meth:`bin_probabilities` are finite sums.

    The form of :math:`V` is that of Wu, Koehler and Noe, Stochastic Normalizing Flows (2020), arXiv 2002.06707,
    section 5. The picture is another one, drawn by this package when it is first needed, in about half a second.

    >>> target = ImageDensity()
    >>> target(torch.zeros(3, 2)).shape, round(target.log_z, 5)
    (torch.Size([3]), 2.37625)
    >>> target.sample(4).shape, round(float(target.bin_probabilities(10).sum()), 4)
    (torch.Size([4, 2]), 0.9956)
    """

    def __init__(self) -> None:
        super().__init__(
            "image",
            2,
            constants={
                "flames": torch.tensor(FLAMES, dtype=torch.float64),
                # Rounded, since cosines may differ in their last digit from one platform to another.
                "strokes": torch.tensor([p for s in STROKES for p in s], dtype=torch.float64).round(decimals=9),
                "stroke_radius": STROKE_RADIUS,
                "edge_blur": EDGE_BLUR,
                "halo_blurs": torch.tensor(HALO_BLURS),
                "halo_weight": HALO_WEIGHT,
                "margin": MARGIN,
            },
            log_z=LOG_Z,
            log_z_origin="exact",
            log_z_note="the sum of the pixels' heights times the integrals of their hat functions",
            mean_energy=MEAN_ENERGY,
            bounds=((-3.5, 3.5), (-3.5, 3.5)),
        )

    def __getstate__(self) -> dict[str, Any]:
        # A million bytes that whoever unpickles can draw again.
        return {**super().__getstate__(), "_derived": {}}

    @property
    def heights(self) -> Tensor:
        """:math:`V_{ij}`, ``(700, 700)`` in float64, at most 1: first index along x, second along y, both upwards."""
        if "heights" not in self._derived:
            self._derived["heights"] = _heights()
        return self._derived["heights"]

    def __call__(self, x: Tensor) -> Tensor:
        (low, high), (s, t), outside = self._locate(x)
        density = torch.lerp(torch.lerp(low[0], high[0], s), torch.lerp(low[1], high[1], s), t)
        return (0.5 / MARGIN**2) * outside.square().sum(-1) - density.log()

    def closed_form(self, x: Tensor) -> tuple[Tensor, Tensor]:
        (low, high), (s, t), outside = self._locate(x)
        below, above = torch.lerp(low[0], high[0], s), torch.lerp(low[1], high[1], s)
        density = torch.lerp(below, above, t)
        u = (0.5 / MARGIN**2) * outside.square().sum(-1) - density.log()
        slope = torch.stack([torch.lerp(high[0] - low[0], high[1] - low[1], t), above - below], -1)
        slope = slope * (-PIXELS_PER_UNIT / density).unsqueeze(-1)
        return u, torch.where(outside == 0.0, slope, outside / MARGIN**2)

    def bin_probabilities(self, num_bins: int) -> Tensor:
        """Exact probabilities of ``num_bins`` times ``num_bins`` equal bins of the square, in float64.

        They are integrals of the density, not its values at the middles of bins. What falls outside the square (half a
        per cent) is missing from their sum.

        :return: ``(num_bins, num_bins)``, first index along x, second along y, as from ``numpy.histogram2d``.
        :raises ShapeError: if ``num_bins`` is below 1.

        >>> ImageDensity().bin_probabilities(50).shape
        torch.Size([50, 50])
        """
        if num_bins < 1:
            raise ShapeError(f"expected at least one bin along each axis, got num_bins={num_bins}")
        edges = torch.linspace(*self.bounds[0], num_bins + 1, dtype=torch.float64)
        integrals = _hat_integrals(edges).diff(dim=0)
        masses = integrals @ self.heights @ integrals.mT
        return masses * math.exp(-LOG_Z)

    def _sample(self, num_samples: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
        shape = (num_samples, 2)
        uniform = torch.rand(*shape, 3, generator=generator, device=device, dtype=torch.float64)
        choice = torch.rand(num_samples, generator=generator, device=device, dtype=torch.float64)
        normal = torch.randn(shape, generator=generator, device=device, dtype=torch.float64)
        cumulative = _cumulative_masses().to(device)
        pixel = torch.searchsorted(cumulative, choice, right=True).clamp(max=PIXELS**2 - 1)
        index = torch.stack([pixel // PIXELS, pixel % PIXELS], -1)
        # The sum of two uniform numbers has a hat for its density.
        hat = (uniform[..., 0] + uniform[..., 1] - 1.0) / PIXELS_PER_UNIT
        side = (index == PIXELS - 1).double() - (index == 0).double()
        is_inside = uniform[..., 2] < HALF_HAT / (HALF_HAT + TAIL)
        at_edge = side * torch.where(is_inside, -hat.abs(), MARGIN * normal.abs())
        return index.double() / PIXELS_PER_UNIT - EDGE + torch.where(side == 0.0, hat, at_edge)

    def _locate(self, x: Tensor) -> tuple[tuple[tuple[Tensor, Tensor], ...], tuple[Tensor, Tensor], Tensor]:
        """Heights at the corners of the cell around each point, the place in the cell in [0, 1], and how far outside.

        The heights are ``((v_00, v_01), (v_10, v_11))``, first index along x.
        """
        _ = self.heights
        position = (x + EDGE) * PIXELS_PER_UNIT
        clamped = position.clamp(0.0, PIXELS - 1.0)
        # NaN must give an energy of NaN, not an index out of range.
        cell = clamped.detach().floor().clamp(max=PIXELS - 2.0).nan_to_num(0.0)
        s, t = (clamped - cell).unbind(-1)
        corner = (cell[..., 0] * PIXELS + cell[..., 1]).long()
        heights = self._on("heights", x)
        low = (heights.take(corner), heights.take(corner + 1))
        high = (heights.take(corner + PIXELS), heights.take(corner + PIXELS + 1))
        return (low, high), (s, t), (position - clamped) / PIXELS_PER_UNIT


HALF_HAT = 0.5 / PIXELS_PER_UNIT
TAIL = MARGIN * math.sqrt(0.5 * math.pi)
"""Integrals of one half of a hat, and of the fall outside the outermost pixel."""


@cache
def _heights() -> Tensor:
    from scipy.ndimage import gaussian_filter

    picture = draw_picture()
    heights = 1.0 - gaussian_filter(picture, EDGE_BLUR)
    for blur in HALO_BLURS:
        heights += HALO_WEIGHT * gaussian_filter(picture, blur)
    # Rows go down in a picture, y goes up.
    table = torch.from_numpy(np.ascontiguousarray(heights[::-1].T))
    return table / table.max()


@cache
def _cumulative_masses() -> Tensor:
    masses = _hat_integrals(torch.tensor([math.inf], dtype=torch.float64))[0]
    weights = (_heights() * masses.unsqueeze(-1) * masses).flatten()
    return weights.cumsum(0) / weights.sum()


def _hat_integrals(stops: Tensor) -> Tensor:
    r""":math:`\int_{-\infty}^{e} \varphi_i(x)\, dx` for each stop ``(stops)`` and hat: ``(stops, 700)``."""
    centres = torch.arange(PIXELS, dtype=torch.float64) / PIXELS_PER_UNIT - EDGE
    away = stops.unsqueeze(-1) - centres
    rising = (1.0 + away * PIXELS_PER_UNIT).clamp(0.0, 1.0).square() * HALF_HAT
    falling = (1.0 - (1.0 - away * PIXELS_PER_UNIT).clamp(0.0, 1.0).square()) * HALF_HAT
    rising[:, 0] = TAIL * (1.0 + torch.erf(away[:, 0].clamp(max=0.0) / (MARGIN * math.sqrt(2.0))))
    falling[:, -1] = TAIL * torch.erf(away[:, -1].clamp(min=0.0) / (MARGIN * math.sqrt(2.0)))
    return rising + falling
