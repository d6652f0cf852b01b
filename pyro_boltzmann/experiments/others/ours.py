"""This package's samplers with their defaults, under the common protocol."""

from __future__ import annotations

from typing import Any

from pyro_boltzmann.diagnostics.weights import effective_sample_size
from pyro_boltzmann.energies.boltzmann_model import BoltzmannModel
from pyro_boltzmann.energies.evaluation import count_evaluations
from pyro_boltzmann.experiments.architectures import SNF
from pyro_boltzmann.experiments.others.clock import CpuClock
from pyro_boltzmann.experiments.others.problem import BenchProblem
from pyro_boltzmann.experiments.others.record import Outcome, bulk_ess
from pyro_boltzmann.infer import importance_sample, parallel_tempering, smc
from pyro_boltzmann.infer.randomness import seeded

__all__ = ["run_parallel_tempering", "run_smc", "run_stochastic_flow"]

NUM_CHAINS = 16
FULL_SCALE = 1000
"""Updates of the ready-made stochastic flow by itself."""


def run_smc(problem: BenchProblem, size: int, seed: int) -> Outcome:
    """:func:`~pyro_boltzmann.smc` with ``size`` particles; effective are the first ancestors of the draws."""
    clock = CpuClock()
    with clock("run"), count_evaluations() as count:
        draws = smc(*_subject(problem), num_samples=size, seed=seed, progress=False, dim=_dim(problem))
    return Outcome(
        draws.info["z"].numpy(),
        draws.log_weights.numpy(),
        draws.num_independent,
        draws.log_normalizer,
        count.values,
        count.gradients,
        clock.seconds["run"],
    )


def run_parallel_tempering(problem: BenchProblem, size: int, seed: int) -> Outcome:
    """:func:`~pyro_boltzmann.parallel_tempering`: 16 chains of ``size`` draws after as many rounds of warm-up."""
    clock = CpuClock()
    with clock("run"), count_evaluations() as count:
        draws = parallel_tempering(
            *_subject(problem),
            num_samples=NUM_CHAINS * size,
            num_chains=NUM_CHAINS,
            num_warmup=max(8, size),
            seed=seed,
            progress=False,
            dim=_dim(problem),
        )
    x = draws.info["z"].view(NUM_CHAINS, size, problem.dim).numpy()
    return Outcome(x, None, bulk_ess(x), draws.log_normalizer, count.values, count.gradients, clock.seconds["run"])


def run_stochastic_flow(problem: BenchProblem, size: int, seed: int) -> Outcome:
    """The stochastic flow of ``pyro-boltzmann sample``, trained for ``size`` updates; then 100 draws an update."""
    model: Any = BoltzmannModel(problem.energy, problem.dim) if problem.target is None else problem.target.model()
    clock = CpuClock()
    with clock("run"), count_evaluations() as count:
        with seeded(seed):
            guide = SNF.guide(model, problem.target).initialize()
        SNF.train(model, guide, seed=seed, target=problem.target, progress=False, scale=size / FULL_SCALE)
        draws = importance_sample(model, guide, num_samples=100 * size, seed=seed + 100)
    weights = draws.log_weights.numpy()
    return Outcome(
        draws.info["z"].numpy(),
        weights,
        effective_sample_size(weights),
        draws.log_normalizer,
        count.values,
        count.gradients,
        clock.seconds["run"],
    )


def _subject(problem: BenchProblem) -> tuple[Any, ...]:
    return (problem.energy if problem.target is None else problem.target,)


def _dim(problem: BenchProblem) -> int | None:
    """Of an energy that does not know its own."""
    return problem.dim if problem.target is None else None
