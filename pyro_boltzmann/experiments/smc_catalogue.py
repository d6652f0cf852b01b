"""The reference samplers on every target of the catalogue: what log Z costs, and how far it is off."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from tqdm.auto import tqdm

from pyro_boltzmann.diagnostics import Metric, Truth, WeightedSamples, build_report, modes_found, write_report
from pyro_boltzmann.diagnostics.plots import save_figure
from pyro_boltzmann.diagnostics.plots.style import RAW, WEIGHTED, new_figure, tidy
from pyro_boltzmann.energies.catalogue import Target, catalogue
from pyro_boltzmann.exceptions import MissingExtraError
from pyro_boltzmann.experiments.finished_parts import FinishedParts
from pyro_boltzmann.experiments.results_page import write_results_page
from pyro_boltzmann.experiments.run_metrics import log_z_truth, stream_seed
from pyro_boltzmann.experiments.threads import one_thread
from pyro_boltzmann.infer import parallel_tempering, smc

__all__ = ["PLANS", "Plan", "run"]

SEEDS = 5
FEW_SEEDS = 3
FULL_MINUTES = 25.0
FROZEN_RUNS = 200
PT_CHAINS = 16


@dataclass(frozen=True)
class Plan:
    """How a target is sampled.

    :ivar particles: of sequential Monte Carlo, in one chain.
    :ivar scale: standard deviation of the Gaussian that tempering starts from; ``None`` for the target's own box.
    :ivar rounds: draws of each of the chains of parallel tempering; 0 leaves it out.
    :ivar max_moves: of sequential Monte Carlo at each temperature.
    :ivar num_steps: leapfrog steps.
    :ivar seeds: of both.
    """

    particles: int
    scale: float | None = 1.0
    rounds: int = 500
    max_moves: int = 20
    num_steps: int = 5
    seeds: int = SEEDS


PLANS: dict[str, Plan] = {
    "double_well": Plan(2000, 1.5, max_moves=2),
    "muller_brown": Plan(2000, None, max_moves=2),
    "image": Plan(2000, None, max_moves=2),
    "gmm40": Plan(2200, None, max_moves=2),
    "funnel10": Plan(2000, 1.0),
    "many_well32": Plan(1700, 1.0, max_moves=2),
    "many_well64": Plan(2000, 1.0, 1000, max_moves=2),
    "dw2": Plan(2000, 3.0),
    "dw4": Plan(4000, math.sqrt(6.0), max_moves=2),
    "lj13": Plan(1000, 1.0, 500, seeds=FEW_SEEDS),
    "lj55": Plan(100, 1.0, 0, max_moves=2, seeds=FEW_SEEDS),
    "lj13_half": Plan(1000, 1.0, 0, max_moves=4, seeds=FEW_SEEDS),
    "eight_schools": Plan(2000),
    "eight_schools_centered": Plan(2000),
    "logistic_regression": Plan(2000),
    "seeds": Plan(2000),
    "brownian": Plan(2000),
    "breast_cancer": Plan(500, 10.0, seeds=FEW_SEEDS),
}
"""Fixed before the reported runs; the budgets of ``gmm40``, ``many_well32`` and ``dw4`` are asked for."""


def run(
    *, seed: int, out: Path, minutes: float | None = None, num_samples: int | None = None, progress: bool = True
) -> dict[str, Any]:
    """Sample every target with both reference samplers, and write table, picture and report into ``out``.

    :param minutes: shorten all runs in proportion.
    :param num_samples: particles of every run of sequential Monte Carlo, in place of the planned ones.
    """
    share = min(1.0, (minutes or FULL_MINUTES) / FULL_MINUTES)
    out.mkdir(parents=True, exist_ok=True)
    parts = FinishedParts(out / "parts.json", {"seed": seed, "share": share, "num_samples": num_samples})
    results: dict[str, dict[str, Any]] = {}
    start = time.perf_counter()
    with one_thread(), tqdm(PLANS.items(), disable=not progress) as bar:
        for name, plan in bar:
            bar.set_description(name)
            seeds = plan.seeds if share == 1.0 else 1
            # A shortened run leaves out what would not end in it.
            if share < 1.0 and time.perf_counter() - start > 60.0 * (minutes or 0.0):
                continue
            try:
                target = catalogue[name]
                target.energy(torch.zeros(1, target.dim))
            except MissingExtraError as error:
                bar.write(f"{name} is left out: {error}")
                continue
            for sampler in ("smc", "pt") if plan.rounds else ("smc",):
                make = partial(_one, target, plan, sampler, share, num_samples)
                runs = [
                    parts.get(f"{name} {sampler} {index}", partial(make, stream_seed(seed + index, sampler)))
                    for index in range(seeds)
                ]
                results[name if sampler == "smc" else f"{name}_pt"] = _pooled(runs)
        number = max(8, round(FROZEN_RUNS * share))
        bar.set_description("frozen")
        frozen = parts.get("frozen", partial(_frozen, seed, number))
    return _report(results, frozen, seed, share, out)


def _one(
    target: Target, plan: Plan, sampler: str, share: float, num_samples: int | None, seed: int
) -> dict[str, float]:
    common: dict[str, Any]
    energy, common = target.energy, {"seed": seed, "progress": False, "dim": target.dim, "num_steps": plan.num_steps}
    if plan.scale is None:
        energy, common = target, {**common, "dim": None}
    if sampler == "smc":
        particles = num_samples or max(50, round(plan.particles * share))
        draws = smc(energy, proposal=plan.scale, num_samples=particles, max_moves=plan.max_moves, **common)
    else:
        rounds = max(20, round(plan.rounds * share))
        draws = parallel_tempering(
            energy,
            proposal=plan.scale,
            num_chains=PT_CHAINS,
            num_samples=PT_CHAINS * rounds,
            num_warmup=max(16, rounds // 2),
            **common,
        )
    spent = draws.evaluations["sample"]
    return {
        "log_z": draws.log_normalizer,
        "std_error": draws.log_normalizer_error if draws.reliable else math.nan,
        "ess": draws.ess,
        "independent": draws.num_independent,
        "evaluations": float(spent["gradients"] or spent["values"]),
        "seconds": draws.info["cpu_seconds"],
        "modes": _modes(target, draws),
        "num_samples": float(len(draws)),
    }


def _modes(target: Target, draws: WeightedSamples) -> float:
    if target.mode_probabilities is None:
        return math.nan
    assignment = target.mode_assignment(draws.samples["x"]).cpu().numpy()
    return float(modes_found(assignment, len(target.mode_probabilities), draws.log_weights.cpu()))


def _pooled(runs: list[dict[str, float]]) -> dict[str, Any]:
    return {key: [one[key] for one in runs] for key in runs[0]}


def _frozen(seed: int, number: int) -> dict[str, float]:
    """Mean of Z-hat / Z over frozen runs on a closed form, each with a pilot of its own."""
    ratios = []
    for index in range(number):
        draws = smc(
            _shifted,
            dim=2,
            num_samples=100,
            freeze=True,
            conditional_ess=0.7,
            seed=stream_seed(seed + index, "frozen"),
            progress=False,
        )
        ratios.append(math.exp(draws.log_normalizer - math.log(math.pi / 2)))
    values = torch.tensor(ratios, dtype=torch.float64)
    return {"mean": float(values.mean()), "std_error": float(values.std()) / math.sqrt(number), "number": number}


def _shifted(x: torch.Tensor) -> torch.Tensor:
    """Two Gaussians of standard deviation 1/2 about 2."""
    return 2.0 * (x - 2.0).square().sum(-1)


def _metrics(name: str, pooled: dict[str, Any]) -> dict[str, Metric]:
    target = catalogue[name.removesuffix("_pt")]
    truth = log_z_truth(target)
    known = isinstance(truth, Truth) and target.log_z is not None
    none = Metric(None, reason="log Z is not known")
    errors = [abs(value - (target.log_z or 0.0)) for value in pooled["log_z"]]
    modes = pooled["modes"]
    return {
        "log_z": Metric(pooled["log_z"][0], pooled["std_error"][0], truth=truth),
        "log_z_off": Metric(median(errors)) if known else none,
        "log_z_worst": Metric(max(errors)) if known else none,
        "ess": Metric(median(pooled["ess"])),
        "num_independent": Metric(median(pooled["independent"])),
        "modes_found": Metric(min(modes), truth=float(len(target.mode_probabilities)))
        if target.mode_probabilities is not None
        else Metric(None, reason="the target has no enumerated modes"),
        "evaluations": Metric(median(pooled["evaluations"])),
        "cpu_seconds": Metric(median(pooled["seconds"])),
        "khat": Metric(
            None, reason="draws were resampled, or come from Markov chains: errors come from roots or chains"
        ),
    }


def _report(
    results: dict[str, dict[str, Any]], frozen: dict[str, float], seed: int, share: float, out: Path
) -> dict[str, Any]:
    models = {name: _metrics(name, pooled) for name, pooled in results.items()}
    head = "gmm40" if "gmm40" in models else next(iter(models))
    off = abs(frozen["mean"] - 1.0) / frozen["std_error"]
    note = (
        f"mean of Z-hat/Z over {frozen['number']:.0f} frozen runs on a Gaussian: {frozen['mean']:.4f} +- "
        f"{frozen['std_error']:.4f}, {off:.1f} standard errors from one"
    )
    report = build_report(
        experiment="smc-catalogue",
        target="catalogue",
        sampler=head,
        seed=seed,
        num_samples=round(results[head]["num_samples"][0]),
        metrics=models[head],
        models=models,
        cpu_seconds={"sample": sum(sum(pooled["seconds"]) for pooled in results.values())},
        threads=1,
        target_hash=catalogue[head].target_hash,
        failures=[f"frozen runs are biased: {note}"] if off > 4.5 else [],
        notes=[note, *([] if share == 1.0 else [f"a shortened run: {share:.0%} of the planned draws, one seed"])],
    )
    save_figure(_figure(results), out / "log_z_error.png")
    write_report(report, out / "report.json")
    tempering = [name for name in models if name.endswith("_pt")]
    write_results_page(
        out / "smc-catalogue.md",
        report,
        title="Reference samplers on the catalogue",
        introduction=_INTRODUCTION.format(note=note, chains=PT_CHAINS),
        columns=[
            *("log_z", "log_z_off", "log_z_worst", "ess", "num_independent", "modes_found", "evaluations"),
            "cpu_seconds",
        ],
        tables={
            "Sequential Monte Carlo": [name for name in models if name not in tempering],
            "Parallel tempering": tempering,
        },
        pictures={"log_z_error": "Median error of log Z (points: single seeds) against gradient evaluations"},
    )
    return report


def _figure(results: dict[str, dict[str, Any]]) -> Any:
    figure, (axes,) = new_figure(width=7.2, height=4.6)
    for name, pooled in results.items():
        tempering = name.endswith("_pt")
        truth = catalogue[name.removesuffix("_pt")].log_z
        if truth is None:
            continue
        errors = [max(1e-4, abs(value - truth)) for value in pooled["log_z"]]
        colour = RAW if tempering else WEIGHTED
        axes.plot(pooled["evaluations"], errors, ".", color=colour, alpha=0.35, markersize=5)
        axes.plot(median(pooled["evaluations"]), median(errors), "s" if tempering else "o", color=colour, markersize=6)
        if not tempering:
            axes.annotate(
                name,
                (median(pooled["evaluations"]), median(errors)),
                xytext=(5, 3),
                textcoords="offset points",
                fontsize=7,
            )
    axes.plot([], [], "o", color=WEIGHTED, label="sequential Monte Carlo")
    axes.plot([], [], "s", color=RAW, label="parallel tempering")
    axes.set_xscale("log")
    axes.set_yscale("log")
    tidy(axes, title="Error of log Z", x="gradient evaluations", y=r"$|\log \hat Z - \log Z|$")
    return figure


_INTRODUCTION = """\
`smc` and `parallel_tempering` on every target, on one thread, with settings fixed in `experiments/smc_catalogue.py`:
Gaussian starts, Hamiltonian moves, one chain of sequential Monte Carlo (errors from its genealogy), {chains} chains of
parallel tempering (errors from their differences). `log_z` is of the first seed; `log_z_off` and `log_z_worst` are the
median and the worst absolute error over five seeds (three for the Lennard-Jones clusters and breast cancer);
`num_independent` counts effective first ancestors or chains, `evaluations` are gradients, `cpu_seconds` those of
one run; where all draws descend from fewer than eight, no error is given. {note}."""
