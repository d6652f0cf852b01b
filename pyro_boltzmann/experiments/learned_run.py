"""A sampling run whose sampler is learned: train a guide, continue its training, draw from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from pyro_boltzmann.diagnostics import WeightedSamples
from pyro_boltzmann.exceptions import CheckpointError, EnergyError, NonFiniteEnergyError
from pyro_boltzmann.experiments.run_folder import CHECKPOINT, DRAWS, checkpoints
from pyro_boltzmann.experiments.run_metrics import stream_seed
from pyro_boltzmann.experiments.run_outcome import Outcome, describe_run
from pyro_boltzmann.experiments.targets import ResolvedTarget
from pyro_boltzmann.guides import AutoStochasticFlow
from pyro_boltzmann.infer import FitResult, importance_sample

__all__ = ["LearnedRun", "LearnedSampler"]

HISTORY_ROWS = 400
BATCH = 2**14
IN_MEMORY = "; all draws are on this error's .samples"


class LearnedSampler(Protocol):
    """A ready-made sampler: how its guide is built, and how that is trained."""

    @property
    def name(self) -> str: ...

    def guide(self, model: Callable[..., Any], target: Any = None) -> AutoStochasticFlow: ...

    def train(
        self,
        model: Callable[..., Any],
        guide: AutoStochasticFlow,
        *,
        seed: int,
        target: Any,
        max_seconds: float | None,
        checkpoint: Path | None,
        progress: bool,
    ) -> FitResult: ...


@dataclass
class LearnedRun:
    """A guide that is trained, then drawn from: the steps in their order."""

    resolved: ResolvedTarget
    architecture: LearnedSampler
    num_samples: int
    seed: int
    folder: Path
    progress: bool
    announce: Callable[[str], None]

    @property
    def identity(self) -> dict[str, Any]:
        """Whose run this is."""
        return {
            "target": self.resolved.name,
            "target_hash": self.resolved.target_hash,
            "sampler": self.architecture.name,
            "seed": self.seed,
        }

    def execute(self, minutes: float | None) -> Outcome:
        """Train and draw."""
        self.build()
        fitted = self.train(minutes)
        self.announce(f"drawing {self.num_samples} samples")
        draws, z = self.draw(self.num_samples, fitted)
        return Outcome(
            draws,
            z,
            self.guide.energy,
            evaluations={"train": fitted.evaluations.to_dict(), "sample": draws.evaluations["sample"]},
            wall_seconds={"train": fitted.seconds, "sample": _seconds(draws)},
            cpu_seconds={"train": fitted.cpu_seconds, "sample": draws.info["cpu_seconds"]},
            notes=_notes(fitted),
            backwards=self._backwards,
        )

    def build(self) -> None:
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(stream_seed(self.seed, "parameters"))
            self.guide = self.architecture.guide(self.resolved.model, self.resolved.target).initialize()

    def train(self, minutes: float | None) -> FitResult:
        resumes = bool(checkpoints(self.folder))
        self.announce(f"{'continuing' if resumes else 'training'} {self.architecture.name} on {self.resolved.name}")
        try:
            fitted = self.architecture.train(
                self.resolved.model,
                self.guide,
                target=self.resolved.target,
                seed=self.seed,
                max_seconds=None if minutes is None else 60.0 * minutes,
                checkpoint=self.folder / CHECKPOINT,
                progress=self.progress,
            )
        except CheckpointError as error:
            raise CheckpointError(
                f"{error} (on the command line: delete the checkpoints in {self.folder}, or choose another --out)"
            ) from error
        except EnergyError as error:
            self._rescue(error)
        return fitted

    def _rescue(self, error: EnergyError) -> None:
        """Save draws of the sampler as it stands: they show where the energy is not finite."""
        for checkpoint in checkpoints(self.folder):
            # Kept, but out of the way of a run with the mended energy.
            checkpoint.replace(checkpoint.with_name(f"{checkpoint.name}.failed"))
        try:
            self.draw(self.num_samples, None)
        except NonFiniteEnergyError as unusable:
            reason = str(error).replace(IN_MEMORY, "")  # a caller's remedy, of no use on the command line
            raise NonFiniteEnergyError(
                f"training stopped: {reason}; {unusable.count} of {self.num_samples} draws of the sampler as it stood "
                f"have no finite energy; all were saved to {unusable.saved_to}",
                count=unusable.count,
                samples=unusable.samples,
                saved_to=unusable.saved_to,
            ) from error
        raise EnergyError(
            f"training stopped: {error}; draws of the sampler as it stood are in {self.folder / DRAWS}"
        ) from error

    def draw(self, num_samples: int, fitted: FitResult | None) -> tuple[WeightedSamples, Tensor]:
        path = self.folder / DRAWS
        seed = stream_seed(self.seed, "draws")
        try:
            draws = importance_sample(
                self.resolved.model, self.guide, num_samples=num_samples, seed=seed, progress=self.progress
            )
        except NonFiniteEnergyError as error:
            if isinstance(error.samples, WeightedSamples):
                self._record(error.samples, fitted)
                error.samples.save(path)
            text = str(error).replace(IN_MEMORY, "")
            raise NonFiniteEnergyError(
                f"{text}; all draws were saved to {path}", count=error.count, samples=error.samples, saved_to=str(path)
            ) from error
        z = self._record(draws, fitted)
        draws.save(path)
        return draws, z

    def _record(self, draws: WeightedSamples, fitted: FitResult | None) -> Tensor:
        """Write into the draws where they come from and how they were trained for; returns their vectors."""
        z = describe_run(draws, self.identity)
        if fitted is not None:
            draws.info["training"] = _thin(fitted.history)
            draws.evaluations = {"train": fitted.evaluations.to_dict(), **draws.evaluations}
        return z

    @torch.no_grad()
    def _backwards(self, z: Tensor) -> Tensor:
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(stream_seed(self.seed, "backwards"))
            return torch.cat([self.guide.reverse_paths(part).log_weight for part in z.split(BATCH)])


def _thin(history: dict[str, list[float]]) -> dict[str, list[float | None]]:
    """A training curve short enough to travel in an attribute of the file; NaN is no JSON."""
    step = max(1, -(-len(history.get("step", [])) // HISTORY_ROWS))
    # An objective without paths has no ELBO to show, but a loss.
    shown = ("step", "elbo", "ess") if any(value == value for value in history.get("elbo", [])) else ("step", "loss")
    names = [name for name in shown if name in history]
    return {name: [value if value == value else None for value in history[name][::step]] for name in names}


def _seconds(draws: WeightedSamples) -> float:
    return float(draws.seconds) if isinstance(draws.seconds, int | float) else float("nan")


def _notes(fitted: FitResult) -> list[str]:
    notes = []
    if fitted.stopped == "time":
        notes.append(f"training stopped at its time limit after {fitted.steps} updates; more --minutes train longer")
    if fitted.skipped:
        notes.append(f"training skipped {fitted.skipped} of {fitted.steps} updates, whose gradients were not finite")
    if fitted.nonfinite:
        notes.append(f"training met {fitted.nonfinite} end states whose energy was NaN or -inf, and left them out")
    return notes
