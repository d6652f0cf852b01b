"""One sampling run: train a sampler on a target, draw from it, and write draws, report, pictures and checkpoint."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from typing import Any

import torch

from pyro_boltzmann.diagnostics import build_report, write_report
from pyro_boltzmann.energies.evaluation import count_evaluations
from pyro_boltzmann.exceptions import PyroBoltzmannError, ShapeError
from pyro_boltzmann.experiments.learned_run import LearnedRun, LearnedSampler
from pyro_boltzmann.experiments.reference_draws import draw_reference
from pyro_boltzmann.experiments.run_folder import REPORT, check_writable, claim
from pyro_boltzmann.experiments.run_metrics import draw_exact, failures_of, run_metrics
from pyro_boltzmann.experiments.run_outcome import Outcome
from pyro_boltzmann.experiments.run_plots import write_plots
from pyro_boltzmann.experiments.targets import resolve_target
from pyro_boltzmann.experiments.tempered_run import TEMPERED, TemperedRun

__all__ = ["UnknownSamplerError", "run"]

ALIASES = {"bendem": "diffusion"}
"""Other names of samplers, by which users of other programs know them."""
REFERENCE_NOTE = (
    "distances and their floors are from reference samples (sequential Monte Carlo): this target has no exact ones"
)


class UnknownSamplerError(PyroBoltzmannError, KeyError):
    """A name that no sampler has."""

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
    freeze: bool = False,
    progress: bool = True,
    announce: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Train (or continue to train) a sampler, draw weighted samples, and write everything into ``out``.

    The same call continues from the checkpoint in ``out``; a finished training is not repeated.

    :param target: a catalogue name or ``module:object`` (:func:`~.targets.resolve_target`).
    :param sampler: a name in ``ARCHITECTURES``, ``TEMPERED`` or ``ALIASES``.
    :param num_samples: draws, at least one.
    :param seed: of everything random in the run.
    :param out: folder for the results; made if missing, and tried before anything else.
    :param minutes: limit of the training, earlier calls counted in.
    :param dim: dimension of an energy that does not know its own.
    :param freeze: repeat sequential Monte Carlo on the ladder of a pilot, which makes it unbiased.
    :param announce: is told, in a line each, what is going on.
    :return: the report.
    :raises OutputError: if ``out`` cannot be written.
    :raises CheckpointError: if ``out`` holds another run, or a broken checkpoint.
    :raises EnergyError: if the energy breaks its contract; the draws, if there are any, are saved first.
    """
    if isinstance(num_samples, bool) or not isinstance(num_samples, int) or num_samples < 1:
        raise ShapeError(f"num_samples must be a whole number of draws >= 1, got {num_samples!r}")
    sampler = ALIASES.get(sampler, sampler)
    architecture = _architecture(sampler)
    folder = check_writable(out)
    resolved = resolve_target(target, dim)
    if freeze and sampler != "smc":
        raise UnknownSamplerError(f"only the sampler 'smc' can be frozen, not {sampler!r}; leave --freeze out")
    place = (folder, progress, announce)
    this: LearnedRun | TemperedRun
    if architecture is None:
        this = TemperedRun(resolved, sampler, num_samples, seed, *place, freeze)
    else:
        this = LearnedRun(resolved, architecture, num_samples, seed, *place)
    claim(folder, {**this.identity, "sampler": sampler})
    outcome = this.execute(minutes)
    announce("diagnosing")
    return _conclude(outcome, this)


def _conclude(outcome: Outcome, run: LearnedRun | TemperedRun) -> dict[str, Any]:
    target = run.resolved.target
    with count_evaluations() as count:
        exact = draw_exact(target, run.num_samples, run.seed)
        reference = draw_reference(target, run.num_samples, run.seed)
        rows = run_metrics(
            outcome.draws,
            outcome.z,
            outcome.energy,
            target=target,
            exact=reference if exact is None else exact,
            reverse_log_weights=None
            if exact is None or outcome.backwards is None
            else outcome.backwards(exact.z[: run.num_samples]),
        )
    report = build_report(
        experiment="sample",
        target=run.resolved.name,
        sampler=run.identity["sampler"],
        seed=run.seed,
        num_samples=run.num_samples,
        metrics=rows,
        energy_evaluations={**outcome.evaluations, "diagnostics": count.to_dict()},
        wall_seconds=outcome.wall_seconds,
        cpu_seconds=outcome.cpu_seconds,
        threads=torch.get_num_threads(),
        target_hash=run.resolved.target_hash,
        failures=[*outcome.failures, *failures_of(rows)],
        notes=[*outcome.notes, *([] if reference is None else [REFERENCE_NOTE])],
    )
    write_report(report, run.folder / REPORT)
    compared = reference if exact is None else exact
    exact_energies = None if compared is None else compared.energy
    write_plots(
        outcome.draws, outcome.z, run.folder, energy=outcome.energy, target=target, exact_energies=exact_energies
    )
    return report


def _architecture(sampler: str) -> LearnedSampler | None:
    """The ready-made architecture of a name; ``None`` for a reference sampler, which needs none."""
    if sampler in TEMPERED:
        return None
    architectures = importlib.import_module("pyro_boltzmann.experiments.architectures").ARCHITECTURES
    if sampler not in architectures:
        known = ", ".join([*architectures, *TEMPERED])
        raise UnknownSamplerError(f"no sampler is named {sampler!r}; known names: {known}")
    chosen: LearnedSampler = architectures[sampler]
    return chosen
