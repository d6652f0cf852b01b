"""Train a flow of the experiments on data, or on the energy alone, and keep its best state on held-out rows."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_boltzmann.diagnostics.resampling import RESAMPLERS
from pyro_boltzmann.energies.catalogue.particles import ParticleTarget
from pyro_boltzmann.experiments.equivariant_models import FlowModel, base_scale, symmetry_of
from pyro_boltzmann.experiments.moved_data import moved_copies
from pyro_boltzmann.experiments.paired_flow_matching import PairedFlowMatching
from pyro_boltzmann.experiments.run_metrics import stream_seed
from pyro_boltzmann.guides import AutoStochasticFlow
from pyro_boltzmann.infer import FitResult, fit, smc
from pyro_boltzmann.infer.randomness import seeded
from pyro_boltzmann.transforms.continuous import ContinuousTransform

__all__ = ["BestState", "Cost", "learn_data", "learn_energy", "learn_own_draws", "likelihoods"]

CHECKS = 6
"""How often held-out data are looked at in a training."""
CHECKED_ROWS = 500
MOST_PAIRS = 400_000
SLACK, MARGIN = 2.5, 120.0
"""A training may take this much longer than planned, and so many seconds: looks at held-out data count here."""


@dataclass
class Cost:
    """Seconds and updates of a training, without looks at held-out data."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    updates: int = 0
    gradients: int = 0

    def add(self, result: FitResult, apart: tuple[float, float] = (0.0, 0.0)) -> None:
        """Count a fit, but for the wall and CPU seconds in ``apart``."""
        self.seconds += result.seconds - apart[0]
        self.cpu_seconds += result.cpu_seconds - apart[1]
        self.updates += result.steps
        self.gradients += result.evaluations.gradients


@dataclass
class BestState:
    """The parameters that were best on held-out rows.

    :ivar rows: ``(n, dim)``.
    :ivar every: updates between looks.
    :ivar apart: wall and CPU seconds spent looking.
    """

    guide: AutoStochasticFlow
    rows: Tensor
    every: int
    best: float = float("inf")
    step: int = 0
    apart: tuple[float, float] = (0.0, 0.0)
    state: dict[str, Tensor] = field(default_factory=dict)

    def look(self, result: FitResult) -> None:
        """What :func:`~pyro_boltzmann.fit` calls after a row of its history."""
        if result.steps % self.every:
            return
        wall, cpu = time.perf_counter(), time.process_time()
        found = float(likelihoods(self.guide, self.rows).mean().neg())
        if found < self.best:
            self.best, self.step = found, result.steps
            self.state = {name: tensor.clone() for name, tensor in self.guide.state_dict().items()}
        self.apart = (self.apart[0] + time.perf_counter() - wall, self.apart[1] + time.process_time() - cpu)

    def restore(self) -> None:
        """Go back to the best state, if there is one."""
        if self.state:
            self.guide.load_state_dict(self.state)


@torch.no_grad()
def likelihoods(guide: AutoStochasticFlow, rows: Tensor) -> Tensor:
    """Log-densities of rows ``(n, dim)`` under a flow, ``(n,)`` in float64."""
    parts = [guide.reverse_paths(part, with_energy=False).log_q for part in rows.split(2048)]
    return torch.cat(parts).double()


def learn_data(
    model: FlowModel,
    target: ParticleTarget,
    data: Tensor,
    held_out: Tensor,
    *,
    seconds: float,
    seed: int,
    checkpoint: Path | None = None,
    checked_rows: int = CHECKED_ROWS,
    progress: bool = False,
) -> tuple[AutoStochasticFlow, Cost]:
    """A flow trained on ``data`` for about so many seconds, in its best state on ``held_out``.

    :param seconds: which set the number of updates.
    :param checked_rows: of ``held_out`` in each look.
    """
    with seeded(seed):
        guide = model.guide(target)
    steps = max(2, round(seconds * model.updates))
    every = max(1, steps // CHECKS)
    best = BestState(guide, held_out[:checked_rows], every)
    cost = Cost()
    settings: dict[str, Any] = {"objective": "forward_kl", "data": data, "num_particles": model.num_particles}
    symmetry = symmetry_of(target) if model.augmented else None
    if symmetry is not None:
        settings["augment"] = symmetry.augment
    if model.matches:
        wall, cpu = time.perf_counter(), time.process_time()
        objective = PairedFlowMatching(
            data,
            base_scale(target),
            num_pairs=min(MOST_PAIRS, model.pairs * steps),
            num_particles=model.num_particles,
            time_power=model.time_power,
            block=model.exchanged,
            basis=target.basis if model.knows_symmetry else None,
            symmetry=symmetry,
            seed=seed,
        )
        cost.seconds, cost.cpu_seconds = time.perf_counter() - wall, time.process_time() - cpu
        settings = {"objective": objective}
    result = fit(
        target.model(),
        guide,
        num_steps=steps,
        optimizer=model.optimizer,
        schedule="cosine",
        clip_norm=1.0,
        seed=seed,
        log_every=every,
        callback=best.look,
        checkpoint=checkpoint,
        max_seconds=MARGIN + SLACK * seconds,
        progress=progress,
        **settings,
    )
    best.restore()
    cost.add(result, best.apart)
    return guide, cost


def learn_energy(
    model: FlowModel, target: ParticleTarget, *, seconds: float, seed: int, progress: bool = False
) -> tuple[AutoStochasticFlow, Cost]:
    """A flow trained by reverse KL on the energy alone, for about so many seconds."""
    with seeded(seed):
        guide = model.guide(target)
    result = fit(
        target.model(),
        guide,
        num_steps=max(2, round(seconds * model.updates)),
        num_particles=model.num_particles,
        optimizer=model.optimizer,
        schedule="cosine",
        clip_norm=1.0,
        seed=seed,
        max_seconds=SLACK * seconds,
        progress=progress,
    )
    cost = Cost()
    cost.add(result)
    return guide, cost


def learn_own_draws(
    model: FlowModel,
    target: ParticleTarget,
    *,
    seconds: float,
    seed: int,
    num_draws: int = 10_000,
    moves: int = 0,
) -> tuple[AutoStochasticFlow, Cost]:
    """A flow from the energy alone: tempered SMC from a Gaussian of the base's width makes the data and, with fresh
    particles, the held-out rows; their time and gradients count.

    :param moves: rounds of :func:`~pyro_boltzmann.experiments.moved_data.moved_copies` of the data.
    """
    sets, gradients, start = [], 0, (time.perf_counter(), time.process_time())
    settings: dict[str, Any] = {"proposal": base_scale(target), "progress": False}
    for name, number in (("own draws", num_draws), ("own held-out draws", 2 * CHECKED_ROWS)):
        draws = smc(target.model(), num_samples=number, seed=stream_seed(seed, name), **settings)
        generator = torch.Generator().manual_seed(seed)
        rows = RESAMPLERS["systematic"](draws.log_weights, number, generator)
        sets.append(draws.info["z"][rows][torch.randperm(number, generator=generator)])
        gradients += draws.evaluations["sample"]["gradients"]
    sets[0], made = moved_copies(target, sets[0], moves, seed=stream_seed(seed, "moves"))
    gradients += made
    apart = (time.perf_counter() - start[0], time.process_time() - start[1])
    guide, cost = learn_data(model, target, *sets, seconds=seconds, seed=seed)
    cost.seconds, cost.cpu_seconds = cost.seconds + apart[0], cost.cpu_seconds + apart[1]
    cost.gradients += gradients
    return guide, cost


def continuous_part(guide: AutoStochasticFlow) -> ContinuousTransform:
    """The continuous flow that a guide consists of."""
    (block,) = guide.get_transform().blocks
    assert isinstance(block, ContinuousTransform)
    return block
