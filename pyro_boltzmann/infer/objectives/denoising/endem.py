"""Energy-based denoising energy matching: the energy of the noised target, regressed."""

from __future__ import annotations

import math
from typing import Any, ClassVar, NamedTuple, TypedDict, cast

import torch
from torch import Tensor

from pyro_boltzmann.diagnostics.weights import kish_ess
from pyro_boltzmann.diffusion.estimators import Correction, denoising_estimate, noised_energy
from pyro_boltzmann.diffusion.networks import PreconditionedEnergy
from pyro_boltzmann.diffusion.proposals import BufferProposal
from pyro_boltzmann.energies.evaluation import energy_value
from pyro_boltzmann.guides.auto_diffusion import AutoDiffusion
from pyro_boltzmann.infer.objectives.denoising.denoising_objective import (
    DenoisingObjective,
    NoisedBatch,
    Regression,
    SeenSpread,
)

__all__ = ["EnDEM", "EnergyEstimate"]

FEWEST_EFFECTIVE = 20.0
"""Effective draws of the base below which their log Z is a lower bound at best."""


class EnergyEstimate(NamedTuple):
    """An energy ``(n,)``, and where they are asked for its variance ``(n,)`` and what its points tell of the spread."""

    energy: Tensor
    variance: Tensor | None = None
    seen: SeenSpread | None = None


class _Settings(TypedDict):
    correction: Correction
    antithetic: bool
    proposal: BufferProposal | None


class EnDEM(DenoisingObjective):
    r"""Regress the energy of the noised target on :math:`E_K`, the log-mean-exp of the energies at K points around x:

    .. math::

        \mathcal L = E \bigl( u_\theta(x, h) - E_K(x, h) \bigr)^2 + w_0\, E \bigl( u_\theta(x_0, 0) - u(x_0) \bigr)^2,
        \qquad E_K = -\log \frac1K \sum_k e^{-u(y_k)} .

    It needs no gradient of the target, and learns its normalisation too. :math:`E_K` is too high by about half its
    variance. The whole energy stands in the exponential, also for particles. Also called NEM.

    :param num_particles: as for :class:`DenoisingObjective`, like the further settings.
    :param noiseless_weight: :math:`w_0`. Not used where the guide's energy is the target's without noise
        (``use_target=True``).
    :param guess_log_z: begin with the estimate of :math:`\log Z` that the base's draws give, one energy each, where 20
        of them are effective or it exceeds the guide's own; a parameter that moves by the learning rate an update is
        long in finding tens of nats.
    :param correction: ``"jackknife"`` removes most of the bias of :math:`E_K` where enough points count.
    :raises TypeError: at the first evaluation, for a guide without ``kind="energy"``.

    Source: OuYang et al., arXiv 2409.09787, section 3.

    >>> import pyro_boltzmann as pb
    >>> model = pb.BoltzmannModel(lambda x: 0.5 * (x - 1).square().sum(-1), 2)
    >>> guide = pb.AutoDiffusion(model, num_steps=20, kind="energy")
    >>> result = pb.fit(model, guide, objective=EnDEM(32, num_noise=20), num_steps=10, seed=0, progress=False)
    >>> result.evaluations.gradients  # values are enough
    0
    """

    TOLERANCE: ClassVar[float] = 1.0
    """A nat: far from the target all energies are uncertain by many, and must be learned all the same."""
    NAMES: ClassVar[tuple[str, ...]] = (*DenoisingObjective.NAMES, "noiseless_weight", "guess_log_z", "correction")

    def __init__(
        self,
        num_particles: int = 512,
        *,
        num_noise: int = 100,
        noiseless_weight: float = 0.0,
        guess_log_z: bool = True,
        correction: Correction = "none",
        **settings: Any,
    ) -> None:
        super().__init__(num_particles, num_noise=num_noise, **settings)
        if not noiseless_weight >= 0.0:
            raise ValueError(f"noiseless_weight must not be negative, got {noiseless_weight}")
        if correction not in ("none", "jackknife"):
            raise ValueError(f"correction must be 'none' or 'jackknife', got {correction!r}")
        self.noiseless_weight, self.guess_log_z, self.correction = float(noiseless_weight), guess_log_z, correction

    def _accepts(self, guide: AutoDiffusion) -> None:
        if not isinstance(guide.field, PreconditionedEnergy):
            raise TypeError(
                f'{type(self).__name__} learns an energy and needs AutoDiffusion(..., kind="energy"); for '
                'kind="score" take IDEM'
            )

    def _first_points(self, guide: AutoDiffusion, x: Tensor, log_q: Tensor) -> None:
        if not self.guess_log_z:
            return
        log_weights = -energy_value(guide.energy, x).double() - log_q
        log_weights = torch.where(log_weights.isfinite(), log_weights, -torch.inf)
        if not bool(log_weights.isfinite().any()):
            return
        guess, known = float(log_weights.logsumexp(0)) - math.log(len(x)), cast(PreconditionedEnergy, guide.field).log_z
        # By Markov's inequality a guess exceeds log Z + t with probability exp(-t) at most.
        if guess > float(known) or kish_ess(log_weights) * len(x) >= FEWEST_EFFECTIVE:
            known.fill_(guess)

    def _regress(self, guide: AutoDiffusion, batch: NoisedBatch) -> Regression:
        field = cast(PreconditionedEnergy, guide.field)
        value, spread = field.energy_and_spread(batch.x, batch.variance)
        target = self._target(guide, batch, value.detach())
        square = _square_error(value, target.energy)
        if self.noiseless_weight and field.target is None:
            with torch.no_grad():
                u = energy_value(guide.energy, batch.x0)
            square = square + self.noiseless_weight * _square_error(field.energy(batch.x0, 0.0), u)
        return Regression(square, target.variance, spread, target.seen)

    def _target(self, guide: AutoDiffusion, batch: NoisedBatch, value: Tensor) -> EnergyEstimate:
        """What the energies, now ``value``, are regressed on."""
        return self._plain(guide, batch.x, batch.variance, self.num_noise)

    def _plain(self, guide: AutoDiffusion, x: Tensor, variance: Tensor, num_noise: int) -> EnergyEstimate:
        """:math:`E_K`, with what else is asked for of its points. None of it costs a gradient."""
        settings = _Settings(correction=self.correction, antithetic=self.antithetic, proposal=self._points)
        if not (self.trained_spread or self.by_variance):
            return EnergyEstimate(noised_energy(guide.energy, x, variance, num_noise, **settings))
        found = denoising_estimate(guide.energy, x, variance, num_noise, form="tweedie", **settings)
        seen = SeenSpread.of(found, num_noise) if self.trained_spread else None
        return EnergyEstimate(found.energy, found.energy_variance if self.by_variance else None, seen)


def _square_error(value: Tensor, target: Tensor) -> Tensor:
    """Infinite, without a gradient, where the target is."""
    usable = target.isfinite()
    return torch.where(usable, (value - torch.where(usable, target, 0.0)).square(), torch.inf)
