"""Pictures of an experiment on diffusion samplers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from pyro_boltzmann.diagnostics import WeightedSamples, from_netcdf, pair_distances
from pyro_boltzmann.diagnostics.plots import plot_configurations, plot_energy_histogram, plot_log_weights, save_figure
from pyro_boltzmann.diagnostics.plots.style import EXACT, RAW, WEIGHTED, new_figure, tidy
from pyro_boltzmann.diagnostics.resampling import systematic
from pyro_boltzmann.energies.catalogue import Target
from pyro_boltzmann.experiments.bendem_references import References
from pyro_boltzmann.experiments.run_folder import DRAWS
from pyro_boltzmann.experiments.run_plots import plot_draws

__all__ = ["draw_pictures"]

SHOWN = 5
_REFERENCE = "#c3ccd4"
_COLOURS = {"best": WEIGHTED, "bendem": "#8a6bbe", "endem": "#5b9f5b", "idem": RAW}


def draw_pictures(
    target: Target, seeds: Mapping[str, list[dict[str, Any]]], references: References | None, out: Path
) -> dict[str, str]:
    """Draw the samples of the first seed (read from ``out``), their energies and distances, and the errors of the
    scores; returns captions by name."""
    draws = from_netcdf(out / DRAWS)
    x = draws.samples["x"]
    label = "exact" if references is not None and references.exact else "reference"
    known = None if references is None else references.first.energy.cpu().numpy()
    captions = {"samples": "Draws of the first seed", "energies": "Energies of the draws, raw and reweighted"}
    particles = hasattr(target, "to_particles")
    if particles:
        save_figure(_configurations(target, draws), out / "samples.png")
        save_figure(_distances(target, draws, references), out / "distances.png")
        captions["samples"] = "Draws of the first seed, in proportion to their weights; lines join neighbours"
        captions["distances"] = "Distances of all pairs, raw and reweighted"
    else:
        save_figure(plot_draws(x, draws.log_weights, target.energy, target), out / "samples.png")
    assert draws.energy is not None
    energies = plot_energy_histogram(
        draws.energy.numpy(), draws.log_weights.numpy(), known, exact_label=label, title="Energies of the draws"
    )
    save_figure(energies, out / "energies.png")
    save_figure(plot_log_weights(draws.log_weights), out / "log_weights.png")
    captions["log_weights"] = "Path weights of the first seed, and the fitted Pareto tail"
    save_figure(_scores(seeds), out / "scores.png")
    captions["scores"] = "The learned score by noise level, one line a seed"
    return captions


def _configurations(target: Any, draws: WeightedSamples) -> Figure:
    generator = torch.Generator().manual_seed(0)
    chosen = systematic(draws.log_weights, SHOWN, generator)
    return plot_configurations(target.to_particles(draws.samples["x"][chosen]).double().numpy())


def _distances(target: Any, draws: WeightedSamples, references: References | None) -> Figure:
    def distances(x: Tensor) -> Any:
        return pair_distances(target.to_particles(x).double().cpu().numpy())

    values = distances(draws.samples["x"])
    known = None if references is None else distances(references.first.z)
    low, high = np.quantile(values if known is None else known, [0.0, 0.9995])
    edges = np.linspace(max(0.0, low - 0.05 * (high - low)), high + 0.05 * (high - low), 121)
    figure, (axes,) = new_figure(width=6.2)

    def density(sample: Any, weights: Any = None) -> Any:
        per_draw = np.full(len(sample), 1.0 / len(sample)) if weights is None else weights
        mass = np.broadcast_to(per_draw[:, None] / sample.shape[1], sample.shape)
        return np.histogram(sample, edges, weights=mass)[0] / (edges[1] - edges[0])

    if known is not None:
        axes.stairs(density(known), edges, fill=True, color=_REFERENCE, label="reference")
    axes.stairs(density(values), edges, color=RAW, linewidth=1.6, label="raw")
    axes.stairs(density(values, draws.weights.numpy()), edges, color=WEIGHTED, linewidth=1.6, label="reweighted")
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(bottom=0.0)
    tidy(axes, title="Interatomic distances", x="distance", y="probability density")
    return figure


def _scores(seeds: Mapping[str, list[dict[str, Any]]]) -> Figure:
    exact = all("error" in run["scores"] for runs in seeds.values() for run in runs)
    figure, columns = new_figure(width=9.4 if exact else 5.6, height=3.8, columns=2 if exact else 1)
    for method, runs in seeds.items():
        for index, run in enumerate(runs):
            curves, label = run["scores"], method if index == 0 else None
            style: dict[str, Any] = {"color": _COLOURS[method], "linewidth": 1.8, "alpha": 1.0 if index == 0 else 0.5}
            columns[-1].plot(curves["sigma"], curves["loss"], label=label, **style)
            if exact:
                columns[0].plot(curves["sigma"], curves["error"], label=label, **style)
    if exact:
        columns[0].axhline(1.0, color=EXACT, linewidth=1.0, linestyle=(0, (4, 3)))
        tidy(columns[0], title="Error of the score, relative", x=r"noise $\sigma$", y="rms error / rms score")
        columns[0].set_yscale("log")
    title = "Loss of the score"
    tidy(columns[-1], title=title, x=r"noise $\sigma$", y=r"$\sigma^2\, E|s - \mathrm{target}|^2 / d$")
    for axes in columns:
        axes.set_xscale("log")
    _frame_loss(columns[-1], seeds)
    return figure


def _frame_loss(axes: Any, seeds: Mapping[str, list[dict[str, Any]]]) -> None:
    """Losses of several kT would press all others against the axis."""
    values = [value for runs in seeds.values() for run in runs for value in run["scores"]["loss"]]
    finite = [value for value in values if math.isfinite(value)]
    axes.set_ylim(0.0, 1.08 * min(max(finite), 2.0) if finite else 1.0)
