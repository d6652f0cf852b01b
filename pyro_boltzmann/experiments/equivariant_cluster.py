"""Equivariant flows on LJ-13: from ten to ten thousand configurations, new metastable states, and a start for SMC."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tqdm.auto import tqdm

from pyro_boltzmann.diagnostics.atomic import write_atomically
from pyro_boltzmann.energies.catalogue import catalogue
from pyro_boltzmann.energies.catalogue.particles import ParticleTarget
from pyro_boltzmann.energies.evaluation import energy_value
from pyro_boltzmann.experiments.equivariant_cluster_page import ClusterResults, write_cluster_results
from pyro_boltzmann.experiments.equivariant_models import CLUSTER_MODELS, GRAPH
from pyro_boltzmann.experiments.equivariant_scores import score
from pyro_boltzmann.experiments.equivariant_smc import (
    LogZRuns,
    ProposalPlan,
    savings,
    smc_from_flow,
    smc_from_gaussian,
)
from pyro_boltzmann.experiments.equivariant_states import find_states
from pyro_boltzmann.experiments.equivariant_training import learn_data
from pyro_boltzmann.experiments.finished_parts import FinishedParts
from pyro_boltzmann.experiments.particle_data import CHAINS, ParticleData, keep_particle_data
from pyro_boltzmann.experiments.run_folder import DRAWS
from pyro_boltzmann.experiments.run_metrics import stream_seed
from pyro_boltzmann.experiments.threads import one_thread

__all__ = ["LJ13", "ClusterExperiment", "ClusterPlan"]

TRAIN_SIZES = (10, 100, 1000, 10_000)
HEADLINE_SIZE = TRAIN_SIZES[-1]
DRAW_STEPS, DENSITY_STEPS = 6, 8
"""Runge-Kutta steps of draws of networks, whose weights are those of the discrete map, and of densities of data, which
with eight were 0.01 too low in the mean of 12 rows and 0.09 in the root mean square."""
NUM_SAMPLES, NUM_TEST, NUM_VALIDATION = 2000, 2000, 1000
FEW = 500
"""Draws, and rows of test data, of networks outside the headline: each takes a Jacobian of 36 x 36 at each stage."""
FEWEST, FEWEST_CHECKED = 12, 6


@dataclass(frozen=True)
class ClusterPlan:
    """How long everything trains, in seconds of an idle core.

    :ivar headline: flow matching of the headline model, each seed.
    :ivar sweep: of each model and size of training set.
    :ivar proposals: the runs of sequential Monte Carlo.
    :ivar seeds: of the headline.
    :ivar checked_rows: held-out rows in each look at a training.
    """

    headline: float
    sweep: float
    proposals: ProposalPlan = field(default_factory=ProposalPlan)
    seeds: int = 3
    checked_rows: int = 100

    @property
    def minutes(self) -> float:
        """Of all trainings together."""
        runs = len(CLUSTER_MODELS) * len(TRAIN_SIZES) * self.sweep
        return (self.seeds * self.headline + runs) / 60.0


@dataclass(frozen=True)
class ClusterExperiment:
    """The experiment on one cluster.

    :ivar target_name: in the catalogue.
    """

    target_name: str
    plan: ClusterPlan

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

        :param minutes: shorten all trainings, draws and data in proportion (one seed and small training sets then).
            Scores come on top.
        :param num_samples: weighted draws of the headline.
        """
        plan, target = self.plan, catalogue[self.target_name]
        assert isinstance(target, ParticleTarget)
        share = min(1.0, (minutes or plan.minutes) / plan.minutes)
        count = num_samples or max(FEWEST, round(NUM_SAMPLES * share))
        sizes = tuple(size for size in TRAIN_SIZES if size <= max(TRAIN_SIZES[1], TRAIN_SIZES[-1] * share))
        out.mkdir(parents=True, exist_ok=True)
        parts = FinishedParts(
            out / "parts.json",
            {"target": target.target_hash, "seed": seed, "share": share, "num_samples": count, "plan": str(plan)},
        )
        results = ClusterResults(target, seed, share, count, sizes, plan)
        with one_thread():
            data = keep_particle_data(
                target,
                out / "data.safetensors",
                num_train=max(TRAIN_SIZES[1], round(TRAIN_SIZES[-1] * share)),
                num_validation=max(FEWEST, round(NUM_VALIDATION * share)),
                num_test=max(FEWEST, round(NUM_TEST * share)),
                seed=seed,
            )
            work = _Work(target, plan, data, seed, share, count, sizes, out)
            jobs: dict[str, Callable[[], dict[str, Any]]] = {
                f"seed {k}": partial(work.headline, k) for k in range(plan.seeds if share == 1.0 else 1)
            }
            jobs |= {f"{name} {size}": partial(work.sweep, name, size) for name in CLUSTER_MODELS for size in sizes}
            jobs |= {"states": work.states}
            jobs |= {f"gaussian {number}": partial(work.gaussian, number) for number in plan.proposals.particles}
            jobs |= {"flow": work.flow}
            for name, job in tqdm(jobs.items(), disable=not progress):
                results.parts[name] = parts.get(name, job)
            results.parts["savings"] = self._savings(results, data)
        return write_cluster_results(results, data, out)

    def _savings(self, results: ClusterResults, data: ParticleData) -> dict[str, Any]:
        assert results.target.log_z is not None
        truth, parts = results.target.log_z, results.parts
        runs = [LogZRuns(**parts[f"gaussian {number}"]["runs"]) for number in self.plan.proposals.particles]
        best = min(runs, key=lambda run: run.constant(truth))
        training = {"training and its data included": data.evaluations * CHAINS["train"] / sum(CHAINS.values())}
        return savings(best, LogZRuns(**parts["flow"]["runs"]), truth, training)


@dataclass(frozen=True)
class _Work:
    """The parts of an experiment."""

    target: ParticleTarget
    plan: ClusterPlan
    data: ParticleData
    seed: int
    share: float
    count: int
    sizes: tuple[int, ...]
    out: Path

    def headline(self, index: int) -> dict[str, Any]:
        """The graph field by flow matching."""
        seed = stream_seed(self.seed + index, "headline")
        guide, cost = learn_data(
            CLUSTER_MODELS[GRAPH],
            self.target,
            self.data.train[:HEADLINE_SIZE],
            self.data.validation,
            seconds=self.plan.headline * self.share,
            seed=seed,
            checkpoint=self.out / f"matching-{index}.safetensors",
            checked_rows=self._checked_rows,
        )
        return score(
            guide,
            self.target,
            self.data.test,
            num_samples=self.count,
            seed=stream_seed(seed, "draws"),
            cost=cost,
            save_to=self.out / DRAWS if index == 0 else None,
            keep_to=self.out / f"draws-headline-{index}.safetensors",
            draw_steps=DRAW_STEPS,
            density_steps=DENSITY_STEPS,
        )

    def sweep(self, name: str, size: int) -> dict[str, Any]:
        """A model trained on the first rows of the data."""
        model = CLUSTER_MODELS[name]
        seed = stream_seed(self.seed, f"{name} {size}")
        guide, cost = learn_data(
            model,
            self.target,
            self.data.train[:size],
            self.data.validation,
            seconds=self.plan.sweep * self.share,
            seed=seed,
            checked_rows=self._checked_rows,
        )
        few = min(FEW, self.count) if model.matches else self.count
        return score(
            guide,
            self.target,
            self.data.test[:few],
            num_samples=few,
            seed=stream_seed(seed, "draws"),
            cost=cost,
            keep_to=self.out / f"draws-{name}-{size}.safetensors" if name == GRAPH else None,
            draw_steps=DRAW_STEPS,
            density_steps=DENSITY_STEPS,
        )

    def states(self) -> dict[str, Any]:
        """Minima below the draws of the graph fields, and not below the data that they learned from."""
        draws = {f"{GRAPH} {size}": (size, self._draws(f"{GRAPH}-{size}")["z"]) for size in self.sizes}
        draws["headline"] = (len(self.data.train), self._draws("headline-0")["z"])
        highest = float(energy_value(self.target.energy, torch.cat([self.data.train, self.data.test])).max())
        found = find_states(self.target, self.data.train, draws, highest)
        tensors = {"lowest": found.lowest.unsqueeze(0), "new": found.new}
        write_atomically(self.out / "states.safetensors", lambda temporary: save_file(tensors, temporary))
        return {
            "rows": found.rows,
            "lowest_energy": found.lowest_energy,
            "new_energy": found.new_energy.tolist(),
        }

    def gaussian(self, particles: int) -> dict[str, Any]:
        """Sequential Monte Carlo from a Gaussian."""
        plan = self._proposals()
        number = max(FEWEST, round(particles * self.share))
        runs = smc_from_gaussian(self.target, plan, number, stream_seed(self.seed, f"gaussian {particles}"))
        return {"rows": runs.rows(self.target), "runs": asdict(runs), "particles": number}

    def flow(self) -> dict[str, Any]:
        """Sequential Monte Carlo from the draws of the headline's first seed."""
        draws, plan = self._draws("headline-0"), self._proposals()
        runs = smc_from_flow(self.target, plan, draws["z"], draws["log_q"], stream_seed(self.seed, "flow"))
        return {"rows": runs.rows(self.target), "runs": asdict(runs), "particles": min(plan.drawn, self.count // 2)}

    @property
    def _checked_rows(self) -> int:
        return max(FEWEST_CHECKED, round(self.plan.checked_rows * self.share))

    def _proposals(self) -> ProposalPlan:
        plan = self.plan.proposals
        return plan if self.share == 1.0 else ProposalPlan(plan.particles, plan.scale, 2, plan.drawn)

    def _draws(self, name: str) -> dict[str, Any]:
        return load_file(self.out / f"draws-{name}.safetensors")


LJ13 = ClusterExperiment("lj13", ClusterPlan(600.0, 90.0))
