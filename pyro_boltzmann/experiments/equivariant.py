"""Equivariant flows on DW-2 and DW-4: exact likelihoods of symmetric densities from data, energy, or both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from pyro_boltzmann.energies.catalogue import catalogue
from pyro_boltzmann.energies.catalogue.particles import ParticleTarget
from pyro_boltzmann.experiments.equivariant_models import GRAPH, MODELS
from pyro_boltzmann.experiments.equivariant_page import OF_ENERGY, EquivariantResults, write_equivariant_results
from pyro_boltzmann.experiments.equivariant_scores import score
from pyro_boltzmann.experiments.equivariant_solvers import SOLVERS, divergence_costs, train_by_solver
from pyro_boltzmann.experiments.equivariant_training import (
    learn_data,
    learn_energy,
    learn_own_draws,
)
from pyro_boltzmann.experiments.finished_parts import FinishedParts
from pyro_boltzmann.experiments.moved_data import moved_copies
from pyro_boltzmann.experiments.particle_data import ParticleData, keep_particle_data
from pyro_boltzmann.experiments.run_folder import DRAWS
from pyro_boltzmann.experiments.run_metrics import stream_seed
from pyro_boltzmann.experiments.threads import one_thread

__all__ = ["DW2", "DW4", "EquivariantExperiment", "EquivariantPlan"]

TRAIN_SIZES = (100, 1000, 10_000, 100_000)
HEADLINE_SIZE = 10_000
SOLVER_SIZE = 1000
NUM_SAMPLES, NUM_TEST, NUM_VALIDATION = 2000, 2000, 1000
FEWEST = 100


@dataclass(frozen=True)
class EquivariantPlan:
    """How long everything trains, in seconds of an idle core.

    :ivar headline: flow matching of the headline model, each seed.
    :ivar sweep: of each model and size of training set.
    :ivar energy: of each flow that learns from the energy alone.
    :ivar solver: updates of each way to solve the equation.
    :ivar seeds: of the headline.
    :ivar moves: rounds of :func:`~pyro_boltzmann.experiments.moved_data.moved_copies` for models that know the energy:
        about as many copies as flow matching pairs each row.
    """

    headline: float
    sweep: float
    energy: float
    solver: int
    seeds: int = 3
    moves: int = 40

    @property
    def minutes(self) -> float:
        """Of all trainings together."""
        runs = self.seeds * self.headline + len(MODELS) * len(TRAIN_SIZES) * self.sweep
        return (runs + 2.0 * self.energy + 2.0 * 60.0) / 60.0


@dataclass(frozen=True)
class EquivariantExperiment:
    """The experiment on one target.

    :ivar target_name: in the catalogue.
    """

    target_name: str
    plan: EquivariantPlan

    def run(
        self,
        *,
        seed: int,
        out: Path,
        minutes: float | None = None,
        num_samples: int | None = None,
        progress: bool = True,
    ) -> dict[str, Any]:
        """Train, draw and score every model, and write table, pictures and report into ``out``.

        Every model that is finished is kept, and the headline's trainings go on from their checkpoints.

        :param minutes: shorten all trainings, draws and test data in proportion (one seed and small training sets
            then). Data and scores come on top.
        :param num_samples: weighted draws of each model.
        """
        plan, target = self.plan, catalogue[self.target_name]
        assert isinstance(target, ParticleTarget)
        share = min(1.0, (minutes or plan.minutes) / plan.minutes)
        count = num_samples or max(FEWEST, round(NUM_SAMPLES * share))
        sizes = tuple(size for size in TRAIN_SIZES if size <= max(SOLVER_SIZE, TRAIN_SIZES[-1] * share))
        out.mkdir(parents=True, exist_ok=True)
        parts = FinishedParts(
            out / "parts.json",
            {"target": target.target_hash, "seed": seed, "share": share, "num_samples": count, "plan": str(plan)},
        )
        results = EquivariantResults(target, seed, share, count, sizes, min(HEADLINE_SIZE, sizes[-1]), plan)
        with one_thread():
            data = keep_particle_data(
                target,
                out / "data.safetensors",
                num_train=sizes[-1],
                num_validation=max(FEWEST, round(NUM_VALIDATION * share)),
                num_test=max(FEWEST, round(NUM_TEST * share)),
                seed=seed,
            )
            work = _Work(target, plan, data, seed, share, count, out)
            jobs: dict[str, Callable[[], dict[str, Any]]] = {
                f"seed {k}": partial(work.headline, k) for k in range(plan.seeds if share == 1.0 else 1)
            }
            jobs |= {f"{name} {size}": partial(work.sweep, name, size) for name in MODELS for size in sizes}
            jobs |= {
                "energy alone, graph, own draws": work.own_draws,
                "energy alone, kernel, reverse KL": work.reverse_kl,
            }
            jobs |= {solver: partial(work.solver, solver) for solver in SOLVERS}
            for name, job in tqdm(jobs.items(), disable=not progress):
                results.parts[name] = parts.get(name, job)
            results.divergences = parts.get(
                "divergences", lambda: divergence_costs(target, data.test[: max(FEWEST, round(1000 * share))], seed)
            )
        return write_equivariant_results(results, data, out)


@dataclass(frozen=True)
class _Work:
    """The parts of an experiment."""

    target: ParticleTarget
    plan: EquivariantPlan
    data: ParticleData
    seed: int
    share: float
    count: int
    out: Path

    def headline(self, index: int) -> dict[str, Any]:
        """The graph field by flow matching on data, and copies of them that were moved by the energy."""
        seed, train = stream_seed(self.seed + index, "headline"), self.data.train[:HEADLINE_SIZE]
        rows, gradients = moved_copies(self.target, train, self.plan.moves, seed=stream_seed(seed, "moves"))
        guide, cost = learn_data(
            MODELS[GRAPH],
            self.target,
            rows,
            self.data.validation,
            seconds=self.plan.headline * self.share,
            seed=seed,
            checkpoint=self.out / f"matching-{index}.safetensors",
        )
        cost.gradients += gradients
        is_shown = index == 0
        return score(
            guide,
            self.target,
            self.data.test,
            num_samples=self.count,
            seed=stream_seed(seed, "draws"),
            cost=cost,
            save_to=self.out / DRAWS if is_shown else None,
            keep_to=self.out / "draws-headline.safetensors" if is_shown else None,
        )

    def sweep(self, name: str, size: int) -> dict[str, Any]:
        """A model trained on the first rows of the data."""
        seed = stream_seed(self.seed, f"{name} {size}")
        guide, cost = learn_data(
            MODELS[name],
            self.target,
            self.data.train[:size],
            self.data.validation,
            seconds=self.plan.sweep * self.share,
            seed=seed,
        )
        return score(
            guide,
            self.target,
            self.data.test,
            num_samples=self.count,
            seed=stream_seed(seed, "draws"),
            cost=cost,
            keep_to=self.out / f"draws-{name}-{size}.safetensors" if name == "kernel" else None,
        )

    def own_draws(self) -> dict[str, Any]:
        """No data but what tempering draws from the energy."""
        seed = stream_seed(self.seed, "own draws")
        guide, cost = learn_own_draws(
            MODELS[GRAPH], self.target, seconds=self.plan.energy * self.share, seed=seed, moves=self.plan.moves
        )
        draws: dict[str, Any] = {"num_samples": OF_ENERGY * self.count, "seed": stream_seed(seed, "draws")}
        return score(guide, self.target, self.data.test, cost=cost, **draws)

    def reverse_kl(self) -> dict[str, Any]:
        """No data at all."""
        seed = stream_seed(self.seed, "energy")
        guide, cost = learn_energy(MODELS["kernel"], self.target, seconds=self.plan.energy * self.share, seed=seed)
        draws: dict[str, Any] = {"num_samples": OF_ENERGY * self.count, "seed": stream_seed(seed, "draws")}
        return score(guide, self.target, self.data.test, cost=cost, **draws)

    def solver(self, name: str) -> dict[str, Any]:
        """A kernel flow trained by one of the ways to solve its equation."""
        seed = stream_seed(self.seed, "solver")
        guide, cost = train_by_solver(
            MODELS["kernel"],
            self.target,
            self.data.train[:SOLVER_SIZE],
            name,
            updates=max(2, round(self.plan.solver * self.share)),
            seconds=120.0 * self.share + 10.0,
            seed=seed,
        )
        draws: dict[str, Any] = {"num_samples": self.count, "seed": stream_seed(seed, "draws")}
        return score(guide, self.target, self.data.test, cost=cost, **draws)


DW2 = EquivariantExperiment("dw2", EquivariantPlan(60.0, 15.0, 40.0, 150))
DW4 = EquivariantExperiment("dw4", EquivariantPlan(300.0, 60.0, 180.0, 120))
