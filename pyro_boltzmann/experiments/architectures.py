"""Ready-made samplers for the command line and the experiments: their guides, and how they are trained."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyro.distributions.transforms as T
import torch
from torch import Tensor

from pyro_boltzmann.diagnostics import WeightedSamples
from pyro_boltzmann.energies import AnnealedEnergy, Energy, EvaluationCount, NormalEnergy
from pyro_boltzmann.experiments.adaptation import adapt_scales
from pyro_boltzmann.experiments.diffusion_architecture import DiffusionArchitecture
from pyro_boltzmann.experiments.teacher import annealed_teacher
from pyro_boltzmann.experiments.threads import one_thread
from pyro_boltzmann.guides import AutoStochasticFlow
from pyro_boltzmann.infer import FitResult, Phase, fit, importance_sample
from pyro_boltzmann.stochastic import MetropolisAdjusted, RandomWalkTransform
from pyro_boltzmann.transforms import ElementwiseAffine, PushforwardEnergy

__all__ = ["ARCHITECTURES", "SNF", "Architecture", "even_knots"]

TEACHER_DRAWS = 10_000
"""Weighted draws of annealed importance sampling from which a flow learns where the modes are."""
TEACHER_SECONDS = 30.0
"""A run given less time than this gets fewer lessons in proportion."""
LESSON_POWER = 0.5
"""The flow's first lesson uses the square roots of the weights: between what annealing visited and the target.

A flow that learns from them visits small modes more often than the target does, so that its own draws, which are
reweighted, know what those modes weigh. Learned straight from the target, a mode with 0.3 % of the mass is seen
a hundred times in 50,000 draws, at the wrong places, and fades away.
"""
SELF_DRAWS = 50_000
"""Weighted draws of itself on which a flow is trained in the second half, so that it covers its own tails."""
ENOUGH_ESS = 0.1
"""Draws with more ESS than this teach a flow by maximum likelihood alone, without reverse KL.

The pathwise gradient of reverse KL moves probability between separated modes only through the rare paths that end on
the barrier, whose gradients are huge. Clipping takes them away, and what is left has a bias that slowly drains one
mode. Maximum likelihood sees the modes' masses in every draw.
"""
NUM_RUNGS = 24
"""Rungs of one Metropolis step each: the variance of annealing falls with the number of rungs, not of steps a rung."""


@dataclass(frozen=True)
class Architecture:
    """A sampler that needs nothing but an energy.

    Annealed importance sampling from a wide Gaussian finds the modes. A spline flow then learns them by maximum
    likelihood in two stages: from those weighted draws, then from its own reweighted draws. Where the effective draws
    are too few to learn from, reverse KL on the energy joins in. Behind the flow the
    stochastic sampler anneals from *the flow's own density* to the target by Metropolis steps, whose scales are
    adapted by acceptance rate.

    :ivar name: as on the command line.
    :ivar num_rungs: Metropolis steps from the flow's density to the target; none for a flow alone.
    :ivar num_steps: updates of both stages together: 1/4 on the teacher (the second half mixed with
        reverse KL where its effective draws are few), 3/4 on its own draws.
    """

    name: str
    num_rungs: int = 0
    num_steps: int = 1000
    num_particles: int = 512
    learning_rate: float = 1e-2

    def blocks(self, energy: Energy, dim: int, target: Any = None) -> list[Any]:
        """Blocks for an energy in ``dim`` dimensions; the target's box, where known, sets the scale."""
        flow = _spline_flow(dim, *_frame(target, dim))
        reference = PushforwardEnergy(NormalEnergy(), flow)
        scale = 2.4 / dim**0.5 * float(_frame(target, dim)[1].mean()) * 0.25
        return flow + [
            MetropolisAdjusted(
                RandomWalkTransform(dim, scale),
                AnnealedEnergy(reference, energy, position),
                adapt=True,
                target_acceptance=0.4,
            )
            for position in (rung / self.num_rungs for rung in range(1, self.num_rungs + 1))
        ]

    def guide(self, model: Callable[..., Any], target: Any = None) -> AutoStochasticFlow:
        """An untrained guide of ``model`` with these :meth:`blocks`."""
        return AutoStochasticFlow(model, lambda energy, dim: self.blocks(energy, dim, target))

    def train(
        self,
        model: Callable[..., Any],
        guide: AutoStochasticFlow,
        *,
        seed: int = 0,
        target: Any = None,
        max_seconds: float | None = None,
        checkpoint: Path | None = None,
        progress: bool = True,
        scale: float = 1.0,
    ) -> FitResult:
        """Train ``guide``, whose path was built by :meth:`blocks`, on the model's energy.

        :param max_seconds: for both stages together.
        :param checkpoint: of the second stage; the first keeps its own beside it.
        :param scale: shorten the run (a smoke test) or lengthen it.
        """
        clock = _Clock()
        guide.initialize()
        flow = _flow_only(model, guide)
        dim = guide.get_transform().dim
        steps = max(2, round(self.num_steps * scale))
        eighth = max(1, steps // 8)
        common: dict[str, Any] = {
            "num_particles": self.num_particles,
            "learning_rate": self.learning_rate,
            "progress": progress,
        }
        half = None if max_seconds is None else max_seconds / 2
        first_file = None
        if checkpoint is not None:
            first_file = checkpoint.with_name(f"{checkpoint.stem}-stage1{checkpoint.suffix}")
        # Once the second stage has begun, its data are what the first stage left: that one must not train on.
        has_begun = checkpoint is not None and checkpoint.exists()
        share = min(1.0, scale, 1.0 if max_seconds is None else max_seconds / TEACHER_SECONDS)
        lessons, adapting = annealed_teacher(
            model, dim, *_frame(target, dim), seed=seed + 10, num_samples=max(1000, round(TEACHER_DRAWS * share))
        )
        with clock.elsewhere(), one_thread():
            first = fit(
                model,
                flow,
                objective=[
                    Phase(eighth, reverse_kl=0.0, forward_kl=1.0),
                    Phase(eighth, reverse_kl=_reverse_weight(lessons), forward_kl=0.5),
                ],
                data=lessons,
                weight_power=LESSON_POWER,
                seed=seed,
                checkpoint=first_file,
                max_seconds=0.0 if has_begun else half,
                **common,
            )
        draws = importance_sample(model, flow, num_samples=max(5000, round(SELF_DRAWS * share)), seed=seed + 1)
        with clock.elsewhere(), one_thread():
            second = fit(
                model,
                flow,
                objective=[Phase(max(1, steps - 2 * eighth), reverse_kl=_reverse_weight(draws), forward_kl=0.5)],
                data=draws,
                schedule="cosine",
                seed=seed + 2,
                checkpoint=checkpoint,
                max_seconds=half,
                **common,
            )
        adapted = adapt_scales(guide, seed + 3)
        spent = [EvaluationCount(**one.evaluations["sample"]) for one in (lessons, draws)]
        return _join(first, second, sum([adapting, adapted], spent[0] + spent[1]), clock)


def _reverse_weight(draws: WeightedSamples) -> float:
    """Weight of reverse KL beside maximum likelihood on these draws."""
    return 0.0 if draws.ess > ENOUGH_ESS else 0.5


class _Clock:
    """Wall and CPU time of everything except what keeps its own (``fit``, whose count survives a resume)."""

    def __init__(self) -> None:
        self._start, self._away = self._now(), (0.0, 0.0)

    @staticmethod
    def _now() -> tuple[float, float]:
        return time.perf_counter(), time.process_time()

    @contextmanager
    def elsewhere(self) -> Iterator[None]:
        start = self._now()
        yield
        now = self._now()
        self._away = (self._away[0] + now[0] - start[0], self._away[1] + now[1] - start[1])

    def read(self) -> tuple[float, float]:
        now = self._now()
        return now[0] - self._start[0] - self._away[0], now[1] - self._start[1] - self._away[1]


def _frame(target: Any, dim: int) -> tuple[Tensor, Tensor]:
    """Centre and width of the region where the target lives: the flow works in these units."""
    bounds = getattr(target, "bounds", None)
    if bounds is None or len(bounds) != dim:
        return torch.zeros(dim), torch.ones(dim)
    low, high = torch.tensor(bounds, dtype=torch.get_default_dtype()).unbind(-1)
    return 0.5 * (low + high), (high - low) / 6


def _spline_flow(dim: int, centre: Tensor, width: Tensor) -> list[Any]:
    """Rational-linear spline couplings on [-5, 5] in units of the target's box; one in two dimensions, four above."""
    to_box = T.AffineTransform(centre, width)
    if dim == 1:
        return [ElementwiseAffine(1), even_knots(T.Spline(1, count_bins=24, bound=5.0)), to_box]
    if dim == 2:
        return [ElementwiseAffine(2), even_knots(T.spline_coupling(2, 1, [32, 32], count_bins=24, bound=5.0)), to_box]
    layers: list[Any] = [ElementwiseAffine(dim)]
    for _ in range(4):
        layers.append(even_knots(T.spline_coupling(dim, dim // 2, [64, 64], count_bins=12, bound=5.0)))
        layers.append(T.Permute(torch.arange(dim - 1, -1, -1)))
    return [*layers, to_box]


def even_knots(spline: Any) -> Any:
    """Start an unconditional spline at the identity with evenly spread knots; Pyro spreads them at random."""
    knots = getattr(spline, "lower_spline", spline)
    with torch.no_grad():
        knots.unnormalized_widths.zero_()
        knots.unnormalized_heights.zero_()
        knots.unnormalized_derivatives.fill_(math.log(math.e - 1))  # softplus of this is one
        knots.unnormalized_lambdas.zero_()
    return spline


def _flow_only(model: Callable[..., Any], guide: AutoStochasticFlow) -> AutoStochasticFlow:
    """The deterministic head of a guide as a guide of its own, on the same layers."""
    directed = guide.get_transform()._directed()
    head = [block for block, _ in directed if not isinstance(block, MetropolisAdjusted)]
    return AutoStochasticFlow(model, lambda energy, dim: head, latent_dim=guide.get_transform().dim)


def _join(first: FitResult, second: FitResult, extra: EvaluationCount, clock: _Clock) -> FitResult:
    """Both stages as one run, with all that happened around them."""
    wall, cpu = clock.read()
    evaluations, seconds = first.evaluations, first.seconds
    history = {name: list(values) for name, values in first.history.items()}
    offsets = {"step": first.steps, "evaluations": evaluations.values + evaluations.gradients, "seconds": seconds}
    for name, values in second.history.items():
        history.setdefault(name, []).extend(value + offsets.get(name, 0) for value in values)
    return FitResult(
        history=history,
        steps=first.steps + second.steps,
        evaluations=evaluations + second.evaluations + extra,
        seconds=seconds + second.seconds + wall,
        cpu_seconds=first.cpu_seconds + second.cpu_seconds + cpu,
        stopped=second.stopped if first.stopped == "steps" else first.stopped,
        skipped=first.skipped + second.skipped,
        nonfinite=first.nonfinite + second.nonfinite,
    )


SNF = Architecture("snf", num_rungs=NUM_RUNGS)
"""The stochastic flow."""
ARCHITECTURES: dict[str, Architecture | DiffusionArchitecture] = {
    "flow": Architecture("flow"),
    "snf": SNF,
    "diffusion": DiffusionArchitecture("diffusion"),
}
"""Samplers by their names on the command line."""
