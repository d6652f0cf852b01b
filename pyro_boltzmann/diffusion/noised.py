"""The learned density of the noised target at one noise level, as an energy."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from pyro_boltzmann.diffusion.reverse import ReverseDiffusion

__all__ = ["NoisedEnergy"]


class _EnergyModel(Protocol):
    def energy(self, x: Tensor, variance: float | Tensor) -> Tensor: ...


class NoisedEnergy:
    r"""The energy :math:`u_\theta(\cdot, h)` of a model at a fixed variance h: a density by which the paths of a
    reverse diffusion may be resampled, or one rung of an annealing path.

    :param model: with a method ``energy(x, variance)``, such as
        :class:`~pyro_boltzmann.diffusion.PreconditionedEnergy`.
    :param variance: h, or the block after whose last step the paths are at that level.

    >>> import torch
    >>> from pyro_boltzmann.diffusion import EnergyMLP, PreconditionedEnergy
    >>> u = lambda x: 0.5 * x.square().sum(-1)
    >>> model = PreconditionedEnergy(EnergyMLP(2), u, 2, gate_scale=1.0, data_scale=1.0)
    >>> NoisedEnergy(model, 0.5)(torch.zeros(3, 2)).shape
    torch.Size([3])
    """

    is_reference = True
    """The model counts the target's evaluations itself."""
    copies_with_path = True

    def __init__(self, model: _EnergyModel, variance: float | ReverseDiffusion) -> None:
        self.model = model
        self._variance = variance

    @property
    def variance(self) -> float:
        """h."""
        known = self._variance
        return float(known.variances[-1]) if isinstance(known, ReverseDiffusion) else float(known)

    def __call__(self, x: Tensor) -> Tensor:
        return self.model.energy(x, self.variance)
