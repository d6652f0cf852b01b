"""Report, page and pictures of the runaway electrons."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from pyro_boltzmann.diagnostics import Metric, build_report, write_report
from pyro_boltzmann.diagnostics.plots import save_figure
from pyro_boltzmann.diagnostics.plots.style import EXACT, RAW, WEIGHTED, new_figure, tidy
from pyro_boltzmann.experiments.asked import Asked, asked_table, short_of
from pyro_boltzmann.experiments.results_page import write_results_page

__all__ = ["RunawayResults", "asked_of", "largest_ratio", "write_runaway_results"]

HEADLINE, MAPS = "direct", ("direct", "composed")
SIGMAS, FALSE_ALARM = 4.5, 1e-5
_COLOURS = {"direct": WEIGHTED, "composed": RAW}
_COORDINATES = ("p", "xi", "r")


@dataclass
class RunawayResults:
    """All that the experiment measured.

    :ivar critical: the momentum above which electrons run away.
    :ivar parts: what each job gave, by its name.
    :ivar widths: of the test laws.
    """

    seed: int
    share: float
    electrons: int
    plan: Any
    critical: float
    parts: dict[str, Any]
    widths: Sequence[float]

    @property
    def laws(self) -> list[dict[str, Any]]:
        """Comparisons, one for each test law."""
        return [self.parts[f"width {width}"] for width in self.widths]


def largest_ratio(number: int) -> float:
    r"""What the largest of some Kolmogorov-Smirnov distances over their floors may be where all laws are equal,
    :math:`\sqrt{\ln(2 k / \alpha) / 2} \,/ (\sqrt{\pi/2}\,\ln 2)`, by the leading term of Kolmogorov's law.

    :param number: k; whatever their dependence, more is a false alarm of at most :math:`\alpha = 10^{-5}`.

    >>> round(largest_ratio(1), 2), round(largest_ratio(120), 2)
    (2.84, 3.36)
    """
    return math.sqrt(0.5 * math.log(2.0 * number / FALSE_ALARM)) / (math.sqrt(0.5 * math.pi) * math.log(2.0))


def asked_of(models: Mapping[str, Mapping[str, Metric]], number: int) -> list[Asked]:
    """What is asked of each map.

    :param models: rows of the maps, by name.
    :param number: of Kolmogorov-Smirnov distances, of which ``ks_ratio`` is the largest.
    """
    asked = []
    for name, rows in models.items():
        for key, words, bound in (
            ("exit_deviation", "share lost, largest deviation in standard errors", SIGMAS),
            ("runaway_deviation", "share of runaways, largest deviation in standard errors", SIGMAS),
            (
                "ks_ratio",
                f"survivors' marginals, largest of {number} KS distances over its floor",
                largest_ratio(number),
            ),
        ):
            value = rows[key].value
            asked.append(Asked(f"{name}: {words}", math.nan if value is None else value, bound))
    return asked


def write_runaway_results(results: RunawayResults, out: Path) -> dict[str, Any]:
    """Write ``report.json``, the page and the pictures; returns the report."""
    models = {name: _rows(results, name) for name in MAPS}
    models["simulation"] = {"electrons_per_second": Metric(_speed(results, "simulation"))}
    companions = {f"absorbed Brownian, {name}": _companion_rows(results.parts["companion"][name]) for name in MAPS}
    models |= companions
    asked = asked_of({name: models[name] for name in MAPS}, sum(np.size(law[HEADLINE]["ks"]) for law in results.laws))
    training = {name: results.parts[name]["cpu_seconds"] for name in MAPS}
    report = build_report(
        experiment="prnf-runaway",
        target="runaway electrons",
        sampler=HEADLINE,
        seed=results.seed,
        num_samples=results.electrons,
        metrics=models[HEADLINE],
        models=models,
        cpu_seconds={
            "data": results.parts["data"]["cpu_seconds"],
            **{f"train_{name}": seconds for name, seconds in training.items()},
            "simulation": results.parts["simulation"]["cpu_seconds"],
            "companion": sum(results.parts["companion"][name]["cpu_seconds"] for name in MAPS),
        },
        threads=torch.get_num_threads(),
        failures=_failures(models[HEADLINE]),
        notes=[
            *([] if results.share == 1.0 else [f"a shortened run: {results.share:.1%} of the stated lengths"]),
            *short_of(asked),
        ],
    )
    write_report(report, out / "report.json")
    flow = ["exit_deviation", "exit_error", "runaway_deviation", "ks_p", "ks_xi", "ks_r", "ks_ratio", "outside", "nll"]
    cost = ["cpu_seconds", "electrons_per_second", "speed_up", "break_even"]
    write_results_page(
        out / "prnf-runaway.md",
        report,
        title="Runaway electrons",
        introduction=f"{_introduction(results)}\n\n{asked_table(asked)}",
        columns={
            "Accuracy on laws that training never saw": flow,
            "Cost": cost,
            "Absorbed Brownian motion against its exact law": ["exit_deviation", "exit_error", "ks", "ks_ratio", "nll"],
        },
        tables={
            "Accuracy on laws that training never saw": list(MAPS),
            "Cost": [*MAPS, "simulation"],
            "Absorbed Brownian motion against its exact law": list(companions),
        },
        pictures=_draw_pictures(results, out),
    )
    return report


def _rows(results: RunawayResults, name: str) -> dict[str, Metric]:
    laws = results.laws
    found, truth = [law[name] for law in laws], [law["simulation"] for law in laws]
    errors = [
        abs(a - b)
        for row, exact in zip(found, truth, strict=True)
        for a, b in zip(row["exits"], exact["exits"], strict=True)
    ]
    floor = np.mean(
        [math.sqrt(4.0 / math.pi * p * (1.0 - p) / results.electrons) for row in truth for p in row["exits"]]
    )
    rows = {
        "exit_deviation": Metric(_worst(row["exits_deviations"] for row in found)),
        "exit_error": Metric(float(np.mean(errors)), floor=float(floor)),
        "runaway_deviation": Metric(_worst(row["runaways_deviations"] for row in found)),
    }
    distances, floors = np.array([row["ks"] for row in found]), np.array([row["ks_floor"] for row in found])
    for index, coordinate in enumerate(_COORDINATES):
        rows[f"ks_{coordinate}"] = Metric(float(distances[..., index].mean()), floor=float(floors[..., index].mean()))
    rows["ks_ratio"] = Metric(float((distances / floors).max()))
    rows["outside"] = Metric(float(np.mean([row["outside"] for row in found])))
    training = results.parts[name]["cpu_seconds"] + results.parts["data"]["cpu_seconds"]
    rows |= {"nll": Metric(results.parts[name]["nll"]), "cpu_seconds": Metric(training)}
    speed, reference = _speed(results, name), _speed(results, "simulation")
    rows |= {"electrons_per_second": Metric(speed), "speed_up": Metric(speed / reference)}
    saved = results.electrons / reference - results.electrons / speed
    if saved > 0.0:
        rows["break_even"] = Metric(training / saved)
    else:
        rows["break_even"] = Metric(None, reason="a query costs more than its simulation, so training never pays")
    return rows


def _companion_rows(row: dict[str, Any]) -> dict[str, Metric]:
    starts = list(row["starts"].values())
    errors = [abs(a - b) for start in starts for a, b in zip(start["exits"], start["exact"], strict=True)]
    distances, floors = np.array([start["ks"] for start in starts]), np.array([start["ks_floor"] for start in starts])
    return {
        "exit_deviation": Metric(_worst(start["deviations"] for start in starts)),
        "exit_error": Metric(float(np.mean(errors))),
        "ks": Metric(float(distances.mean()), floor=float(floors.mean())),
        "ks_ratio": Metric(float((distances / floors).max())),
        "nll": Metric(row["nll"]),
    }


def _worst(deviations: Any) -> float:
    return float(max(abs(value) for row in deviations for value in row))


def _speed(results: RunawayResults, name: str) -> float:
    """Histories a CPU-second: ten times of each electron."""
    seconds: float = sum(law[name]["cpu_seconds"] for law in results.laws)
    return results.electrons * len(results.laws) / max(1e-9, seconds)


def _failures(rows: dict[str, Metric]) -> list[str]:
    found = []
    for name, what in (("exit_deviation", "share of exits"), ("runaway_deviation", "share of runaways")):
        value = rows[name].value
        if value is None or value > SIGMAS:
            found.append(f"{name}: a {what} misses Monte Carlo by {value:.2f} standard errors, more than {SIGMAS}")
    return found


def _draw_pictures(results: RunawayResults, out: Path) -> dict[str, str]:
    save_figure(_histories(results, "exits", "share that has exited"), out / "exits.png")
    save_figure(_histories(results, "runaways", "share that runs away"), out / "runaways.png")
    save_figure(_production(results), out / "production.png")
    save_figure(_marginals(results), out / "marginals.png")
    return {
        "exits": "Electrons lost at the edge, for initial laws that training never saw; lines: Monte Carlo",
        "runaways": f"Electrons inside with p > {results.critical:.2f}, where the field exceeds the drag",
        "production": "Production rate: change of that share in a unit of time; lines: Monte Carlo",
        "marginals": "Survivors at the last time, width " + f"{results.widths[-1]:g}",
    }


def _histories(results: RunawayResults, key: str, label: str) -> Figure:
    figure, panels = new_figure(width=8.4, height=3.8, columns=2)
    for axes, name in zip(panels, MAPS, strict=True):
        for width, law in zip(results.widths, results.laws, strict=True):
            (line,) = axes.plot(law["simulation"]["times"], law["simulation"][key], linewidth=1.2)
            axes.plot(
                law[name]["times"], law[name][key], "o", color=line.get_color(), markersize=4, label=f"width {width:g}"
            )
        tidy(axes, title=name, x="time", y=label)
    return figure


def _production(results: RunawayResults) -> Figure:
    figure, panels = new_figure(width=8.4, height=3.8, columns=2)
    for axes, name in zip(panels, MAPS, strict=True):
        for width, law in zip(results.widths, results.laws, strict=True):
            times = np.array(law["simulation"]["times"])
            middle, gap = 0.5 * (times[1:] + times[:-1]), np.diff(times)
            (line,) = axes.plot(middle, np.diff(law["simulation"]["runaways"]) / gap, linewidth=1.2)
            rate = np.diff(law[name]["runaways"]) / gap
            axes.plot(middle, rate, "o", color=line.get_color(), markersize=4, label=f"width {width:g}")
        tidy(axes, title=name, x="time", y="production rate")
    return figure


def _marginals(results: RunawayResults) -> Figure:
    law = results.laws[-1]
    figure, panels = new_figure(width=10.0, height=3.4, columns=3)
    for index, (axes, label, (low, high)) in enumerate(
        zip(panels, ("p", "xi", "r"), ((0.5, 8.5), (-1.0, 1.0), (0.0, 1.0)), strict=True)
    ):
        for name, colour in (("simulation", EXACT), *_COLOURS.items()):
            counts = np.array(law[name]["histograms"][index])
            edges = np.linspace(low, high, len(counts) + 1)
            density = counts / max(1.0, counts.sum()) / (edges[1] - edges[0])
            axes.stairs(density, edges, color=colour, label="Monte Carlo" if name == "simulation" else name)
        if index == 0:
            axes.set_yscale("log")
        tidy(axes, x=label, y="density" if index == 0 else "", legend=index == 0)
    return figure


def _introduction(results: RunawayResults) -> str:
    plan, widths = results.plan, ", ".join(f"{width:g}" for width in results.widths)
    return f"""\
Relativistic electrons in momentum, pitch and radius, which are lost at the edge; the total time is 20. `composed` is
one flow map of the time 2, applied ten times; `direct` is a map of all times up to 20, applied once. Both are
conditional spline couplings with a head for the exit that starts from the odds of Brownian motion with the local
diffusion. They learned from {plan.trajectories:,} trajectories, three in four from Maxwellians of widths 0.5, 0.7, 0.9,
1.1, 1.4 and 1.8 and the others from all over [0.5, 5], and `composed` from {plan.broad:,} transitions from all over the
domain too, in {plan.updates} and {plan.direct} updates of 2,048 rows. They are asked about the widths {widths}, against
Euler-Maruyama with steps of 0.005. Each way draws {results.electrons:,} electrons of its own for each law and looks at
ten times.

`exit_deviation` and `runaway_deviation` are the largest deviations of the shares lost, and of those inside with
p > {results.critical:.2f}, from Monte Carlo over laws and times, in standard errors of the difference; the limit is
4.5. `exit_error` is the mean absolute difference, with that of two simulations as its floor. `ks_p`, `ks_xi` and `ks_r`
are distances of survivors' marginals, averaged over laws and times, and `ks_ratio` is the largest distance over its
floor; the floor is the mean for equal laws, which pass the bound in the table below once in 100,000 runs. `outside` is
the share of electrons that a map left outside of what it was trained on, from where they went on at the nearest state
inside. `nll` is the loss of the rows held back from training, which are other transitions for each map: of the exit, or
of the stay and the state, where momenta on the lower end are spread beyond it at random, so that it is a bound.
`cpu_seconds` are those of data and training; `electrons_per_second` counts whole histories of ten looks, and
`break_even` the histories of {results.electrons:,} electrons after which training has paid for itself.

Of absorbed Brownian motion, ensembles from single points are compared with the method of images, where
`exit_deviation` is in binomial standard errors. Its maps were recentred after training."""
