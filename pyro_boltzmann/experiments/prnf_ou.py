"""Ornstein-Uhlenbeck processes in 1 to 30 dimensions by flow maps and by pseudo-reversible flows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Generator
from tqdm.auto import tqdm

from pyro_boltzmann.diagnostics import Metric
from pyro_boltzmann.diagnostics.plots import save_figure
from pyro_boltzmann.diagnostics.plots.style import INK, RAW, WEIGHTED, new_figure, tidy
from pyro_boltzmann.experiments.asked import Asked
from pyro_boltzmann.experiments.bendem_rows import from_plain, to_plain
from pyro_boltzmann.experiments.finished_parts import FinishedParts
from pyro_boltzmann.experiments.prnf_models import (
    Cost,
    density_of,
    exact_transitions,
    learn_flow_map,
    learn_pair,
)
from pyro_boltzmann.experiments.prnf_page import FlowMapResults, write_flow_map_results
from pyro_boltzmann.experiments.prnf_pairs import MASS_STARTS, nll_row, pair_rows, pooled_mass
from pyro_boltzmann.experiments.run_metrics import stream_seed
from pyro_boltzmann.experiments.threads import one_thread
from pyro_boltzmann.experiments.transition_grid import InitialNodes, TransitionGrid
from pyro_boltzmann.experiments.transition_kl import conditional_kl, draw_starts, marginal_kl
from pyro_boltzmann.sde import FlowMap, chapman_kolmogorov
from pyro_boltzmann.sde.systems import System, ornstein_uhlenbeck
from pyro_boltzmann.transforms import PseudoReversibleFlow

__all__ = ["HEADLINE", "OrnsteinUhlenbeckPlan", "run"]

HALF_WIDTH, TIME = 6.0, 1.0
DIMS = (1, 2, 10, 30)
PAIR_DIMS = (2, 10)
HEADLINE = "flow map, d = 10"
TIMED = "flow map of all times, d = 2"
TIMES = (0.1, 0.25, 0.5, 1.0)
NUM_TEST = 50_000
NUM_STATES, NUM_STARTS, MASS_DRAWS = 1500, 64, 10_000
ASKED = {1: 1e-3, 2: 1e-3, 10: 0.02}
FALSE_ALARM = 1e-5 / 2
"""Of the Kolmogorov-Smirnov test of each coordinate."""


@dataclass(frozen=True)
class OrnsteinUhlenbeckPlan:
    """How much is trained.

    :ivar pairs: of each model.
    :ivar map_updates: of each flow map, batch 1024.
    :ivar timed_updates: of the flow map of all times, batch 1024.
    :ivar pair_updates: of each pseudo-reversible flow, batch 1024.
    :ivar width: of the pseudo-reversible networks.
    :ivar minutes: on an idle core.
    """

    pairs: int = 200_000
    map_updates: int = 400
    timed_updates: int = 1500
    pair_updates: int = 2500
    width: int = 128
    minutes: float = 15.0


PLAN = OrnsteinUhlenbeckPlan()


def run(
    *, seed: int, out: Path, minutes: float | None = None, num_samples: int | None = None, progress: bool = True
) -> dict[str, Any]:
    """Train and score everything; table, picture and report go into ``out``. Every part that is finished is kept.

    :param minutes: shorten all trainings and test data in proportion.
    :param num_samples: test transitions of each initial law.
    """
    share = min(1.0, (minutes or PLAN.minutes) / PLAN.minutes)
    work = _Work(seed, share, num_samples or max(1000, round(NUM_TEST * share)), out)
    out.mkdir(parents=True, exist_ok=True)
    lengths = f"{PLAN}, {(HALF_WIDTH, TIME, DIMS, PAIR_DIMS, TIMES, NUM_STATES, NUM_STARTS, MASS_DRAWS)}"
    parts = FinishedParts(
        out / "parts.json", {"seed": seed, "share": share, "num_test": work.num_test, "plan": lengths}
    )
    jobs: dict[str, Callable[[], dict[str, Any]]] = {f"flow map, d = {d}": partial(work.flow_map, d) for d in DIMS}
    jobs |= {f"pseudo-reversible, d = {d}": partial(work.pair, d) for d in PAIR_DIMS}
    jobs[TIMED] = work.timed
    with one_thread():
        results = {name: parts.get(name, job) for name, job in tqdm(jobs.items(), disable=not progress)}
    return _write(work, results, out)


@dataclass(frozen=True)
class _Work:
    """The parts of the experiment."""

    seed: int
    share: float
    num_test: int
    out: Path

    def updates(self, number: int) -> int:
        return max(20, round(number * self.share))

    def seed_of(self, purpose: str) -> int:
        return stream_seed(self.seed, purpose) % 2**31

    def states(self) -> int:
        return max(40, round(NUM_STATES * self.share))

    def pairs(self) -> int:
        return max(5000, round(PLAN.pairs * self.share))

    def flow_map(self, dim: int) -> dict[str, Any]:
        """One time, with the linear path."""
        system = ornstein_uhlenbeck(dim, half_width=HALF_WIDTH)
        flow_map, cost = learn_flow_map(
            lambda: FlowMap.for_sde(system.sde, TIME, width=64, coupling_width=64),
            exact_transitions(system, TIME, self.pairs(), seed=self.seed_of(f"train {dim}")),
            checkpoint=self.out / f"flow-map-{dim}.safetensors",
            seed=self.seed_of(f"map {dim}"),
            num_steps=self.updates(PLAN.map_updates),
        )
        test = exact_transitions(system, TIME, self.num_test, seed=self.seed_of(f"test {dim}"))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed_of("mass"))
            draws = max(500, round(MASS_DRAWS * self.share))
            mass = pooled_mass(*flow_map.mass(test.x0[:MASS_STARTS], TIME, num_samples=draws))
        trip = flow_map.round_trip(test.state, test.x0, TIME).error
        return self.scored(system, flow_map, cost, {"mass": mass, "round_trip": Metric(float(trip.max()))})

    def pair(self, dim: int) -> dict[str, Any]:
        """A pseudo-reversible flow."""
        system, batch, pairs = ornstein_uhlenbeck(dim, half_width=HALF_WIDTH), 1024, self.pairs()
        flow, cost = learn_pair(
            lambda: PseudoReversibleFlow(dim, hidden_dims=(PLAN.width, PLAN.width)),
            exact_transitions(system, TIME, pairs, seed=self.seed_of(f"train {dim}")),
            checkpoint=self.out / f"pair-{dim}.safetensors",
            seed=self.seed_of(f"pair {dim}"),
            batch_size=batch,
            num_epochs=max(1, round(self.updates(PLAN.pair_updates) * batch / (0.9 * pairs))),
        )
        test = exact_transitions(system, TIME, self.num_test, seed=self.seed_of(f"test {dim}"))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed_of("mass"))
            rows = pair_rows(flow, test.x0[:20_000], test.state[:20_000])
        return self.scored(system, flow, cost, rows)

    def timed(self) -> dict[str, Any]:
        """A flow map of all times: its KL at some of them, and two steps against one."""
        system = ornstein_uhlenbeck(2, half_width=HALF_WIDTH)
        span = (0.5 * TIMES[0], TIME)
        flow_map, cost = learn_flow_map(
            lambda: FlowMap.for_sde(system.sde, span, width=64, coupling_width=64),
            exact_transitions(system, span, self.pairs(), seed=self.seed_of("train all times")),
            checkpoint=self.out / "flow-map-times.safetensors",
            seed=self.seed_of("all times"),
            num_steps=self.updates(PLAN.timed_updates),
        )
        nodes, law = InitialNodes.within(HALF_WIDTH), ornstein_uhlenbeck(1).tests["normal"]
        generator = Generator().manual_seed(self.seed_of("times"))
        starts = draw_starts(nodes, law, self.num_test, 2, generator=generator)
        rows: dict[str, Metric] = {}
        for time in TIMES:
            learned = density_of(flow_map, time)
            kl = conditional_kl(system.transition, time, learned, starts, is_normalised=True, generator=generator)
            rows[f"kl_t{time:g}"] = Metric(*kl)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed_of("two steps"))
            two = chapman_kolmogorov(flow_map, starts[:20_000].float(), 0.5 * TIME, 0.5 * TIME)
        for index, test in enumerate(two.marginals, 1):
            rows[f"two_steps_ks_{index}"] = Metric(test.distance, floor=test.floor)
        lowest = min(1.0 if test.p_value is None else test.p_value for test in two.marginals)
        rows |= {"two_steps_p": Metric(lowest), "updates": Metric(float(cost.updates))}
        rows["train_seconds"] = Metric(cost.seconds)
        return {"rows": {name: to_plain(row) for name, row in rows.items()}, "cost": cost.plain()}

    def scored(
        self, system: System, model: FlowMap | PseudoReversibleFlow, cost: Cost, rows: dict[str, Metric]
    ) -> dict[str, Any]:
        """KL divergences under the four initial laws, by quadrature in one dimension, else by Monte Carlo."""
        dim, learned, transition = system.sde.event_dim, density_of(model, TIME), system.transition
        laws, is_normalised = ornstein_uhlenbeck(1).tests, isinstance(model, FlowMap)
        generator = Generator().manual_seed(self.seed_of(f"score {dim}"))
        nodes = InitialNodes.within(HALF_WIDTH)
        if dim == 1:
            grid = TransitionGrid.evaluate(
                lambda y, x0: transition.log_prob(y, x0, TIME), learned, half_width=HALF_WIDTH
            )
        for name, law in laws.items():
            if dim == 1:
                rows[f"kl_{name}"] = Metric(grid.conditional_kl(law))
                rows[f"kl_marginal_{name}"] = Metric(grid.marginal_kl(law))
                continue
            starts = draw_starts(nodes, law, self.num_test, dim, generator=generator)
            kl = conditional_kl(transition, TIME, learned, starts, is_normalised=is_normalised, generator=generator)
            rows[f"kl_{name}"] = Metric(*kl)
            states = self.states()
            marginal = marginal_kl(
                transition, TIME, learned, nodes, law, dim,
                num_states=states, num_starts=NUM_STARTS, is_normalised=is_normalised, generator=generator,
            )  # fmt: skip
            rows[f"kl_marginal_{name}"] = Metric(*marginal, num_samples=states)
        test = exact_transitions(system, TIME, self.num_test, seed=self.seed_of(f"test {dim}"))
        nll = nll_row(learned(test.state, test.x0))
        exact = -float(transition.log_prob(test.state, test.x0, TIME).double().mean())
        entropy = float(transition.entropy(test.x0[:1].double(), TIME))
        rows["nll"] = Metric(nll.value, nll.std_error, floor=exact, truth=entropy)
        rows |= {"updates": Metric(float(cost.updates)), "train_seconds": Metric(cost.seconds)}
        return {"rows": {name: to_plain(row) for name, row in rows.items()}, "cost": cost.plain()}


def _write(work: _Work, results: Mapping[str, Any], out: Path) -> dict[str, Any]:
    rows = {name: {key: from_plain(row) for key, row in part["rows"].items()} for name, part in results.items()}
    laws = list(ornstein_uhlenbeck(1).tests)
    maps = {name: rows[name] for name in (f"flow map, d = {d}" for d in DIMS)}
    pairs = {name: rows[name] for name in (f"pseudo-reversible, d = {d}" for d in PAIR_DIMS)}
    columns = ["nll", *(f"kl_{law}" for law in laws), *(f"kl_marginal_{law}" for law in laws), "mass", "round_trip"]
    of_pairs = ["round_trip_rms", "polished_round_trip", "polished_refused", "gap_mean", "gap_sd", "folds"]
    of_times = [*(f"kl_t{time:g}" for time in TIMES), "two_steps_ks_1", "two_steps_ks_2", "two_steps_p"]
    cost = ["updates", "train_seconds"]
    save_figure(_kl_figure(rows, laws), out / "kl.png")
    asked, failures = [], []
    for dim, bound in ASKED.items():
        one = maps[f"flow map, d = {dim}"]
        for kind in ("kl", "kl_marginal"):
            worst = max(one[f"{kind}_{law}"].value or 0.0 for law in laws)
            word = "KL" if kind == "kl" else "KL of the marginal"
            asked.append(Asked(f"d = {dim}: {word}, worst of the initial laws", worst, bound))
    for dim in DIMS:
        mass = maps[f"flow map, d = {dim}"]["mass"]
        off = abs((mass.value or 0.0) - 1.0) / (mass.std_error or np.nan)
        asked.append(Asked(f"d = {dim}: mass off one, in standard errors", off, 4.5))
        if not asked[-1].is_met:
            failures.append(f"the mass of the flow map at d = {dim} is {mass.value} +- {mass.std_error}")
    two_steps = rows[TIMED]["two_steps_p"].value or 0.0
    asked.append(Asked("two steps against one: p-value of the worse coordinate", two_steps, FALSE_ALARM, True))
    return write_flow_map_results(
        FlowMapResults(
            experiment="prnf-ou",
            target="ornstein-uhlenbeck",
            title="Ornstein-Uhlenbeck processes by flow maps",
            introduction=_introduction(work),
            seed=work.seed,
            num_samples=work.num_test,
            headline=HEADLINE,
            tables={"Flow maps": maps, "Pseudo-reversible flows": pairs, "All times": {TIMED: rows[TIMED]}},
            columns={
                "Flow maps": [*columns, *cost],
                "Pseudo-reversible flows": [*columns, *of_pairs, *cost],
                "All times": [*of_times, *cost],
            },
            asked=asked,
            pictures={"kl": "KL(exact || learned) averaged over the initial state, and of the laws at the end, mean of "
                      "the four initial laws"},
            seconds={"train": sum(part["cost"]["seconds"] for part in results.values())},
            failures=failures,
            notes=[] if work.share == 1.0 else [f"a shortened run: {work.share:.1%} of the stated training"],
        ),
        out,
    )  # fmt: skip


def _kl_figure(rows: Mapping[str, Mapping[str, Metric]], laws: list[str]) -> Figure:
    figure, (axes,) = new_figure(8.6, 4.0)
    for kind, style in (("kl", "-"), ("kl_marginal", "--")):
        for model, dims, colour in (("flow map", DIMS, WEIGHTED), ("pseudo-reversible", PAIR_DIMS, RAW)):
            means = [
                float(np.mean([rows[f"{model}, d = {dim}"][f"{kind}_{law}"].value or np.nan for law in laws]))
                for dim in dims
            ]
            label = f"{model}{'' if kind == 'kl' else ', laws at the end'}"
            axes.plot(dims, means, marker="o", linestyle=style, color=colour, label=label)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(DIMS, [str(dim) for dim in DIMS], minor=False)
    axes.minorticks_off()
    tidy(axes, title="Divergence from the exact law", x="dimension", y="KL (nats)", legend=False)
    axes.legend(frameon=False, fontsize=10, labelcolor=INK, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _introduction(work: _Work) -> str:
    return f"""\
dX = -X dt + dW for the time 1, whose law is known; {work.pairs():,} exact pairs from initial states uniform on
[-6, 6]^d. `kl_*` is KL(exact || learned) averaged over an initial law of independent coordinates, `kl_marginal_*` that
of the laws at the end, both in nats, for each law given that all coordinates lie in [-6, 6] (of the gamma law 8e-5 a
coordinate lie outside). In one dimension both are quadratures. Else `kl_*` is the mean of log p - log q over
{work.num_test:,} exact transitions (for flow maps, whose mass is one by construction, plus that of q/p - 1, whose mean
is zero), and the marginal one likewise

$$\\mathrm{{KL}}(p_T\\,\\|\\,q_T) = -\\mathbb E_{{y \\sim p_T}} \\log
\\mathbb E_{{x_0 \\sim p(x_0 \\mid y)}}\\Bigl[\\frac{{q(y \\mid x_0)}}{{p(y \\mid x_0)}}\\Bigr]$$

with the exact posterior of the initial state, {NUM_STARTS} draws of it for each of
{work.states():,} states, and the leading bias of the logarithm taken out; where q is far
from p, the inner mean has a heavy tail and the figure is an upper estimate. `nll` is of test pairs from the training
law, its truth the entropy, its floor the exact law on the same pairs. `mass` is by importance sampling at
{MASS_STARTS} initial states; its error grows with d, so that at d = 30 it tests only for gross faults.

The law is Gaussian with an affine mean, so the flow map's least-squares affine path is all that there is to learn; its
couplings are trained and kept only where held-out pairs gain from them. Pseudo-reversible flows (networks of width
{PLAN.width}) have to learn it all; where their mass is not one, `kl_*` is no divergence. The flow map of all times is
trained on times uniform in [{0.5 * TIMES[0]:g}, {TIME:g}]; `kl_t*` are at single times under the normal law.
`two_steps_ks_*` compare two steps of {0.5 * TIME:g} with one of {TIME:g}, 20,000 draws each in a full run: the law of a
Markov process has nothing but the floor (the mean for equal laws), and `two_steps_p` is the lower of the two
p-values."""
