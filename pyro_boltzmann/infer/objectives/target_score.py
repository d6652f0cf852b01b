"""Score matching on weighted draws of the target, with the target's own gradients: how a diffusion sampler learns."""

from __future__ import annotations

import hashlib
import math
import time
import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pyro_boltzmann.diagnostics.weighted_samples import WeightedSamples
from pyro_boltzmann.energies.evaluation import energy_and_gradient
from pyro_boltzmann.exceptions import EnergyError, OutOfTimeError, ShapeError
from pyro_boltzmann.guides.auto_diffusion import AutoDiffusion
from pyro_boltzmann.infer.objectives.path_objective import PathObjective
from pyro_boltzmann.infer.objectives.spread_loss import SPREAD_WEIGHT, spread_loss
from pyro_boltzmann.infer.objectives.teacher import drawing_on, warn_of_few_roots
from pyro_boltzmann.infer.objectives.weighted_data import WeightedData

__all__ = ["TargetScoreMatching"]

NUM_BINS = 32
"""Bins of the log noise level in which the best mixture of the two targets is estimated."""
MEMORY = 0.99
TEACHER_DRAWS = 20_000


class TargetScoreMatching(PathObjective):
    r"""Regress the score of the noised target at :math:`x = x_0 + \sqrt h\, z`, with draws :math:`x_0` of the target,

    .. math::
        \mathcal L = E\, \frac hd \bigl| s_\theta(x, h) - a_h A - (1 - a_h) B \bigr|^2, \qquad
        A = -\nabla u(x_0), \quad B = \frac{x_0 - x}{h} .

    Both A (the target score) and B (Tweedie) have the mean :math:`\nabla \log p_h(x)` given x. B is useless at small
    noise and A at large; the mixture of least variance,

    .. math:: a_h = \frac{E\,(B - s) \cdot (B - A)}{E\, |B - A|^2},

    is estimated as training goes, in bins of :math:`\log h`. A wrong score in place of s does not bias it, because
    :math:`E[B - A \mid x] = 0`. For a Gaussian of variance :math:`c^2` it is :math:`c^2 / (c^2 + h)` and no
    variance is left.
    The gradients at :math:`x_0` are computed once, so an update costs no energy beyond what the field itself asks for.
    What is left of the loss beside the variance of the mixture given x, on which the guide has no influence, is
    :math:`\frac hd E |s_\theta - \nabla \log p_h|^2`. The noise is drawn evenly in :math:`\log h` (stratified), and by
    Girsanov's theorem the Kullback-Leibler divergence of the learned reverse process from the exact one is, for small
    steps,

    .. math::
        \frac12 \int E\, |s_\theta - \nabla \log p_h|^2\, dh
            = \frac d2 \int \frac hd E\, |s_\theta - \nabla \log p_h|^2\; d\log h :

    d/2 times that excess, for each unit of :math:`\log h`.

    The variance of :math:`x_0` given x, which the reverse steps need, is learned alongside, as the spread
    r that minimises :math:`E\,[\log r + |x_0 - x - h s_\theta|^2 / (h\, d\, r)]`.

    The draws are ``data``, or those of tempered sequential Monte Carlo on the model, made at the first evaluation:
    a sampler learned from the energy alone, whose cost is counted. They also tell where the target lives
    (:meth:`~pyro_boltzmann.AutoDiffusion.place`). They need not be perfect: the weights of the trained sampler are
    exact, and know of what the draws had wrong, though not of modes that they lacked.

    These draws are kept as ``teacher``, with their log Z, its error, and how many of the first particles they descend
    from (``teacher.info["smc"]["num_roots"]``): below 100 (or a tenth of the draws) a warning says that modes may be
    missing. They are drawn on the guide's device, and within the time that :func:`~pyro_boltzmann.fit` has
    (``max_seconds``).

    One object learns one posterior: for other arguments of the model take another one.

    :param num_particles: pairs of a draw and a noise level per evaluation.
    :param data: draws of the model, unconstrained latents ``(n, latent_dim)``, in place of sequential Monte Carlo.
    :param log_weights: their log weights, ``(n,)``.
    :param num_draws: of sequential Monte Carlo.
    :param smc: further settings for :func:`~pyro_boltzmann.smc`.
    :param trained_spread: whether the spread is learned.
    :ivar teacher: the draws of sequential Monte Carlo, :class:`~pyro_boltzmann.WeightedSamples`; ``None`` before the
        first evaluation, with ``data``, and in a run that was resumed (the checkpoint holds what is needed to go on).
    :raises ValueError: for numbers out of range.
    :raises TypeError: at the first evaluation, for a guide that is no :class:`~pyro_boltzmann.AutoDiffusion`.
    :raises EnergyError: at the first evaluation, if no draw has a finite gradient.
    :raises OutOfTimeError: if sequential Monte Carlo takes all the time that ``fit`` has. Its draws are kept as
        ``teacher``.

    Source: the two targets are those of De Bortoli et al., Target score matching, arXiv 2402.08667, and Vincent 2011;
    regression of energies alone is Akhound-Sadegh et al., arXiv 2402.06121.

    >>> import pyro_boltzmann as pb
    >>> model = pb.BoltzmannModel(lambda x: 0.5 * (x - 1).square().sum(-1), 2)
    >>> guide = pb.AutoDiffusion(model, num_steps=20)
    >>> result = pb.fit(model, guide, objective=TargetScoreMatching(64, num_draws=500), num_steps=20, seed=0,
    ...                 progress=False)
    >>> draws = pb.importance_sample(model, guide, num_samples=1000, seed=0)
    >>> draws.ess > 0.9
    True

    What it learned from is at hand:

    >>> objective = TargetScoreMatching(64, num_draws=500)
    >>> result = pb.fit(model, guide, objective=objective, num_steps=1, seed=0, progress=False)
    >>> round(objective.teacher.log_normalizer, 1), objective.teacher.info["smc"]["num_roots"][0] > 50
    (1.8, True)
    """

    looks_forward = False

    def __init__(
        self,
        num_particles: int = 256,
        *,
        data: Tensor | None = None,
        log_weights: Tensor | None = None,
        num_draws: int = TEACHER_DRAWS,
        smc: Mapping[str, Any] | None = None,
        trained_spread: bool = True,
    ) -> None:
        super().__init__(num_particles)
        if num_draws < 100:
            raise ValueError(f"num_draws must be at least 100, got {num_draws}")
        if log_weights is not None and (data is None or log_weights.shape != data.shape[:1]):
            raise ShapeError("log_weights must have one number for each row of data")
        self.data, self.log_weights = data, log_weights
        self.num_draws = num_draws
        self.smc = dict(smc or {})
        self.trained_spread = trained_spread
        self.teacher: WeightedSamples | None = None
        self._guide: weakref.ref[AutoDiffusion] | None = None
        self._draws: tuple[Tensor, Tensor, Tensor] | None = None
        self._rows: WeightedData | None = None
        self._moments: Tensor | None = None

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        if not isinstance(guide, AutoDiffusion):
            raise TypeError(f"TargetScoreMatching trains an AutoDiffusion, got {type(guide).__name__}")
        guide.initialize(*args, **kwargs)
        if self._guide is None or self._guide() is not guide:
            self.begin()
            self._guide = weakref.ref(guide)
        if self._rows is None:
            self._learn_target(model, guide, args, kwargs)
        assert self._rows is not None and self._draws is not None and self._moments is not None
        rows = self._rows.draw(self.num_particles).squeeze(-1).long()
        x0, force = self._draws[0][rows], -self._draws[1][rows]
        h, bins = self._levels(guide, x0)
        column = h.unsqueeze(-1)
        x = x0 + column.sqrt() * torch.randn_like(x0)
        tweedie = (x0 - x) / column
        score, spread = guide.field.score_and_spread(x, h)
        difference = tweedie - force
        a = self._mixture(bins, (tweedie - score.detach()), difference, column)
        error = score - tweedie + a * difference
        per_draw = h * error.square().mean(-1)
        if self.trained_spread:
            rest = (x0 - x - column * score.detach()).square() / column
            per_draw = per_draw + SPREAD_WEIGHT * spread_loss(spread, rest)
        per_draw = per_draw[per_draw.detach().isfinite()]
        return per_draw.mean() if len(per_draw) else score.sum() * 0.0 + torch.inf

    def _levels(self, guide: AutoDiffusion, like: Tensor) -> tuple[Tensor, Tensor]:
        """Stratified variances ``(n,)``, even in the logarithm, and the bin of each."""
        h = guide.variances
        low, high = math.log(float(h[-2])), math.log(float(h[0]))
        u = (torch.arange(self.num_particles) + torch.rand(self.num_particles)) / self.num_particles
        bins = (u * NUM_BINS).long().clamp_max(NUM_BINS - 1)
        return (low + (high - low) * u).exp().to(like), bins.to(like.device)

    @torch.no_grad()
    def _mixture(self, bins: Tensor, residual: Tensor, difference: Tensor, h: Tensor) -> Tensor:
        """The share of the target score at each row, after adding this batch to what is known of its bin."""
        assert self._moments is not None
        both = torch.stack([(residual * difference).sum(-1), difference.square().sum(-1)], -1).double() * h
        both = torch.where(both.isfinite().all(-1, keepdim=True), both, 0.0)
        total = torch.zeros_like(self._moments).index_add_(0, bins, torch.nn.functional.pad(both, (0, 1), value=1.0))
        # A new tensor each time: a checkpoint may hold the old one.
        self._moments = MEMORY * self._moments + (1.0 - MEMORY) * total
        share = (self._moments[:, 0] / self._moments[:, 1].clamp_min(1e-300)).clamp(0.0, 1.0)
        return share[bins].unsqueeze(-1).to(residual.dtype)

    @property
    def shares(self) -> Tensor:
        """:math:`a_h` by bins of the log noise level, from the smallest noise on."""
        if self._moments is None:
            return torch.zeros(0)
        return (self._moments[:, 0] / self._moments[:, 1].clamp_min(1e-300)).clamp(0.0, 1.0)

    # The draws ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _learn_target(self, model: Any, guide: AutoDiffusion, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        z, log_weights = self._given(guide)
        if z is None:
            draws = self._teach(model, guide, args, kwargs)
            z, log_weights = draws.info["z"], draws.log_weights
        z = z.to(guide.base_loc)
        log_weights = torch.zeros(len(z), dtype=torch.float64) if log_weights is None else log_weights.double().cpu()
        energy, gradient = energy_and_gradient(guide.energy, z)
        energy = energy.detach()
        usable = energy.isfinite() & z.isfinite().all(-1) & gradient.isfinite().all(-1)
        if not bool((usable.cpu() & log_weights.isfinite()).any()):
            raise EnergyError(
                "none of the draws to learn from has a finite energy gradient and a positive weight: check the energy"
            )
        log_weights = torch.where(usable.cpu(), log_weights, -torch.inf)
        gradient = torch.where(usable.unsqueeze(-1), gradient, 0.0)
        z = torch.where(usable.unsqueeze(-1), z, 0.0)
        self._keep(z, gradient, log_weights)
        if not bool(guide.is_placed):  # a trained network must not be moved
            energy = torch.where(usable, energy, 0.0)
            guide.place(guide.measure(z, gradient, log_weights, energy), check=True)

    def _teach(
        self, model: Any, guide: AutoDiffusion, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> WeightedSamples:
        """Draw by sequential Monte Carlo, on the guide's device and in the time that is left."""
        from pyro_boltzmann.infer.tempering import smc

        seed = int(torch.randint(2**62, (), device="cpu"))
        settings = {"num_samples": self.num_draws, "seed": seed, "progress": False, **self.smc}
        start = time.perf_counter()
        left = math.inf if self.deadline is None else self.deadline - start
        if math.isfinite(left):
            own = settings.get("max_seconds")
            settings["max_seconds"] = max(0.0, left if own is None else min(left, own))
        with drawing_on(guide.base_loc.device):
            draws = smc(model, *args, **settings, **kwargs)
        self.teacher = draws
        spent = time.perf_counter() - start
        if spent > left:
            raise OutOfTimeError(
                f"sequential Monte Carlo took {spent:.3g} s of the {left:.3g} s that max_seconds leaves, so there is "
                "no time to learn from its draws, and the last of its temperatures may have been skipped. Give fit "
                f"more time, or take fewer draws (num_draws={self.num_draws}); draws that are good enough, which an "
                "objective keeps as its teacher, can be learned from with fit(..., objective='target_score', "
                "data=objective.teacher)"
            )
        warn_of_few_roots(draws)
        return draws

    def _given(self, guide: AutoDiffusion) -> tuple[Tensor | None, Tensor | None]:
        if self.data is None:
            return None, None
        if self.data.dim() != 2 or self.data.shape[1] != guide.get_transform().dim:
            raise ShapeError(f"data must have shape (n, {guide.get_transform().dim}), got {tuple(self.data.shape)}")
        return self.data, self.log_weights

    def _keep(self, z: Tensor, gradient: Tensor, log_weights: Tensor) -> None:
        self._draws = (z, gradient, log_weights)
        index = torch.arange(len(z), dtype=torch.float64, device=z.device).unsqueeze(-1)
        self._rows = WeightedData(index, log_weights.to(z.device))
        if self._moments is None:
            self._moments = torch.zeros(NUM_BINS, 3, dtype=torch.float64, device=z.device)

    # What fit asks for -------------------------------------------------------------------------------------------

    def settings(self) -> dict[str, Any]:
        given = None if self.data is None else [_digest(self.data), _digest(self.log_weights)]
        # How long it may take says nothing of what it is, and the text of an object may hold its address.
        teacher = {
            name: value if isinstance(value, bool | int | float | str | None) else type(value).__name__
            for name, value in sorted(self.smc.items())
            if name not in ("max_seconds", "progress")
        }
        return {
            "num_particles": self.num_particles,
            "num_draws": self.num_draws,
            "smc": teacher,
            "data": given,
            "trained_spread": self.trained_spread,
        }

    def begin(self) -> None:
        self._draws = self._rows = self._moments = self._guide = self.teacher = None

    def state(self) -> dict[str, Tensor]:
        if self._draws is None or self._moments is None:
            return {}
        return {**dict(zip(("z", "gradient", "log_weights"), self._draws, strict=True)), "moments": self._moments}

    def load_state(self, tensors: Mapping[str, Tensor], guide: Any) -> None:
        self.begin()
        self._guide = weakref.ref(guide)
        if "z" in tensors:
            device = guide.base_loc.device
            self._moments = tensors["moments"].to(device)
            self._keep(tensors["z"].to(device), tensors["gradient"].to(device), tensors["log_weights"])


def _digest(data: Tensor | None) -> str | None:
    """What tells one set of draws from another."""
    if data is None:
        return None
    return hashlib.sha256(data.detach().cpu().double().contiguous().numpy().tobytes()).hexdigest()[:16]
