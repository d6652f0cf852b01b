"""The ready-made diffusion sampler."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyro_boltzmann.experiments.threads import one_thread
from pyro_boltzmann.experiments.wide_proposal import wide_proposal
from pyro_boltzmann.guides import AutoDiffusion, AutoStochasticFlow
from pyro_boltzmann.infer import FitResult, TargetScoreMatching, fit
from pyro_boltzmann.infer.tempering.problem import resolve_problem

__all__ = ["DiffusionArchitecture"]


@dataclass(frozen=True)
class DiffusionArchitecture:
    """A reverse diffusion that needs nothing but an energy.

    Tempered sequential Monte Carlo from a wide Gaussian finds the modes; its draws and the forces there teach the score
    of the noised target (:class:`~pyro_boltzmann.TargetScoreMatching`), along which
    :class:`~pyro_boltzmann.AutoDiffusion` carries noise to the target.

    :ivar name: as on the command line.
    :ivar num_reverse_steps: of the reverse process.
    :ivar num_steps: updates.
    :ivar num_particles: pairs of a draw and a noise level per update.
    :ivar num_draws: of sequential Monte Carlo.

    >>> import pyro_boltzmann as pb
    >>> DiffusionArchitecture("diffusion").guide(pb.catalogue["gmm40"].model()).get_transform().dim
    2
    """

    name: str
    num_reverse_steps: int = 100
    num_steps: int = 2500
    num_particles: int = 256
    num_draws: int = 10_000
    learning_rate: float = 3e-3

    def guide(self, model: Callable[..., Any], target: Any = None) -> AutoStochasticFlow:
        """An untrained guide of ``model``; where the target lives is learned in training."""
        return AutoDiffusion(model, num_steps=self.num_reverse_steps)

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
        """Train what :meth:`guide` made, on the model's energy.

        :param target: its box, where known, is where sequential Monte Carlo starts.
        :param max_seconds: for everything; sequential Monte Carlo may take half of it.
        :param scale: shorten the run (a smoke test) or lengthen it.
        """
        guide.initialize()
        proposal = wide_proposal(resolve_problem(model, (), {}, None), target)
        teacher = {"proposal": proposal, "max_seconds": None if max_seconds is None else max_seconds / 2}
        draws = max(1000, round(self.num_draws * min(1.0, scale)))
        with one_thread():
            return fit(
                model,
                guide,
                objective=TargetScoreMatching(self.num_particles, num_draws=draws, smc=teacher),
                num_steps=max(2, round(self.num_steps * scale)),
                learning_rate=self.learning_rate,
                schedule="cosine",
                clip_norm=1.0,
                max_seconds=max_seconds,
                checkpoint=checkpoint,
                progress=progress,
                seed=seed,
            )
