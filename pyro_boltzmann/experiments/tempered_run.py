"""A sampling run by a reference sampler: tempered sequential Monte Carlo, or parallel tempering."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyro_boltzmann.diagnostics import WeightedSamples
from pyro_boltzmann.exceptions import CheckpointError, ShapeError
from pyro_boltzmann.experiments.run_folder import CHECKPOINT, DRAWS, checkpoints
from pyro_boltzmann.experiments.run_metrics import stream_seed
from pyro_boltzmann.experiments.run_outcome import Outcome, describe_run
from pyro_boltzmann.experiments.targets import ResolvedTarget
from pyro_boltzmann.experiments.wide_proposal import wide_proposal
from pyro_boltzmann.infer import parallel_tempering, smc
from pyro_boltzmann.infer.tempering.problem import Problem, resolve_problem

__all__ = ["TEMPERED", "TemperedRun", "smc_chains"]

TEMPERED = ("smc", "pt")
"""Reference samplers by their names on the command line."""

FEWEST_PARTICLES = 250
"""A chain of sequential Monte Carlo is not made shorter than this."""


@dataclass
class TemperedRun:
    """Draws of a reference sampler, with several chains where there are particles enough."""

    resolved: ResolvedTarget
    sampler: str
    num_samples: int
    seed: int
    folder: Path
    progress: bool
    announce: Callable[[str], None]
    freeze: bool = False

    @property
    def identity(self) -> dict[str, Any]:
        """Whose run this is."""
        return {
            "target": self.resolved.name,
            "target_hash": self.resolved.target_hash,
            "sampler": self.sampler,
            "seed": self.seed,
        }

    def execute(self, minutes: float | None) -> Outcome:
        """Run, or go on with a run that was stopped."""
        problem = resolve_problem(self.resolved.model, (), {}, None)
        self.announce(
            f"{'continuing' if checkpoints(self.folder) else 'running'} {self.sampler} on {self.resolved.name}"
        )
        try:
            draws = self._draw(problem, None if minutes is None else 60.0 * minutes)
        except CheckpointError as error:
            raise CheckpointError(
                f"{error} (on the command line: delete the checkpoints in {self.folder}, or choose another --out)"
            ) from error
        z = describe_run(draws, self.identity)
        draws.save(self.folder / DRAWS)
        seconds = draws.seconds if isinstance(draws.seconds, dict) else {"sample": float(draws.seconds or 0.0)}
        return Outcome(
            draws,
            z,
            problem.energy,
            evaluations=draws.evaluations,
            wall_seconds=seconds,
            cpu_seconds={"sample": draws.info["cpu_seconds"]},
            notes=self._notes(draws),
            failures=_failures(draws),
        )

    def _draw(self, problem: Problem, max_seconds: float | None) -> WeightedSamples:
        common: dict[str, Any] = {
            "num_samples": self.num_samples,
            "proposal": wide_proposal(problem, self.resolved.target),
            "max_seconds": max_seconds,
            "checkpoint": self.folder / CHECKPOINT,
            "seed": stream_seed(self.seed, "draws"),
            "progress": self.progress,
        }
        if self.sampler == "smc":
            return smc(self.resolved.model, num_chains=smc_chains(self.num_samples), freeze=self.freeze, **common)
        chains = next((number for number in (32, 16, 8, 4) if self.num_samples % number == 0), None)
        if chains is None:
            raise ShapeError(
                "parallel tempering runs four chains of one length or more: --num-samples must be a multiple of 4, "
                f"got {self.num_samples}"
            )
        return parallel_tempering(self.resolved.model, num_chains=chains, **common)

    def _notes(self, draws: WeightedSamples) -> list[str]:
        if self.sampler == "pt":
            record = draws.info["parallel_tempering"]
            integral, error = record["thermodynamic_integration"]
            return [
                f"parallel tempering: {len(record['positions'])} temperatures, barrier {record['barrier']:.2f}, "
                f"{record['round_trips']} round trips in {draws.num_chains} chains",
                f"log Z by thermodynamic integration, as a check: {integral:.4f} +- {error:.4f}",
            ]
        record = draws.info["smc"]
        return [
            f"sequential Monte Carlo: {len(record['positions'])} temperatures, {draws.num_chains} chains, "
            f"{draws.num_independent:.0f} effective first ancestors; log Z is {record['label']}"
            + ("" if record["label"] == "unbiased" else " (--freeze makes it unbiased, at twice the price)")
        ]


def smc_chains(num_samples: int) -> int:
    """As many chains as 8, 4 or 2 that have particles enough; otherwise one, whose errors come from its genealogy."""
    fitting = (n for n in (8, 4, 2) if num_samples % n == 0 and num_samples // n >= FEWEST_PARTICLES)
    return next(fitting, 1)


def _failures(draws: WeightedSamples) -> list[str]:
    failures = []
    if not draws.reliable:
        failures.append(
            f"roots: the draws descend from {draws.num_independent:.1f} independent ones, too few for an error; take "
            "more --num-samples"
        )
    record = draws.info.get("parallel_tempering")
    if record is not None and record["round_trips"] < draws.num_chains:
        failures.append(
            f"round trips: {record['round_trips']} in {draws.num_chains} chains; until each has travelled from the "
            "reference to the target and back, they may agree by accident: take more --num-samples"
        )
    return failures
