"""Ready-made samplers for the command line and the experiments: their blocks, and how they are trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyro.distributions.transforms as T
import torch
from torch import Tensor

from pyro_boltzmann.energies import AnnealedEnergy, Energy, EvaluationCount, NormalEnergy, count_evaluations
from pyro_boltzmann.guides import AutoStochasticFlow
from pyro_boltzmann.infer import FitResult, Phase, fit, importance_sample
from pyro_boltzmann.stochastic import MetropolisAdjusted, PathTransform, RandomWalkTransform
from pyro_boltzmann.transforms import PushforwardEnergy

__all__ = ["ARCHITECTURES", "Architecture"]

SELF_DRAWS = 50_000
"""Weighted draws of itself on which a flow is trained in the second half, so that it covers its own tails."""
ANNEALING = (0.25, 0.5, 0.75, 1.0)
METROPOLIS_STEPS = 5


@dataclass(frozen=True)
class Architecture:
    """A sampler that needs nothing but an energy.

    A spline flow is trained in two stages: by reverse KL on the energy alone, then half by reverse KL and half by maximum
    likelihood on its own reweighted draws, which fills tails that reverse KL leaves thin. The stochastic flow then anneals
    from *the flow's own density* to the target by Metropolis steps, whose scales are adapted by acceptance rate.

    :ivar name: as on the command line.
    :ivar annealing: positions of the Metropolis blocks behind the flow; empty for a flow alone.
    :ivar num_steps: updates of each of the two stages.
    """

    name: str
    annealing: tuple[float, ...] = ()
    num_steps: int = 500
    num_particles: int = 256
    learning_rate: float = 1e-2

    def blocks(self, energy: Energy, dim: int, target: Any = None) -> list[Any]:
        """Blocks for an energy in ``dim`` dimensions; the target's box, where known, sets the scale."""
        flow = _spline_flow(dim, *_frame(target, dim))
        reference = PushforwardEnergy(NormalEnergy(), flow)
        scale = 2.4 / dim**0.5 * float(_frame(target, dim)[1].mean()) * 0.25
        return flow + [
            MetropolisAdjusted(
                RandomWalkTransform(dim, scale, num_steps=METROPOLIS_STEPS),
                AnnealedEnergy(reference, energy, position),
                adapt=True,
            )
            for position in self.annealing
        ]

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
        guide.initialize()
        flow = _flow_only(model, guide)
        steps = max(1, round(self.num_steps * scale))
        common = {
            "num_particles": self.num_particles,
            "learning_rate": self.learning_rate,
            "progress": progress,
        }
        half = None if max_seconds is None else max_seconds / 2
        first_file = None if checkpoint is None else checkpoint.with_name(f"{checkpoint.stem}-stage1{checkpoint.suffix}")
        first = fit(
            model, flow, num_steps=steps, seed=seed, checkpoint=first_file, max_seconds=half, **common
        )  # fmt: skip
        draws = importance_sample(model, flow, num_samples=SELF_DRAWS, seed=seed + 1)
        second = fit(
            model,
            flow,
            objective=[Phase(steps, reverse_kl=0.5, forward_kl=0.5)],
            data=draws,
            schedule="cosine",
            seed=seed + 2,
            checkpoint=checkpoint,
            max_seconds=half,
            **common,
        )
        adapted = _adapt_scales(guide, seed + 3)
        return _join(first, second, EvaluationCount(**draws.evaluations["sample"]) + adapted, float(draws.seconds or 0.0))


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
        return [T.Spline(1, count_bins=16, bound=5.0), to_box]
    if dim == 2:
        return [T.spline_coupling(2, 1, [32, 32], count_bins=16, bound=5.0), to_box]
    layers: list[Any] = []
    for _ in range(4):
        layers.append(T.spline_coupling(dim, dim // 2, [64, 64], count_bins=12, bound=5.0))
        layers.append(T.Permute(torch.arange(dim - 1, -1, -1)))
    return [*layers, to_box]


def _flow_only(model: Callable[..., Any], guide: AutoStochasticFlow) -> AutoStochasticFlow:
    """The deterministic head of a guide as a guide of its own, on the same layers."""
    directed = guide.get_transform()._directed()
    head = [block for block, _ in directed if not isinstance(block, MetropolisAdjusted)]
    return AutoStochasticFlow(model, lambda energy, dim: head, latent_dim=guide.get_transform().dim)


def _adapt_scales(guide: AutoStochasticFlow, seed: int, rounds: int = 30, num_particles: int = 500) -> EvaluationCount:
    """Steer Metropolis scales to their acceptance rates with a decreasing rate, then leave them fixed."""
    path: PathTransform = guide.get_transform()
    blocks = [block for block, _ in path._directed()]
    if not any(isinstance(block, MetropolisAdjusted) for block in blocks):
        return EvaluationCount()
    generator = torch.Generator(guide.base_loc.device).manual_seed(seed)
    with torch.no_grad(), count_evaluations() as count:
        for step in range(rounds):
            infos = guide.sample_paths(num_particles, generator=generator).infos
            for block, info in zip(blocks, infos, strict=True):
                if isinstance(block, MetropolisAdjusted) and info is not None:
                    block.adapt_scale(info, rate=2.0 / (1 + step) ** 0.6)
    return count


def _join(first: FitResult, second: FitResult, extra: EvaluationCount, extra_seconds: float) -> FitResult:
    """Both stages as one run."""
    evaluations, seconds = first.evaluations, first.seconds
    history = {name: list(values) for name, values in first.history.items()}
    offsets = {"step": first.steps, "evaluations": evaluations.values + evaluations.gradients, "seconds": seconds}
    for name, values in second.history.items():
        history.setdefault(name, []).extend(value + offsets.get(name, 0) for value in values)
    return FitResult(
        history=history,
        steps=first.steps + second.steps,
        evaluations=evaluations + second.evaluations + extra,
        seconds=seconds + second.seconds + extra_seconds,
        cpu_seconds=first.cpu_seconds + second.cpu_seconds + extra_seconds,
        stopped=second.stopped,
        skipped=first.skipped + second.skipped,
    )


ARCHITECTURES: dict[str, Architecture] = {
    "flow": Architecture("flow"),
    "snf": Architecture("snf", annealing=ANNEALING),
}
"""Samplers by their names on the command line."""


