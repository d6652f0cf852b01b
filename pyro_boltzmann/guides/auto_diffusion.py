"""A diffusion sampler as an automatic Pyro guide."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import torch
from pyro.infer.autoguide.initialization import init_to_feasible
from torch import Tensor, nn

from pyro_boltzmann.diffusion.networks import (
    EquivariantNetwork,
    InvariantNetwork,
    PreconditionedEnergy,
    PreconditionedScore,
)
from pyro_boltzmann.diffusion.noised import EstimatedEnergy, NoisedEnergy
from pyro_boltzmann.diffusion.reverse import ReverseDiffusion
from pyro_boltzmann.diffusion.schedules import GeometricSchedule, NoiseSchedule
from pyro_boltzmann.energies.evaluation import Energy
from pyro_boltzmann.exceptions import ShapeError
from pyro_boltzmann.guides.auto_stochastic_flow import AutoStochasticFlow
from pyro_boltzmann.guides.diffusion_network import check_network, default_network
from pyro_boltzmann.guides.frame import FINEST, WIDEST, Frame
from pyro_boltzmann.stochastic.leapfrog import LeapfrogTransform
from pyro_boltzmann.stochastic.metropolis import MetropolisAdjusted
from pyro_boltzmann.stochastic.resampling_point import ResamplingPoint

__all__ = ["AutoDiffusion", "Frame", "default_network"]

MAX_FORCE = 1e3
NUM_NOISE = 64


class AutoDiffusion(AutoStochasticFlow):
    r"""A guide whose latents come out of a reverse diffusion: Gaussian noise is carried to the target by
    :class:`~pyro_boltzmann.diffusion.ReverseDiffusion` steps along a learned score of the noised target.

    It is an :class:`AutoStochasticFlow` that builds its own blocks, so its weights are exact whether it was trained or
    not, and all that takes such a guide takes this one. Train it with :func:`~pyro_boltzmann.fit` and one of the
    objectives for diffusions, ``"target_score"`` first of all; those learn from the energy alone and place the guide's
    :class:`Frame`. It can also be trained, or finished, by any other objective on paths.

    :param model: a Pyro program with continuous latents, for example a :class:`~pyro_boltzmann.BoltzmannModel`.
    :param network: the trained part, ``(x, variance)`` to a vector for ``kind="score"`` or a scalar for
        ``kind="energy"``, optionally with positive scalars for the spread; a function of the dimension that builds one;
        or ``None`` for a perceptron, or for particles (a target with ``num_particles``) a network that respects their
        symmetries.
    :param schedule: noise levels; by default geometric, in the range that the frame asks for.
    :param num_steps: steps of the reverse process.
    :param kind: ``"score"`` costs one gradient of the target a step; ``"energy"`` also a backward pass through the
        network, and knows the density between the steps, so that paths can be resampled there.
    :param num_segments: how many stretches the path is cut into, between which
        :func:`~pyro_boltzmann.importance_sample` may resample: by the learned density for ``kind="energy"``, otherwise
        by an estimate with ``num_noise`` points (:class:`~pyro_boltzmann.diffusion.EstimatedEnergy`).
    :param num_noise: K of that estimate (``kind="score"`` with more than one stretch).
    :param num_moves: with ``kind="energy"``, trajectories of Hamiltonian Monte Carlo on the learned density at each
        cut: the learned energies are then the annealing path of sequential Monte Carlo. Their steps fit the noise,
        and :func:`~pyro_boltzmann.fit` adapts them.
    :param use_target: whether the target's own gradient (and energy) is part of the score at small noise.
    :param frame: where the target lives, if it is known without draws (:meth:`Frame.guess`); otherwise a given schedule
        is taken to fit the target.
    :param max_drift: bound on :math:`\sqrt h\, |s| / \sqrt d` for the score s in a step, or ``None``. Exact
        scores are of order one there. Without a bound, rows that a half-trained field sends far away fill the buffers
        of objectives that learn from its draws, and the field becomes wilder still. Weights are exact with any.
    :param max_force: bound on the norm of the target's gradient in the score (``kind="score"`` with ``use_target``),
        or ``None``.
    :param latent_dim: as for :class:`AutoStochasticFlow`, like ``dtype`` and ``init_loc_fn``.
    :raises ValueError: for settings that contradict each other, or that nothing would read.
    :raises TypeError: for a network of the other kind.
    :raises ShapeError: for a network or a frame of another dimension than the model.

    Source: the weights are those of Wu, Koehler and Noe, arXiv 2002.06707, for the Euler-Maruyama steps of Song et al.,
    arXiv 2011.13456; learned from energies since Akhound-Sadegh et al., arXiv 2402.06121.

    >>> import pyro_boltzmann as pb
    >>> model = pb.BoltzmannModel(lambda x: 0.5 * (x - 1).square().sum(-1), 2)
    >>> guide = AutoDiffusion(model, num_steps=5)
    >>> guide()["x"].shape
    torch.Size([2])
    """

    def __init__(
        self,
        model: Callable[..., Any],
        network: nn.Module | Callable[[int], nn.Module] | None = None,
        *,
        schedule: NoiseSchedule | None = None,
        num_steps: int = 200,
        kind: str = "score",
        num_segments: int = 1,
        num_noise: int = NUM_NOISE,
        num_moves: int = 0,
        use_target: bool = True,
        max_drift: float | None = 5.0,
        max_force: float | None = MAX_FORCE,
        frame: Frame | None = None,
        latent_dim: int | None = None,
        dtype: torch.dtype | None = None,
        init_loc_fn: Callable[..., Any] = init_to_feasible,
    ) -> None:
        if kind not in ("score", "energy"):
            raise ValueError(f'kind must be "score" or "energy", got {kind!r}')
        for name, number in (("num_steps", num_steps), ("num_segments", num_segments), ("num_noise", num_noise)):
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                raise ValueError(f"{name} must be a positive integer, got {number!r}")
        if num_segments > num_steps:
            raise ValueError(f"num_segments must lie between 1 and num_steps={num_steps}, got {num_segments}")
        if max_drift is not None and not max_drift > 0.0:
            raise ValueError(f"max_drift must be positive, or None for no bound, got {max_drift}")
        if num_moves < 0 or (num_moves and kind != "energy"):
            raise ValueError(f'num_moves={num_moves} on the learned density need kind="energy", got {kind!r}')
        if max_force != MAX_FORCE and (kind == "energy" or not use_target):
            raise ValueError(
                f'max_force={max_force} bounds the target\'s gradient in a score, which takes kind="score" and '
                f"use_target=True; got kind={kind!r} and use_target={use_target}: leave max_force out"
            )
        if num_noise != NUM_NOISE and (kind == "energy" or num_segments == 1):
            raise ValueError(
                f'num_noise={num_noise} belongs to the estimate by which a path of kind="score" is resampled where it '
                f"is cut; got kind={kind!r} and num_segments={num_segments}: leave num_noise out"
            )
        self._plan = _Plan(
            network,
            schedule,
            num_steps,
            kind,
            num_segments,
            num_noise,
            num_moves,
            use_target,
            max_drift,
            max_force,
            frame,
        )
        super().__init__(model, self._init_blocks, latent_dim=latent_dim, dtype=dtype, init_loc_fn=init_loc_fn)

    is_placed: Tensor
    """Whether :meth:`place` was called since the guide was made."""
    _sigmas: Tensor
    """Ends of the schedule that fits the frame."""

    def _init_blocks(self, energy: Energy, dim: int) -> Iterable[Any]:
        plan = self._plan
        network = plan.network
        if network is None:
            network = default_network(plan.kind, getattr(self._bound_energy.model, "energy", None), dim)
        elif not isinstance(network, nn.Module):
            network = network(dim)
        check_network(network, plan.kind, dim)
        field: PreconditionedEnergy | PreconditionedScore
        target = energy if plan.use_target else None
        if plan.kind == "energy":
            field = PreconditionedEnergy(network, target, dim, gate_scale=1.0, data_scale=1.0)
        else:
            field = PreconditionedScore(network, target, dim, gate_scale=1.0, data_scale=1.0, max_force=plan.max_force)
        levels = (plan.schedule or GeometricSchedule(FINEST, WIDEST)).variances(plan.num_steps)
        blocks: list[Any] = []
        known: NoisedEnergy | None = None
        for low, high in _segments(plan):
            # The first stretch has the field for all, so that it is trained and saved once.
            stretch = ReverseDiffusion(
                field, dim, levels[low : high + 1], max_score=plan.max_drift, registers_field=low == 0, arriving=known
            )
            blocks.append(stretch)
            if isinstance(field, PreconditionedEnergy):
                known = NoisedEnergy(field, stretch)
            if high < plan.num_steps:
                blocks.append(self._cut(known, stretch, energy, dim))
        return blocks

    def _cut(self, noised: NoisedEnergy | None, stretch: ReverseDiffusion, target: Energy, dim: int) -> Any:
        """What stands between two stretches: a place to resample, or moves."""
        plan = self._plan
        if noised is None:
            return ResamplingPoint(EstimatedEnergy(target, stretch, plan.num_noise), dim)
        if not plan.num_moves:
            # The next stretch begins with the same score.
            return ResamplingPoint(noised, dim, with_gradient=True)
        return MetropolisAdjusted(
            LeapfrogTransform(noised, dim, num_steps=3, num_trajectories=plan.num_moves), noised, adapt=True
        )

    def _build(self, latent_dim: int) -> None:
        super()._build(latent_dim)
        plan = self._plan
        frame = plan.frame
        if frame is None and plan.schedule is not None:
            frame = Frame.guess(latent_dim, plan.schedule.sigma_max / WIDEST, plan.schedule.sigma_min / FINEST)
        self.register_buffer("is_placed", torch.tensor(False))
        self.register_buffer("_sigmas", torch.zeros(2, dtype=torch.float64))
        self.place(Frame.guess(latent_dim) if frame is None else frame)
        self.is_placed.fill_(False)

    @property
    def max_drift(self) -> float | None:
        """The bound on the drift of a step."""
        return self._plan.max_drift

    @property
    def is_of_particles(self) -> bool:
        """Whether the network knows the latents as particles, so that no direction may be singled out."""
        return isinstance(self.field.network, EquivariantNetwork | InvariantNetwork)

    @property
    def field(self) -> PreconditionedEnergy | PreconditionedScore:
        """The learned model of the noised target."""
        return cast("PreconditionedEnergy | PreconditionedScore", self._reverse_blocks[0].field)

    @property
    def _reverse_blocks(self) -> list[ReverseDiffusion]:
        return [block for block in self._known_path.stochastic_blocks if isinstance(block, ReverseDiffusion)]

    @property
    def _moves(self) -> list[MetropolisAdjusted]:
        return [block for block in self._known_path.stochastic_blocks if isinstance(block, MetropolisAdjusted)]

    @property
    def variances(self) -> Tensor:
        """The noise levels of the reverse process, ``(num_steps + 1,)``, falling to 0."""
        parts = [block.variances.double() for block in self._reverse_blocks]
        return torch.cat([*(part[:-1] for part in parts), parts[-1][-1:]])

    @property
    def schedule(self) -> NoiseSchedule:
        """The schedule whose levels these are: the one given, or the geometric one that fits the frame."""
        if self._plan.schedule is not None:
            return self._plan.schedule
        self._known_path  # noqa: B018 - refuses a guide that does not know its dimension
        return GeometricSchedule(*self._sigmas.tolist())

    def measure(
        self, z: Tensor, gradient: Tensor, log_weights: Tensor | None = None, energy: Tensor | None = None
    ) -> Frame:
        """The frame of weighted draws ``(n, latent_dim)`` with their energy gradients (and energies ``(n,)``)."""
        n = len(z)
        w = (torch.zeros(n) if log_weights is None else log_weights).to(z.device).double().softmax(0).unsqueeze(-1)
        z, gradient = z.double(), gradient.double()
        center = (w * z).sum(0)
        if self.is_of_particles:
            center = torch.zeros_like(center)
        scale = (w * (z - center).square()).sum(0).sqrt()
        if self.is_of_particles:
            scale = scale.square().mean().sqrt().expand_as(scale)
        width = (z.shape[-1] / (w * gradient.square()).sum()).sqrt()
        level = 0.0 if energy is None else float((w.squeeze(-1) * energy.double()).sum())
        return Frame(center, scale, float(width), level)

    def place(self, frame: Frame, *, check: bool = False) -> None:
        """Fit base, preconditioning and (unless it was given) schedule to where the target lives.

        :param check: refuse a given schedule that does not fit.
        :raises ValueError: if the given schedule does not reach from the width of a mode to beyond the target; the
            message names a range that does. Also before the guide knows its dimension.
        :raises ShapeError: for a frame of another dimension.
        """
        blocks, dim = self._reverse_blocks, len(self.base_loc)
        if frame.center.shape != (dim,) or frame.scale.shape != (dim,):
            raise ShapeError(
                f"the model has {dim} unconstrained latents, so the frame's center and scale must have shape ({dim},), "
                f"got {tuple(frame.center.shape)} and {tuple(frame.scale.shape)}; Frame.guess({dim}, ...) has it"
            )
        narrowest, widest, width = float(frame.scale.min()), float(frame.scale.max()), float(frame.width)
        if not (narrowest >= 0 and math.isfinite(widest) and widest > 0 and math.isfinite(width) and width > 0):
            raise ValueError(
                f"the target's extent and the width of its modes must be positive, got {frame.scale.tolist()} and "
                f"{width}: is there more than one effective draw?"
            )
        width = min(width, widest)
        schedule, plan = self._plan.schedule, self._plan
        problem = None if schedule is None or not check else frame.misfit(schedule)
        if problem is not None:
            raise ValueError(f"{problem}, or leave the schedule out")
        if schedule is None:
            schedule = GeometricSchedule(*frame.fitting)
        self._sigmas.copy_(torch.tensor([schedule.sigma_min, schedule.sigma_max], dtype=torch.float64))
        levels = schedule.variances(plan.num_steps)
        for block, (low, high) in zip(blocks, _segments(plan), strict=True):
            block.set_variances(levels[low : high + 1])
        for moves, (_, high) in zip(self._moves, _segments(plan)[:-1], strict=self._plan.num_moves > 0):
            size = 0.5 * math.sqrt(width**2 + float(levels[high])) / len(frame.center) ** 0.25
            cast(Tensor, moves.proposal.log_step_size).fill_(math.log(size))
        with torch.no_grad():
            self.base_loc.copy_(frame.center)
            self.base_scale.copy_((frame.scale.square() + float(levels[0])).sqrt())
        self.field.place(frame.center, float(frame.scale.square().mean().sqrt()), width, frame.level)
        self.is_placed.fill_(True)


@dataclass(frozen=True)
class _Plan:
    """What the constructor was told."""

    network: nn.Module | Callable[[int], nn.Module] | None
    schedule: NoiseSchedule | None
    num_steps: int
    kind: str
    num_segments: int
    num_noise: int
    num_moves: int
    use_target: bool
    max_drift: float | None
    max_force: float | None
    frame: Frame | None


def _segments(plan: _Plan) -> list[tuple[int, int]]:
    """First and last level of each stretch."""
    ends = [round(plan.num_steps * k / plan.num_segments) for k in range(plan.num_segments + 1)]
    return list(pairwise(ends))
