"""Report, page and pictures of an experiment on equivariant flows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from safetensors.torch import load_file

from pyro_boltzmann.diagnostics import Metric, Truth, build_report, write_report
from pyro_boltzmann.diagnostics.plots import plot_configurations, plot_energy_histogram, save_figure
from pyro_boltzmann.diagnostics.plots.style import INK, new_figure, tidy
from pyro_boltzmann.energies.catalogue.particles import ParticleTarget
from pyro_boltzmann.energies.evaluation import energy_value
from pyro_boltzmann.experiments.asked import Asked, asked_table, short_of
from pyro_boltzmann.experiments.bendem_rows import from_plain
from pyro_boltzmann.experiments.equivariant_models import MODELS
from pyro_boltzmann.experiments.equivariant_scores import scored_rows
from pyro_boltzmann.experiments.equivariant_solvers import SOLVERS
from pyro_boltzmann.experiments.equivariant_training import SLACK
from pyro_boltzmann.experiments.particle_data import ParticleData
from pyro_boltzmann.experiments.results_page import write_results_page
from pyro_boltzmann.experiments.run_metrics import failures_of

__all__ = ["OF_ENERGY", "PICTURED", "EquivariantResults", "likelihood_figure", "write_equivariant_results"]

OF_ENERGY = 5
"""Times as many draws of flows that learned from the energy alone."""
SHOWN = 6
"""Configurations in a picture."""
LEAST_EXCESS, MOST_EXCESS = 1e-3, 1e2
"""Of likelihoods in the picture."""
PICTURED = "`nll_excess` against the size of the training set, with standard errors, between 0.001 and 100 nats"
"""What the picture of likelihoods shows."""
_COLOURS = {
    "kernel": ("#56b4e9", "o"),
    "embedded_atom": ("#0072b2", "s"),
    "graph": ("#d55e00", "*"),
    "plain": ("#999999", "v"),
    "plain_augmented": ("#5f5f5f", "^"),
    "coupling_augmented": ("#cc79a7", "P"),
    "real_nvp_augmented": ("#e69f00", "X"),
}


@dataclass
class EquivariantResults:
    """All that an experiment measured.

    :ivar parts: what each job gave, by its name.
    :ivar divergences: of :func:`.divergence_costs`.
    """

    target: ParticleTarget
    seed: int
    share: float
    num_samples: int
    sizes: tuple[int, ...]
    headline_size: int
    plan: Any
    parts: dict[str, Any] = field(default_factory=dict)
    divergences: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def experiment(self) -> str:
        """Its name on the command line."""
        return f"equivariant-{self.target.name}"


def write_equivariant_results(results: EquivariantResults, data: ParticleData, out: Path) -> dict[str, Any]:
    """Write ``report.json``, the page and the pictures; returns the report."""
    tables, models, gradients = _models(results)
    head = next(iter(models))
    asked = _asked(results, models)
    report = build_report(
        experiment=results.experiment,
        target=results.target.name,
        sampler=head,
        seed=results.seed,
        num_samples=results.num_samples,
        metrics=models[head],
        models=models,
        energy_evaluations={"train": {"values": gradients, "gradients": gradients}},
        wall_seconds={"train": _sum(models, "train_seconds")},
        cpu_seconds={
            "train": _sum(models, "cpu_seconds"),
            "score": _sum(models, "score_seconds"),
            "data": data.seconds,
        },
        threads=torch.get_num_threads(),
        target_hash=results.target.target_hash,
        failures=failures_of(models[head]),
        notes=[*_notes(results), *short_of(asked)],
    )
    write_report(report, out / "report.json")
    solvers, divergences = tables.pop(_SOLVERS), tables.pop(_DIVERGENCES)
    tables |= {_SOLVERS: solvers, _DIVERGENCES: divergences}
    columns = ["nll", "nll_controlled", "nll_excess", "ess", "log_z", "mean_energy", "khat", "updates", "cpu_seconds"]
    write_results_page(
        out / f"{results.experiment}.md",
        report,
        title=f"Equivariant flows on {results.target.name}",
        introduction=_introduction(results, models[head]["nll"], asked).rstrip(),
        columns={heading: columns if heading != _DIVERGENCES else _OF_DIVERGENCES for heading in tables},
        tables=tables,
        pictures=_draw_pictures(results, data, out),
    )
    return report


Rows = dict[str, Metric]


def _models(results: EquivariantResults) -> tuple[dict[str, list[str]], dict[str, Rows], int]:
    """Which models are in which table, their rows, and gradients of the energy that all trainings took."""
    tables: dict[str, list[str]] = {_HEADLINE: [], _SIZES: [], _SOLVERS: [], _DIVERGENCES: []}
    models: dict[str, Rows] = {}
    gradients = 0

    def add(heading: str, name: str, part: dict[str, Any]) -> None:
        nonlocal gradients
        tables[heading].append(name)
        models[name] = scored_rows(part["rows"])
        gradients += part["gradients"]

    for name, part in results.parts.items():
        if name.startswith("seed "):
            add(_HEADLINE, f"graph, {name}", part)
        elif name in SOLVERS:
            add(_SOLVERS, name, part)
        else:
            add(_HEADLINE if name.startswith("energy") else _SIZES, name, part)
    for name, row in results.divergences.items():
        tables[_DIVERGENCES].append(name)
        models[name] = {key: Metric(value) for key, value in row.items()}
        models[name]["khat"] = Metric(None, reason="a divergence has no weights")
    return tables, models, gradients


def _sum(models: dict[str, Rows], name: str) -> float:
    return sum(rows[name].value or 0.0 for rows in models.values() if name in rows)


def _notes(results: EquivariantResults) -> list[str]:
    if results.share == 1.0:
        return []
    return [f"a shortened run: {results.share:.1%} of the stated training, one seed, sizes up to {results.sizes[-1]:,}"]


def _draw_pictures(results: EquivariantResults, data: ParticleData, out: Path) -> dict[str, str]:
    target, size = results.target, results.headline_size
    exact = energy_value(target.energy, data.test)
    save_figure(likelihood_figure(results.parts, results.sizes, MODELS, target.name), out / "nll.png")
    pictures = {"nll": PICTURED}
    for name, file in (("headline", "draws-headline"), ("kernel", f"draws-kernel-{size}")):
        draws = load_file(out / f"{file}.safetensors")
        figure = plot_energy_histogram(
            draws["energy"], draws["log_weights"], exact, exact_label="test data", title=f"Energies, {name}"
        )
        save_figure(figure, out / f"energies_{name}.png")
        pictures[f"energies_{name}"] = f"Energies of draws of the {name} model, raw and reweighted"
        particles = target.to_particles(draws["z"][:SHOWN]).double().numpy()
        save_figure(plot_configurations(particles, title=f"Draws, {name}"), out / f"configurations_{name}.png")
        pictures[f"configurations_{name}"] = f"Unweighted draws of the {name} model"
    return pictures


def likelihood_figure(parts: Mapping[str, Any], sizes: Sequence[int], models: Iterable[str], target: str) -> Figure:
    """Excess of the negative log-likelihood of test data over the least possible, by the size of the training set.

    :param parts: results by ``"model size"``, as :func:`.score` returns them.
    """
    figure, (axes,) = new_figure(width=7.6, height=4.2)
    least = np.inf
    for name in models:
        rows = [from_plain(parts[f"{name} {size}"]["rows"]["nll_excess"]) for size in sizes]
        # A few data learned by heart cost more than a number can tell.
        values = np.clip([np.inf if row.value is None else row.value for row in rows], LEAST_EXCESS, MOST_EXCESS)
        errors = [row.std_error or 0.0 for row in rows]
        least = min(least, values.min())
        colour, marker = _COLOURS[name]
        label = name.replace("_", " ")
        axes.errorbar(sizes, values, yerr=errors, marker=marker, color=colour, label=label, markersize=6)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(max(LEAST_EXCESS / 1.3, 0.5 * least), None)
    tidy(axes, title=f"Distance from {target}", x="training configurations", y="KL divergence (nats)", legend=False)
    axes.legend(frameon=False, fontsize=10, labelcolor=INK, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


_HEADLINE = "Headline"
_SIZES = "By the size of the training set"
_SOLVERS = "A kernel flow, by solver and divergence"
_DIVERGENCES = "Divergences"
_OF_DIVERGENCES = ["divergence_error", "divergence_sd", "milliseconds"]


_EXACT_DATA = "Training, validation and test data are independent exact draws."
_TEMPERED_DATA = """\
Training, validation and test data come from separate systems of the project's own parallel tempering; errors of `nll`
take them for independent."""


def _asked(results: EquivariantResults, models: dict[str, Rows]) -> list[Asked]:
    """On DW-4; on DW-2 nothing was."""
    if results.target.name != "dw4":
        return []
    heads = [rows for name, rows in models.items() if name.startswith("graph, seed")]

    def value(rows: Rows, name: str) -> float:
        found = rows[name].value
        return math.nan if found is None else found

    alone = [rows for name, rows in models.items() if name.startswith("energy")]
    best = max(alone, key=lambda rows: value(rows, "ess"))
    few, many = results.sizes[0], min(results.headline_size, results.sizes[-1])
    others = [name for name, model in MODELS.items() if not model.knows_symmetry]
    assert results.target.log_z is not None
    return [
        Asked("NLL, worst seed", max(value(rows, "nll") for rows in heads), 7.25),
        Asked("the same, energy as control variate", max(value(rows, "nll_controlled") for rows in heads), 7.25),
        Asked("ESS, worst seed", min(value(rows, "ess") for rows in heads), 0.8, at_least=True),
        Asked("ESS from the energy alone", value(best, "ess"), 0.5, at_least=True),
        Asked("its error of log Z", abs(value(best, "log_z") - results.target.log_z), 0.02),
        Asked(
            f"NLL of the graph field from {few:,}, against the best without symmetry from {many:,}",
            value(models[f"graph {few}"], "nll"),
            min(value(models[f"{name} {many}"], "nll") for name in others),
        ),
    ]


def _introduction(results: EquivariantResults, nll: Metric, asked: list[Asked]) -> str:
    truth = nll.truth.value if isinstance(nll.truth, Truth) else nll.truth
    plan = results.plan
    best = "" if truth is None else f" The least possible on average is the entropy, {truth:.3f};"
    data = _EXACT_DATA if results.target.has_exact_sampler else _TEMPERED_DATA
    own = "" if nll.floor is None else f" on these very test data it is {nll.floor:.3f}."
    return f"""\
`nll` is the negative log-likelihood of test configurations, in nats on the mean-free subspace, normalised.{best}{own}
`nll_excess` is the mean of log p - log q over them, the Kullback-Leibler divergence from the target, known more
precisely; `nll_controlled` is the entropy plus that excess.
`ess` (a fraction of N) and `log_z` are of weighted draws against the true energy, N = {results.num_samples:,} of them,
and N = {OF_ENERGY * results.num_samples:,} of the flows of `energy alone`, whose errors are smaller for that; the graph
field's weights are exact for its discrete map, but for draws where a step of it folds or overflows, which have weight
zero and are counted in the report. {data}

The headline is the graph field on {results.headline_size:,} configurations and {plan.moves} copies of each, moved by
Hamiltonian Monte Carlo at the energy (its gradients are counted below): flow matching on pairs aligned over
permutations, rotations and reflections ({plan.headline * results.share:.0f} s planned), with Muon. The copies tell
what lies between the configurations, which a flow would else overfit; the models of the sweep below learn from the
configurations alone. Flows of `energy alone` were given no data: one learns by flow matching on draws that tempered
Monte Carlo makes from the energy and moves in the same way, whose cost is counted, the other by reverse KL. Below,
each model has {plan.sweep * results.share:.3g} s for each size of the training set: `kernel`, `embedded_atom` and
`graph` know all symmetries, `plain` knows none, and `_augmented` models are shown data that are turned, mirrored and
permuted at random. Models of the sweep and the headline keep the state that was best on validation data. A training
that other work on the machine slows is stopped after {SLACK:g} times its seconds and two minutes at the latest,
before its learning rate has come down: `updates` tells. The ways to solve the equation make the same updates of the
same kernel flow on 1,000 configurations. `divergence_error` is the largest deviation from autograd in float64 and
`divergence_sd` the noise of one estimate, both over the mean absolute divergence of
{max(100, round(1000 * results.share)):,} states, at the cost of `milliseconds`; in float32, where autograd is as far
off, deviations near 1e-5 are rounding. Weights that are nearly all the same can have a k-hat above its limit: then
the tail that it describes is one of rounding and chance, and ESS near one says so.

{asked_table(asked) if asked else ""}"""
