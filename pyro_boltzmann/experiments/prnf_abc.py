"""The ABC flow by flow maps and by a pseudo-reversible flow, beside vectorised Monte Carlo."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm

from pyro_boltzmann.diagnostics import Metric, ks_floor
from pyro_boltzmann.experiments.abc_grid import CENTRES, compare_counts, count_in_rectangle
from pyro_boltzmann.experiments.abc_page import FEW, MANY, PAIR, AbcResults, write_abc_results
from pyro_boltzmann.experiments.abc_scores import Units, ks_rows, map_rows, standardised_nll
from pyro_boltzmann.experiments.abc_speed import (
    REFERENCE,
    SCHEMES,
    Ends,
    Scheme,
    conditional_distance,
    draws_a_second,
)
from pyro_boltzmann.experiments.bendem_rows import to_plain
from pyro_boltzmann.experiments.finished_parts import FinishedParts
from pyro_boltzmann.experiments.prnf_models import Cost, density_of, in_chunks, learn_flow_map, learn_pair
from pyro_boltzmann.experiments.prnf_pairs import pair_rows, pooled_mass
from pyro_boltzmann.experiments.run_metrics import stream_seed
from pyro_boltzmann.experiments.threads import one_thread
from pyro_boltzmann.sde import FlowMap, TransitionData, draw_transitions
from pyro_boltzmann.sde.systems import System, abc_flow
from pyro_boltzmann.transforms import PseudoReversibleFlow

__all__ = ["AbcPlan", "run"]

PERIOD = 6.283185307179586
AUTHORS = Scheme("euler", 0.002)
FINE = Scheme("runge_kutta", 0.02)
"""Of the many pairs and of the test pairs."""
NUM_TEST, NUM_KS, NUM_MANY_KS, NUM_TRIPS = 400_000, 20_000, 200_000, 20_000
GRID_DRAWS, SPEED_STARTS, SPEED_DRAWS, SPEED_ROWS = 4000, 16, 20_000, 40_000


@dataclass(frozen=True)
class AbcPlan:
    """How much is simulated and trained.

    :ivar few: the authors' number of pairs.
    :ivar few_updates: of the flow map on them, batch 1024.
    :ivar many: pairs by the scheme of higher order.
    :ivar many_updates: of the flow map on them.
    :ivar many_batch: rows of an update.
    :ivar pair_seconds: of the pseudo-reversible flow, of which ``pair_epochs`` are planned.
    :ivar minutes: on an idle core.
    """

    few: int = 40_000
    few_updates: int = 2000
    many: int = 2_000_000
    many_updates: int = 5000
    many_batch: int = 2048
    pair_epochs: int = 100
    pair_seconds: float = 180.0
    pair_width: int = 256
    minutes: float = 18.0


PLAN = AbcPlan()


def run(
    *, seed: int, out: Path, minutes: float | None = None, num_samples: int | None = None, progress: bool = True
) -> dict[str, Any]:
    """Simulate, train and score; table, pictures and report go into ``out``. Finished parts are kept, and simulations
    and trainings go on from their checkpoints.

    :param minutes: shorten simulation, trainings and test data in proportion.
    :param num_samples: test pairs.
    """
    share = min(1.0, (minutes or PLAN.minutes) / PLAN.minutes)
    out.mkdir(parents=True, exist_ok=True)
    work = _Work(seed, share, num_samples or max(5000, round(NUM_TEST * share)), out)
    parts = FinishedParts(
        out / "parts.json", {"seed": seed, "share": share, "num_test": work.num_test, "plan": str(PLAN)}
    )
    jobs: dict[str, Callable[[], dict[str, Any]]] = {
        FEW: lambda: work.score_map(FEW, work.few_map),
        MANY: lambda: work.score_map(MANY, work.many_map),
        PAIR: work.score_pair,
        "marginals": work.marginals,
        "grid": work.grid,
        "speed": work.speed,
    }
    with one_thread():
        results = {name: parts.get(name, job) for name, job in tqdm(jobs.items(), disable=not progress)}
        simulated = parts.get("simulation", work.simulation)
    plan = {"few": work.few_pairs, "many": work.many_pairs, "grid": work.grid_draws, "ks": work.ks_draws}
    return write_abc_results(AbcResults(seed, share, work.num_test, plan, results, simulated, out), out)


@dataclass
class _Work:
    """The parts of the experiment; what they share is made when it is first needed."""

    seed: int
    share: float
    num_test: int
    out: Path
    system: System = field(default_factory=abc_flow)

    def number(self, full: int, least: int) -> int:
        return max(least, round(full * self.share))

    def seed_of(self, purpose: str) -> int:
        return stream_seed(self.seed, purpose) % 2**31

    @property
    def few_pairs(self) -> int:
        return self.number(PLAN.few, 10_000)

    @property
    def many_pairs(self) -> int:
        return self.number(PLAN.many, 20_000)

    @property
    def ks_draws(self) -> int:
        return self.number(NUM_KS, 4000)

    @property
    def grid_draws(self) -> int:
        return self.number(GRID_DRAWS, 100)

    # Simulation ---------------------------------------------------------------------------------------------------

    def transitions(self, purpose: str, pairs: int, scheme: Scheme) -> TransitionData:
        return draw_transitions(
            self.system.sde,
            self.system.initial,
            self.system.time,
            pairs,
            step_size=scheme.step_size,
            scheme=scheme.scheme,
            seed=self.seed_of(purpose),
            checkpoint=self.out / f"pairs-{purpose}.safetensors",
        )

    @cached_property
    def few(self) -> TransitionData:
        return self.transitions("few", self.few_pairs, AUTHORS)

    @cached_property
    def many(self) -> TransitionData:
        return self.transitions("many", self.many_pairs, FINE)

    @cached_property
    def test(self) -> TransitionData:
        return self.transitions("test", self.num_test, FINE)

    @cached_property
    def units(self) -> Units:
        return Units(self.few.state.mean(0), self.few.state.std(0))

    @property
    def laws(self) -> dict[str, Any]:
        return {"uniform": self.system.initial, "truncated": self.system.tests["truncated normal"]}

    def simulation(self) -> dict[str, Any]:
        """CPU seconds of the training pairs, by the speeds that were measured, and the units."""
        x0 = self.few.x0[:SPEED_ROWS]
        seconds = {
            name: pairs / draws_a_second(scheme.ends(self.system), x0, repeats=1)
            for name, pairs, scheme in ((FEW, self.few_pairs, AUTHORS), (MANY, self.many_pairs, FINE))
        }
        return {"seconds": seconds, "mean": self.units.mean.tolist(), "scale": self.units.scale.tolist()}

    # Models -------------------------------------------------------------------------------------------------------

    @cached_property
    def few_map(self) -> tuple[FlowMap, Cost]:
        return learn_flow_map(
            lambda: self.make_map(0.1),
            self.few,
            checkpoint=self.out / "map-few.safetensors",
            seed=self.seed_of("few map"),
            num_steps=self.number(PLAN.few_updates, 20),
            batch_size=1024,
            learning_rate=3e-3,
            weight_decay=0.1,
        )

    @cached_property
    def many_map(self) -> tuple[FlowMap, Cost]:
        return learn_flow_map(
            lambda: self.make_map(0.0),
            self.many,
            checkpoint=self.out / "map-many.safetensors",
            seed=self.seed_of("many map"),
            num_steps=self.number(PLAN.many_updates, 20),
            batch_size=PLAN.many_batch,
            learning_rate=4e-3,
            validation=0.02,
            validate_every=250,
        )

    def make_map(self, dropout: float) -> FlowMap:
        return FlowMap.for_sde(self.system.sde, self.system.time, periods=[PERIOD] * 3, dropout=dropout)

    @cached_property
    def pair(self) -> tuple[PseudoReversibleFlow, Cost]:
        return learn_pair(
            lambda: PseudoReversibleFlow(3, hidden_dims=(PLAN.pair_width, PLAN.pair_width)),
            self.few,
            checkpoint=self.out / "pair.safetensors",
            seed=self.seed_of("pair"),
            batch_size=1024,
            num_epochs=self.number(PLAN.pair_epochs, 2),
            max_seconds=PLAN.pair_seconds * self.share,
        )

    def samplers(self) -> dict[str, Ends]:
        few, many, pair = self.few_map[0], self.many_map[0], self.pair[0]
        return {
            FEW: lambda x0: in_chunks(lambda x: few.sample(x, self.system.time), x0),
            MANY: lambda x0: in_chunks(lambda x: many.sample(x, self.system.time), x0),
            PAIR: lambda x0: in_chunks(lambda x: pair.sample(x), x0),
        }

    # Scores -------------------------------------------------------------------------------------------------------

    def score_map(self, name: str, trained: tuple[FlowMap, Cost]) -> dict[str, Any]:
        """Likelihood, mass, round trip and densities of a flow map."""
        flow_map, cost = trained
        x0, y = self.test.x0[:NUM_TRIPS], self.test.state[:NUM_TRIPS]
        with self.seeded(f"score {name}"):
            rows = map_rows(flow_map, x0, y, self.system.time)
            draws = self.number(10_000, 500)
            rows["mass"] = pooled_mass(*flow_map.mass(x0[:8], self.system.time, num_samples=draws))
        return self.scored(flow_map, cost, rows)

    def score_pair(self) -> dict[str, Any]:
        """The same of the pseudo-reversible flow."""
        flow, cost = self.pair
        with self.seeded("score pair"):
            rows = pair_rows(flow, self.test.x0[:NUM_TRIPS], self.test.state[:NUM_TRIPS])
        return self.scored(flow, cost, rows)

    def scored(self, model: FlowMap | PseudoReversibleFlow, cost: Cost, rows: dict[str, Metric]) -> dict[str, Any]:
        nll = standardised_nll(density_of(model, self.system.time), self.test.x0, self.test.state, self.units)
        rows = {"nll": nll, **rows, "updates": Metric(float(cost.updates)), "train_seconds": Metric(cost.seconds)}
        rows["cpu_seconds"] = Metric(cost.cpu_seconds)
        return {"rows": {key: to_plain(row) for key, row in rows.items()}, "cost": cost.plain()}

    def marginals(self) -> dict[str, Any]:
        """Kolmogorov-Smirnov distances of both initial laws, at N = 20,000 from the authors' scheme and at a larger N
        from the scheme of higher order; the simulations of one another stand beside them."""
        rows: dict[str, dict[str, Metric]] = {}
        kept: dict[str, Tensor] = {}
        settings = (("", self.ks_draws, AUTHORS), ("many_", self.number(NUM_MANY_KS, 8000), FINE))
        for prefix, number, scheme in settings:
            with self.seeded(f"marginals {prefix}"):
                simulate = scheme.ends(self.system)
                references = {law: simulate(one.sample((number,))) for law, one in self.laws.items()}
                starts = {law: one.sample((number,)) for law, one in self.laws.items()}
                samplers = {**self.samplers(), "simulation": FINE.ends(self.system)}
                for name, draw in samplers.items():
                    found, draws = ks_rows(draw, starts, references)
                    rows.setdefault(name, {}).update({f"{prefix}{key}": row for key, row in found.items()})
                    if not prefix:
                        kept |= {f"{name}/{law}": state for law, state in draws.items()}
            if not prefix:
                kept |= {f"reference/{law}": state for law, state in references.items()}
        save_file({name: state.contiguous() for name, state in kept.items()}, str(self.out / "marginals.safetensors"))
        return {name: {key: to_plain(row) for key, row in found.items()} for name, found in rows.items()}

    def grid(self) -> dict[str, Any]:
        """Probabilities of the rectangle for each centre, by simulation, by the maps, and by simulation again."""
        number = CENTRES if self.share == 1.0 else CENTRES // 2
        samplers = {"reference": FINE.ends(self.system), **self.samplers(), "simulation": FINE.ends(self.system)}
        counts = {
            name: count_in_rectangle(ends, self.grid_draws, self.seed_of(f"grid {name}"), number)
            for name, ends in samplers.items()
        }
        reference = counts["reference"]
        found = {
            name: {
                **compare_counts(reference, self.grid_draws, count, self.grid_draws).plain(),
                "probability": (count / self.grid_draws).tolist(),
            }
            for name, count in counts.items()
            if name != "reference"
        }
        return {"models": found, "probability": (reference / self.grid_draws).tolist()}

    def speed(self) -> dict[str, Any]:
        """Draws a second, and the distance of conditional laws from a fine simulation."""
        schemes = {scheme.label: scheme.ends(self.system) for scheme in SCHEMES}
        again = {f"{REFERENCE.label}, again": REFERENCE.ends(self.system)}
        samplers: dict[str, Ends] = {**schemes, **self.samplers(), **again}
        with self.seeded("speed"):
            starts = self.system.initial.sample((self.number(SPEED_STARTS, 2),))
            x0 = self.system.initial.sample((self.number(SPEED_ROWS, 4000),))
        distances = conditional_distance(
            {"reference": REFERENCE.ends(self.system), **samplers},
            starts,
            self.number(SPEED_DRAWS, 1000),
            self.seed_of("speed draws"),
        )
        repeats = 3 if self.share == 1.0 else 1
        speeds = {name: draws_a_second(ends, x0, repeats=repeats) for name, ends in samplers.items()}
        floor = ks_floor(*[float(self.number(SPEED_DRAWS, 1000))] * 2)
        return {"speeds": speeds, "distances": distances, "floor": floor, "starts": len(starts)}

    @contextmanager
    def seeded(self, purpose: str) -> Iterator[None]:
        """Torch's global generator from a seed, and as it was afterwards."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed_of(purpose))
            yield
