"""Many wells: independent copies of the double well."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_boltzmann.energies.catalogue.double_well import (
    COEFFICIENTS,
    LOG_Z,
    MEAN_ENERGY,
    RIGHT_WELL_PROBABILITY,
    double_well_energy_1d,
    sample_double_well_1d,
)
from pyro_boltzmann.energies.catalogue.target import Target

__all__ = ["ManyWell"]


class ManyWell(Target):
    r""":math:`n` independent copies of :class:`DoubleWell` in :math:`d = 2n` dimensions, with :math:`2^n` modes.

    .. math:: u(x) = \sum_{i=0}^{n-1} \left[ -\tfrac12 x_{2i} - 6 x_{2i}^2 + x_{2i}^4 + \tfrac12 x_{2i+1}^2 \right]

    The modes are too many to count one by one: compare the mean of :meth:`well_assignment` with
    :attr:`right_well_probability` in each of the :math:`n` wells.

    :param num_copies: :math:`n`; 16 gives ManyWell-32, 32 gives ManyWell-64.

    Source: Midgley et al., Flow Annealed Importance Sampling Bootstrap (2023), arXiv 2208.01893, appendix.

    >>> target = ManyWell(16)
    >>> target.name, target.dim, round(target.log_z, 4)
    ('many_well32', 32, 164.6957)
    >>> target.well_assignment(target.sample(7)).shape
    torch.Size([7, 16])
    """

    right_well_probability: float = RIGHT_WELL_PROBABILITY

    def __init__(self, num_copies: int = 16) -> None:
        self.num_copies = num_copies
        super().__init__(
            f"many_well{2 * num_copies}",
            2 * num_copies,
            constants={**COEFFICIENTS, "num_copies": num_copies},
            log_z=num_copies * LOG_Z,
            log_z_origin="exact",
            log_z_note="the sum of the double wells' quadratures",
            mean_energy=num_copies * MEAN_ENERGY,
            bounds=((-3.0, 3.0), (-4.0, 4.0)),
        )

    def __call__(self, x: Tensor) -> Tensor:
        well, normal = x.reshape(*x.shape[:-1], self.num_copies, 2).unbind(-1)
        return torch.addcmul(double_well_energy_1d(well), normal, normal, value=0.5).sum(-1)

    def well_assignment(self, x: Tensor) -> Tensor:
        """0 (left) or 1 (right) for each copy: ``(*batch, dim) -> (*batch, num_copies)``, int64."""
        return (x[..., 0::2] > 0).long()

    def _sample(self, num_samples: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
        shape = (num_samples, self.num_copies)
        well = sample_double_well_1d(num_samples * self.num_copies, generator).view(shape)
        normal = torch.randn(shape, generator=generator, device=device, dtype=torch.float64)
        return torch.stack([well, normal], -1).flatten(-2)
