"""Neal's funnel."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_boltzmann.energies.catalogue.target import Target

__all__ = ["Funnel"]


class Funnel(Target):
    r"""Neal's funnel: :math:`x_0 \sim N(0, 3^2)` and :math:`x_i \mid x_0 \sim N(0, e^{x_0})`, :math:`i = 1..d-1`.

    .. math::

        u(x) = \frac{x_0^2}{18} + \frac{d-1}{2} x_0 + \tfrac12 \sum_{i \ge 1} x_i^2 e^{-x_0}
        + \log 3 + \tfrac{d}{2} \log 2\pi

    It is normalised (:math:`\log Z = 0`), with mean energy :math:`\tfrac{d}{2} \log 2 \pi e + \log 3`.

    :param dim: :math:`d \ge 2`.

    Source: Neal, Slice sampling, Ann. Statist. 31 (2003), section 8.

    >>> target = Funnel(10)
    >>> target(torch.zeros(2, 10)).shape, target.log_z, round(target.mean_energy, 5)
    (torch.Size([2]), 0.0, 15.288)
    """

    def __init__(self, dim: int = 10) -> None:
        normalizer = math.log(3.0) + 0.5 * dim * math.log(2 * math.pi)
        super().__init__(
            f"funnel{dim}",
            dim,
            constants={"scale": 3.0, "dim": dim},
            log_z=0.0,
            log_z_origin="exact",
            log_z_note="the density is normalised",
            mean_energy=normalizer + 0.5 * dim,
            bounds=((-9.0, 9.0), (-12.0, 12.0)),
        )
        self._normalizer = normalizer

    def __call__(self, x: Tensor) -> Tensor:
        neck, rest = x.split_with_sizes([1, self.dim - 1], -1)
        first = neck.squeeze(-1)
        # Half the exponent, clamped: exp(-x_0) overflows float32 at -88 and would make 0 * inf of x_i = 0.
        inverse_scale = (-0.5 * neck).clamp(max=math.log(torch.finfo(x.dtype).max) - 1).exp()
        quadratic = (rest * inverse_scale).square().sum(-1)
        return first * (first / 18 + 0.5 * (self.dim - 1)) + 0.5 * quadratic + self._normalizer

    def _sample(self, num_samples: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
        x = torch.randn(num_samples, self.dim, generator=generator, device=device, dtype=torch.float64)
        first = 3.0 * x[:, :1]
        return torch.cat([first, x[:, 1:] * (0.5 * first).exp()], -1)
