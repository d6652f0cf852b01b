"""Report, page and pictures of the experiment on the ABC flow."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file

from pyro_boltzmann.diagnostics import Metric, ks_floor
from pyro_boltzmann.diagnostics.plots import save_figure
from pyro_boltzmann.experiments.abc_speed import REFERENCE, SCHEMES, Payback, payback
from pyro_boltzmann.experiments.asked import Asked
from pyro_boltzmann.experiments.bendem_rows import from_plain
from pyro_boltzmann.experiments.prnf_figures import plot_grids, plot_marginals
from pyro_boltzmann.experiments.prnf_page import FlowMapResults, write_flow_map_results

__all__ = ["FEW", "MANY", "PAIR", "AbcResults", "as_good", "write_abc_results"]

FEW, MANY, PAIR = "flow map, few pairs", "flow map, many pairs", "pseudo-reversible, few pairs"
LAWS = {"uniform": "uniform initial law", "truncated": "truncated Gaussian initial law"}
KS_LEVEL = 0.0163
"""Of the two-sample test at 1 %, N = 20,000 each."""
AUTHORS_NLL, ASKED_NLL = 2.373, 2.12
SIMULATION = "simulation"
QUERY = 20_000
"""Draws of a query, a law at the end for another initial law."""


@dataclass(frozen=True)
class AbcResults:
    """All that the experiment measured.

    :ivar plan: pairs of both kinds (``few``, ``many``), draws a centre (``grid``), and of a marginal law (``ks``).
    :ivar parts: what each job gave.
    :ivar simulated: CPU seconds of the training pairs, and the units.
    """

    seed: int
    share: float
    num_test: int
    plan: Mapping[str, int]
    parts: Mapping[str, Any]
    simulated: Mapping[str, Any]
    out: Path


def as_good(distances: Mapping[str, float], speeds: Mapping[str, float], model: str) -> str | None:
    """The quickest scheme whose conditional laws are no further from the reference than the model's, if there is one.

    >>> label = SCHEMES[0].label
    >>> as_good({label: 0.01, "map": 0.02}, {label: 5.0, "map": 9.0}, "map") == label
    True
    """
    labels = [scheme.label for scheme in SCHEMES if scheme.label in distances]
    good = [label for label in labels if distances[label] <= distances[model]]
    return max(good, key=lambda label: speeds[label], default=None)


def write_abc_results(results: AbcResults, out: Path) -> dict[str, Any]:
    """Write ``report.json``, the page and the pictures; returns the report."""
    models = _model_rows(results)
    speeds = _speed_rows(results)
    _draw(results, out)
    head = models[MANY]
    ks = [f"ks_{law}_{index}" for law in LAWS for index in (1, 2, 3)]
    of_densities = ["mass", "round_trip", "round_trip_rms", "gap_mean", "gap_sd", "gap_max"]
    of_pairs = ["polished_round_trip", "polished_refused", "folds"]
    tables = {
        "Densities": {name: models[name] for name in (MANY, FEW, PAIR)},
        "Marginal laws": models,
        "Marginal laws from larger samples": models,
        "Grid of transition probabilities": models,
        "What a draw costs": {**speeds, **{name: models[name] for name in (MANY, FEW, PAIR)}},
    }
    columns = {
        "Densities": ["nll", *of_densities, *of_pairs, "updates", "train_seconds", "cpu_seconds", "simulation_seconds"],
        "Marginal laws": ks,
        "Marginal laws from larger samples": [f"many_{name}" for name in ks],
        "Grid of transition probabilities": ["grid_rms_z", "grid_largest_z", "grid_bias", "grid_cells"],
        "What a draw costs": ["conditional_ks", "draws_a_second"],
    }
    mass = head["mass"]
    off = abs((mass.value or 0.0) - 1.0) / (mass.std_error or np.nan)
    failures = [] if off <= 4.5 else [f"the mass of the {MANY} is {mass.value} +- {mass.std_error}"]
    return write_flow_map_results(
        FlowMapResults(
            experiment="prnf-abc",
            target="abc",
            title="The ABC flow by flow maps",
            introduction=_introduction(results, models),
            seed=results.seed,
            num_samples=results.num_test,
            headline=MANY,
            tables=tables,
            columns=columns,
            asked=_asked(results, models, off),
            pictures={
                "marginals": f"Final positions for both initial laws: Euler steps of 0.002 (grey) and the {MANY}",
                "grid": "P(x in [0, pi], z in [2 pi, 3 pi]) over the centre of the initial law, and the z-scores of "
                "the differences",
            },
            seconds={"train": sum(results.parts[name]["cost"]["seconds"] for name in (FEW, MANY, PAIR))},
            failures=failures,
            notes=[] if results.share == 1.0 else [f"a shortened run: {results.share:.1%} of the stated plan"],
        ),
        out,
    )


def _model_rows(results: AbcResults) -> dict[str, dict[str, Metric]]:
    """Rows of the maps, and of a second simulation where there is one to compare with."""
    parts, simulated = results.parts, results.simulated["seconds"]
    rows: dict[str, dict[str, Metric]] = {}
    for name in (MANY, FEW, PAIR, SIMULATION):
        one = {key: from_plain(row) for key, row in parts[name]["rows"].items()} if name in parts else {}
        one |= {key: from_plain(row) for key, row in parts["marginals"][name].items()}
        grid = parts["grid"]["models"][name]
        one["grid_rms_z"] = Metric(grid["rms"], grid["rms_error"], truth=1.0)
        one["grid_largest_z"] = Metric(grid["largest"])
        one["grid_bias"] = Metric(grid["bias"])
        one["grid_cells"] = Metric(float(grid["num_cells"]))
        if name != SIMULATION:
            one["simulation_seconds"] = Metric(simulated[MANY if name == MANY else FEW])
            one |= _speed_row(parts["speed"], name)
        rows[name] = one
    return rows


def _speed_rows(results: AbcResults) -> dict[str, dict[str, Metric]]:
    speed = results.parts["speed"]
    return {name: _speed_row(speed, name) for name in speed["speeds"] if name not in (FEW, MANY, PAIR)}


def _speed_row(speed: Mapping[str, Any], name: str) -> dict[str, Metric]:
    return {
        "conditional_ks": Metric(speed["distances"][name], floor=speed["floor"]),
        "draws_a_second": Metric(round(speed["speeds"][name], -2)),
    }


def _asked(results: AbcResults, models: Mapping[str, Mapping[str, Metric]], mass_off: float) -> list[Asked]:
    head, few, speed = models[MANY], models[FEW], results.parts["speed"]

    def value(rows: Mapping[str, Metric], name: str) -> float:
        found = rows[name].value
        return math.nan if found is None else found

    asked = [
        Asked(f"{FEW}: NLL", value(few, "nll"), AUTHORS_NLL),
        Asked(f"{MANY}: NLL", value(head, "nll"), ASKED_NLL),
        Asked(
            "CPU minutes of both maps, simulation included",
            sum(value(rows, key) for rows in (head, few) for key in ("cpu_seconds", "simulation_seconds")) / 60.0,
            15.0,
        ),
    ]
    for law, words in LAWS.items():
        worst = max(value(head, f"ks_{law}_{index}") for index in (1, 2, 3))
        asked.append(Asked(f"{MANY}: KS, {words}, worst coordinate", worst, KS_LEVEL))
    rms = head["grid_rms_z"]
    asked += [
        Asked(f"{MANY}: grid, rms z (1 + 4.5 s.d.)", value(head, "grid_rms_z"), 1.0 + 4.5 * (rms.std_error or 0.0)),
        Asked(f"{MANY}: round trip, max", value(head, "round_trip"), 1e-5),
        Asked(f"{MANY}: sampled and scored density, sd of the difference", value(head, "gap_sd"), 0.01),
        Asked(f"{MANY}: mass off one, in standard errors", mass_off, 4.5),
        Asked(f"{MANY}: draws a second, one thread", speed["speeds"][MANY], 120_000.0, at_least=True),
        Asked(
            f"{MANY}: times quicker than {SCHEMES[0].label}",
            speed["speeds"][MANY] / speed["speeds"][SCHEMES[0].label],
            10.0,
            at_least=True,
        ),
    ]
    best = as_good(speed["distances"], speed["speeds"], MANY)
    if best is not None:
        ratio = speed["speeds"][MANY] / speed["speeds"][best]
        asked.append(Asked(f"{MANY}: times quicker than {best}", ratio, 10.0, at_least=True))
    return asked


def _draw(results: AbcResults, out: Path) -> None:
    draws = load_file(out / "marginals.safetensors")
    panels = {
        words: {"simulation": draws[f"reference/{law}"], MANY: draws[f"{MANY}/{law}"], PAIR: draws[f"{PAIR}/{law}"]}
        for law, words in LAWS.items()
    }
    save_figure(plot_marginals(panels), out / "marginals.png")
    grid = results.parts["grid"]
    z = np.array(grid["models"][MANY]["z"], dtype=np.float64)
    figure = plot_grids(
        grid["probability"], grid["models"][MANY]["probability"], z, "centre $x_0 / 2\\pi$", "centre $z_0 / 2\\pi$"
    )
    save_figure(figure, out / "grid.png")


def _payback_lines(results: AbcResults) -> list[str]:
    speed, simulated = results.parts["speed"], results.simulated["seconds"]
    lines = ["| map | instead of | seconds invested | draws | queries |", "|---|---|---|---|---|"]
    for name in (MANY, FEW):
        invested = simulated[name] + results.parts[name]["cost"]["cpu_seconds"]
        best = as_good(speed["distances"], speed["speeds"], name)
        for other in dict.fromkeys([SCHEMES[0].label, *([] if best is None else [best])]):
            found = payback(invested, speed["speeds"][name], speed["speeds"][other], QUERY)
            lines.append(f"| {name} | {other} | {invested:.0f} | {_count(found)} |")
    return lines


def _count(found: Payback) -> str:
    return "never | never" if math.isinf(found.draws) else f"{found.draws:,.0f} | {found.queries:,.0f}"


def _introduction(results: AbcResults, models: Mapping[str, Mapping[str, Metric]]) -> str:
    plan, speed = results.plan, results.parts["speed"]
    scale = ", ".join(f"{value:.4f}" for value in results.simulated["scale"])
    centre = ", ".join(f"{value:.4f}" for value in results.simulated["mean"])
    best = as_good(speed["distances"], speed["speeds"], MANY)
    cheapest = (
        "No scheme of the table is as good as the map."
        if best is None
        else f"The cheapest scheme whose conditional laws are no worse than those of the {MANY} is {best}, with "
        f"{speed['speeds'][best]:,.0f} draws a CPU second to the map's {speed['speeds'][MANY]:,.0f}."
    )
    lowest, highest = np.min(results.parts["grid"]["probability"]), np.max(results.parts["grid"]["probability"])
    payback_table = "\n".join(_payback_lines(results))
    return f"""\
Tracers in the ABC flow, dX = 3 U(X) dt + dW with A = B = 1, C = 0.25 for the time 2, from the uniform law on
[0, 2 pi]^3 (Yang et al., arXiv 2306.05580, example 5.3). `few` pairs are {plan["few"]:,} by Euler steps of 0.002, as
the authors'; `many` are {plan["many"]:,} by a Runge-Kutta scheme of weak order 2 (SRA1) with steps of 0.02, whose
distance from a finer simulation is in the last table, beside that of the authors' scheme. The {results.num_test:,} test
pairs are of this Runge-Kutta scheme; nothing was chosen on them: the parameters kept are those with the lowest loss on
a share of the training pairs, and the map of few pairs has dropout and weight decay.

`nll` is in standardised units: with the means ({centre}) and standard deviations ({scale}) of the columns of the few
pairs' final states, it is the mean of -log p(y | x_0) less the sum of the logarithms of these deviations, for all
models. The authors' stored history ends at {AUTHORS_NLL}. `round_trip` (maximum) and `round_trip_rms` of flow maps are
to the latent and back in units of the standard deviation of the increments, of the pseudo-reversible flow those of
g(h(y)) - y in standard deviations of the columns. `gap_*` of flow maps is the density that a draw is given less the one
carried along when it was drawn, of the pseudo-reversible flow (networks of width 256, {results.plan["few"]:,} pairs, as
many epochs as a budget of time allows) the log-density of h less that of g at draws of g.

`ks_*` are of each coordinate for the uniform and the truncated Gaussian initial law, from two samples of
{plan["ks"]:,}, the reference by Euler steps of 0.002 (mean of equal laws {ks_floor(plan["ks"], plan["ks"]):.4f};
{KS_LEVEL} is the 1 % level of 20,000); `many_ks_*` are from larger samples of the Runge-Kutta scheme. The row
`simulation` is that scheme's own.

The grid has centres (x_0, z_0) from 0 to 2 pi, y_0 = pi, of truncated Gaussian laws; probabilities are between
{lowest:.4f} and {highest:.4f} (the authors': 0.0003 and 0.297). Of {plan["grid"]:,} independent draws a centre each
way, z is the difference of the shares over its standard error with both samples pooled; `grid_rms_z` is 1 for equal
laws, `grid_bias` the rms of differences beyond their sampling errors.

`conditional_ks` is the mean KS distance, over {speed["starts"]} initial states and three coordinates, from the ends of
{REFERENCE.label}; its floor is {speed["floor"]:.4f}. Speeds are draws a CPU second on one thread. {cheapest} Training
has paid for itself after so many draws, or queries of {QUERY:,} draws, simulation of the pairs included:

{payback_table}"""
