"""One sampling run: train a sampler on a target, draw from it, and write draws, report, pictures and checkpoint."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_boltzmann.diagnostics import WeightedSamples, build_report, write_report
from pyro_boltzmann.energies.evaluation import count_evaluations
from pyro_boltzmann.exceptions import (
    CheckpointError,
    EnergyError,
    NonFiniteEnergyError,
    PyroBoltzmannError,
    ShapeError,
)
from pyro_boltzmann.experiments.run_folder import CHECKPOINT, DRAWS, REPORT, check_writable, checkpoints, claim
from pyro_boltzmann.experiments.run_metrics import draw_exact, failures_of, run_metrics, stream_seed
from pyro_boltzmann.experiments.run_plots import write_plots
from pyro_boltzmann.experiments.targets import ResolvedTarget, resolve_target
from pyro_boltzmann.guides import AutoStochasticFlow
from pyro_boltzmann.infer import FitResult, importance_sample

__all__ = ["UnknownSamplerError", "run"]

HISTORY_ROWS = 400
BATCH = 2**14
IN_MEMORY = "; all draws are on this error's .samples"


class UnknownSamplerError(PyroBoltzmannError, KeyError):
    """A sampler that no architecture is named after."""

    # KeyError prints the repr of its message.
    def __str__(self) -> str:
        return str(self.args[0])


def run(
    target: str,
    *,
    sampler: str = "snf",
    num_samples: int,
    seed: int,
    out: str | os.PathLike[str],
    minutes: float | None = None,
    dim: int | None = None,
    progress: bool = True,
    announce: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Train (or continue to train) a sampler, draw weighted samples, and write everything into ``out``.

    The same call continues from the checkpoint in ``out``; a finished training is not repeated.

    :param target: a catalogue name or ``module:object`` (:func:`~.targets.resolve_target`).
    :param sampler: a name in ``ARCHITECTURES``.
    :param num_samples: draws, at least one.
    :param seed: of everything random in the run.
    :param out: folder for the results; made if missing, and tried before anything else.
    :param minutes: limit of the training, earlier calls counted in.
    :param dim: dimension of an energy that does not know its own.
    :param announce: is told, in a line each, what is going on.
    :return: the report.
    :raises OutputError: if ``out`` cannot be written.
    :raises CheckpointError: if ``out`` holds another run, or a broken checkpoint.
    :raises EnergyError: if the energy breaks its contract; the draws, if there are any, are saved first.
    """
    if isinstance(num_samples, bool) or not isinstance(num_samples, int) or num_samples < 1:
        raise ShapeError(f"num_samples must be a whole number of draws >= 1, got {num_samples!r}")
    architecture = _architecture(sampler)
    folder = check_writable(out)
    resolved = resolve_target(target, dim)
    claim(folder, {"target": target, "target_hash": resolved.target_hash, "sampler": sampler, "seed": seed})
    this = _Run(resolved, architecture, num_samples, seed, folder, progress, announce)
    this.build()
    fitted = this.train(minutes)
    announce(f"drawing {num_samples} samples")
    draws, z = this.draw(num_samples, fitted)
    announce("diagnosing")
    return this.conclude(draws, z, fitted)


@dataclass
class _Run:
    """The steps of a run, in their order."""

    resolved: ResolvedTarget
    architecture: Any
    num_samples: int
    seed: int
    folder: Path
    progress: bool
    announce: Callable[[str], None]

    def build(self) -> None:
        target, architecture = self.resolved.target, self.architecture
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(stream_seed(self.seed, "parameters"))
            self.guide = AutoStochasticFlow(
                self.resolved.model, lambda energy, dim: architecture.blocks(energy, dim, target)
            ).initialize()

    def train(self, minutes: float | None) -> FitResult:
        resumes = bool(checkpoints(self.folder))
        self.announce(f"{'continuing' if resumes else 'training'} {self.architecture.name} on {self.resolved.name}")
        try:
            fitted: FitResult = self.architecture.train(
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
        """Write into the draws where they come from; returns their unconstrained vectors, which need no second copy."""
        z: Tensor = draws.info.pop("z")
        draws.info["run"] = {
            "experiment": "sample",
            "target": self.resolved.name,
            "target_hash": self.resolved.target_hash,
            "sampler": self.architecture.name,
            "seed": self.seed,
        }
        if fitted is not None:
            draws.info["training"] = _thin(fitted.history)
            draws.evaluations = {"train": fitted.evaluations.to_dict(), **draws.evaluations}
        return z

    def conclude(self, draws: WeightedSamples, z: Tensor, fitted: FitResult) -> dict[str, Any]:
        target, energy = self.resolved.target, self.guide.energy
        with count_evaluations() as count:
            exact = draw_exact(target, self.num_samples, self.seed)
            rows = run_metrics(
                draws,
                z,
                energy,
                target=target,
                exact=exact,
                reverse_log_weights=None if exact is None else self._backwards(exact.z[: self.num_samples]),
            )
        report = build_report(
            experiment="sample",
            target=self.resolved.name,
            sampler=self.architecture.name,
            seed=self.seed,
            num_samples=self.num_samples,
            metrics=rows,
            energy_evaluations={
                "train": fitted.evaluations.to_dict(),
                "sample": draws.evaluations["sample"],
                "diagnostics": count.to_dict(),
            },
            wall_seconds={"train": fitted.seconds, "sample": _seconds(draws)},
            cpu_seconds={"train": fitted.cpu_seconds, "sample": draws.info["cpu_seconds"]},
            threads=torch.get_num_threads(),
            target_hash=self.resolved.target_hash,
            failures=failures_of(rows),
            notes=_notes(fitted),
        )
        write_report(report, self.folder / REPORT)
        exact_energies = None if exact is None else exact.energy
        write_plots(draws, z, self.folder, energy=energy, target=target, exact_energies=exact_energies)
        return report

    @torch.no_grad()
    def _backwards(self, z: Tensor) -> Tensor:
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(stream_seed(self.seed, "backwards"))
            return torch.cat([self.guide.reverse_paths(part).log_weight for part in z.split(BATCH)])


def _architecture(sampler: str) -> Any:
    architectures = importlib.import_module("pyro_boltzmann.experiments.architectures").ARCHITECTURES
    if sampler not in architectures:
        raise UnknownSamplerError(f"no sampler is named {sampler!r}; known names: {', '.join(architectures)}")
    return architectures[sampler]


def _thin(history: dict[str, list[float]]) -> dict[str, list[float | None]]:
    """A training curve short enough to travel in an attribute of the file; NaN is no JSON."""
    step = max(1, -(-len(history.get("step", [])) // HISTORY_ROWS))
    names = [name for name in ("step", "elbo", "ess") if name in history]
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
