"""The Mueller-Brown surface."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_boltzmann.energies.catalogue.exact_sampling import GridRejectionSampler
from pyro_boltzmann.energies.catalogue.target import Target

__all__ = ["MullerBrown"]

UPPER_BASIN_PROBABILITY = 0.996630976385


class MullerBrown(Target):
    r"""Mueller-Brown potential, scaled to a temperature at which both basins are populated.

    .. math::

        u(x, y) = 0.15 \Big( 146.7 + \sum_{k=1}^4 A_k
        \exp\big[ a_k (x - x_k)^2 + b_k (x - x_k)(y - y_k) + c_k (y - y_k)^2 \big] \Big)

    Mode 0 is the upper left basin (:math:`y > 0.8`), which holds 0.99663 of the mass; mode 1 is the rest.

    Source: Mueller and Brown, Theor. Chim. Acta 53 (1979), 75-93; scale and offset as in bgflow.

    >>> target = MullerBrown()
    >>> minimum = torch.tensor([-0.558, 1.442])
    >>> bool(target(minimum).abs() < 0.01), target.mode_assignment(minimum).item()
    (True, 0)
    """

    def __init__(self) -> None:
        super().__init__(
            "muller_brown",
            2,
            constants={
                "scaled_amplitude": 0.15 * torch.tensor([-200.0, -100.0, -170.0, 15.0], dtype=torch.float64),
                "a": torch.tensor([-1.0, -1.0, -6.5, 0.7], dtype=torch.float64),
                "b": torch.tensor([0.0, 0.0, 11.0, 0.6], dtype=torch.float64),
                "c": torch.tensor([-10.0, -10.0, -6.5, 0.7], dtype=torch.float64),
                "x": torch.tensor([1.0, 0.0, -0.5, -1.0], dtype=torch.float64),
                "y": torch.tensor([0.0, 0.5, 1.5, 1.0], dtype=torch.float64),
                "scaled_offset": 0.15 * 146.7,
            },
            log_z=-3.389560541631,
            log_z_origin="exact",
            log_z_note="quadrature on a grid",
            mean_energy=1.059922910142,
            delta_f=5.689757593530,
            mode_probabilities=torch.tensor([UPPER_BASIN_PROBABILITY, 1 - UPPER_BASIN_PROBABILITY]).double(),
            bounds=((-1.7, 1.3), (-0.5, 2.2)),
        )
        self._offset = 0.15 * 146.7
        self._sampler: GridRejectionSampler | None = None

    def __call__(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, -1)
        dx, dy = first - self._on("x", x), second - self._on("y", x)
        exponent = torch.addcmul(self._on("a", x) * dx, self._on("b", x), dy) * dx
        exponent = torch.addcmul(exponent, self._on("c", x), dy * dy)
        return exponent.exp() @ self._on("scaled_amplitude", x) + self._offset

    def __getstate__(self) -> dict[str, object]:
        return {**super().__getstate__(), "_sampler": None}

    def mode_assignment(self, x: Tensor) -> Tensor:
        return (x[..., 1] <= 0.8).long()

    def _sample(self, num_samples: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
        if self._sampler is None:
            # The energy on the rim of this box exceeds 60 kT.
            self._sampler = GridRejectionSampler(self, [-3.0, -2.0], [3.0, 4.0], [512, 512])
        return self._sampler.sample(num_samples, generator)
