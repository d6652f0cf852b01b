"""What the methods of denoising energy matching share: points, noise levels, and how points are found."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, get_args

import torch
from torch import Tensor

from pyro_boltzmann.diffusion.estimators import DenoisingEstimate
from pyro_boltzmann.diffusion.proposals import BufferProposal
from pyro_boltzmann.diffusion.reverse import DiffusionField, ReverseDiffusion
from pyro_boltzmann.diffusion.schedules import Spacing
from pyro_boltzmann.energies.evaluation import energy_value
from pyro_boltzmann.guides.auto_diffusion import AutoDiffusion
from pyro_boltzmann.infer.objectives.denoising.schedule_check import LOOKS, truncated_log_weights, warn_of_misfit
from pyro_boltzmann.infer.objectives.path_objective import PathObjective
from pyro_boltzmann.infer.objectives.prioritized_buffer import PrioritizedBuffer
from pyro_boltzmann.infer.objectives.spread_loss import SPREAD_WEIGHT, spread_loss

__all__ = ["DenoisingObjective", "NoisedBatch", "Regression", "SeenSpread"]


class NoisedBatch(NamedTuple):
    r"""States :math:`x = x_0 + \sqrt h\, z` to learn at.

    :ivar x0: ``(n, dim)``, from the buffer.
    :ivar x: ``(n, dim)``.
    :ivar variance: h, ``(n,)``, float64.
    """

    x0: Tensor
    x: Tensor
    variance: Tensor


class Regression(NamedTuple):
    r"""The errors of a field at a batch.

    :ivar square: squared errors, ``(n,)``, with a graph.
    :ivar variance: the estimated variance of their targets in the same units, ``(n,)``; ``None`` if not asked for.
    :ivar spread: the field's spread, ``(n, dim)`` or ``(n, 1)``.
    :ivar seen: what the points around x tell of the spread; ``None`` if it is not trained.
    """

    square: Tensor
    variance: Tensor | None
    spread: Tensor
    seen: SeenSpread | None


class SeenSpread(NamedTuple):
    r"""The spread of :math:`x_0` given x as K weighted points show it.

    :ivar value: :attr:`~pyro_boltzmann.diffusion.DenoisingEstimate.spread`, ``(n, dim)``.
    :ivar known: :math:`1 - \sum \bar w^2`, ``(n,)``: zero where one point has all the weight and tells nothing.
    """

    value: Tensor
    known: Tensor

    @classmethod
    def of(cls, found: DenoisingEstimate, num_noise: int) -> SeenSpread:
        """What an estimate from ``num_noise`` points tells."""
        return cls(found.spread, torch.where(found.ess > 0, 1.0 - 1.0 / (found.ess * num_noise), 0.0).clamp_min(0.0))


class DenoisingObjective(PathObjective):
    r"""Regress the model of the noised target on Monte Carlo estimates from the energy, at points that the sampler
    itself finds.

    An evaluation draws points :math:`x_0` from a buffer and noise levels h, and regresses the guide's field on
    estimates from K energies around :math:`x = x_0 + \sqrt h\, z`
    (:mod:`~pyro_boltzmann.diffusion.estimators`). The buffer keeps the newest ``capacity`` points. It starts with draws
    of the guide's base; every ``refresh_every`` evaluations the reverse process, run without a graph from there, adds
    more. Nothing is learned from draws of the target, and no test set is looked at; the guide stays where its
    :class:`~pyro_boltzmann.guides.auto_diffusion.Frame` put it.

    Each of the first five batches of new points is looked at, for one gradient a point (counted): if at least 20 of
    them are effective by their path weights and the schedule does not fit the target that they show
    (:meth:`~pyro_boltzmann.AutoDiffusion.measure`), one warning names a range that does.

    The variance of :math:`x_0` given x, which the reverse steps need for good weights, is learned alongside from the
    same K points, as the spread r that minimises :math:`E\,[(1 - \sum \bar w^2) \log r + \hat r / r]` with their
    weighted variance :math:`\hat r` (the published methods have no weights and no such term).

    The settings ``weighted``, ``time_law="log_variance"``, ``antithetic``, ``near_buffer`` and ``by_variance`` are
    additions; their defaults are what was published.

    :param num_particles: noised states per evaluation.
    :param num_noise: K, energies around each.
    :param capacity: points in the buffer.
    :param refresh_every: evaluations per batch of new points.
    :param num_refresh: points in such a batch.
    :param weighted: draw from the buffer in proportion to the exact path weights, each no more than
        :math:`\sqrt n` times the mean of its batch (truncated importance sampling, Ionides 2008). Costs one energy a
        new point.
    :param time_law: ``"time"``: noise at uniform times of the schedule. ``"log_variance"``: even in :math:`\log h`.
    :param antithetic: use each noise with both signs.
    :param near_buffer: draw most of the K points from :class:`~pyro_boltzmann.diffusion.BufferProposal`.
    :param by_variance: divide each squared error by the estimated variance of its target, plus the square of
        ``TOLERANCE``. The estimate is correlated with the target, so at few effective points this shifts the optimum.
    :param trained_spread: whether the spread is learned.
    :raises ValueError: for numbers out of range or settings that contradict each other.
    :raises TypeError: at the first evaluation, for a guide of another kind.
    :raises NonFiniteEnergyError: if the energy is NaN or -inf at a noised point. Energies may be +inf: states around
        which all K are have no finite target and are left out.

    Sources: Akhound-Sadegh et al., arXiv 2402.06121, algorithm 1; OuYang et al., arXiv 2409.09787.
    """

    looks_forward = False
    TOLERANCE: ClassVar[float] = 0.1
    """Errors much below this, in the units of the regression, are not worth a larger weight."""
    NAMES: ClassVar[tuple[str, ...]] = (
        *("num_noise", "refresh_every", "num_refresh", "weighted", "time_law"),
        *("antithetic", "near_buffer", "by_variance", "trained_spread"),
    )

    def __init__(
        self,
        num_particles: int = 512,
        *,
        num_noise: int = 100,
        capacity: int = 10_000,
        refresh_every: int = 100,
        num_refresh: int = 1000,
        weighted: bool = False,
        time_law: Spacing = "time",
        antithetic: bool = False,
        near_buffer: bool = False,
        by_variance: bool = False,
        trained_spread: bool = True,
    ) -> None:
        super().__init__(num_particles)
        numbers = {"num_noise": num_noise, "refresh_every": refresh_every, "num_refresh": num_refresh}
        for name, number in numbers.items():
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                raise ValueError(f"{name} must be a positive integer, got {number!r}")
        if time_law not in get_args(Spacing):
            raise ValueError(f"time_law must be 'time' or 'log_variance', got {time_law!r}")
        if antithetic and near_buffer:
            raise ValueError("antithetic noise belongs to N(x, h); leave out antithetic or near_buffer")
        _refuse_odd(antithetic, num_noise=num_noise)
        self.num_noise, self.refresh_every, self.num_refresh = num_noise, refresh_every, num_refresh
        self.buffer = PrioritizedBuffer(capacity)
        self.weighted, self.time_law = weighted, time_law
        self.antithetic, self.near_buffer, self.by_variance = antithetic, near_buffer, by_variance
        self.trained_spread = trained_spread
        self._age = 0
        self._warned = False
        self._guide: weakref.ref[AutoDiffusion] | None = None
        self._proposal: BufferProposal | None = None

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        if isinstance(guide, AutoDiffusion):
            guide._start(args, kwargs)
        self._meet(guide)
        self._advance(guide)
        if not len(self.buffer) or self._age % self.refresh_every == 0:
            self._refresh(guide, learning=torch.is_grad_enabled())
        self._age += 1
        if not len(self.buffer):
            return torch.full((), torch.inf)
        found = self._regress(guide, self._draw(guide))
        weighed = (
            found.square if found.variance is None else _by_precision(found.square, found.variance, self.TOLERANCE)
        )
        kept = weighed.detach().isfinite()
        loss = weighed[kept].mean() if bool(kept.any()) else weighed[kept].sum() + torch.inf
        return loss if found.seen is None else loss + _spread_loss(found.spread, found.seen, kept)

    # What subclasses say -----------------------------------------------------------------------------------------

    def _regress(self, guide: AutoDiffusion, batch: NoisedBatch) -> Regression:
        """The errors of the guide's field at a batch."""
        raise NotImplementedError

    def _accepts(self, guide: AutoDiffusion) -> None:
        """Refuse a guide whose field this method cannot train."""

    def _advance(self, guide: AutoDiffusion) -> None:
        """What happens before each evaluation, after the guide has changed."""

    def _first_points(self, guide: AutoDiffusion, x: Tensor, log_q: Tensor) -> None:
        """What there is to learn from draws of the base."""

    def _sampler(self, guide: AutoDiffusion) -> DiffusionField:
        """The field whose reverse process finds new points."""
        return guide.field

    # Points ------------------------------------------------------------------------------------------------------

    def _draw(self, guide: AutoDiffusion) -> NoisedBatch:
        _, rows = self.buffer.draw(self.num_particles)
        x0 = rows.points
        h = guide.schedule.random_variances((len(x0),), self.time_law, device=x0.device)
        x = x0 + h.sqrt().to(x0).unsqueeze(-1) * torch.randn_like(x0)
        return NoisedBatch(x0, x, h)

    @torch.no_grad()
    def _refresh(self, guide: AutoDiffusion, *, learning: bool) -> None:
        """Put a batch of new points into the buffer: of the base if it is empty, else of the reverse process."""
        loc, scale = guide.base_loc, guide.base_scale
        noise = torch.randn(self.num_refresh, len(loc), dtype=loc.dtype, device=loc.device)
        x, log_q = loc + scale * noise, guide._base_log_prob(noise)
        if not len(self.buffer):
            if learning:
                self._first_points(guide, x, log_q)
        else:
            block = ReverseDiffusion(self._sampler(guide), len(loc), guide.variances, max_score=guide.max_drift)
            result = block.to(loc.device).stream(x)
            x, log_q = result.x, log_q - result.log_ratio
            if self._age <= LOOKS * self.refresh_every:
                self._warned = warn_of_misfit(guide, x, log_q, silent=self._warned) or self._warned
        log_weights = torch.zeros_like(log_q)
        if self.weighted:
            log_weights = truncated_log_weights(energy_value(guide.energy, x), log_q)
        self.buffer.add(x, log_weights, log_q)
        self._proposal = None

    @property
    def _points(self) -> BufferProposal | None:
        """The proposal made of the buffer as it is, if there is to be one."""
        if self.near_buffer and self._proposal is None:
            rows = self.buffer.rows
            assert rows is not None
            self._proposal = BufferProposal(rows.points, rows.log_weights.to(rows.points))
        return self._proposal

    def _meet(self, guide: Any) -> None:
        """Start anew with another guide."""
        if not isinstance(guide, AutoDiffusion):
            raise TypeError(f"{type(self).__name__} trains an AutoDiffusion, got {type(guide).__name__}")
        if self._guide is not None and self._guide() is guide:
            return
        self._accepts(guide)
        self.begin()
        self._guide = weakref.ref(guide)

    # What fit asks for -------------------------------------------------------------------------------------------

    def settings(self) -> dict[str, Any]:
        names = {name: getattr(self, name) for name in self.NAMES}
        return {"num_particles": self.num_particles, "capacity": self.buffer.capacity, **names}

    def begin(self) -> None:
        self.buffer.clear()
        self._age, self._guide, self._proposal, self._warned = 0, None, None, False

    def state(self) -> dict[str, Tensor]:
        return {
            "age": torch.tensor(self._age),
            **{f"buffer.{name}": column for name, column in self.buffer.state().items()},
        }

    def load_state(self, tensors: Mapping[str, Tensor], guide: Any) -> None:
        self.begin()
        self._meet(guide)
        device = guide.base_loc.device
        self.buffer.load_state(
            {k.removeprefix("buffer."): v.to(device) for k, v in tensors.items() if k.startswith("buffer.")}
        )
        self._age = int(tensors["age"])


def _spread_loss(spread: Tensor, seen: SeenSpread, kept: Tensor) -> Tensor:
    """The spread's own term, small beside the regression."""
    each = spread_loss(spread, seen.value, seen.known.unsqueeze(-1))
    each = each[kept & each.detach().isfinite()]
    return SPREAD_WEIGHT * each.mean() if len(each) else each.sum()


def _by_precision(square: Tensor, variance: Tensor, tolerance: float) -> Tensor:
    """Squared errors times weights of mean one, the inverse variances of their targets."""
    weights = (variance.detach() + tolerance**2).reciprocal()
    usable = (weights > 0.0) & weights.isfinite() & square.detach().isfinite()
    weights = torch.where(usable, weights, 0.0)
    return torch.where(usable, square * weights / weights.sum().clamp_min(1e-30) * usable.sum(), torch.inf)


def _refuse_odd(antithetic: bool, **numbers: int) -> None:
    odd = [f"{name}={number}" for name, number in numbers.items() if number % 2]
    if antithetic and odd:
        raise ValueError(f"antithetic noise comes in pairs: {', '.join(odd)} must be even")
