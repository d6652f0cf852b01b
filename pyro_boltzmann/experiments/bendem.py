"""Diffusion samplers learned from energies: iDEM, EnDEM, BEnDEM and ours, on five targets."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from pyro_boltzmann.energies.catalogue import catalogue
from pyro_boltzmann.experiments.bendem_distances import floors
from pyro_boltzmann.experiments.bendem_methods import methods_of, recipe
from pyro_boltzmann.experiments.bendem_page import Results, write_results
from pyro_boltzmann.experiments.bendem_plans import COMPARED_MINUTES, Plan, plan_for
from pyro_boltzmann.experiments.bendem_references import References, keep_references
from pyro_boltzmann.experiments.bendem_seed import SeedRun
from pyro_boltzmann.experiments.finished_parts import FinishedParts
from pyro_boltzmann.experiments.run_folder import DRAWS
from pyro_boltzmann.experiments.threads import one_thread

__all__ = ["DW4", "GMM40", "LJ13", "LJ55", "MANY_WELL32", "DiffusionExperiment"]

FEWEST_SAMPLES, FEWEST_REPLICATES = 200, 2


@dataclass(frozen=True)
class DiffusionExperiment:
    """The experiment on one target.

    :ivar target_name: in the catalogue.
    """

    target_name: str

    def run(
        self,
        *,
        seed: int,
        out: Path,
        minutes: float | None = None,
        num_samples: int | None = None,
        method: str = "best",
        progress: bool = True,
    ) -> dict[str, Any]:
        """Train, draw and score in every planned seed, and write table, pictures and report into ``out``.

        Every piece that is finished is kept, and a training goes on from its checkpoint.

        :param minutes: shorten training, draws and reverse process in proportion (one seed then).
        :param num_samples: weighted draws in one seed, and bound of the sizes of distances.
        :param method: ``"idem"``, ``"endem"``, ``"bendem"``, ``"best"``, or ``"all"`` for a comparison in which each
            may train for the same time.
        :raises UnknownMethodError: for any other.
        """
        methods = methods_of(method)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        plan = plan_for(self.target_name, device)
        compared = len(methods) > 1
        full = COMPARED_MINUTES * plan.seeds * len(methods) if compared else plan.minutes
        share = min(1.0, (minutes or full) / full)
        sizes = _sizes(plan, share, num_samples)
        target = catalogue[self.target_name]
        for one in methods:  # A method that is missing must be known before time is spent.
            recipe(one, target, plan, compared=compared)
        limit = 60.0 * COMPARED_MINUTES if compared else plan.max_seconds
        if share < 1.0:
            limit = min(limit, 60.0 * (minutes or full) / len(methods))
        out.mkdir(parents=True, exist_ok=True)
        identity = {"target": target.target_hash, "method": method, "seed": seed, "share": share, **vars(sizes)}
        parts = FinishedParts(out / "parts.json", identity)
        seeds = plan.seeds if share == 1.0 else 1
        results = Results(target, plan, method, seed, share, sizes.samples, sizes.distance, limit, str(device))
        with one_thread(), tqdm(total=len(methods) * seeds, disable=not progress) as bar:
            references = keep_references(
                target, sizes.distance * plan.repeats, seed, out / "references.safetensors", proposal=plan.proposal
            )
            for one in methods:
                results.seeds[one] = []
                for index in range(seeds):
                    bar.set_description(f"{one}, seed {seed + index}")
                    run = SeedRun(
                        *(target, plan, one, seed + index, share, sizes.samples, limit),
                        checkpoint=out / f"checkpoint-{one}-{index}.safetensors",
                        device=device,
                        progress=progress,
                        compared=compared,
                    )
                    shown = one == results.head and index == 0
                    make = partial(run.measure, references, sizes.distance, out / DRAWS if shown else None)
                    results.seeds[one].append(parts.get(f"{one} {index}", make))
                    if index == 0 and (shown or not compared):
                        results.replicates[one] = _replicate(run, parts, sizes)
                    bar.update()
            results.floors = _floors(parts, results, references)
            return write_results(results, references, out)


@dataclass(frozen=True)
class _Sizes:
    """Draws of a run, of its distances and of its replicates."""

    samples: int
    distance: int
    replicates: int
    replicate_samples: int


def _sizes(plan: Plan, share: float, num_samples: int | None) -> _Sizes:
    samples = num_samples or max(min(FEWEST_SAMPLES, plan.num_samples), round(plan.num_samples * share))
    replicates = 0 if plan.replicates == 0 else max(FEWEST_REPLICATES, round(plan.replicates * share))
    return _Sizes(
        samples,
        min(plan.size, max(2, samples // 4)) if plan.size else 0,
        replicates,
        min(plan.replicate_samples, samples),
    )


def _replicate(run: SeedRun, parts: FinishedParts, sizes: _Sizes) -> list[dict[str, float]]:
    return [
        parts.get(f"{run.method} replicate {index}", partial(run.replicate, index, sizes.replicate_samples))
        for index in range(sizes.replicates)
    ]


def _floors(parts: FinishedParts, results: Results, references: References | None) -> dict[str, list[float]]:
    if references is None:
        return {}
    known: dict[str, list[float]] = parts.get("floors", lambda: floors(results.target, references, results.size))
    return known


GMM40 = DiffusionExperiment("gmm40")
MANY_WELL32 = DiffusionExperiment("many_well32")
DW4 = DiffusionExperiment("dw4")
LJ13 = DiffusionExperiment("lj13")
LJ55 = DiffusionExperiment("lj55")
