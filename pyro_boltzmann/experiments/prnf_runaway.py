"""Runaway electrons with loss at the edge: a flow map of one time, applied again and again, and one of all times.

Both learn from trajectories that start in some Maxwellian laws and are asked about others, against Monte Carlo.
Brownian motion absorbed at both ends, whose law is known, goes the same way.
"""

from __future__ import annotations

import time as clock
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from tqdm.auto import tqdm

from pyro_boltzmann.experiments.absorbed_companion import run_companion
from pyro_boltzmann.experiments.exit_histories import (
    composed_history,
    direct_history,
    from_the_start,
    history_of,
    neighbours,
    visited_states,
)
from pyro_boltzmann.experiments.exit_scores import compare_histories, critical_momentum
from pyro_boltzmann.experiments.finished_parts import FinishedParts
from pyro_boltzmann.experiments.prnf_runaway_page import RunawayResults, write_runaway_results
from pyro_boltzmann.experiments.run_metrics import stream_seed
from pyro_boltzmann.experiments.threads import one_thread
from pyro_boltzmann.infer import fit_flow_map, load_checkpoint, save_checkpoint
from pyro_boltzmann.infer.randomness import seeded
from pyro_boltzmann.sde import FlowMap, ProductLaw, TransitionData, simulate
from pyro_boltzmann.sde.systems import RunawayElectrons, runaway_initial

__all__ = ["PLAN", "TEST_WIDTHS", "TRAIN_WIDTHS", "RunawayPlan", "run"]

TRAIN_WIDTHS = (0.5, 0.7, 0.9, 1.1, 1.4, 1.8)
TEST_WIDTHS = (0.6, 0.8, 1.0, 1.6)
GRAIN, STEP = 0.2, 0.005
"""Times of the map of all times are multiples of the first; the second is a step of the simulation."""
STRIDE, NUM_STRIDES, PER_STRIDE = 2.0, 10, 10
"""Of the composed map, after each of which everything is looked at, and how many grains it has."""
HIGHEST = 11.0
"""Momenta up to here are trained on: 5 at first, and the field adds 4.7 in the time 20."""


@dataclass(frozen=True)
class RunawayPlan:
    """Lengths of all parts.

    :ivar trajectories: to train on; each gives transitions over one stride and over many.
    :ivar broad: states all over the domain, each followed for one stride.
    :ivar each: random times of each trajectory for the map of all times.
    :ivar updates: of the map of one time, and ``direct`` of that of all times.
    :ivar electrons: of each test law, for Monte Carlo and for each map.
    :ivar companion: updates of each map of absorbed Brownian motion.
    :ivar minutes: of an idle core for all of it.
    """

    trajectories: int = 80_000
    broad: int = 400_000
    each: int = 12
    updates: int = 1200
    direct: int = 1200
    electrons: int = 30_000
    companion: int = 1200
    minutes: float = 30.0

    def shortened(self, share: float) -> RunawayPlan:
        """In proportion, but enough of everything to run."""

        def part(number: int, least: int) -> int:
            return max(least, round(share * number))

        return RunawayPlan(
            part(self.trajectories, 300),
            part(self.broad, 1000),
            self.each,
            part(self.updates, 12),
            part(self.direct, 12),
            part(self.electrons, 300),
            part(self.companion, 15),
            self.minutes,
        )


PLAN = RunawayPlan()


def run(
    *, seed: int, out: Path, minutes: float | None = None, num_samples: int | None = None, progress: bool = True
) -> dict[str, Any]:
    """Simulate, train, compare, and write table, pictures and report into ``out``.

    Data, trainings and comparisons that are finished are kept; trainings go on from their checkpoints.

    :param minutes: shorten everything in proportion.
    :param num_samples: electrons of each test law.
    """
    share = min(1.0, (minutes or PLAN.minutes) / PLAN.minutes)
    plan = PLAN.shortened(share)
    electrons = num_samples or plan.electrons
    out.mkdir(parents=True, exist_ok=True)
    parts = FinishedParts(out / "parts.json", {"seed": seed, "plan": str(plan), "electrons": electrons})
    work = _Work(plan, seed, electrons, out, parts, progress)
    with one_thread():
        jobs: dict[str, Callable[[], dict[str, Any]]] = {"data": work.draw_data, "simulation": work.simulate}
        jobs |= {name: partial(work.train, name) for name in ("composed", "direct")}
        jobs |= {f"width {width}": partial(work.compare, width) for width in TEST_WIDTHS}
        for name, job in tqdm(jobs.items(), disable=not progress):
            parts.get(name, job)
        parts.get("companion", partial(run_companion, updates=plan.companion, size=electrons, seed=seed))
    results = RunawayResults(seed, share, electrons, plan, critical_momentum(), dict(parts.parts), TEST_WIDTHS)
    return write_runaway_results(results, out)


@dataclass
class _Work:
    """The parts of the experiment."""

    plan: RunawayPlan
    seed: int
    electrons: int
    out: Path
    parts: FinishedParts
    progress: bool

    def __post_init__(self) -> None:
        self.sde = RunawayElectrons()

    def draw_data(self) -> dict[str, Any]:
        """Trajectories from the training laws and, one in four, from all over the domain."""
        begin, plan = clock.process_time(), self.plan
        with seeded(stream_seed(self.seed, "start")):
            per_law = -(-3 * plan.trajectories // (4 * len(TRAIN_WIDTHS)))
            starts = [runaway_initial(width).sample((per_law,)) for width in TRAIN_WIDTHS]
            starts.append(_broad(5.0).sample((plan.trajectories - len(TRAIN_WIDTHS) * per_law,)))
            others = _broad(HIGHEST).sample((plan.broad,))
        seed = stream_seed(self.seed, "trajectories")
        x0 = torch.cat(starts)
        states, exited = visited_states(self.sde, x0, GRAIN, PER_STRIDE * NUM_STRIDES, step_size=STEP, seed=seed)
        once = simulate(self.sde, others, STRIDE, step_size=STEP, seed=stream_seed(self.seed, "broad"))
        broad = TransitionData(others, torch.full((len(others),), STRIDE), once.state, once.exited)
        strides = TransitionData.cat([neighbours(states[::PER_STRIDE], exited[::PER_STRIDE], STRIDE), broad])
        times = from_the_start(states, exited, GRAIN, plan.each, seed=stream_seed(self.seed, "times"))
        strides.save(self.out / "composed-data.safetensors")
        times.save(self.out / "direct-data.safetensors")
        return {"cpu_seconds": clock.process_time() - begin, "composed": len(strides), "direct": len(times)}

    def flow_map(self, name: str) -> FlowMap:
        """Untrained."""
        with seeded(stream_seed(self.seed, f"weights {name}")):
            # Over such times the deterministic path is no guide, and its stiff drift would need many steps.
            times = STRIDE if name == "composed" else (GRAIN, STRIDE * NUM_STRIDES)
            return FlowMap.for_sde(self.sde, times, drift=None, width=96, coupling_width=64)

    def train(self, name: str) -> dict[str, Any]:
        """Fit a map and keep it."""
        flow_map = self.flow_map(name)
        updates = self.plan.updates if name == "composed" else self.plan.direct
        result = fit_flow_map(
            flow_map,
            TransitionData.load(self.out / f"{name}-data.safetensors"),
            num_steps=updates,
            batch_size=2048,
            max_validation=10_000,
            validate_every=max(8, updates // 12),
            checkpoint=self.out / f"{name}-checkpoint.safetensors",
            seed=stream_seed(self.seed, f"fit {name}"),
            progress=self.progress,
        )
        save_checkpoint(self.out / f"{name}.safetensors", flow_map.state_dict(), {})
        return {"cpu_seconds": result.cpu_seconds, "nll": result.validation, "best_step": result.best_step}

    @cached_property
    def maps(self) -> dict[str, FlowMap]:
        """Those that were trained."""
        found = {}
        for name in ("composed", "direct"):
            found[name] = self.flow_map(name)
            found[name].load_state_dict(load_checkpoint(self.out / f"{name}.safetensors")[0])
            found[name].eval()
        return found

    def simulate(self) -> dict[str, Any]:
        """Monte Carlo of all test laws at once, kept in a file."""
        begin = clock.process_time()
        x0 = torch.cat([self.start("simulation", width) for width in TEST_WIDTHS])
        seed = stream_seed(self.seed, "simulation")
        states, exited = visited_states(self.sde, x0, STRIDE, NUM_STRIDES, step_size=STEP, seed=seed)
        save_checkpoint(self.out / "simulation.safetensors", {"states": states, "exited": exited}, {})
        return {"cpu_seconds": clock.process_time() - begin}

    def start(self, purpose: str, width: float) -> Tensor:
        """Initial states, others for each purpose."""
        with seeded(stream_seed(self.seed, f"{purpose} {width}")):
            return runaway_initial(width).sample((self.electrons,))

    def compare(self, width: float) -> dict[str, Any]:
        """All ways to the history of a law, from initial states of their own."""
        found = load_checkpoint(self.out / "simulation.safetensors")[0]
        number = TEST_WIDTHS.index(width)
        rows = slice(number * self.electrons, (number + 1) * self.electrons)
        seconds = self.parts.parts["simulation"]["cpu_seconds"] / len(TEST_WIDTHS)
        truth = history_of(found["states"][:, rows], found["exited"][:, rows], STRIDE, seconds)
        composed = composed_history(
            self.maps["composed"],
            self.start("composed", width),
            STRIDE,
            NUM_STRIDES,
            every=1,
            seed=stream_seed(self.seed, f"composed noise {width}"),
        )
        direct = direct_history(
            self.maps["direct"],
            self.start("direct", width),
            truth.times,
            seed=stream_seed(self.seed, f"direct noise {width}"),
        )
        return compare_histories(truth, {"composed": composed, "direct": direct}, critical_momentum())


def _broad(highest: float) -> ProductLaw:
    """Uniform over the domain up to a momentum."""
    ends = ((0.5, highest), (-1.0, 1.0), (0.0, 1.0))
    return ProductLaw([dist.Uniform(torch.tensor(low), torch.tensor(high)) for low, high in ends])
