"""Bootstrapped energy matching: at large noise, a teacher for less noise takes the place of the target."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from pyro_boltzmann.diffusion.estimators import bootstrapped_energy, bootstrapped_estimate, noised_energy
from pyro_boltzmann.diffusion.networks import PreconditionedEnergy
from pyro_boltzmann.diffusion.reverse import DiffusionField
from pyro_boltzmann.diffusion.schedules import NoiseSchedule
from pyro_boltzmann.guides.auto_diffusion import AutoDiffusion
from pyro_boltzmann.infer.objectives.denoising.bootstrap import bootstrap_gate, teacher_times
from pyro_boltzmann.infer.objectives.denoising.denoising_objective import NoisedBatch, _refuse_odd
from pyro_boltzmann.infer.objectives.denoising.endem import EnDEM, EnergyEstimate

__all__ = ["BEnDEM"]

SPLITS = 10
"""Intervals of equal variance, unless an increment is given."""


class BEnDEM(EnDEM):
    r""":class:`EnDEM`, and once that improves no more, targets from a teacher at less noise g < h:

    .. math::

        E = -\log \frac1K \Bigl[ \sum_{k=1}^{K - K_b} e^{-u(x + \sqrt h\, z_k)}
            + \sum_{k=1}^{K_b} e^{-\bar u_\theta(x + \sqrt{h - g}\, z_k,\ g)} \Bigr],

    which is :math:`u_h` for an exact teacher and has less variance, since :math:`p_h = p_g * N(0, h - g)`. The schedule
    is cut into stretches of equal variance, and the teacher's noise is drawn from the stretch before the student's
    (:func:`~.bootstrap.teacher_times`). In the first stretch the target itself is the best teacher, and the estimate
    the plain one. Elsewhere each state has its gate (:func:`~.bootstrap.bootstrap_gate`), with the student's errors at
    x and at a state of noise g around the same :math:`x_0`.

    The teacher :math:`\bar u_\theta` is a moving average of the student, which starts as a copy of it and moves before
    every evaluation; it also finds the new points. It knows of nothing but the loss when to begin: when the mean
    squared error of ``check_every`` evaluations has not been below the least so far ``patience`` times in a row. Also
    called BNEM.

    :param num_particles: as for :class:`EnDEM`, like the further settings.
    :param num_noise: K before the teacher is asked.
    :param mixed_noise: K from then on; ``num_noise`` if not given.
    :param num_bootstrap: :math:`K_b`, of these from the teacher; four fifths if not given.
    :param increment: growth of the variance over a stretch; a tenth of the schedule's if not given.
    :param ratio: of the student's variance to the teacher's, in place of stretches; at noise too small for it the
        target is the teacher. Stretches of equal variance are short where there is much noise: knowledge has to pass
        through as many teachers as there are stretches, or through the logarithm of the range to the base ``ratio``.
    :param decay: of the moving average, per evaluation. That of 0.95 for 100 evaluations, as published, is 0.9995.
    :param check_every: evaluations per look at the loss.
    :param patience: looks.
    :ivar teacher: the averaged field, once there has been an evaluation.
    :ivar is_bootstrapping: whether the teacher is asked.
    :ivar bootstrapped: the share of states of the last evaluation that it taught.
    :raises ValueError: for numbers out of range.

    Source: OuYang et al., arXiv 2409.09787, section 4.

    >>> import pyro_boltzmann as pb
    >>> model = pb.BoltzmannModel(lambda x: 0.5 * (x - 1).square().sum(-1), 2)
    >>> guide = pb.AutoDiffusion(model, num_steps=20, kind="energy")
    >>> objective = BEnDEM(32, num_noise=20, check_every=1, patience=2)
    >>> result = pb.fit(model, guide, objective=objective, num_steps=20, seed=0, progress=False)
    >>> objective.is_bootstrapping, len(list(objective.teacher.parameters())) > 0
    (True, True)
    """

    NAMES: ClassVar[tuple[str, ...]] = (
        *EnDEM.NAMES,
        *("mixed_noise", "num_bootstrap", "increment", "ratio", "decay", "check_every", "patience"),
    )

    def __init__(
        self,
        num_particles: int = 512,
        *,
        num_noise: int = 100,
        mixed_noise: int | None = None,
        num_bootstrap: int | None = None,
        increment: float | None = None,
        ratio: float | None = None,
        decay: float = 0.999,
        check_every: int = 100,
        patience: int = 5,
        **settings: Any,
    ) -> None:
        super().__init__(num_particles, num_noise=num_noise, **settings)
        self.mixed_noise = num_noise if mixed_noise is None else mixed_noise
        self.num_bootstrap = 2 * (2 * self.mixed_noise // 5) if num_bootstrap is None else num_bootstrap
        if not 2 <= self.num_bootstrap < self.mixed_noise:
            raise ValueError(
                f"num_bootstrap must lie between 2 and mixed_noise={self.mixed_noise}, so that teacher and target are "
                f"both asked, got {self.num_bootstrap}"
            )
        _refuse_odd(self.antithetic, mixed_noise=self.mixed_noise, num_bootstrap=self.num_bootstrap)
        if increment is not None and not 0.0 < increment < math.inf:
            raise ValueError(f"increment must be positive, got {increment}")
        if ratio is not None and (increment is not None or not 1.0 < ratio < math.inf):
            raise ValueError(f"ratio must exceed 1 and replaces increment, got ratio={ratio}, increment={increment}")
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"decay must lie in [0, 1), got {decay}; at 1 the teacher would never learn")
        if check_every < 1 or patience < 1:
            raise ValueError(f"check_every and patience must be positive, got {check_every} and {patience}")
        self.increment, self.ratio, self.decay = increment, ratio, float(decay)
        self.check_every, self.patience = check_every, patience
        self.teacher: PreconditionedEnergy | None = None
        self._forget()

    def _forget(self) -> None:
        self.is_bootstrapping, self.bootstrapped = False, 0.0
        self._window: tuple[float, int] = (0.0, 0)
        self._least, self._stale = math.inf, 0

    # The teacher -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _advance(self, guide: AutoDiffusion) -> None:
        """Move the teacher towards the student."""
        if self.teacher is None:
            self._copy_student(guide)
            return
        student = dict(guide.field.named_parameters())
        for name, mean in self.teacher.named_parameters():
            mean.lerp_(student[name], 1.0 - self.decay)
        for mean_buffer, value in zip(self.teacher.buffers(), guide.field.buffers(), strict=True):
            mean_buffer.copy_(value)

    def _copy_student(self, guide: AutoDiffusion) -> None:
        teacher = copy.deepcopy(cast(PreconditionedEnergy, guide.field)).requires_grad_(False)
        # The very object: it is bound to the model's arguments of each call.
        teacher.target = cast(PreconditionedEnergy, guide.field).target
        self.teacher = teacher

    def _sampler(self, guide: AutoDiffusion) -> DiffusionField:
        return guide.field if self.teacher is None else self.teacher

    def _first_points(self, guide: AutoDiffusion, x: Tensor, log_q: Tensor) -> None:
        super()._first_points(guide, x, log_q)
        self._copy_student(guide)

    @torch.no_grad()
    def hand_over(self, guide: AutoDiffusion) -> None:
        """Give the guide the averaged parameters, with which to sample after training.

        :raises ValueError: before the first evaluation.
        """
        if self.teacher is None:
            raise ValueError("there is no average yet; train the guide with this objective first")
        guide.field.load_state_dict(self.teacher.state_dict())

    # Targets -----------------------------------------------------------------------------------------------------

    def _target(self, guide: AutoDiffusion, batch: NoisedBatch, value: Tensor) -> EnergyEstimate:
        self.bootstrapped = 0.0
        if not self.is_bootstrapping:
            found = super()._target(guide, batch, value)
            self._watch((value - found.energy).square())
            return found
        own = self._plain(guide, batch.x, batch.variance, self.mixed_noise - self.num_bootstrap)
        other = self._plain(guide, batch.x, batch.variance, self.num_bootstrap)
        share = self.num_bootstrap / self.mixed_noise
        plain = mixture(own, other, share)
        rows, g = self._taught(guide, batch, (value - plain.energy).square())
        self.bootstrapped = len(rows) / len(value)
        if not len(rows):
            return plain
        taught = self._from_teacher(batch.x[rows], batch.variance[rows], g)
        mixed = mixture(_rows(own, rows), taught, share)
        energy = plain.energy.index_put((rows,), mixed.energy)
        if plain.variance is None or mixed.variance is None:
            return plain._replace(energy=energy)
        return plain._replace(energy=energy, variance=plain.variance.index_put((rows,), mixed.variance))

    @torch.no_grad()
    def _taught(self, guide: AutoDiffusion, batch: NoisedBatch, loss: Tensor) -> tuple[Tensor, Tensor]:
        """The rows that pass the gate, and the variances of their teachers."""
        h = batch.variance
        g = self._teacher_variance(guide.schedule, h)
        rows = ((g > 0.0) & (g < h)).nonzero().squeeze(-1)
        if not len(rows):
            return rows, g[rows]
        x0, h, g = batch.x0[rows], h[rows], g[rows]
        x = x0 + g.sqrt().to(x0).unsqueeze(-1) * torch.randn_like(x0)
        field = cast(PreconditionedEnergy, guide.field)
        estimate = noised_energy(
            *(guide.energy, x, g, self.mixed_noise),
            correction=self.correction,
            antithetic=self.antithetic,
            proposal=self._points,
        )
        teacher_loss = (field.energy(x, g) - estimate).square()
        gate = bootstrap_gate(loss[rows].double(), teacher_loss.double(), h, g, self.num_bootstrap)
        return rows[gate], g[gate]

    def _teacher_variance(self, schedule: NoiseSchedule, h: Tensor) -> Tensor:
        """The teacher's noise for each student's; zero where the target is the teacher."""
        if self.ratio is not None:
            g = h / self.ratio
            return torch.where(g >= schedule.sigma_min**2, g, 0.0)
        increment = schedule.max_variance / SPLITS if self.increment is None else self.increment
        times, interval = teacher_times(schedule.time(h), schedule.split_times(increment))
        return torch.where(interval > 0, schedule.variance(times), 0.0)

    def _from_teacher(self, x: Tensor, variance: Tensor, teacher_variance: Tensor) -> EnergyEstimate:
        assert self.teacher is not None
        inputs = (self.teacher.energy, x, variance, teacher_variance, self.num_bootstrap)
        if not self.by_variance:
            return EnergyEstimate(bootstrapped_energy(*inputs, correction=self.correction, antithetic=self.antithetic))
        found = bootstrapped_estimate(*inputs, form="tweedie", correction=self.correction, antithetic=self.antithetic)
        return EnergyEstimate(found.energy, found.energy_variance)

    def _watch(self, square: Tensor) -> None:
        """Begin to bootstrap when the mean squared error has stopped falling."""
        kept = square[square.isfinite()]
        if not len(kept):
            return
        total, count = self._window[0] + float(kept.mean()), self._window[1] + 1
        self._window = (total, count)
        if count < self.check_every:
            return
        mean = total / count
        self._window = (0.0, 0)
        self._stale = 0 if mean < self._least else self._stale + 1
        self._least = min(self._least, mean)
        self.is_bootstrapping = self._stale >= self.patience

    # What fit asks for -------------------------------------------------------------------------------------------

    def begin(self) -> None:
        super().begin()
        self.teacher = None
        self._forget()

    def state(self) -> dict[str, Tensor]:
        tensors = super().state()
        watched = (*self._window, self._least, self._stale, self.is_bootstrapping)
        tensors["watched"] = torch.tensor(watched, dtype=torch.float64)
        if self.teacher is not None:
            tensors |= {f"teacher.{name}": value.clone() for name, value in self.teacher.state_dict().items()}
        return tensors

    def load_state(self, tensors: Mapping[str, Tensor], guide: Any) -> None:
        super().load_state(tensors, guide)
        total, count, self._least, stale, started = tensors["watched"].tolist()
        self._window, self._stale, self.is_bootstrapping = (total, int(count)), int(stale), bool(started)
        kept = {k.removeprefix("teacher."): v for k, v in tensors.items() if k.startswith("teacher.")}
        if kept:
            self._copy_student(guide)
            assert self.teacher is not None
            self.teacher.load_state_dict(kept)


def mixture(first: EnergyEstimate, second: EnergyEstimate, share: float) -> EnergyEstimate:
    r"""The estimate from the points of two, of which the second has ``share``:
    :math:`-\log [(1 - b)\, e^{-E_1} + b\, e^{-E_2}]`, with the variance by the delta method, and the spread of
    the second.

    >>> one = EnergyEstimate(torch.ones(1), torch.ones(1))
    >>> mixture(one, one, 0.5)
    EnergyEstimate(energy=tensor([1.]), variance=tensor([0.5000]), seen=None)
    """
    logs = torch.stack([math.log1p(-share) - first.energy, math.log(share) - second.energy])
    energy = -logs.logsumexp(0)
    if first.variance is None or second.variance is None:
        return EnergyEstimate(energy, None, second.seen)
    p, q = (logs + energy).exp().nan_to_num_(0.0)
    variance = torch.where(p > 0, p.square() * first.variance, 0.0)
    variance = variance + torch.where(q > 0, q.square() * second.variance, 0.0)
    return EnergyEstimate(energy, torch.where(energy < torch.inf, variance, torch.inf), second.seen)


def _rows(estimate: EnergyEstimate, rows: Tensor) -> EnergyEstimate:
    variance = estimate.variance
    return EnergyEstimate(estimate.energy[rows], None if variance is None else variance[rows])
