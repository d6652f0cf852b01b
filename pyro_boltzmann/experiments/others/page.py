"""The page that compares samplers: who wins where, a table for each target, the curves, and what was left out."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from pathlib import Path

from pyro_boltzmann.diagnostics.atomic import write_atomically
from pyro_boltzmann.diagnostics.plots.style import save_figure
from pyro_boltzmann.experiments.others.curves import plot_curves
from pyro_boltzmann.experiments.others.methods import METHODS
from pyro_boltzmann.experiments.others.problem import TARGETS, bench_problem
from pyro_boltzmann.experiments.others.record import Record
from pyro_boltzmann.experiments.others.summary import (
    FAR_LOG_Z,
    FAR_MEAN_ENERGY,
    FAR_MODES,
    Point,
    largest,
    points_of,
    ranked,
)
from pyro_boltzmann.experiments.results_page import processor

__all__ = ["refused_methods", "write_page"]

PAGE = "others.md"
INTRODUCTION = f"""\
Written by `python -m pyro_boltzmann.experiments.bench_others --out DIR` (`make bench-others`); the runs are the lines
of `records.jsonl` beside it. All samplers get the same energies and, but for nested sampling, the same Gaussian start;
each is set up as its documentation suggests and nothing is tuned to a target.

- *Evaluations* are values and gradients of single configurations (a leapfrog step costs two), warm-up and training
  included; NumPyro's search for a first step size is not.
- *CPU seconds* are those of all threads of the process, with every library on one thread. JAX's compilation is apart:
  it is paid once for a target and size, before the first draw. The machine was shared with other work.
- *Effective draws* (ESS) are the least bulk ESS of the coordinates over chains (ArviZ) for NUTS and parallel tempering,
  the effective number of first ancestors for both SMC samplers, and Kish's for weighted draws. No such number sees
  a mode that was never visited, so points where an estimate is far off are hollow in the pictures, and do not
  win: log Z off by more than {FAR_LOG_Z:g}, modes' masses by more than {FAR_MODES:g} in total variation (for
  many wells: one well's by as much), the mean energy by more than {FAR_MEAN_ENERGY:g} sqrt(d/2).
- *log Z error* is the root mean square over seeds. NUTS has no log Z.
- dynesty needs a prior, which an energy does not have: independent Cauchy laws at the common start. A user
  with a model would have a better one.
- JAX's samplers have their energies in JAX, compiled; ours and Pyro's have them in torch. The stochastic flow's
  teacher (annealed importance sampling) is part of its cost at every size; by itself it takes 1,000 updates, and a
  flow of ten is hardly trained."""
FIGURES = {
    "evaluations_per_ess": (
        ("evaluations", "evaluations_per_ess", "evaluations", "evaluations / ESS"),
        "Evaluations for an effective draw against evaluations spent; lower is better",
    ),
    "cpu_per_ess": (
        ("cpu_seconds", "seconds_per_ess", "CPU seconds", "CPU seconds / ESS"),
        "CPU seconds for an effective draw against CPU seconds spent, without compilation; lower is better",
    ),
    "log_z_by_evaluations": (
        ("evaluations", "log_z_error", "evaluations", "log Z error"),
        "Root-mean-square error of log Z against evaluations",
    ),
    "log_z_by_cpu": (
        ("cpu_seconds", "log_z_error", "CPU seconds", "log Z error"),
        "Root-mean-square error of log Z against CPU seconds, without compilation",
    ),
}
CHECK_TOLERANCE = 0.5
BUDGETS = (1.0, 10.0)


def refused_methods(records: Sequence[Record]) -> dict[str, str]:
    """Competitors whose log Z of a Gaussian is wrong or was never tried, with the reason: it is not reported.

    >>> refused_methods([Record("dynesty", "gaussian", 93, 0, log_z_error=0.01)])["blackjax_smc"]
    'its log Z was not tried on the Gaussian'
    """
    refused = {}
    for name, method in METHODS.items():
        if method.is_ours or not method.has_log_z:
            continue
        tried = [record for record in records if (record.method, record.target) == (name, "gaussian")]
        if not tried:
            refused[name] = "its log Z was not tried on the Gaussian"
        elif tried[-1].log_z_error is None:
            refused[name] = f"its run on the Gaussian failed ({tried[-1].error or 'log Z is not finite'})"
        elif abs(tried[-1].log_z_error) > CHECK_TOLERANCE:
            refused[name] = f"its log Z of a Gaussian is off by {tried[-1].log_z_error:+.2f}"
    return refused


def write_page(folder: Path, records: Sequence[Record]) -> Path:
    """Write ``others.md`` and its pictures from all records."""
    refused = refused_methods(records)
    kept = [
        record if record.method not in refused else Record(**{**vars(record), "log_z_error": None})
        for record in records
        if record.target in TARGETS
    ]
    points = sorted(points_of(kept), key=lambda point: TARGETS.index(point.target))
    for name, ((x, y, x_label, y_label), _) in FIGURES.items():
        save_figure(plot_curves(points, x, y, x_label=x_label, y_label=y_label), folder / f"{name}.png", dpi=110)
    lines = ["# Beside other samplers", "", INTRODUCTION, "", "## Who wins", "", *_winners(points), ""]
    for target in dict.fromkeys(point.target for point in points):
        lines += [f"## {target}", "", *_table([p for p in points if p.target == target], target), ""]
    lines += ["Each row is the largest budget of its method; *far off* as above.", "", "## Curves", ""]
    for name, (_, caption) in FIGURES.items():
        lines += [f"![{caption}]({name}.png)", "", f"*{caption}. Hollow: an estimate is far off. Ours are thick.*", ""]
    lines += ["## Checks and gaps", "", *_checks(records, refused), ""]
    versions = sorted({record.version for record in records if record.version})
    seeds = len({record.seed for record in kept})
    told = "Seed 0 alone" if seeds == 1 else f"Seeds 0 to {seeds - 1}, as far as the time went"
    where = f"one thread on {processor()}, Python {platform.python_version()}"
    lines += [f"{told}; {where}, {', '.join(versions)}.", ""]
    text = "\n".join(lines)

    def write(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8")

    return write_atomically(folder / PAGE, write)


def _winners(points: Sequence[Point]) -> list[str]:
    """The best methods of each target by each measure."""
    heads = ["target", "evaluations / ESS", "CPU ms / ESS", *(f"log Z within {t:g} CPU s" for t in BUDGETS)]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for target in dict.fromkeys(point.target for point in points):
        dim = bench_problem(target).dim
        here = [point for point in points if point.target == target]
        right = [point for point in largest(here) if not point.is_far(dim)]
        cells = [
            _podium(ranked(right, "evaluations_per_ess"), lambda v: f"{v:,.0f}"),
            _podium(ranked(right, "seconds_per_ess"), lambda v: f"{1000 * v:.3g}"),
            *(
                _podium(ranked(largest(p for p in here if p.cpu_seconds <= t), "log_z_error"), lambda v: f"{v:.3f}")
                for t in BUDGETS
            ),
        ]
        lines.append("| " + " | ".join([target, *cells]) + " |")
    lines += [
        "",
        "The best two of each; ours in bold. Each method counts at its largest budget, for effective draws if that is",
        "not far off, for log Z within the CPU time (compilation apart). From few seeds an error of log Z may be luck.",
    ]
    return lines


def _podium(ranking: Sequence[tuple[str, float]], show: Callable[[float], str]) -> str:
    if not ranking:
        return "none was right"
    return "; ".join(f"{_label(name)} {show(value)}" for name, value in ranking[:2])


def _label(method: str) -> str:
    label = METHODS[method].label
    return f"**{label}**" if METHODS[method].is_ours else label


def _table(points: Sequence[Point], target: str) -> list[str]:
    problem = bench_problem(target)
    modes = problem.num_modes
    heads = ["method", "size", "seeds", "evaluations", "CPU s", "compile s", "ESS", "evaluations / ESS", "ms / ESS"]
    heads += ["ms / ESS with compile", "log Z error", *(["modes", "mass error"] if modes else [])]
    heads += ["mean energy error", ""]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for name, method in METHODS.items():
        mine = [point for point in points if point.method == name]
        if not mine:
            continue
        point = max(mine, key=lambda p: p.size)
        cells = [_label(name), f"{point.size:,} {method.unit}", str(point.num_seeds), f"{point.evaluations:,.0f}"]
        cells += [f"{point.cpu_seconds:.3g}"]
        cells += [f"{point.compile_seconds:.1f}" if point.compile_seconds else "", _number(point.ess, "{:,.0f}")]
        cells += [_number(point.evaluations_per_ess, "{:,.0f}"), _number(_milli(point.seconds_per_ess), "{:.3g}")]
        cells += [_number(_milli(point.seconds_per_ess_compiled), "{:.3g}")]
        cells += [_number(point.log_z_error, "{:.3f}") if method.has_log_z else "has none"]
        if modes:
            cells += [f"{point.modes_found} of {modes}", _number(point.mode_error, "{:.3f}")]
        cells += [_number(point.mean_energy_error, "{:.3f}"), "far off" if point.is_far(problem.dim) else ""]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _number(value: float | None, form: str) -> str:
    return "n/a" if value is None else form.format(value)


def _milli(value: float | None) -> float | None:
    return None if value is None else 1000 * value


def _checks(records: Sequence[Record], refused: dict[str, str]) -> list[str]:
    lines = []
    for name, method in METHODS.items():
        tried = [r for r in records if (r.method, r.target) == (name, "gaussian") and r.log_z_error is not None]
        if tried:
            lines.append(f"- {method.label}: log Z of a Gaussian in the plane is off by {tried[-1].log_z_error:+.3f}.")
        if name in refused and any(record.method == name for record in records):
            lines.append(f"- {method.label}: no log Z is reported, because {refused[name]}.")
        runs = [record for record in records if record.method == name and record.target in TARGETS]
        if not runs:
            lines.append(f"- {method.label}: no run (not installed, or not asked for).")
        failed = [run for run in runs if run.error is not None]
        for key in dict.fromkeys((run.target, run.size, run.error) for run in failed):
            count = sum((run.target, run.size, run.error) == key for run in failed)
            lines.append(f"- {method.label} on {key[0]}, {key[1]:,} {method.unit}: {count} failed ({key[2]}).")
        short = [
            target
            for target in dict.fromkeys(record.target for record in records if record.target in TARGETS)
            if method.sizes[-1] not in {run.size for run in runs if run.target == target and run.error is None}
        ]
        if runs and short:
            where = "every target" if len(short) == len(TARGETS) else ", ".join(short)
            lines.append(f"- {method.label}: budgets up to the largest were not all run on {where}.")
    return lines
