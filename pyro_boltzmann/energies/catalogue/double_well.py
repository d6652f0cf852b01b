"""The asymmetric double well of the stochastic-normalizing-flow paper."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from pyro_boltzmann.energies.catalogue.exact_sampling import GridRejectionSampler
from pyro_boltzmann.energies.catalogue.target import Target

__all__ = ["DoubleWell", "double_well_energy_1d", "sample_double_well_1d"]

LINEAR, QUADRATIC, QUARTIC = -0.5, -6.0, 1.0
COEFFICIENTS: dict[str, float] = {"linear": LINEAR, "quadratic": QUADRATIC, "quartic": QUARTIC}
# Adaptive quadrature of exp(-f) over each half line, to 1e-12.
LOG_Z = 10.293479707073
RIGHT_WELL_PROBABILITY = 0.844307096211
MEAN_ENERGY = -8.574903640233
DELTA_F = -1.690630784864


def double_well_energy_1d(x: Tensor) -> Tensor:
    r""":math:`f(x) = -\tfrac12 x - 6 x^2 + x^4`, element by element.

    >>> double_well_energy_1d(torch.tensor([1.0, 1.752520]))
    tensor([-5.5000, -9.8712])
    """
    square = x * x
    return (x * LINEAR).addcmul_(square, square + QUADRATIC)


def sample_double_well_1d(num_samples: int, generator: torch.Generator | None = None) -> Tensor:
    """Exact float64 samples of shape ``(num_samples,)`` from ``exp(-double_well_energy_1d(x))``."""
    return _grid_sampler().sample(num_samples, generator)[:, 0]


@cache
def _grid_sampler() -> GridRejectionSampler:
    # Outside [-4, 4] the mass is below exp(-150).
    return GridRejectionSampler(lambda x: double_well_energy_1d(x[..., 0]), [-4.0], [4.0], [4096])


class DoubleWell(Target):
    r"""Asymmetric double well in two dimensions.

    .. math:: u(x, y) = -\tfrac12 x - 6 x^2 + x^4 + \tfrac12 y^2

    Mode 0 is the left well (:math:`x < 0`), mode 1 the right one; :attr:`delta_f` is
    :math:`F(x > 0) - F(x < 0) = -\log(p_1 / p_0)`. The barrier is about 10 kT above the right well.

    Source: Wu, Koehler and Noe, Stochastic Normalizing Flows (2020), arXiv 2002.06707, section 5.

    >>> target = DoubleWell()
    >>> target(torch.zeros(3, 2)).shape, round(target.log_z, 5), round(target.delta_f, 4)
    (torch.Size([3]), 10.29348, -1.6906)
    >>> x = target.sample(1000, generator=torch.Generator().manual_seed(0))
    >>> bool((target.mode_assignment(x).double().mean() - 0.8443).abs() < 0.05)
    True
    """

    def __init__(self) -> None:
        super().__init__(
            "double_well",
            2,
            constants=COEFFICIENTS,
            log_z=LOG_Z,
            log_z_origin="exact",
            log_z_note="adaptive quadrature of each well",
            mean_energy=MEAN_ENERGY,
            delta_f=DELTA_F,
            mode_probabilities=torch.tensor([1 - RIGHT_WELL_PROBABILITY, RIGHT_WELL_PROBABILITY], dtype=torch.float64),
            bounds=((-3.0, 3.0), (-4.0, 4.0)),
        )

    def __call__(self, x: Tensor) -> Tensor:
        well, normal = x.movedim(-1, 0)  # unlike unbind(-1), its gradient is stacked coordinate by coordinate
        return double_well_energy_1d(well).addcmul_(normal, normal, value=0.5)

    def mode_assignment(self, x: Tensor) -> Tensor:
        return (x[..., 0] > 0).long()

    def _sample(self, num_samples: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
        normal = torch.randn(num_samples, generator=generator, device=device, dtype=torch.float64)
        return torch.stack([sample_double_well_1d(num_samples, generator), normal], -1)
