"""Iterated denoising energy matching: the score of the noised target, regressed."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from pyro_boltzmann.diffusion.estimators import ScoreForm, denoising_estimate
from pyro_boltzmann.guides.auto_diffusion import AutoDiffusion
from pyro_boltzmann.infer.objectives.denoising.clipping import clip_scores
from pyro_boltzmann.infer.objectives.denoising.denoising_objective import (
    DenoisingObjective,
    NoisedBatch,
    Regression,
    SeenSpread,
)
from pyro_boltzmann.transforms.mean_free import MeanFreeBasis

__all__ = ["IDEM"]


class IDEM(DenoisingObjective):
    r"""Regress the score of the noised target on :math:`S_K`, the weighted mean of the forces at K points around x:

    .. math::

        \mathcal L = E\, \lambda(h)\, \frac1d \bigl| s_\theta(x, h) - \mathrm{clip}_c\, S_K(x, h) \bigr|^2, \qquad
        \lambda(h) = h + \delta .

    :math:`S_K` has a bias of order 1/K, and at large noise few of its points count. Clipping shortens the target alone,
    per particle where the guide is one of particles; the sampler is not clipped. It biases the optimum where forces are
    longer than c.

    :param num_particles: as for :class:`DenoisingObjective`, like the further settings.
    :param form: ``"target"`` as published, or ``"mixture"`` with the Tweedie form, which takes over at large noise.
    :param max_score: c, in the units of the latents; ``None`` for no clipping.
    :param weight_offset: :math:`\delta`, in squared units of the latents; ``None`` for :math:`\lambda = 1`.

    Source: Akhound-Sadegh et al., Iterated Denoising Energy Matching, arXiv 2402.06121, equations 7 to 9.

    >>> import pyro_boltzmann as pb
    >>> model = pb.BoltzmannModel(lambda x: 0.5 * (x - 1).square().sum(-1), 2)
    >>> guide = pb.AutoDiffusion(model, num_steps=20)
    >>> objective = IDEM(64, num_noise=20, form="mixture")
    >>> result = pb.fit(model, guide, objective=objective, num_steps=10, seed=0, progress=False)
    >>> len(objective.buffer), result.evaluations.gradients >= 10 * 64 * 20
    (1000, True)
    """

    NAMES: ClassVar[tuple[str, ...]] = (*DenoisingObjective.NAMES, "form", "max_score", "weight_offset")

    def __init__(
        self,
        num_particles: int = 512,
        *,
        num_noise: int = 500,
        form: ScoreForm = "target",
        max_score: float | None = None,
        weight_offset: float | None = 1e-3,
        **settings: Any,
    ) -> None:
        super().__init__(num_particles, num_noise=num_noise, **settings)
        if form not in ("target", "tweedie", "mixture"):
            raise ValueError(f"form must be 'target', 'tweedie' or 'mixture', got {form!r}")
        if max_score is not None and not max_score > 0.0:
            raise ValueError(f"max_score must be positive, or None for no clipping, got {max_score}")
        if weight_offset is not None and not weight_offset >= 0.0:
            raise ValueError(f"weight_offset must not be negative, or None for equal weights, got {weight_offset}")
        self.form, self.max_score, self.weight_offset = form, max_score, weight_offset

    def _regress(self, guide: AutoDiffusion, batch: NoisedBatch) -> Regression:
        inputs = (guide.energy, batch.x, batch.variance, self.num_noise)
        found = denoising_estimate(*inputs, form=self.form, antithetic=self.antithetic, proposal=self._points)
        target = found.score
        if self.max_score is not None:
            target = clip_scores(target, self.max_score, _basis(guide))
        score, spread = guide.field.score_and_spread(batch.x, batch.variance)
        weight = 1.0 if self.weight_offset is None else (batch.variance + self.weight_offset).to(target)
        square = weight * (score - target).square().mean(-1)
        # Where all points have weight zero, there is nothing to regress on.
        square = torch.where(found.ess > 0.0, square, torch.inf)
        variance = weight * found.score_variance / score.shape[-1] if self.by_variance else None
        return Regression(
            square, variance, spread, SeenSpread.of(found, self.num_noise) if self.trained_spread else None
        )


def _basis(guide: AutoDiffusion) -> MeanFreeBasis | None:
    if not guide.is_of_particles:
        return None
    passing: Any = guide.field.network.passing
    basis: MeanFreeBasis = passing.pairs.basis
    return basis
