"""Bias and variance of estimators of noised energies and scores, against the exact noised ``gmm40``."""

from __future__ import annotations

import math
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pyro_boltzmann.diagnostics import Metric, build_report, write_report
from pyro_boltzmann.diagnostics.plots import save_figure
from pyro_boltzmann.diagnostics.plots.style import EXACT, RAW, WEIGHTED, new_figure, tidy
from pyro_boltzmann.diffusion import BufferProposal, DenoisingEstimate, bootstrapped_estimate, denoising_estimate
from pyro_boltzmann.diffusion.estimators import ScoreForm
from pyro_boltzmann.energies import energy_and_gradient
from pyro_boltzmann.energies.catalogue import GMM40
from pyro_boltzmann.energies.catalogue.gmm40 import STD
from pyro_boltzmann.experiments.finished_parts import FinishedParts
from pyro_boltzmann.experiments.results_page import write_results_page
from pyro_boltzmann.experiments.run_metrics import stream_seed
from pyro_boltzmann.experiments.threads import one_thread

__all__ = ["ESTIMATORS", "run", "squared_variation"]

SIGMAS = (0.005, 0.03, 0.1, 0.3, 1.0)
"""Noise in the unit of the repositories, 50."""
NUM_NOISE = (100, 500)
UNIT = 50.0
POINTS, REPEATS, BUFFER = 256, 16, 1000
FULL_MINUTES = 3.0
HEAD = "0.3 K500 mixture"
ESTIMATORS = ("target", "tweedie", "mixture", "jackknife", "antithetic", "buffer", "bootstrap")
"""The three forms of the score, and with the mixture: the jackknife's energy, antithetic noise, a buffer of 1000 exact
draws, and the exact energy at half the variance as a teacher."""

Cell = dict[str, list[float]]


def run(
    *, seed: int, out: Path, minutes: float | None = None, num_samples: int | None = None, progress: bool = True
) -> dict[str, Any]:
    """Measure every estimator at every noise, and write table, picture and report into ``out``.

    :param minutes: shorten the run by fewer repeats.
    :param num_samples: noised states at each noise, in place of 256.
    """
    repeats = max(4, round(REPEATS * min(1.0, (minutes or FULL_MINUTES) / FULL_MINUTES)))
    number = num_samples or POINTS
    out.mkdir(parents=True, exist_ok=True)
    parts = FinishedParts(out / "parts.json", {"seed": seed, "repeats": repeats, "num_samples": number})
    start = time.process_time()
    cells: dict[str, Cell] = {}
    grid = [(sigma, k, name) for sigma in SIGMAS for k in NUM_NOISE for name in ESTIMATORS]
    with one_thread(), tqdm(grid, disable=not progress) as bar:
        for sigma, k, name in bar:
            key = f"{sigma:g} K{k} {name}"
            bar.set_description(key)
            cells[key] = parts.get(key, partial(_cell, sigma, k, name, number, repeats, seed))
    return _report(cells, number, repeats, seed, time.process_time() - start, out)


def squared_variation(x: Tensor, variance: float) -> Tensor:
    r""":math:`v / m^2` of :math:`e^{-u(y)}`, :math:`y \sim N(x, h)`, on ``gmm40``: the bias of :math:`E_K` is half of
    it over :math:`K`.

    The square of the mixture is a mixture over pairs of components,
    :math:`N(y; \mu_j, s^2) N(y; \mu_k, s^2) = N(\mu_j; \mu_k, 2 s^2)\, N(y; (\mu_j + \mu_k) / 2, s^2 / 2)`.

    >>> bool((squared_variation(torch.zeros(1, 2, dtype=torch.float64), 1e-6) < 1e-3).all())
    True
    """
    target = GMM40()
    means = torch.as_tensor(target.constants["means"]).to(x.dtype)
    first, second = torch.triu_indices(len(means), len(means))
    twice = torch.where(first == second, 0.0, math.log(2.0))
    pair = _log_normal((means[first] - means[second]).square().sum(-1), 2.0 * STD**2) + twice
    square = (x.unsqueeze(-2) - 0.5 * (means[first] + means[second])).square().sum(-1)
    log_second = (pair + _log_normal(square, variance + 0.5 * STD**2)).logsumexp(-1) - 2.0 * math.log(len(means))
    return torch.expm1(log_second + 2.0 * target.noised_energy(x, variance))


def _log_normal(square: Tensor, variance: float) -> Tensor:
    return -0.5 * square / variance - math.log(2.0 * math.pi * variance)


def _cell(sigma: float, k: int, name: str, number: int, repeats: int, seed: int) -> Cell:
    """The measures of one estimator at one noise, each with its standard error."""
    target, h = GMM40(), (sigma * UNIT) ** 2
    # The same states for all estimators, and the same noise for those that use the same number of plain points.
    states = torch.Generator().manual_seed(stream_seed(seed, f"states {sigma}"))
    x = target.sample(number, generator=states) + sigma * UNIT * torch.randn(number, 2, generator=states)
    exact, gradient = energy_and_gradient(lambda y: target.noised_energy(y, h), x.double())
    truth = -gradient.detach()
    generator = torch.Generator().manual_seed(stream_seed(seed, f"noise {sigma} {k}"))
    buffer = target.sample(BUFFER, generator=torch.Generator().manual_seed(stream_seed(seed, "buffer")))
    repeated = x.expand(repeats, -1, -1)
    estimate = _estimate(name, target, repeated, h, k, buffer, generator)
    off = estimate.energy.double() - exact.detach()
    relative = (estimate.score.double() - truth).square().sum(-1).mean(-1).sqrt() / truth.square().sum(-1).mean().sqrt()
    std = off.var(0).mean().sqrt()
    variation = squared_variation(x.double(), h).mean()
    return {
        "energy_bias": [float(off.mean()), float(std) / math.sqrt(off.numel())],
        "bias_predicted": [float(variation) / (2 * k)],
        "energy_std": [float(std), float(off.var(0).std()) / (2.0 * float(std) * math.sqrt(number))],
        "std_predicted": [math.sqrt(float(variation) / k)],
        "energy_rms": _with_error(off.square().mean(-1).sqrt()),
        "score_error": _with_error(relative),
        "ess": _with_error(estimate.ess.double().mean(-1)),
        "mixing": _with_error(estimate.mixing.double().mean(-1)),
    }


def _estimate(
    name: str, target: GMM40, x: Tensor, h: float, k: int, buffer: Tensor, generator: torch.Generator
) -> DenoisingEstimate:
    if name == "bootstrap":
        return bootstrapped_estimate(target.noised_energy, x, h, 0.5 * h, k, generator=generator)
    forms: dict[str, ScoreForm] = {"target": "target", "tweedie": "tweedie"}
    return denoising_estimate(
        *(target, x, h, k),
        form=forms.get(name, "mixture"),
        correction="jackknife" if name == "jackknife" else "none",
        antithetic=name == "antithetic",
        proposal=BufferProposal(buffer) if name == "buffer" else None,
        generator=generator,
    )


def _with_error(values: Tensor) -> list[float]:
    return [float(values.mean()), float(values.std()) / math.sqrt(len(values))]


def _metric(row: list[float]) -> Metric:
    return Metric(row[0], row[1] if len(row) > 1 else None)


def _report(cells: dict[str, Cell], number: int, repeats: int, seed: int, seconds: float, out: Path) -> dict[str, Any]:
    no_khat = {"khat": Metric(None, reason="estimates are compared with exact values; errors come from repeats")}
    models = {key: {name: _metric(row) for name, row in cell.items()} | no_khat for key, cell in cells.items()}
    target = GMM40()
    report = build_report(
        experiment="denoising-estimators",
        target="gmm40",
        sampler=HEAD,
        seed=seed,
        num_samples=number * repeats,
        metrics=models[HEAD],
        models=models,
        cpu_seconds={"sample": seconds},
        threads=1,
        target_hash=target.target_hash,
        notes=[] if repeats == REPEATS else [f"a shortened run: {repeats} of {REPEATS} repeats"],
    )
    save_figure(_figure(cells), out / "errors.png")
    write_report(report, out / "report.json")
    write_results_page(
        out / "denoising-estimators.md",
        report,
        title="Estimators of noised energies and scores",
        introduction=_INTRODUCTION.format(number=number, repeats=repeats, buffer=BUFFER),
        columns=["energy_bias", "bias_predicted", "energy_std", "energy_rms", "score_error", "ess", "mixing"],
        tables={
            f"sigma = {sigma:g}, K = {k}": [f"{sigma:g} K{k} {name}" for name in ESTIMATORS]
            for sigma in SIGMAS
            for k in NUM_NOISE
        },
        pictures={"errors": f"Errors against the noise, K = {NUM_NOISE[-1]}; dashed: the first order in 1/K"},
    )
    return report


def _figure(cells: dict[str, Cell]) -> Any:
    figure, (bias, spread, score) = new_figure(width=11.4, height=3.9, columns=3)
    k = NUM_NOISE[-1]

    def curve(name: str, measure: str) -> list[float]:
        return [abs(cells[f"{sigma:g} K{k} {name}"][measure][0]) for sigma in SIGMAS]

    energies = {"mixture": ("plain", RAW, "o"), "jackknife": ("jackknife", _THIRD, "D")}
    energies |= {"buffer": ("buffer proposal", WEIGHTED, "s"), "bootstrap": ("exact teacher at h/2", _FOURTH, "^")}
    for axes, measure in ((bias, "energy_bias"), (spread, "energy_std")):
        for name, (label, colour, marker) in energies.items():
            axes.plot(SIGMAS, curve(name, measure), marker=marker, color=colour, label=label, markersize=5)
        predicted = "bias_predicted" if axes is bias else "std_predicted"
        axes.plot(SIGMAS, curve("mixture", predicted), "--", color=EXACT, linewidth=1.0, zorder=0)
    scores = {"target": ("target-score form", RAW, "o"), "tweedie": ("Tweedie form", _THIRD, "D")}
    scores |= {"mixture": ("mixture", EXACT, "v"), "buffer": ("mixture, buffer", WEIGHTED, "s")}
    scores |= {"bootstrap": ("mixture, teacher", _FOURTH, "^")}
    for name, (label, colour, marker) in scores.items():
        score.plot(SIGMAS, curve(name, "score_error"), marker=marker, color=colour, label=label, markersize=5)
    titles = {bias: "Energy: |bias|", spread: "Energy: standard deviation", score: "Score: relative rms error"}
    for axes, title in titles.items():
        axes.set_xscale("log")
        axes.set_yscale("log")
        tidy(axes, title=title, x=r"$\sigma / 50$", legend=axes is not spread)
        if axes.get_legend() is not None:
            axes.legend(frameon=False, fontsize=8)
    return figure


_THIRD, _FOURTH = "#8a6bbe", "#5b9f5b"

_INTRODUCTION = """\
`denoising_estimate` on `gmm40` against the exact noised mixture, at {number} states drawn from the noised target, with
{repeats} repeats each. `sigma` is in units of 50, as in the published code, whose estimators are `target` (the energy
and the score of iDEM, the energy of BNEM) and `tweedie`. `energy_bias` is that of `E_K`, beside its first order
`v / (2 m^2 K)` in closed form, `score_error` the root mean square error over that of the exact score, `ess` a fraction
of K, `mixing` the weight of the Tweedie form. `jackknife`, `antithetic`, `buffer` ({buffer} exact draws of the target)
and `bootstrap` (the exact energy at half the variance as teacher) come with the mixture. Where the predicted bias is
above one or `ess` times K is a few points, expansions in 1/K say nothing, and the jackknife does not help."""
