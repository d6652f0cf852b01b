"""Report and page of an experiment on diffusion samplers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

import torch

from pyro_boltzmann.diagnostics import Metric, Truth, build_report, write_report
from pyro_boltzmann.energies.catalogue import Target
from pyro_boltzmann.experiments.bendem_figures import draw_pictures
from pyro_boltzmann.experiments.bendem_methods import PUBLISHED
from pyro_boltzmann.experiments.bendem_plans import ON_CPU, Plan
from pyro_boltzmann.experiments.bendem_references import References
from pyro_boltzmann.experiments.bendem_rows import from_plain, median_rows, worst_rows
from pyro_boltzmann.experiments.results_page import write_results_page
from pyro_boltzmann.experiments.run_metrics import failures_of, log_z_truth

__all__ = ["Results", "ranking", "write_results"]

Rows = dict[str, Metric]

NO_TAIL = "resampled paths have no weights whose tail could tell; the error comes from replicates"
COMPARED = {
    "ess": ("path ESS", 1.0),
    "log_z_off": ("error of log Z", -1.0),
    "e_w2": ("E-W2, weighted", -1.0),
    "e_w2_raw": ("E-W2, raw", -1.0),
    "x_w2": ("X-W2, weighted", -1.0),
    "x_w2_raw": ("X-W2, raw", -1.0),
    "distance_tv": ("interatomic distances, weighted", -1.0),
    "distance_tv_raw": ("interatomic distances, raw", -1.0),
}
"""By which methods are ranked, in words, and whether more is better."""


@dataclass
class Results:
    """All that an experiment measured.

    :ivar seeds: by method, what :meth:`.SeedRun.measure` gave in each seed.
    :ivar replicates: by method, what :meth:`.SeedRun.replicate` gave.
    :ivar floors: by distance, mean and standard deviation.
    """

    target: Target
    plan: Plan
    method: str
    seed: int
    share: float
    num_samples: int
    size: int
    max_seconds: float
    device: str
    seeds: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    replicates: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    floors: Mapping[str, Any] = field(default_factory=dict)

    @property
    def head(self) -> str:
        """The method in the headline."""
        return "best" if self.method == "all" else self.method

    @property
    def experiment(self) -> str:
        """Its name on the command line."""
        return f"bendem-{self.target.name.replace('_', '')}"


def write_results(results: Results, references: References | None, out: Path) -> dict[str, Any]:
    """Write ``report.json``, the page and the pictures; returns the report."""
    samplers, floors = _models(results), _floor_models(results)
    resampled = {f"{m} resampled": _resampled(results, runs) for m, runs in results.replicates.items() if runs}
    models = {**samplers, **resampled, **floors}
    tables = {_ESTIMATES: [*samplers], _SAMPLES: [*samplers, *floors], _RESAMPLED: [*resampled], _COST: [*samplers]}
    middle = f"{results.head} median"
    head = middle if middle in models else f"{results.head} seed {results.seed}"
    runs = results.seeds[results.head]
    failures = {failure: None for run in runs for failure in failures_of(_rows_of(run))}
    report = build_report(
        experiment=results.experiment,
        target=results.target.name,
        sampler=head,
        seed=results.seed,
        num_samples=results.num_samples,
        # The verdict is on all seeds, so the tail is that of the worst.
        metrics={**models[head], "khat": worst_rows([_rows_of(run) for run in runs])["khat"]},
        models=models,
        energy_evaluations={phase: _total(runs, phase) for phase in ("train", "sample")},
        wall_seconds=_total(runs, "wall_seconds"),
        cpu_seconds=_total(runs, "cpu_seconds"),
        threads=torch.get_num_threads(),
        target_hash=results.target.target_hash,
        failures=list(failures),
        notes=_notes(results),
    )
    write_report(report, out / "report.json")
    pictures = draw_pictures(results.target, results.seeds, references, out)
    write_results_page(
        out / f"{results.experiment}.md",
        report,
        title=f"Diffusion samplers on {results.target.name}",
        introduction="\n\n".join([_introduction(results), *_ranking_lines(results)]),
        columns=_COLUMNS,
        tables={heading: rows for heading, rows in tables.items() if rows},
        pictures=pictures,
    )
    return report


def ranking(first: Sequence[Mapping[str, Metric]], second: Sequence[Mapping[str, Metric]]) -> dict[str, str]:
    """By which measures each seed of the first beats every seed of the second: yes, no (the reverse), or overlap.

    >>> ranking([{"ess": Metric(0.5)}, {"ess": Metric(0.4)}], [{"ess": Metric(0.2)}, {"ess": Metric(0.3)}])
    {'ess': 'yes'}
    """
    return {
        name: _beat([_merit(rows[name], sign) for rows in first], [_merit(rows[name], sign) for rows in second])
        for name, (_, sign) in COMPARED.items()
        if all(name in rows for rows in (*first, *second))
    }


def _merit(metric: Metric, sign: float) -> float:
    # Weighted distances need a few effective draws; not to have them is to lose.
    return -math.inf if metric.value is None else sign * metric.value


def _beat(first: list[float], second: list[float]) -> str:
    if min(first) > max(second):
        return "yes"
    return "no" if max(first) < min(second) else "overlap"


def _models(results: Results) -> dict[str, Rows]:
    """The median and the worst of several seeds, then the seeds."""
    models: dict[str, Rows] = {}
    spread: dict[str, Rows] = {}
    for method, runs in results.seeds.items():
        seeds = [_rows_of(run) for run in runs]
        if len(seeds) > 1:
            models[f"{method} median"] = median_rows(seeds)
            models[f"{method} worst"] = worst_rows(seeds)
        spread |= {f"{method} seed {results.seed + k}": rows for k, rows in enumerate(seeds)}
    return models | spread


def _floor_models(results: Results) -> dict[str, Rows]:
    return {
        f"floor {what}": {name: Metric(_or_none(pair[k]), reason="one pair of sets") for name, pair in _both(results)}
        for k, what in enumerate(("mean", "standard deviation"))
        if results.floors
    }


def _both(results: Results) -> list[tuple[str, Any]]:
    return [(name + end, pair) for name, pair in results.floors.items() for end in ("", "_raw")]


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _rows_of(run: Mapping[str, Any]) -> Rows:
    rows = {name: from_plain(plain) for name, plain in run["rows"].items()}
    error = run["scores"].get("error")
    if error:
        rows["score_error"] = Metric(math.sqrt(fmean(value * value for value in error)))
    return rows | {
        "updates": Metric(run["updates"]),
        "train_evaluations": Metric(sum(run["train"].values())),
        "sample_evaluations": Metric(sum(run["sample"].values())),
        "train_seconds": Metric(run["wall_seconds"]["train"]),
        "train_cpu_seconds": Metric(run["cpu_seconds"]["train"]),
        "sample_seconds": Metric(run["wall_seconds"]["sample"]),
        "sample_cpu_seconds": Metric(run["cpu_seconds"]["sample"]),
    }


def _resampled(results: Results, runs: list[dict[str, float]]) -> Rows:
    values = [one["log_z"] for one in runs]
    return {
        "log_z": Metric(fmean(values), stdev(values) / math.sqrt(len(values)), truth=log_z_truth(results.target)),
        "log_z_sd": Metric(stdev(values)),
        "num_replicates": Metric(len(values)),
        "num_roots": Metric(min(one["roots"] for one in runs)),
        "share_resampled": Metric(fmean(float(one["resampled"] > 0) for one in runs)),
        "ess": Metric(median(one["ess"] for one in runs)),
        "khat": Metric(None, reason=NO_TAIL),
    }


def _total(runs: list[dict[str, Any]], what: str) -> dict[str, Any]:
    keys = runs[0][what]
    return {key: sum(run[what][key] or 0 for run in runs) for key in keys}


def _notes(results: Results) -> list[str]:
    notes = []
    if results.device == "cpu" and results.target.name in ON_CPU:
        notes.append("on the CPU this is a smoke test with a small network; the experiment is meant for a GPU")
    if results.share < 1.0:
        notes.append(f"a shortened run: {results.share:.1%} of the planned training, one seed")
    for method, runs in results.seeds.items():
        late = sum(run["stopped"] == "time" for run in runs)
        if late and (method == "best" or results.method == "all"):
            notes.append(f"{method}: {late} of {len(runs)} trainings ended by the clock, before their last update")
    for method, resampled in results.replicates.items():
        plain = sum(not one["resampled"] for one in resampled)
        if plain:
            notes.append(f"{method}: {plain} of {len(resampled)} replicates were never resampled")
    return notes


def _introduction(results: Results) -> str:
    target, plan = results.target, results.plan
    truth = log_z_truth(target)
    known = f"log Z is {truth.value:.3f} ({truth.quality}). " if isinstance(truth, Truth) else "log Z is not known. "
    if results.size == 0:
        reference = "There are no reference samples."
    elif target.has_exact_sampler:
        reference = "Reference samples are exact."
    else:
        reference = "Reference samples are of two independent runs of sequential Monte Carlo."
    distances = ""
    if results.size:
        distances = (
            f" Distances take N/ESS weighted draws, whose Kish size is the N = {results.size:,} of the floors; `_raw` "
            f"ones take N unweighted draws. Floors come from {plan.repeats} pairs of reference sets."
        )
    return (
        f"{_WHAT[results.method == 'all']} {known}The reverse process has {plan.shortened_steps(results.share)} steps"
        f"{'' if results.method == 'all' else ' (the published methods as many as published)'}, "
        f"N = {results.num_samples:,} draws a seed, each with its exact path weight; a training may take "
        f"{results.max_seconds:.0f} s on {'one thread' if results.device == 'cpu' else 'a GPU'}. {reference}{distances}"
        " `train_evaluations` (values and gradients) include the teacher's."
    )


def _ranking_lines(results: Results) -> list[str]:
    if len(results.seeds) < 2:
        return []
    seeds = {method: [_rows_of(run) for run in runs] for method, runs in results.seeds.items()}
    idem, endem, bendem = (seeds[name] for name in PUBLISHED)
    upper, lower, ours = ranking(bendem, endem), ranking(endem, idem), ranking(seeds["best"], bendem)
    lines = ["| in every seed, by | BEnDEM beats EnDEM | EnDEM beats iDEM | ours beats BEnDEM |", "|---|---|---|---|"]
    lines += [f"| {COMPARED[name][0]} | {upper[name]} | {lower[name]} | {ours[name]} |" for name in upper]
    verdicts = [_verdict("BEnDEM", "EnDEM", upper), _verdict("EnDEM", "iDEM", lower)]
    return [" ".join(verdicts), "\n".join(lines), _scores_at_much_noise(results)]


def _verdict(first: str, second: str, found: Mapping[str, str]) -> str:
    by = {answer: [COMPARED[name][0] for name in found if found[name] == answer] for answer in ("yes", "no")}
    gains, losses = (", ".join(by[answer]) or "nothing" for answer in ("yes", "no"))
    return f"{first} beats {second} in every seed by {gains}, and loses in every seed by {losses}."


def _scores_at_much_noise(results: Results) -> str:
    """How wrong the scores are at the most noise that all methods have."""
    noisiest = min(run["scores"]["sigma"][-1] for runs in results.seeds.values() for run in runs)
    kind = "error" if all("error" in run["scores"] for runs in results.seeds.values() for run in runs) else "loss"
    parts = []
    for method, runs in results.seeds.items():
        values = [
            min(zip(run["scores"]["sigma"], run["scores"][kind], strict=True), key=lambda pair: abs(pair[0] - noisiest))
            for run in runs
        ]
        found = median(value for _, value in values)
        parts.append(f"{f'{found:,.0f}' if found >= 100 else f'{found:.2g}'} ({method})")
    what = {
        "error": "the rms error of the score, in units of the rms score",
        "loss": "the loss of the score, sigma^2 E|s - target|^2 / d, which is about one for a score of zero",
    }[kind]
    return f"At sigma = {noisiest:.3g}, {what}, is in the median {', '.join(parts)}."


_WHAT = {
    False: (
        "A diffusion sampler learned from the energy alone. `best` is target score matching on the weighted draws of a "
        "short sequential Monte Carlo run, `idem`, `endem` and `bendem` are the published objectives."
    ),
    True: (
        "Diffusion samplers learned from the energy alone, each in three minutes at most: the published objectives "
        "iDEM, EnDEM and BEnDEM, and `best`, target score matching on the weighted draws of a short sequential Monte "
        "Carlo run. The three have the same network around the target's own energy, 256 states an update from a buffer "
        "with importance weights, 100 points around each, noise from a quarter of a mode's width on, a cosine "
        "learning rate (to 1 %, unless the clock ends the training before) and a learned spread: their authors' "
        "settings are for hours. Energies are weighted by their estimated variance. iDEM's targets are clipped as "
        "published. Once its teacher has begun, BEnDEM has 34 points, 32 of them the teacher's, and it samples with "
        "the teacher, an average of its parameters. These settings were chosen in short trials with seed 0 on gmm40 "
        "and dw4 themselves, most of them BEnDEM's."
    ),
}

_ESTIMATES, _SAMPLES, _RESAMPLED, _COST = "log Z and weights", "Samples", "Resampled along the path", "Cost"
_COLUMNS = {
    _ESTIMATES: ["log_z", "log_z_off", "ess", "forward_ess", "elbo", "eubo", "khat", "score_error"],
    _SAMPLES: [
        *("x_w2", "x_w2_raw", "e_w2", "e_w2_raw", "distance_tv", "distance_tv_raw"),
        *("mode_mass_tv", "modes_found", "mean_energy", "virial"),
    ],
    _RESAMPLED: ["log_z", "log_z_sd", "num_replicates", "num_roots", "share_resampled"],
    _COST: [
        *("updates", "train_evaluations", "sample_evaluations"),
        *("train_seconds", "train_cpu_seconds", "sample_seconds", "sample_cpu_seconds"),
    ],
}
