"""One seed of a diffusion sampler: train it, draw from it, score its draws."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from pyro_boltzmann.diagnostics import Metric, WeightedSamples
from pyro_boltzmann.diagnostics.resampling import systematic
from pyro_boltzmann.energies.catalogue import Target
from pyro_boltzmann.experiments.bendem_distances import reference_distances
from pyro_boltzmann.experiments.bendem_methods import Recipe, recipe
from pyro_boltzmann.experiments.bendem_plans import Plan
from pyro_boltzmann.experiments.bendem_references import References
from pyro_boltzmann.experiments.bendem_rows import to_plain
from pyro_boltzmann.experiments.bendem_scores import score_errors
from pyro_boltzmann.experiments.run_metrics import run_metrics, stream_seed
from pyro_boltzmann.guides import AutoDiffusion
from pyro_boltzmann.guides.auto_diffusion import default_network
from pyro_boltzmann.infer import FitResult, fit, importance_sample
from pyro_boltzmann.infer.randomness import seeded

__all__ = ["SeedRun"]

BACKWARDS = 2000
"""Exact samples from which paths are run backwards."""


@dataclass
class SeedRun:
    """The sampler of one method and seed.

    :ivar share: of the planned training.
    :ivar num_samples: weighted draws.
    :ivar max_seconds: wall time that ends the training.
    :ivar compared: with the settings of a comparison.
    :ivar checkpoint: file from which the training resumes, or is read back.
    """

    target: Target
    plan: Plan
    method: str
    seed: int
    share: float
    num_samples: int
    max_seconds: float
    checkpoint: Path
    device: torch.device
    progress: bool
    compared: bool = False

    @cached_property
    def recipe(self) -> Recipe:
        """Arguments of guide and training."""
        return recipe(self.method, self.target, self.plan, self.share, self.device, compared=self.compared)

    @cached_property
    def model(self) -> Any:
        """The target as a Pyro program."""
        return self.target.model(device=self.device)

    @cached_property
    def trained(self) -> tuple[AutoDiffusion, FitResult]:
        """The guide and what its training cost, resumed from the checkpoint."""
        settings = {"kind": "score", "num_steps": self.plan.shortened_steps(self.share), **self.recipe.guide}
        kind = str(settings["kind"])
        settings["num_segments"] = min(settings.get("num_segments", 1), settings["num_steps"])
        size = {"width": self.plan.width, "depth": self.plan.depth}
        settings.setdefault("network", lambda dim: default_network(kind, self.target, dim, **size))
        seed = stream_seed(self.seed, f"{self.target.name} {self.method}")
        with seeded(seed):  # the network's first weights too
            guide = AutoDiffusion(self.model, **settings).initialize()
        assert isinstance(guide, AutoDiffusion)
        if self.recipe.frame is not None:
            guide.place(self.recipe.frame)
        guide.to(self.device)
        result = fit(
            self.model,
            guide,
            objective=self.recipe.objective,
            max_seconds=self.max_seconds,
            checkpoint=self.checkpoint,
            seed=seed,
            progress=self.progress,
            **self.recipe.fit,
        )
        # Where the objective averages parameters, the average samples.
        hand_over = getattr(self.recipe.objective, "hand_over", None)
        if hand_over is not None:
            hand_over(guide)
        return guide, result

    def measure(self, references: References | None, size: int, save_to: Path | None) -> dict[str, Any]:
        """Train, draw and score: rows, costs and the errors of the score, in JSON.

        :param size: N of the distances.
        :param save_to: netCDF file for the draws.
        """
        guide, result = self.trained
        draws = importance_sample(
            self.model, guide, num_samples=self.num_samples, seed=stream_seed(self.seed, "draws"), save_to=save_to
        )
        return {
            "rows": {name: to_plain(row) for name, row in self._rows(guide, draws, references, size).items()},
            "train": {"values": result.evaluations.values, "gradients": result.evaluations.gradients},
            "sample": dict(draws.evaluations["sample"]),
            "wall_seconds": {"train": result.seconds, "sample": draws.seconds},
            "cpu_seconds": {"train": result.cpu_seconds, "sample": draws.info["cpu_seconds"]},
            "updates": result.steps,
            "stopped": result.stopped,
            "scores": self._score_errors(guide, draws, references),
        }

    def replicate(self, index: int, num_samples: int) -> dict[str, float]:
        """log Z from resampled paths, and from how many first paths they descend."""
        guide, _ = self.trained
        draws = importance_sample(
            self.model,
            guide,
            num_samples=num_samples,
            resample_below=0.9,
            seed=stream_seed(self.seed, f"replicate {index}"),
        )
        roots = num_samples if draws.roots is None else len(draws.roots.unique())
        times = sum(draws.info.get("resampled", {}).values())
        return {"log_z": draws.log_normalizer, "ess": draws.ess, "roots": float(roots), "resampled": float(times)}

    def _rows(
        self, guide: AutoDiffusion, draws: WeightedSamples, references: References | None, size: int
    ) -> dict[str, Metric]:
        z = draws.info["z"]
        backwards = None
        if references is not None and references.exact:
            with torch.no_grad(), seeded(stream_seed(self.seed, "backwards")):
                backwards = guide.reverse_paths(references.second.z[:BACKWARDS].to(self.device)).log_weight.cpu()
        rows = run_metrics(draws, z, self.target.energy, target=self.target, reverse_log_weights=backwards)
        if self.target.log_z is not None:
            rows["log_z_off"] = Metric(abs(draws.log_normalizer - self.target.log_z))
        # Written for the sizes of any run; here they are fixed.
        for name in ("distance_tv", "x_w2_aligned"):
            rows.pop(name, None)
        if references is not None:
            rows |= reference_distances(draws, z, self.target, references, size)
        return rows

    def _score_errors(
        self, guide: AutoDiffusion, draws: WeightedSamples, references: References | None
    ) -> dict[str, list[float]]:
        x0 = references.first.z if references is not None else None
        if x0 is None:
            generator = torch.Generator().manual_seed(0)
            chosen = systematic(draws.log_weights.cpu(), draws.num_samples, generator)
            z = draws.info["z"]
            x0 = z[chosen.to(z.device)]
        return score_errors(guide, self.target, x0, self.seed, num_states=min(len(x0), self.num_samples // 4))
