"""Certified truths: log Z and the mean energy of targets without exact samples, by two independent estimators."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pyro_boltzmann.diagnostics import Metric, Truth, build_report, write_report
from pyro_boltzmann.diagnostics.plots import save_figure
from pyro_boltzmann.diagnostics.plots.style import RAW, WEIGHTED, new_figure, tidy
from pyro_boltzmann.energies.catalogue import catalogue
from pyro_boltzmann.experiments.finished_parts import FinishedParts
from pyro_boltzmann.experiments.results_page import write_results_page
from pyro_boltzmann.experiments.run_metrics import stream_seed
from pyro_boltzmann.experiments.threads import one_thread
from pyro_boltzmann.infer import parallel_tempering, smc

__all__ = ["PLANS", "Plan", "run"]

FULL_MINUTES = 20.0
CHAINS = 16
OVERLAP = 0.8
"""Of neighbours: closer than swaps need, so that thermodynamic integration has little error of its own."""


@dataclass(frozen=True)
class Plan:
    """How long a target is sampled.

    :ivar scale: standard deviation of the Gaussian start.
    :ivar particles: of each of the chains of frozen sequential Monte Carlo.
    :ivar num_steps: leapfrog steps of a move.
    :ivar rounds: of each of the chains of parallel tempering.
    :ivar thin: rounds between the ones that are kept.
    """

    scale: float
    particles: int
    num_steps: int
    rounds: int
    thin: int = 2


PLANS = {"dw4": Plan(math.sqrt(6.0), 16_000, 5, 8000), "lj13": Plan(1.0, 400, 10, 6000)}


def run(
    *, seed: int, out: Path, minutes: float | None = None, num_samples: int | None = None, progress: bool = True
) -> dict[str, Any]:
    """Estimate log Z and the mean energy of DW-4 and LJ-13 by frozen SMC and by parallel tempering.

    :param minutes: shorten all runs in proportion.
    :param num_samples: particles of each chain, in place of the planned ones.
    """
    share = min(1.0, (minutes or FULL_MINUTES) / FULL_MINUTES)
    out.mkdir(parents=True, exist_ok=True)
    parts = FinishedParts(out / "parts.json", {"seed": seed, "share": share, "num_samples": num_samples})
    models: dict[str, dict[str, Metric]] = {}
    estimates: dict[str, dict[str, float]] = {}
    with one_thread():
        for name, plan in PLANS.items():
            for sampler, estimate in (("smc", _by_smc), ("pt", _by_tempering)):
                key = f"{name}_{sampler}"
                make = partial(
                    estimate, name, plan, share, num_samples, stream_seed(seed, key), out / f"{key}.safetensors"
                )
                estimates[key] = parts.get(key, partial(make, progress))
                models[key] = _metrics(name, estimates[key])
    report = build_report(
        experiment="certify",
        target="dw4, lj13",
        sampler="lj13_pt",
        seed=seed,
        num_samples=round(estimates["lj13_pt"]["num_samples"]),
        metrics=models["lj13_pt"],
        models=models,
        cpu_seconds={"sample": sum(one["seconds"] for one in estimates.values())},
        threads=1,
        target_hash=catalogue["lj13"].target_hash,
        failures=_disagreements(estimates),
        notes=[] if share == 1.0 else [f"a shortened run: {share:.0%} of the planned draws"],
    )
    write_report(report, out / "report.json")
    save_figure(_figure(estimates), out / "estimates.png")
    write_results_page(
        out / "certify.md",
        report,
        title="Certified truths",
        introduction=_INTRODUCTION.format(chains=CHAINS),
        columns=[
            "log_z",
            "log_z_integral",
            "mean_energy",
            "virial",
            "round_trips",
            "num_independent",
            "evaluations",
            "cpu_seconds",
        ],
        pictures={"estimates": "log Z by each estimator with its standard error"},
    )
    return report


def _by_smc(
    name: str, plan: Plan, share: float, num_samples: int | None, seed: int, file: Path, progress: bool
) -> dict[str, float]:
    particles = num_samples or max(32, round(plan.particles * share))
    draws = smc(
        catalogue[name].energy,
        dim=catalogue[name].dim,
        proposal=plan.scale,
        num_samples=CHAINS * particles,
        num_chains=CHAINS,
        num_steps=plan.num_steps,
        conditional_ess=0.95,
        freeze=True,
        seed=seed,
        checkpoint=file,
        progress=progress,
    )
    return _summary(name, draws)


def _by_tempering(
    name: str, plan: Plan, share: float, num_samples: int | None, seed: int, file: Path, progress: bool
) -> dict[str, float]:
    rounds = max(32, round(plan.rounds * share))
    draws = parallel_tempering(
        catalogue[name].energy,
        dim=catalogue[name].dim,
        proposal=plan.scale,
        num_chains=2 * CHAINS,
        num_samples=2 * CHAINS * (rounds // plan.thin),
        thin=plan.thin,
        overlap=OVERLAP,
        num_steps=plan.num_steps,
        num_warmup=max(16, rounds // 4),
        seed=seed,
        checkpoint=file,
        progress=progress,
    )
    return _summary(name, draws)


def _summary(name: str, draws: Any) -> dict[str, float]:
    target = catalogue[name]
    energy, x = draws.energy, draws.samples["x"]
    mean, error = draws.expectation(lambda _: energy)
    _, gradient = target.energy.energy_and_gradient(x)  # type: ignore[attr-defined]
    virial, virial_error = draws.expectation(lambda _: (x * gradient).sum(-1))
    tempering = draws.info.get("parallel_tempering", {})
    integral = tempering.get("thermodynamic_integration", [math.nan, math.nan])
    return {
        "log_z": draws.log_normalizer,
        "std_error": draws.log_normalizer_error,
        "log_z_integral": integral[0],
        "integral_error": integral[1],
        "mean_energy": float(mean),
        "mean_energy_error": float(error),
        "virial": float(virial),
        "virial_error": float(virial_error),
        "round_trips": float(tempering.get("round_trips", math.nan)),
        "independent": draws.num_independent,
        "evaluations": float(sum(spent["gradients"] for spent in draws.evaluations.values())),
        "seconds": draws.info["cpu_seconds"],
        "num_samples": float(len(draws)),
    }


def _metrics(name: str, found: dict[str, float]) -> dict[str, Metric]:
    target = catalogue[name]
    missing = Metric(None, reason="of parallel tempering alone")
    rows = {
        "log_z": Metric(
            found["log_z"], found["std_error"], truth=Truth(target.log_z or 0.0, target.log_z_error, "bound")
        ),
        "mean_energy": Metric(found["mean_energy"], found["mean_energy_error"]),
        "virial": Metric(found["virial"], found["virial_error"], truth=float(target.virial_dof)),
        "num_independent": Metric(found["independent"]),
        "evaluations": Metric(found["evaluations"]),
        "cpu_seconds": Metric(found["seconds"]),
        "khat": Metric(None, reason="errors come from the differences of chains"),
        "log_z_integral": missing,
        "round_trips": missing,
    }
    if not math.isnan(found["round_trips"]):
        rows["log_z_integral"] = Metric(found["log_z_integral"], found["integral_error"])
        rows["round_trips"] = Metric(found["round_trips"])
    return rows


def _disagreements(estimates: dict[str, dict[str, float]]) -> list[str]:
    """Two estimators certify a value when they agree within 4.5 of their joint standard errors."""
    failures = []
    for name in PLANS:
        first, second = estimates[f"{name}_smc"], estimates[f"{name}_pt"]
        for value, error in (("log_z", "std_error"), ("mean_energy", "mean_energy_error")):
            apart = abs(first[value] - second[value])
            allowed = 4.5 * math.hypot(first[error], second[error])
            if not apart <= allowed:
                failures.append(f"{value} of {name}: the two estimators differ by {apart:.3g}, more than {allowed:.2g}")
    return failures


def _figure(estimates: dict[str, dict[str, float]]) -> Any:
    figure, axes = new_figure(width=9.6, columns=len(PLANS))
    for panel, name in zip(axes, PLANS, strict=True):
        rows = [
            ("SMC, frozen", estimates[f"{name}_smc"]["log_z"], estimates[f"{name}_smc"]["std_error"], WEIGHTED),
            ("PT, Bennett", estimates[f"{name}_pt"]["log_z"], estimates[f"{name}_pt"]["std_error"], RAW),
            (
                "PT, integration",
                estimates[f"{name}_pt"]["log_z_integral"],
                estimates[f"{name}_pt"]["integral_error"],
                RAW,
            ),
        ]
        for height, (_, value, error, colour) in enumerate(rows):
            panel.errorbar(value, -height, xerr=error, fmt="o", color=colour, capsize=3)
        panel.set_yticks(-np.arange(len(rows)), [label for label, *_ in rows])
        panel.set_ylim(-len(rows) + 0.5, 0.5)
        panel.ticklabel_format(axis="x", useOffset=False)
        tidy(panel, title=name, x=r"$\log Z$")
    return figure


_INTRODUCTION = """\
DW-4 and LJ-13 have no exact samples. Their log Z and mean energy are estimated twice, with nothing in common but the
energy: by sequential Monte Carlo on a frozen ladder ({chains} chains, unbiased for Z, errors from their differences),
and by parallel tempering, whose log Z comes from Bennett's acceptance ratio between temperatures (`log_z`) and from
thermodynamic integration (`log_z_integral`). The virial of the energy must be the number of degrees of freedom, 6
and 36; LJ-13 is the convention with pair factor 2."""
