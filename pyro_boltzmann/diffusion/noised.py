"""The density of the noised target at one noise level, learned or estimated, as an energy."""

from __future__ import annotations

from typing import Protocol

from torch import Generator, Tensor

from pyro_boltzmann.diffusion.estimators import noised_energy
from pyro_boltzmann.diffusion.reverse import ReverseDiffusion
from pyro_boltzmann.energies.evaluation import Energy
from pyro_boltzmann.energies.held import HeldEnergy

__all__ = ["EstimatedEnergy", "NoisedEnergy"]


class _EnergyModel(Protocol):
    def energy(self, x: Tensor, variance: float | Tensor) -> Tensor: ...

    def energy_and_score(self, x: Tensor, variance: float | Tensor) -> tuple[Tensor, Tensor]: ...


def _level(known: float | ReverseDiffusion) -> float:
    return float(known.variances[-1]) if isinstance(known, ReverseDiffusion) else float(known)


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
        return _level(self._variance)

    def __call__(self, x: Tensor) -> Tensor:
        return self.model.energy(x, self.variance)

    def energy_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Both in one pass."""
        energy, score = self.model.energy_and_score(x, self.variance)
        return energy, -score


class EstimatedEnergy:
    r"""The estimate :math:`E_K(x, h) = -\log \frac1K \sum_k e^{-u(x + \sqrt h\, z_k)}` with fresh noise at each call: a
    density by which paths may be resampled without having learned one.

    It is random, and :math:`e^{-E_K}` is positive and unbiased for the noised density. A
    :class:`~pyro_boltzmann.stochastic.ResamplingPoint` draws it once for each path that arrives and pays with the same
    number, so Z stays unbiased for any K: pseudo-marginal sequential Monte Carlo.

    :param energy: :math:`u`, whose evaluations are counted.
    :param variance: h, as for :class:`NoisedEnergy`.
    :param num_noise: K.
    :param generator: of the noise; torch's global one unless given, which
        :func:`~pyro_boltzmann.importance_sample` seeds.

    Source: Andrieu and Roberts 2009 (pseudo-marginal methods); the estimate is that of Akhound-Sadegh et al., arXiv
    2402.06121, equation 7.

    >>> import torch
    >>> EstimatedEnergy(lambda x: 0.5 * x.square().sum(-1), 0.5, 16)(torch.zeros(3, 2)).shape
    torch.Size([3])
    """

    is_reference = True
    copies_with_path = True

    def __init__(
        self,
        energy: Energy | HeldEnergy,
        variance: float | ReverseDiffusion,
        num_noise: int = 64,
        *,
        generator: Generator | None = None,
    ) -> None:
        if num_noise < 1:
            raise ValueError(f"num_noise must be positive, got {num_noise}")
        self._energy = energy if isinstance(energy, HeldEnergy) else HeldEnergy(energy)
        self._variance = variance
        self.num_noise = num_noise
        self.generator = generator

    @property
    def variance(self) -> float:
        """h."""
        return _level(self._variance)

    def __call__(self, x: Tensor) -> Tensor:
        return noised_energy(self._energy.energy, x, self.variance, self.num_noise, generator=self.generator)
