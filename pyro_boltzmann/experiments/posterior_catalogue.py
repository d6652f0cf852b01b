"""Posteriors of the catalogue: guides, SMC and NUTS side by side, and simulation-based calibration."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from pyro_boltzmann.diagnostics import Metric, Truth, build_report, write_report
from pyro_boltzmann.diagnostics.plots import save_figure
from pyro_boltzmann.diagnostics.weighted_samples import FEWEST_INDEPENDENT
from pyro_boltzmann.energies import EvaluationCount
from pyro_boltzmann.energies.catalogue import catalogue
from pyro_boltzmann.energies.catalogue.posteriors import PosteriorTarget
from pyro_boltzmann.experiments.posterior_methods import (
    GUIDES,
    NUM_CHAINS,
    NUM_MOVES,
    PARTICLES,
    Estimate,
    guide_estimate,
    smc_estimate,
    smc_replicates,
    train,
)
from pyro_boltzmann.experiments.posterior_plots import METHODS, log_z_figure, rank_figure
from pyro_boltzmann.experiments.posterior_reference import (
    NUM_EXACT,
    NUTS_CHAINS,
    PT_CHAINS,
    Reference,
    exact_reference,
    nuts_estimate,
    tempered_reference,
)
from pyro_boltzmann.experiments.results_page import write_results_page
from pyro_boltzmann.experiments.run_folder import DRAWS, REPORT, claim
from pyro_boltzmann.experiments.schools_calibration import NUM_BINS, NUM_DRAWS, QUANTITIES, Calibration, calibrate
from pyro_boltzmann.experiments.threads import one_thread
from pyro_boltzmann.infer.checkpoint import load_checkpoint, save_checkpoint

__all__ = ["HEADLINE", "PROGRAMS", "run"]

HEADLINE = "seeds_smc"
"""The model whose figures the report puts first: fixed here, before any run."""
PROGRAMS = ("seeds", "eight_schools", "eight_schools_centered", "logistic_regression", "brownian", "breast_cancer")
FULL_MINUTES = 12.0
SVI_SECONDS = 10.0
NUM_SAMPLES = 20_000
SMC_PARTICLES, SMC_SEEDS = 5_000, 5
ONE_SEED = ("breast_cancer", "logistic_regression")
"""Programs whose evaluations are slow: one seed of SMC."""
SMOKE = 0.1
"""A run shorter than this share of the stated time keeps to the first two programs."""
NO_NUTS = ("breast_cancer", "eight_schools_centered")
NUTS_WARMUP, NUTS_DRAWS = 200, 300
PT_ROUNDS = 1_500
LARGEST_RHAT = 1.05
"""Of a reference; above it nothing is compared with log Z of that run."""
SBC_SETS, SBC_PARTICLES = 200, 512
CONTROL_SETS, CONTROL_SCALE = 64, 2.0
FALSE_ALARMS = 1e-5

Rows = dict[str, Estimate]


def run(
    *, seed: int, out: Path, minutes: float | None = None, num_samples: int | None = None, progress: bool = True
) -> dict[str, Any]:
    """Every method on every program, and the calibration of SMC; what is finished is kept in ``out``.

    :param minutes: shorten training, runs and calibration in proportion where this is below :data:`FULL_MINUTES`.
    :param num_samples: draws of each guide, 20 000 unless given.
    :return: the report.
    """
    work = _Work(Path(out), seed, min(1.0, (minutes or FULL_MINUTES) / FULL_MINUTES), num_samples, progress)
    claim(work.out, work.identity)
    models: dict[str, dict[str, Metric]] = {}
    with one_thread():
        for name in PROGRAMS if work.share >= SMOKE else PROGRAMS[:2]:
            if name != "breast_cancer" or importlib.util.find_spec("sklearn") is not None:
                models |= work.program(cast(PosteriorTarget, catalogue[name]))
        calibrations = {
            "calibration_smc": work.calibration("smc", SBC_SETS, 1.0),
            "calibration_wrong": work.calibration("wrong", CONTROL_SETS, CONTROL_SCALE),
        }
    return _report(work, models, calibrations)


class _Work:
    """The tasks of a run, each done once and read back by later runs."""

    def __init__(self, out: Path, seed: int, share: float, num_samples: int | None, progress: bool) -> None:
        self.out, self.seed, self.share, self.progress = out, seed, share, progress
        self.seconds = SVI_SECONDS * share
        self.num_samples = num_samples or max(2_000, int(NUM_SAMPLES * min(1.0, 4 * share)))
        self.identity = {
            "experiment": "posterior-catalogue",
            "seed": seed,
            "share": share,
            "num_samples": self.num_samples,
        }

    def scaled(self, full: int, least: int) -> int:
        """A number of draws, rounds or replicates in proportion to the time."""
        return max(least, int(full * self.share))

    @property
    def particles(self) -> int:
        return NUM_CHAINS * self.scaled(SMC_PARTICLES // NUM_CHAINS, 40)

    # Programs ----------------------------------------------------------------------------------------------------

    def program(self, target: PosteriorTarget) -> dict[str, dict[str, Metric]]:
        """The rows of one program, with its truths and their deviations from the reference put in."""
        reference, rows = self._reference(target)
        for kind in GUIDES:
            rows |= self._task(target, kind, partial(self._guide, target, kind))
        rows |= self._task(target, "smc", partial(self._smc, target))
        if target.name not in NO_NUTS:
            rows |= self._task(target, "nuts", partial(self._nuts, target))
        truth = _truth(target, rows)
        return {
            f"{target.name}_{method}": _completed(rows[method], reference, truth, method == "pt")
            for method in METHODS
            if method in rows
        }

    def _reference(self, target: PosteriorTarget) -> tuple[Reference, Rows]:
        if target.has_exact_sampler:
            return exact_reference(target, max(20_000, int(NUM_EXACT * self.share))), {}
        rows = self._task(target, "pt", partial(self._tempered, target))
        scale = rows.pop("scale").mean
        return Reference(rows["pt"].mean, rows["pt"].error, scale), rows

    def _tempered(self, target: PosteriorTarget) -> Rows:
        # A prior a hundred times wider than the posterior is no place to start from.
        proposal = train("mvn", target, self.seconds).guide if target.name == "breast_cancer" else None
        reference, estimate = tempered_reference(target, self.scaled(PT_ROUNDS, 20), self.seed, proposal)
        return {"pt": estimate, "scale": Estimate({}, reference.scale, reference.scale)}

    def _guide(self, target: PosteriorTarget, kind: str) -> Rows:
        trained = train(kind, target, self.seconds)
        rows = {kind: guide_estimate(trained, target, self.num_samples, self.seed)}
        if kind == "mvn":
            rows["smc_mvn"] = smc_estimate(target, self.particles, self.seed, trained)[0]
        return rows

    def _smc(self, target: PosteriorTarget) -> Rows:
        number = 1 if target.name in ONE_SEED else max(1, round(SMC_SEEDS * min(1.0, 2 * self.share)))
        seeds = [SMC_SEEDS * self.seed + index for index in range(number)]
        estimate, draws = smc_replicates(target, self.particles, seeds, target.log_z)
        if f"{target.name}_smc" == HEADLINE:
            draws.save(self.out / DRAWS)
        return {"smc": estimate}

    def _nuts(self, target: PosteriorTarget) -> Rows:
        return {"nuts": nuts_estimate(target, self.scaled(NUTS_WARMUP, 10), self.scaled(NUTS_DRAWS, 10), self.seed)}

    def _task(self, target: PosteriorTarget, task: str, work: Callable[[], Rows]) -> Rows:
        """Do it, or read what an earlier run did."""
        file = self.out / f"checkpoint-{target.name}-{task}.safetensors"
        if not file.is_file():
            torch.manual_seed(self.seed)
            rows = work()
            tensors = {f"{row}.{part}": getattr(one, part) for row, one in rows.items() for part in ("mean", "error")}
            table = {row: {name: _plain(metric) for name, metric in one.metrics.items()} for row, one in rows.items()}
            save_checkpoint(file, tensors, {"rows": table})
            if self.progress:
                print(f"{target.name}: {task} done", flush=True)
        tensors, described = load_checkpoint(file)
        return {
            row: Estimate(
                {name: Metric(**metric) for name, metric in table.items()},
                tensors[f"{row}.mean"],
                tensors[f"{row}.error"],
            )
            for row, table in described["rows"].items()
        }

    # Calibration -------------------------------------------------------------------------------------------------

    def calibration(self, name: str, num_sets: int, error_scale: float) -> Calibration:
        """The ranks of a sampler, kept like everything else."""
        file = self.out / f"checkpoint-calibration-{name}.safetensors"
        if not file.is_file():
            particles = self.scaled(SBC_PARTICLES, 64)
            done = calibrate(self.scaled(num_sets, 16), particles, self.seed, error_scale=error_scale)
            save_checkpoint(file, {"ranks": done.ranks}, {"seconds": done.seconds, **done.evaluations.to_dict()})
            if self.progress:
                print(f"calibration: {name} done", flush=True)
        tensors, described = load_checkpoint(file)
        spent = EvaluationCount(described["values"], described["gradients"])
        return Calibration(tensors["ranks"], spent, described["seconds"])


def _plain(metric: Metric) -> dict[str, Any]:
    return {"value": metric.value, "std_error": metric.std_error, "reason": metric.reason}


def _truth(target: PosteriorTarget, rows: Rows) -> Truth | None:
    """log Z of the catalogue, or where that is not known, of parallel tempering."""
    if target.log_z is not None:
        return Truth(target.log_z, target.log_z_error)
    measured = rows["pt"].metrics["log_z"]
    if measured.value is None or measured.std_error is None or not _converged(rows["pt"].metrics):
        return None
    return Truth(measured.value, measured.std_error, "measured")


def _converged(metrics: Mapping[str, Metric]) -> bool:
    return metrics["rhat"].value is not None and metrics["rhat"].value <= LARGEST_RHAT


def _completed(one: Estimate, reference: Reference, truth: Truth | None, is_reference: bool) -> dict[str, Metric]:
    metrics = dict(one.metrics)
    roots = metrics.get("roots")
    if roots is not None and (roots.value or 0.0) < FEWEST_INDEPENDENT:
        metrics["log_z"] = replace(metrics["log_z"], std_error=None)
    for name in ("log_z", "elbo", "eubo"):
        if name in metrics:
            metrics[name] = replace(metrics[name], truth=truth)
    row = metrics.get("log_z")
    if row is not None and row.value is not None and truth is not None and not (is_reference and truth.std_error):
        metrics["log_z_error"] = Metric(row.value - truth.value, row.std_error)
    if not is_reference:
        difference = (one.mean.double() - reference.mean).abs()
        combined = (one.error.double().square() + reference.error.square()).sqrt()
        metrics["worst_z"] = Metric(_finite(difference / combined))
        metrics["worst_shift"] = Metric(_finite(difference / reference.scale))
    return metrics


def _finite(values: Tensor) -> float | None:
    worst = float(values.max())
    return worst if torch.isfinite(values).all() else None


def _report(work: _Work, models: dict[str, dict[str, Metric]], calibrations: dict[str, Calibration]) -> dict[str, Any]:
    headline, target = models[HEADLINE], catalogue["seeds"]
    failures = []
    if calibrations["calibration_smc"].smallest_p < FALSE_ALARMS:
        failures.append(f"calibration: ranks of SMC are not uniform (false-alarm rate {FALSE_ALARMS:g})")
    notes = [] if work.share >= 1 else [f"a shortened run: {work.share:.0%} of the stated time"]
    if work.share < SMOKE:
        notes.append(f"so short a run keeps to {' and '.join(PROGRAMS[:2])}")
    if calibrations["calibration_wrong"].smallest_p >= FALSE_ALARMS:
        (notes if work.share < 1 else failures).append("calibration: the test missed a wrong likelihood")
    notes += [
        f"{name}: R-hat above {LARGEST_RHAT}, so worst_z and worst_shift of this program have an unsure reference"
        for name, metrics in models.items()
        if name.endswith("_pt") and not _converged(metrics)
    ]
    spent = {kind: int(headline[kind].value or 0) for kind in ("values", "gradients")}
    report = build_report(
        experiment="posterior-catalogue",
        target=target.name,
        sampler=HEADLINE,
        seed=work.seed,
        num_samples=work.num_samples,
        metrics=headline,
        models=models | {name: _calibration_metrics(one) for name, one in calibrations.items()},
        energy_evaluations={"sample": spent},
        cpu_seconds={"sample": headline["cpu_seconds"].value or 0.0},
        threads=1,
        target_hash=target.target_hash,
        failures=failures,
        notes=notes,
    )
    save_figure(log_z_figure(models, PROGRAMS), work.out / "log_z.png")
    save_figure(rank_figure(calibrations), work.out / "ranks.png")
    write_report(report, work.out / REPORT)
    names = [name for name in PROGRAMS if f"{name}_smc" in models]
    tables = {name: [f"{name}_{method}" for method in METHODS if f"{name}_{method}" in models] for name in names}
    write_results_page(
        work.out / "posterior-catalogue.md",
        report,
        title="Posteriors: guides, SMC and NUTS; simulation-based calibration",
        introduction=_introduction(work, calibrations["calibration_smc"]),
        columns=[*_COLUMNS, *QUANTITIES, "smallest_p"],
        tables=tables | {"Simulation-based calibration: p-values": list(calibrations)},
        pictures={
            "log_z": "Estimate minus truth of log Z, by program and method, with two standard errors",
            "ranks": "Ranks of the true parameter among the posterior draws of SMC; last, with a likelihood whose "
            "standard errors are wrong. The band holds a bin of uniform ranks with probability 0.99",
        },
    )
    return report


_COLUMNS = (
    "elbo",
    "eubo",
    "log_z",
    "log_z_error",
    "median_error",
    "worst_error",
    "ess",
    "forward_ess",
    "khat",
    "roots",
    "worst_z",
    "worst_shift",
    "rhat",
    "mcmc_ess",
    "values",
    "gradients",
    "cpu_seconds",
)


def _calibration_metrics(one: Calibration) -> dict[str, Metric]:
    rows = {name: Metric(test.p_value, num_samples=len(one.ranks)) for name, test in one.tests.items()}
    return rows | {
        "smallest_p": Metric(one.smallest_p, num_samples=len(one.ranks)),
        "values": Metric(float(one.evaluations.values)),
        "gradients": Metric(float(one.evaluations.gradients)),
        "cpu_seconds": Metric(one.seconds),
    }


def _introduction(work: _Work, calibration: Calibration) -> str:
    return _INTRODUCTION.format(
        seconds=work.seconds,
        particles=PARTICLES,
        count=work.num_samples,
        smc=work.particles,
        chains=NUM_CHAINS,
        moves=NUM_MOVES,
        seeds=SMC_SEEDS,
        nuts_chains=NUTS_CHAINS,
        warmup=work.scaled(NUTS_WARMUP, 10),
        draws=work.scaled(NUTS_DRAWS, 10),
        pt_chains=PT_CHAINS,
        pt_rounds=work.scaled(PT_ROUNDS, 20),
        exact=max(20_000, int(NUM_EXACT * work.share)),
        sets=len(calibration.ranks),
        sbc=work.scaled(SBC_PARTICLES, 64),
        kept=NUM_DRAWS,
        bins=NUM_BINS,
        alarms=FALSE_ALARMS,
        wrong=CONTROL_SCALE,
        wrong_sets=work.scaled(CONTROL_SETS, 16),
    )


_INTRODUCTION = """\
Everything runs on one thread. Guides are trained by Pyro's `SVI` with `ReverseKL`, {particles} particles and
{seconds:.1f} s of CPU time each, building and adapting included: `diagonal` and `mvn` are `AutoDiagonalNormal` and
`AutoMultivariateNormal`; `iaf` has two affine autoregressive layers with linear skips; `snf` has the same layers and
in front of them HMC annealed from the base to the posterior as the base sees it. Each is importance-sampled with N =
{count:,} draws; where the catalogue has exact draws, as many give `eubo` and `forward_ess`.

`smc` is `pyro_boltzmann.smc` from the standard normal of the unconstrained space with its default kernel, {moves}
moves at each temperature, {smc:,} particles in {chains} chains, `freeze=True`, so that its Z is unbiased; the row is
that of one seed, `median_error` and `worst_error` are $|\\log \\hat Z - \\log Z|$ over {seeds} seeds (one where
evaluations are slow), and `elbo` is the mean of $\\log \\hat Z$ over all chains of all seeds (a bound on log Z by
Jensen's inequality; none from fewer than 25 chains). `smc_mvn` is the same, started from the trained `mvn`, whose
training is in its price. Draws of SMC share ancestors: instead of ESS and k-hat stands the effective number of first
ancestors, `roots` (below eight nothing can be said of the error), and errors are those of the {chains} chains, hence
rough.

`nuts` is Pyro's NUTS on the unconstrained energy through `potential_fn`, {nuts_chains} chains one after the other,
{warmup} steps of warm-up and {draws} draws each; it is left out on the centred schools and on breast cancer, where it
takes minutes.

Posterior means of all unconstrained coordinates are compared with {exact:,} exact draws where there are any,
otherwise (seeds, breast cancer) with parallel tempering, row `pt`: {pt_chains} chains of {pt_rounds:,} draws, R-hat
and bulk ESS by ArviZ, as for NUTS. `worst_z` is the largest deviation in combined standard errors (about 2 to 3 is
expected of the largest of 5 to 32 that are right), `worst_shift` the largest in posterior standard deviations.
`log_z_error` is estimate minus truth; truths are exact except for breast cancer, where it is the estimate of `pt`.
`values` and `gradients` count evaluations of the energy, training and pilot runs included, `cpu_seconds` likewise.

Calibration (Talts et al., arXiv 1804.06788): {sets} data sets are drawn from the prior predictive of the non-centred
eight schools; the rank of each true quantity among {kept} draws from SMC with {sbc} particles is uniform if the
sampler is right. Each quantity has a $\\chi^2$ test over {bins} bins; the sampler fails if the smallest of the
p-values, times their number, is below {alarms:g}, which is then the rate of false alarms. As a control,
`calibration_wrong` believes in standard errors {wrong:g} times too large ({wrong_sets} data sets) and must fail."""
