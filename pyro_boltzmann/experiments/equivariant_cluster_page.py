"""Report, page and pictures of the experiment on equivariant flows of a cluster."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from pyro_boltzmann.diagnostics import Metric, Truth, build_report, write_report
from pyro_boltzmann.diagnostics.plots import plot_configurations, plot_energy_histogram, save_figure
from pyro_boltzmann.energies.catalogue.particles import ParticleTarget
from pyro_boltzmann.energies.evaluation import energy_value
from pyro_boltzmann.experiments.asked import Asked, asked_table, short_of
from pyro_boltzmann.experiments.equivariant_models import CLUSTER_MODELS
from pyro_boltzmann.experiments.equivariant_page import PICTURED, likelihood_figure
from pyro_boltzmann.experiments.equivariant_scores import scored_rows
from pyro_boltzmann.experiments.particle_data import ParticleData
from pyro_boltzmann.experiments.results_page import write_results_page
from pyro_boltzmann.experiments.run_metrics import failures_of

__all__ = ["ClusterResults", "write_cluster_results"]

SHOWN = 6
"""Configurations in a picture."""

Rows = dict[str, Metric]


@dataclass
class ClusterResults:
    """All that the experiment measured.

    :ivar parts: what each job gave, by its name.
    """

    target: ParticleTarget
    seed: int
    share: float
    num_samples: int
    sizes: tuple[int, ...]
    plan: Any
    parts: dict[str, Any] = field(default_factory=dict)

    @property
    def experiment(self) -> str:
        """Its name on the command line."""
        return f"equivariant-{self.target.name}"

    @property
    def seeds(self) -> list[str]:
        """Names of the headline's jobs."""
        return [name for name in self.parts if name.startswith("seed ")]


def write_cluster_results(results: ClusterResults, data: ParticleData, out: Path) -> dict[str, Any]:
    """Write ``report.json``, the page and the pictures; returns the report."""
    tables = _tables(results)
    models = {name: rows for table in tables.values() for name, rows in table.items()}
    head = next(iter(models))
    asked = _asked(results, models)
    gradients = sum(int(part["gradients"]) for part in _trained(results))
    report = build_report(
        experiment=results.experiment,
        target=results.target.name,
        sampler=head,
        seed=results.seed,
        num_samples=results.num_samples,
        metrics=models[head],
        models=models,
        energy_evaluations={
            "train": {"values": gradients, "gradients": gradients},
            "data": {"values": int(data.evaluations), "gradients": int(data.evaluations)},
        },
        wall_seconds={"train": _sum(results, "train_seconds")},
        cpu_seconds={
            "train": _sum(results, "cpu_seconds"),
            "score": _sum(results, "score_seconds"),
            "data": data.seconds,
        },
        threads=torch.get_num_threads(),
        target_hash=results.target.target_hash,
        failures=failures_of(models[head]),
        notes=[*_notes(results), *short_of(asked)],
    )
    write_report(report, out / "report.json")
    write_results_page(
        out / f"{results.experiment}.md",
        report,
        title=f"Equivariant flows on {results.target.name}",
        introduction=_introduction(results, models[head]["nll"], asked),
        columns=_COLUMNS,
        tables={heading: list(table) for heading, table in tables.items()},
        pictures=_draw_pictures(results, data, out),
    )
    return report


_HEADLINE, _SIZES, _STATES = "Headline", "By the size of the training set", "Metastable states"
_SMC, _SAVINGS = "log Z by sequential Monte Carlo", "Evaluations for an error of log Z"
_SCORES = [
    "nll",
    "nll_controlled",
    "nll_excess",
    "ess",
    "log_z",
    "e_w2",
    "mean_energy",
    "khat",
    "updates",
    "cpu_seconds",
]
_COLUMNS = {
    _HEADLINE: _SCORES,
    _SIZES: _SCORES,
    _STATES: ["train_size", "states_data", "states_drawn", "states_new", "draws", "draws_new"],
    _SMC: ["log_z", "log_z_rms", "runs", "evaluations", "constant"],
    _SAVINGS: ["from_gaussian", "from_flow", "saving"],
}


def _tables(results: ClusterResults) -> dict[str, dict[str, Rows]]:
    """Rows of each model, by the heading of its table."""
    parts = results.parts
    tables: dict[str, dict[str, Rows]] = {heading: {} for heading in _COLUMNS}
    for name in results.seeds:
        tables[_HEADLINE][f"graph, {name}"] = _rows(parts[name]["rows"])
    for model in CLUSTER_MODELS:
        for size in results.sizes:
            tables[_SIZES][f"{model} {size}"] = _rows(parts[f"{model} {size}"]["rows"])
    for name, rows in parts["states"]["rows"].items():
        tables[_STATES][f"draws of {name}"] = _rows(rows, "states are counted, not weighted")
    for name in (*(f"gaussian {number}" for number in results.plan.proposals.particles), "flow"):
        shown = f"from the {name.split()[0].replace('g', 'G', 1)}, {parts[name]['particles']:,} particles"
        tables[_SMC][shown] = _rows(parts[name]["rows"], "errors are those of the runs")
    for name, rows in parts["savings"].items():
        tables[_SAVINGS][name] = _rows(rows, "a number of evaluations has no weights")
    return tables


def _rows(plain: dict[str, Any], no_khat: str = "") -> Rows:
    rows = scored_rows(plain)
    return {**rows, "khat": Metric(None, reason=no_khat)} if no_khat else rows


def _trained(results: ClusterResults) -> list[dict[str, Any]]:
    headline = [results.parts[name] for name in results.seeds]
    return headline + [results.parts[f"{model} {size}"] for model in CLUSTER_MODELS for size in results.sizes]


def _sum(results: ClusterResults, name: str) -> float:
    return sum(part["rows"][name]["value"] or 0.0 for part in _trained(results))


def _notes(results: ClusterResults) -> list[str]:
    if results.share == 1.0:
        return []
    return [f"a shortened run: {results.share:.1%} of the stated training, one seed, sizes up to {results.sizes[-1]:,}"]


def _draw_pictures(results: ClusterResults, data: ParticleData, out: Path) -> dict[str, str]:
    target, parts = results.target, results.parts
    draws = load_file(out / "draws-headline-0.safetensors")
    exact = energy_value(target.energy, data.test)
    save_figure(
        likelihood_figure(parts, results.sizes, CLUSTER_MODELS, target.name),
        out / "nll.png",
    )
    save_figure(
        plot_energy_histogram(
            draws["energy"], draws["log_weights"], exact, exact_label="test data", title="Energies, headline"
        ),
        out / "energies_headline.png",
    )
    pictures = {
        "nll": PICTURED,
        "energies_headline": "Energies of draws of the headline model, raw and reweighted",
    }
    finite = draws["z"][draws["z"].isfinite().all(-1)][:SHOWN]
    shown = {"configurations_headline": (finite, "Draws, headline", "Unweighted draws of the headline model")}
    states, found = load_file(out / "states.safetensors"), parts["states"]
    energies = [found["lowest_energy"], *found["new_energy"]][:SHOWN]
    minima = torch.cat([states["lowest"], states["new"]])[:SHOWN]
    listed = ", ".join(f"{energy:.2f}" for energy in energies)
    caption = f"The lowest minimum, and minima below draws that no training datum leads to; energies {listed} kT"
    shown["states"] = (minima, "Metastable states", caption)
    for name, (x, title, text) in shown.items():
        if len(x):
            particles = target.to_particles(x).double().numpy()
            save_figure(plot_configurations(particles, title=title), out / f"{name}.png")
            pictures[name] = text
    return pictures


def _asked(results: ClusterResults, models: dict[str, Rows]) -> list[Asked]:
    heads = [models[f"graph, {name}"] for name in results.seeds]

    def worst(name: str, pick: Callable[[list[float]], float]) -> float:
        values = [rows[name].value for rows in heads]
        return pick([math.nan if value is None else value for value in values])

    assert results.target.log_z is not None
    deviations = [abs((rows["log_z"].value or math.nan) - results.target.log_z) for rows in heads]
    new = models["draws of headline"]["states_new"].value or 0.0
    asked = [
        Asked("NLL, worst seed", worst("nll", max), 17.6),
        Asked("NLL with the energy as control variate, worst seed", worst("nll_controlled", max), 17.6),
        Asked("ESS, worst seed", worst("ess", min), 0.2, at_least=True),
        Asked("error of log Z, worst seed", max(deviations), 0.2),
        Asked("new metastable states of the headline", new, 1.0, at_least=True),
    ]
    savings = {name: rows["saving"].value or math.nan for name, rows in models.items() if "saving" in rows}
    return asked + [Asked(f"saving in SMC, {name}", value, 2.0, at_least=True) for name, value in savings.items()]


def _introduction(results: ClusterResults, nll: Metric, asked: list[Asked]) -> str:
    truth = nll.truth.value if isinstance(nll.truth, Truth) else nll.truth
    plan, share, parts = results.plan, results.share, results.parts
    best = "" if truth is None else f" The least possible on average is the entropy, {truth:.2f};"
    own = "" if nll.floor is None else f" on these very test data it is {nll.floor:.2f}."
    few = min(500, results.num_samples)
    return f"""\
`nll` is the negative log-likelihood of test configurations, in nats on the {results.target.dim}-dimensional mean-free
subspace, normalised.{best}{own} `nll_excess` is the mean of log p - log q over them, the Kullback-Leibler divergence
from the target, known more precisely; `nll_controlled` is the entropy plus that excess.
`ess` (a fraction of N), `log_z` and `e_w2`, the distance of the reweighted
energies from those of test data with its sampling floor in the report, are of weighted draws; weights of networks are
exact for their discrete map; densities of data are those of the equation, with eight Runge-Kutta steps good to about
0.01 in the mean (12 rows against 20 steps). Training, validation and test data come from separate systems of the
project's own sampler.

The headline is the graph field on {min(10_000, results.sizes[-1]):,} configurations: flow matching on pairs aligned
over permutations, rotations and reflections ({plan.headline * share:.0f} s planned), with Muon. It is scored on
{results.num_samples:,} draws, networks of the sweep on {few:,}. There each model has {plan.sweep * share:.3g} s:
`embedded_atom` and `graph` know all symmetries, `plain_augmented` is shown data that are turned, mirrored and permuted
at random. All keep the state that was best on validation data. Each row is one short
training with one seed, far from its end, as the headline shows: small differences between rows need not come from the
data, and `updates` tells where other work on the machine cut a training short.

*States.* Draws of the graph fields and training data descend to the minima below them. Since a minimum lies below any
point at all, only draws count, as `draws`, whose energy is not above the highest of the reference samples. `states_new`
of the states below them are below no datum that the flow has seen, and `draws_new` draws lead there. Each is verified:
its Hessian is positive but for rotations.

*Sequential Monte Carlo* starts from a Gaussian of standard deviation {plan.proposals.scale:g}, or from the headline's
draws in pieces of {parts["flow"]["particles"]}: these are weighted, resampled and moved by Hamiltonian moves of the
target, whose evaluations are counted although they do not change log Z. `log_z_rms` is the error of one run, bias
included, and `constant` its square times the evaluations of a run: what an error of one would take. The last table
divides the better constant of the Gaussian, and that of the flow, by the square of an error that is asked for, which
takes errors to fall as the square root of the number of draws: where k-hat is above 0.7 they fall more slowly. Flow
matching itself evaluates no energy, but its data do, and they count in full where the training is included.

{asked_table(asked)}"""
