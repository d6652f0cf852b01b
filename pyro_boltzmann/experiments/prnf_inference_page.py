"""Report and page of the inference through flow maps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from pyro_boltzmann.diagnostics import Metric, build_report, write_report
from pyro_boltzmann.experiments.bendem_rows import from_plain
from pyro_boltzmann.experiments.inference_problems import PROBLEMS
from pyro_boltzmann.experiments.results_page import write_results_page

__all__ = ["write_inference_results"]

HEADLINE = "ornstein-uhlenbeck: map, NUTS"
_METHODS = ("map, NUTS", "map, guide", "simulator, NUTS", "simulator, guide")


def write_inference_results(
    parts: dict[str, Any], *, seed: int, share: float, num_samples: int, out: Path
) -> dict[str, Any]:
    """Write ``report.json`` and the page; returns the report.

    :param parts: what each job gave, by its name.
    """
    tables = {name: [f"{name}: {method}" for method in _METHODS] for name in PROBLEMS}
    references = {name: f"{name}: simulator, NUTS" for name in PROBLEMS}
    models = {
        model: _rows(parts[model], None if model == references[name] else parts[references[name]])
        for name in PROBLEMS
        for model in tables[name]
    }
    report = build_report(
        experiment="prnf-inference",
        target="source",
        sampler=HEADLINE,
        seed=seed,
        num_samples=num_samples,
        metrics=models[HEADLINE],
        models=models,
        cpu_seconds={f"train {name}": parts[f"{name}: map"]["cpu_seconds"] for name in PROBLEMS},
        threads=torch.get_num_threads(),
        failures=_failures(models[HEADLINE]),
        notes=[] if share == 1.0 else [f"a shortened run: {share:.1%} of the stated lengths"],
    )
    write_report(report, out / "report.json")
    write_results_page(
        out / "prnf-inference.md",
        report,
        title="A source, inferred through a flow map",
        introduction=_INTRODUCTION,
        columns=[
            "mean_deviation",
            "mean_error",
            "sd_ratio",
            "ess_per_second",
            "cpu_seconds",
            "outside",
            "log_z",
            "khat",
        ],
        tables=tables,
    )
    return report


def _rows(found: dict[str, Any], reference: dict[str, Any] | None) -> dict[str, Metric]:
    """Against the exact posterior, or else against NUTS through the simulator, which is ``None`` for itself."""
    mean, sd, error = (torch.tensor(found[name]) for name in ("mean", "sd", "error"))
    is_exact = "exact_mean" in found
    rows = {
        "ess_per_second": Metric(found["ess_per_second"]),
        "cpu_seconds": Metric(found["cpu_seconds"]),
    }
    if found["outside"] is not None:
        rows["outside"] = Metric(found["outside"])
    rows |= {name: from_plain(row) for name, row in found.get("rows", {}).items()}
    if not is_exact and reference is None:
        why = "this run is the reference of the others"
        return {name: Metric(None, reason=why) for name in ("mean_deviation", "mean_error", "sd_ratio")} | rows
    reference = reference or {}
    truth = torch.tensor(found["exact_mean"] if is_exact else reference["mean"])
    truth_sd = torch.tensor(found["exact_sd"] if is_exact else reference["sd"])
    truth_error = torch.zeros_like(truth) if is_exact else torch.tensor(reference["error"])
    combined = (error.square() + truth_error.square()).sqrt().clamp_min(1e-12)
    return {
        "mean_deviation": Metric(float(((mean - truth).abs() / combined).max())),
        "mean_error": Metric(float(((mean - truth).abs() / truth_sd).max())),
        "sd_ratio": Metric(float((sd / truth_sd)[(sd / truth_sd).log().abs().argmax()]), truth=1.0),
    } | rows


def _failures(rows: dict[str, Metric]) -> list[str]:
    value = rows["mean_deviation"].value
    if value is None or value > 4.5:
        return [f"mean_deviation: a posterior mean misses the exact one by {value:.2f} standard errors, more than 4.5"]
    return []


_INTRODUCTION = """\
Eight particles (four in the ABC flow) start around a source of unknown place and width and are seen once, with noise,
after they have moved. The place and the width are inferred through a flow map (two latent states a particle) and
through a simulation inside the program (one latent state and the noise of all steps: one step for Brownian motion,
which is exact, and 20 for the others), by Pyro's NUTS (400 draws after 200 of warm-up; in the ABC flow 120 after 60)
and by autoregressive layers as a guide (independent normals for the many latents of the ABC flow's simulation), trained
by the ELBO and reweighted.

For Brownian motion and the Ornstein-Uhlenbeck process the posterior is known by quadrature; for the ABC flow, NUTS
through the simulator takes its place. `mean_deviation` is the largest deviation of a posterior mean in standard errors,
`mean_error` in posterior standard deviations, `sd_ratio` the ratio of standard deviations that is furthest from one.
`ess_per_second` is for the worst of the coordinates and the width, warm-up and training of the guide counted in;
the training of the map, which serves all inferences, stands in the report. `outside` is the share of initial states
beyond the map's training data."""
