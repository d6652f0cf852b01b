"""An energy at another temperature."""

from __future__ import annotations

import math

from torch import Tensor

from pyro_boltzmann.energies.evaluation import Energy
from pyro_boltzmann.exceptions import EnergyError

__all__ = ["TemperedEnergy", "check_temperature"]


def check_temperature(temperature: float) -> float:
    """Return ``temperature`` as a float.

    :raises EnergyError: unless it is positive and finite.
    """
    value = float(temperature)
    if not (value > 0.0 and math.isfinite(value)):
        raise EnergyError(f"the temperature must be positive and finite (kT = 1 is the default), got {temperature}")
    return value


class TemperedEnergy:
    r"""The reduced energy of the same system at temperature :math:`T`:

    .. math:: u_T(x) = u(x) / T, \qquad p_T(x) \propto p(x)^{1/T}

    :param energy: maps ``(*batch, *event)`` to ``(*batch)``.
    :param temperature: :math:`T > 0` in units where the energy has :math:`kT = 1`.
    :raises EnergyError: if the temperature is not positive and finite.

    >>> import torch
    >>> hot = TemperedEnergy(lambda x: 0.5 * x.square().sum(-1), temperature=2.0)
    >>> hot(torch.tensor([[2.0, 0.0], [0.0, 4.0]]))
    tensor([1., 4.])
    """

    def __init__(self, energy: Energy, temperature: float) -> None:
        self.energy = energy
        self.temperature = check_temperature(temperature)

    @property
    def is_local(self) -> bool:
        """Whether rows of a batch belong to data of their own."""
        return bool(getattr(self.energy, "is_local", False))

    def __call__(self, x: Tensor) -> Tensor:
        return self.energy(x) / self.temperature

    def __repr__(self) -> str:
        return f"TemperedEnergy({self.energy!r}, temperature={self.temperature})"
