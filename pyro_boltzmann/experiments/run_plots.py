"""The pictures of a sampling run."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.stats import gaussian_kde
from torch import Tensor

from pyro_boltzmann.diagnostics import WeightedSamples
from pyro_boltzmann.diagnostics.plots import (
    plot_energy_histogram,
    plot_ladder,
    plot_log_weights,
    plot_path_ess,
    plot_samples_over_energy,
    plot_training,
    save_figure,
)
from pyro_boltzmann.energies.catalogue import Target
from pyro_boltzmann.energies.evaluation import Energy
from pyro_boltzmann.exceptions import OutputError

__all__ = ["SAMPLES_PICTURE", "plot_draws", "write_plots"]

SAMPLES_PICTURE = "samples.png"
KERNELS = 1000
"""Draws from which the free energy of two coordinates is estimated."""


def write_plots(
    ws: WeightedSamples,
    z: Tensor,
    out: Path,
    *,
    energy: Energy | None,
    target: Target | None = None,
    exact_energies: Tensor | None = None,
    skip: tuple[str, ...] = (),
) -> list[Path]:
    """Draw what a run allows: samples, log weights or ladder, energies, ESS along the path, training, as PNG.

    A picture that cannot be drawn (a single draw, say) is left out with a warning: it is not worth a run.

    :param z: unconstrained vectors of the draws, ``(N, dim)``.
    :param energy: of these, for the contours in two dimensions.
    :param target: whose bounds and log Z are drawn, where known.
    :param exact_energies: of exact samples, drawn beside the run's.
    :param skip: file names to leave alone.
    :raises OutputError: if a file cannot be written.
    """
    written = []
    for name, draw in _pictures(ws, z, energy, target, exact_energies):
        if name in skip:
            continue
        try:
            written.append(save_figure(draw(), out / name))
        except OutputError:
            raise
        except Exception as error:  # numbers that no axis can show
            warnings.warn(f"{name} could not be drawn: {error}", UserWarning, stacklevel=2)
    return written


def _pictures(
    ws: WeightedSamples, z: Tensor, energy: Energy | None, target: Target | None, exact_energies: Tensor | None
) -> Iterator[tuple[str, Callable[[], Figure]]]:
    if z.shape[-1] >= 2:
        yield SAMPLES_PICTURE, lambda: plot_draws(z, ws.log_weights, energy, target)
    if ws.roots is None:
        yield "log_weights.png", lambda: plot_log_weights(ws.log_weights)
    else:
        yield "ladder.png", lambda: _ladder(ws)
    energies = ws.energy
    if energies is not None:
        exact = None if exact_energies is None else exact_energies[: len(energies)].cpu().numpy()
        yield "energies.png", lambda: plot_energy_histogram(energies.cpu().numpy(), ws.log_weights.cpu().numpy(), exact)
    if ws.info.get("path_ess"):
        yield "path_ess.png", lambda: path_ess_figure(ws)
    history = ws.info.get("training") or {}
    if history.get("step"):
        yield "training.png", lambda: _training(history, target)


def _ladder(ws: WeightedSamples) -> Figure:
    tempering = ws.info.get("parallel_tempering")
    if tempering is not None:
        return plot_ladder(tempering["positions"][1:], tempering["acceptance"], rejections=tempering["rejections"])
    annealing = ws.info["smc"]
    return plot_ladder(annealing["positions"], annealing["acceptance"], resampled=annealing["resampled"])


def plot_draws(z: Tensor, log_weights: Tensor, energy: Energy | None, target: Target | None = None) -> Figure:
    """Draws ``(N, dim)`` in the plane of their first two coordinates: over the energy where these are all, and over the
    free energy of the two where there are more."""
    points = z[:, :2].cpu()
    log_weights = log_weights.cpu()
    if z.shape[-1] == 2 and energy is not None:
        box = None if target is None else (*target.bounds[0], *target.bounds[1])
        return plot_samples_over_energy(z, energy, log_weights, limits=box)
    surface = _free_energy(points, log_weights)
    title = "First two coordinates over their free energy"
    return plot_samples_over_energy(points, surface, log_weights, max_energy=6.0, title=title)


def _free_energy(points: Tensor, log_weights: Tensor) -> Energy:
    """Minus the log of a kernel estimate of the density of two coordinates, from weighted draws."""
    step = max(1, len(points) // KERNELS)
    chosen = points[::step][:KERNELS].double().numpy()
    chosen_weights = torch.softmax(log_weights[::step][:KERNELS], 0).numpy()
    estimate = gaussian_kde(chosen.T, weights=chosen_weights)

    def free_energy(mesh: Tensor) -> Tensor:
        with np.errstate(divide="ignore"):
            return torch.from_numpy(-np.log(estimate(mesh.double().numpy().T)))

    return free_energy


def path_ess_figure(ws: WeightedSamples) -> Figure:
    """The ESS after each block that knows an energy, and that of the draws themselves at the end."""
    trail = sorted((int(position), value) for position, value in (ws.info.get("path_ess") or {}).items())
    labels = [_label(ws, position) for position, _ in trail]
    return plot_path_ess([*(value for _, value in trail), ws.ess], [*labels, "target"], num_samples=ws.num_samples)


def _label(ws: WeightedSamples, position: int) -> str:
    annealing, names = ws.info.get("annealing") or [], ws.info.get("block_names") or []
    if position < len(annealing) and annealing[position] is not None:
        return f"λ = {annealing[position]:.2f}"
    name = names[position] if position < len(names) else ""
    return f"{position + 1} {name.removesuffix('Transform').removesuffix('Adjusted')}"


def _training(history: dict[str, Any], target: Target | None) -> Figure:
    # JSON has no NaN: None stands for it in a file that was read back.
    if "elbo" not in history:
        steps, losses = (np.asarray(history[name], dtype=np.float64) for name in ("step", "loss"))
        return plot_training(steps, losses, ylabel="loss", unit="")
    rows = {name: np.asarray(history[name], dtype=np.float64) for name in ("step", "elbo", "ess")}
    known = target.log_z if target is not None and target.log_z_origin in ("exact", "certified") else None
    return plot_training(rows["step"], rows["elbo"], rows["ess"], log_z=known)
