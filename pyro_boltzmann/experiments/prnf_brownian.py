"""Brownian motion by pseudo-reversible flows and by a flow map: four initial laws, the penalty, and convergence."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from pyro_boltzmann.diagnostics import Metric
from pyro_boltzmann.diagnostics.plots import save_figure
from pyro_boltzmann.experiments.asked import Asked
from pyro_boltzmann.experiments.bendem_rows import from_plain, to_plain
from pyro_boltzmann.experiments.finished_parts import FinishedParts
from pyro_boltzmann.experiments.power_law import PowerLaw, fit_power_law, plot_power_laws
from pyro_boltzmann.experiments.prnf_figures import plot_curves, plot_penalties
from pyro_boltzmann.experiments.prnf_models import (
    BareFlowMap,
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
from pyro_boltzmann.experiments.transition_grid import TransitionGrid
from pyro_boltzmann.sde import FlowMap, TransitionData
from pyro_boltzmann.sde.systems import brownian_motion
from pyro_boltzmann.transforms import PseudoReversibleFlow

__all__ = ["HEADLINE", "BrownianPlan", "run"]

HEADLINE = "flow map"
HALF_WIDTH, TIME = 6.0, 1.0
STUDY_PENALTY, STUDY_RATE, STUDY_WIDTH = 1.0, 1e-2, 32
PENALTIES = (1.0, 10.0, 100.0, 1000.0)
SIZES = (300, 1200, 5000, 20_000, 80_000, 300_000)
WIDTHS = (2, 4, 8, 16, 32, 64)
NETWORK, BARE = "pseudo-reversible flow", "spline couplings alone"
KINDS = (NETWORK, BARE)
NUM_TEST = 20_000
SHOWN = 4
"""Every so many points of the grid are in the picture."""
ASKED_KL = 1e-3


@dataclass(frozen=True)
class BrownianPlan:
    """How much is trained.

    :ivar pairs: of the flow map, the penalty study and the study of widths.
    :ivar map_updates: of the flow map, batch 1024.
    :ivar penalty_updates: of each penalty, batch 1024.
    :ivar study_updates: of each run of the convergence study.
    :ivar passes: over the training rows in these updates, which sets the batch.
    :ivar seeds: of the convergence study.
    :ivar minutes: on an idle core.
    """

    pairs: int = 80_000
    map_updates: int = 500
    penalty_updates: int = 3000
    study_updates: int = 1500
    passes: int = 12
    seeds: int = 3
    minutes: float = 18.0


PLAN = BrownianPlan()


def run(
    *, seed: int, out: Path, minutes: float | None = None, num_samples: int | None = None, progress: bool = True
) -> dict[str, Any]:
    """Train and score everything; table, pictures and report go into ``out``. Every part that is finished is kept.

    :param minutes: shorten all trainings in proportion (then one seed, three sizes and widths).
    :param num_samples: test transitions.
    """
    share = min(1.0, (minutes or PLAN.minutes) / PLAN.minutes)
    work = _Work(seed, share, num_samples or max(1000, round(NUM_TEST * share)), out)
    out.mkdir(parents=True, exist_ok=True)
    lengths = f"{PLAN}, {(HALF_WIDTH, TIME, STUDY_PENALTY, STUDY_RATE, STUDY_WIDTH, PENALTIES, SIZES, WIDTHS)}"
    parts = FinishedParts(
        out / "parts.json", {"seed": seed, "share": share, "num_test": work.num_test, "plan": lengths}
    )
    jobs: dict[str, Callable[[], dict[str, Any]]] = {HEADLINE: work.flow_map}
    jobs |= {f"penalty {penalty:g}": partial(work.penalty, penalty) for penalty in PENALTIES}
    for kind in KINDS:
        for k in range(work.seeds):
            jobs |= {f"{kind}, n = {n}, seed {k}": partial(work.study, kind, n, STUDY_WIDTH, k) for n in work.sizes}
            pairs = min(PLAN.pairs, max(work.sizes))
            jobs |= {f"{kind}, width {w}, seed {k}": partial(work.study, kind, pairs, w, k) for w in work.widths}
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

    @property
    def system(self) -> Any:
        return brownian_motion(half_width=HALF_WIDTH)

    @property
    def sizes(self) -> tuple[int, ...]:
        return SIZES if self.share == 1.0 else SIZES[:3]

    @property
    def widths(self) -> tuple[int, ...]:
        return WIDTHS if self.share == 1.0 else WIDTHS[1::2]

    @property
    def seeds(self) -> int:
        return PLAN.seeds if self.share == 1.0 else 1

    def updates(self, number: int) -> int:
        return max(20, round(number * self.share))

    def data(self, pairs: int, purpose: str) -> TransitionData:
        return exact_transitions(self.system, TIME, pairs, seed=stream_seed(self.seed, purpose) % 2**40)

    def test(self) -> TransitionData:
        return self.data(self.num_test, "test")

    def flow_map(self) -> dict[str, Any]:
        """The headline, with its linear path."""
        flow_map, cost = learn_flow_map(
            lambda: FlowMap.for_sde(self.system.sde, TIME, width=64, coupling_width=32),
            self.data(PLAN.pairs, "train"),
            checkpoint=self.out / "flow-map.safetensors",
            seed=stream_seed(self.seed, "map") % 2**31,
            num_steps=self.updates(PLAN.map_updates),
        )
        test = self.test()
        trip = flow_map.round_trip(test.state, test.x0, TIME).error
        rows = {
            "mass": pooled_mass(*flow_map.mass(test.x0[:MASS_STARTS], TIME)),
            "round_trip": Metric(float(trip.max())),
            "round_trip_rms": Metric(float(trip.double().square().mean().sqrt())),
        }
        return self.scored(flow_map, cost, rows, test)

    def penalty(self, penalty: float) -> dict[str, Any]:
        """A pseudo-reversible flow with this weight of the penalty, as published but for its width."""
        pairs, batch = PLAN.pairs, 1024
        flow, cost = learn_pair(
            lambda: PseudoReversibleFlow(1, hidden_dims=(64, 64), penalty=penalty),
            self.data(pairs, "train"),
            checkpoint=self.out / f"penalty-{penalty:g}.safetensors",
            seed=stream_seed(self.seed, "penalty") % 2**31,
            batch_size=batch,
            num_epochs=max(1, round(self.updates(PLAN.penalty_updates) * batch / (0.9 * pairs))),
        )
        test = self.test()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_seed(self.seed, "draws"))
            rows = pair_rows(flow, test.x0, test.state)
        return self.scored(flow, cost, rows, test)

    def study(self, kind: str, pairs: int, width: int, index: int) -> dict[str, Any]:
        """A run of the convergence study, on data of its own."""
        data = self.data(pairs, f"study {index}")
        updates = self.updates(PLAN.study_updates)
        shown = round(0.8 * pairs)
        batch = min(shown, max(256, PLAN.passes * shown // updates))
        seed = stream_seed(self.seed + index, "study") % 2**31
        model: FlowMap | PseudoReversibleFlow
        if kind == NETWORK:
            model, cost = learn_pair(
                # The grid asks a little beyond few pairs.
                lambda: PseudoReversibleFlow(
                    1, hidden_dims=(width, width), penalty=STUDY_PENALTY, skip=True, outside="warn"
                ),
                data,
                checkpoint=None,
                seed=seed,
                batch_size=batch,
                held_out=0.2,
                num_epochs=max(1, round(updates * batch / shown)),
                learning_rate=STUDY_RATE,
            )
        else:
            model, cost = learn_flow_map(
                lambda: BareFlowMap(1, TIME, width=width, coupling_width=width, num_layers=1),
                data,
                checkpoint=None,
                seed=seed,
                batch_size=batch,
                validation=0.2,
                num_steps=updates,
                validate_every=max(1, updates // 40),
                learning_rate=STUDY_RATE,
                weight_decay=0.0,
            )
        grid = self.grid(model)
        laws = self.system.tests.values()
        errors, masses = [grid.conditional_kl(law) for law in laws], [grid.mass(law) for law in laws]
        return {"kl": float(np.mean(errors)), "mass": float(np.mean(masses)), "cost": cost.plain()}

    def grid(self, model: FlowMap | PseudoReversibleFlow) -> TransitionGrid:
        transition = self.system.transition
        return TransitionGrid.evaluate(
            lambda y, x0: transition.log_prob(y, x0, TIME), density_of(model, TIME), half_width=HALF_WIDTH
        )

    def scored(
        self, model: FlowMap | PseudoReversibleFlow, cost: Cost, rows: dict[str, Metric], test: TransitionData
    ) -> dict[str, Any]:
        """Rows in JSON, and the marginals that the picture shows."""
        grid = self.grid(model)
        log_prob = density_of(model, TIME)(test.state, test.x0)
        exact = self.system.transition.log_prob(test.state, test.x0, TIME)
        nll = nll_row(log_prob)
        entropy = float(self.system.transition.entropy(test.x0[:1], TIME))
        rows["nll"] = Metric(nll.value, nll.std_error, floor=-float(exact.double().mean()), truth=entropy)
        marginals = {}
        for name, law in self.system.tests.items():
            rows[f"kl_{name}"] = Metric(grid.conditional_kl(law))
            rows[f"kl_marginal_{name}"] = Metric(grid.marginal_kl(law))
            exact_log, learned_log = (curve[::SHOWN] for curve in grid.marginals(law))
            marginals[name] = [exact_log.exp().tolist(), learned_log.exp().tolist()]
        rows["mass_quadrature"] = Metric(grid.mass(self.system.tests["normal"]), truth=1.0)
        rows |= {"updates": Metric(float(cost.updates)), "train_seconds": Metric(cost.seconds)}
        plain = {name: to_plain(row) for name, row in rows.items()}
        return {"rows": plain, "marginals": marginals, "y": grid.y[::SHOWN].tolist(), "cost": cost.plain()}


def _write(work: _Work, results: Mapping[str, Any], out: Path) -> dict[str, Any]:
    laws = list(work.system.tests)
    scored = {name: part for name, part in results.items() if "rows" in part}
    rows = {name: {key: from_plain(row) for key, row in part["rows"].items()} for name, part in scored.items()}
    shown = f"penalty {PENALTIES[2]:g}"
    panels = {
        law: (
            scored[HEADLINE]["y"],
            {
                "exact": scored[HEADLINE]["marginals"][law][0],
                HEADLINE: scored[HEADLINE]["marginals"][law][1],
                "pseudo-reversible": scored[shown]["marginals"][law][1],
            },
        )
        for law in laws
    }
    save_figure(plot_curves(panels, "$x_T$", "density"), out / "marginals.png")
    of_penalty = [rows[f"penalty {penalty:g}"] for penalty in PENALTIES]
    curves = {
        "KL, mean of the initial laws": [
            float(np.mean([abs(one[f"kl_{law}"].value or np.nan) for law in laws])) for one in of_penalty
        ],
        "round trip, rms": [one["round_trip_rms"].value or np.nan for one in of_penalty],
        "gap of the densities, sd": [one["gap_sd"].value or np.nan for one in of_penalty],
    }
    save_figure(plot_penalties(PENALTIES, curves), out / "penalty.png")
    studies = {"training pairs": _points(work, results, "n ="), "width": _points(work, results, "width")}
    save_figure(plot_power_laws(studies, "divergence (nats), mean of the initial laws"), out / "convergence.png")
    slopes = {x: {kind: fit_power_law(points) for kind, points in curves.items()} for x, curves in studies.items()}
    columns = ["nll", *(f"kl_{law}" for law in laws), *(f"kl_marginal_{law}" for law in laws)]
    of_pairs = ["mass", "mass_quadrature", "round_trip_rms", "round_trip", "gap_mean", "gap_sd", "folds"]
    of_pairs += ["polished_round_trip", "polished_refused", "updates", "train_seconds"]
    head = rows[HEADLINE]
    asked = [Asked(f"{HEADLINE}: KL, {law}", head[f"kl_{law}"].value or 0.0, ASKED_KL) for law in laws]
    asked += [
        Asked(f"{HEADLINE}: KL of the marginal, {law}", head[f"kl_marginal_{law}"].value or 0.0, ASKED_KL)
        for law in laws
    ]
    asked.append(Asked(f"{HEADLINE}: mass off one, in standard errors", _deviation(head["mass"]), 4.5))
    asked.append(Asked(f"{HEADLINE}: round trip, max", head["round_trip"].value or 0.0, 1e-5))
    asked += [
        Asked(f"slope of the divergence against {x}, {kind}, + 4.5 s.e.", law.slope + 4.5 * law.std_error, 0.0)
        for x, curves in slopes.items()
        for kind, law in curves.items()
    ]
    every = {HEADLINE: head, **{f"penalty {p:g}": one for p, one in zip(PENALTIES, of_penalty, strict=True)}}
    return write_flow_map_results(
        FlowMapResults(
            experiment="prnf-brownian",
            target="brownian",
            title="Brownian motion by flow maps",
            introduction=_introduction(work, slopes, max(part.get("mass", 1.0) for part in results.values())),
            seed=work.seed,
            num_samples=work.num_test,
            headline=HEADLINE,
            tables={"KL divergences": every, "What a pair of networks has to show": every},
            columns={"KL divergences": columns, "What a pair of networks has to show": of_pairs},
            asked=asked,
            pictures={
                "marginals": "Laws at the end for four initial laws that training did not see",
                "penalty": "Pseudo-reversible flows by the weight of the reversibility penalty",
                "convergence": f"Divergence against training pairs (width {STUDY_WIDTH}) and against width "
                f"({min(PLAN.pairs, max(work.sizes)):,} pairs): seeds, geometric means, fitted slopes",
            },
            seconds={"train": sum(part["cost"]["seconds"] for part in results.values())},
            notes=[] if work.share == 1.0 else [f"a shortened run: {work.share:.1%} of the stated training, one seed"],
        ),
        out,
    )


def _deviation(row: Metric) -> float:
    """From one, in standard errors."""
    return abs((row.value or 0.0) - 1.0) / (row.std_error or np.nan)


def _points(work: _Work, results: Mapping[str, Any], axis: str) -> dict[str, dict[int, list[float]]]:
    """Divergences by the kind and by the number behind ``axis`` in the names of the parts."""
    numbers = work.sizes if axis == "n =" else work.widths
    return {
        kind: {
            number: [_divergence(results[f"{kind}, {axis} {number}, seed {k}"]) for k in range(work.seeds)]
            for number in numbers
        }
        for kind in KINDS
    }


def _divergence(part: Mapping[str, float]) -> float:
    """The integral of p log(p / q) - p + q, which is never negative, whatever the mass of q."""
    return part["kl"] + part["mass"] - 1.0


def _introduction(work: _Work, slopes: Mapping[str, Mapping[str, PowerLaw]], most: float) -> str:
    lines = [
        f"- against {x}, {kind}: slope {law.slope:.3f} +- {law.std_error:.3f}"
        for x, curves in slopes.items()
        for kind, law in curves.items()
    ]
    listed = "\n".join(lines)
    return f"""\
One-dimensional Brownian motion for the time 1, after example 5.1 of Yang et al. (arXiv 2306.05580), whose settings are
not published: initial states uniform on [-6, 6], {PLAN.pairs:,} exact pairs. `kl_*` is the conditional
KL(exact || learned) averaged over an initial law, `kl_marginal_*` that of the laws at the end, both in nats by
quadrature (Gauss-Legendre over the initial state, the trapezoidal rule over the end), for each law given that it lies
in [-6, 6]; of the gamma law 8e-5 lie outside. `nll` is of {work.num_test:,} test pairs: its truth is the entropy, its
floor the exact law on the same pairs. Where the mass is not one, a KL may be negative.

The *flow map* has a least-squares affine path, which alone is exact here, so its KL is that of estimating a line and a
width. `penalty *` are pseudo-reversible flows (networks 1 + 1 - 64 - 64 - 1) by the weight of the penalty on
g(h(y)) - y, in standardised columns. `round_trip*` are of g(h(y)) - y, `gap_*` of the log-density of h less that of g
at draws of g, `mass` by importance sampling and `mass_quadrature` on the grid, `folds` determinants of the minority's
sign, `polished_round_trip` the residual of h at polished draws and `polished_refused` the share that was refused.

Convergence is shown without any linear path, which would make it trivial: of a *{NETWORK}* (with a skip connection
and the penalty {STUDY_PENALTY:g}, whose loss is the quickest to learn), and of *{BARE}*, whose law is `m + s F(z; x_0)`
with constants m and s, so that networks have to find the initial state's part. All runs have
{work.updates(PLAN.study_updates):,} updates and keep the parameters that were best on a fifth of the pairs;
{work.seeds} seed(s), with data of their own. The divergence is that of densities of any mass, the integral of
p log(p/q) - p + q, which is KL + mass - 1 and never negative; it is the mean over the four initial laws. Mass differs
from one where a pair of networks folds, which it does when the pairs are few: up to {most:.3g} here. Slopes are least
squares in logarithms:

{listed}

Where a curve flattens, it is these few updates and not the pairs or the width that limit it."""
