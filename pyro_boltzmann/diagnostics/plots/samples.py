"""Two-dimensional draws over the contours of their energy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from pyro_boltzmann.diagnostics.plots.style import INK, new_figure, tidy, to_numpy
from pyro_boltzmann.exceptions import ShapeError

__all__ = ["plot_samples_over_energy"]

LOW_ENERGY = 4.0
"""Most draws lie below this, in kT."""
NEARLY_SQUARE = 0.1
"""Boxes whose sides differ by less than this, as a logarithm, are drawn to scale."""
ROOMY = 0.17
"""Where the low energies fill this share of the picture, dots and lines have their full size."""


def plot_samples_over_energy(
    samples: Tensor,
    energy: Callable[[Tensor], Tensor],
    log_weights: Tensor | None = None,
    *,
    limits: tuple[float, float, float, float] | None = None,
    max_energy: float = 12.0,
    max_points: int = 3000,
    title: str = "Samples over the energy",
) -> Figure:
    """Draws ``(N, 2)`` as dots over filled contours of the energy above its minimum, in kT.

    :param log_weights: if given, dots have areas in proportion to their weights.
    :param limits: ``(x_low, x_high, y_low, y_high)``; default: where nearly all draws are, with a margin.
    :param max_energy: energies above this many kT stay white.
    :raises ShapeError: if the draws are not two-dimensional.
    """
    points = to_numpy(samples)
    if points.ndim != 2 or points.shape[1] != 2 or len(points) == 0:
        raise ShapeError(f"expected samples of shape (N, 2), got {points.shape}; choose two coordinates")
    if limits is None:
        low, high = np.quantile(points, [0.0005, 0.9995], axis=0)
        margin = 0.12 * (high - low) + 1e-6
        limits = (low[0] - margin[0], high[0] + margin[0], low[1] - margin[1], high[1] + margin[1])
    grid_x, grid_y = np.linspace(limits[0], limits[1], 200), np.linspace(limits[2], limits[3], 200)
    mesh = torch.as_tensor(np.stack(np.meshgrid(grid_x, grid_y), -1), dtype=samples.dtype, device=samples.device)
    with torch.no_grad():
        values = to_numpy(energy(mesh.reshape(-1, 2))).reshape(200, 200)
    values = np.where(np.isfinite(values), values, np.inf)
    values = np.minimum(values - values.min(), max_energy + 1.0)
    # Narrow wells would vanish behind dots and lines of full size.
    room = min(1.0, float((values < LOW_ENERGY).mean()) / ROOMY) ** 1.5
    is_to_scale = abs(np.log((limits[1] - limits[0]) / (limits[3] - limits[2]))) < NEARLY_SQUARE
    figure, (axes,) = new_figure(5.0 if is_to_scale else 5.6, 4.3)
    levels = np.linspace(0.0, max_energy, 13)
    filled = axes.contourf(grid_x, grid_y, values, levels=levels, cmap="GnBu_r", alpha=0.9)
    axes.contour(grid_x, grid_y, values, levels=levels[1:], colors="white", linewidths=0.5 * room)
    step = max(1, len(points) // max_points)
    shown = points[::step][:max_points]
    sizes: float | np.ndarray[tuple[int], np.dtype[np.float64]] = 5.0 * room
    if log_weights is not None:
        chosen = to_numpy(log_weights)[::step][:max_points]
        weights = np.exp(chosen - chosen.max())
        sizes = room * np.clip(4.0 * weights / weights.mean(), 0.0, 120.0)
    axes.scatter(shown[:, 0], shown[:, 1], s=sizes, color="#c2452d", alpha=0.55, linewidths=0)
    axes.set_xlim(limits[0], limits[1])
    axes.set_ylim(limits[2], limits[3])
    if is_to_scale:
        axes.set_aspect("equal")
    bar = figure.colorbar(filled, ax=axes, pad=0.02)
    bar.set_label("energy above its minimum (kT)", color=INK, fontsize=10)
    bar.ax.tick_params(colors=INK, labelsize=9, length=0)
    bar.outline.set_visible(False)
    tidy(axes, title=title, x="$x_1$", y="$x_2$")
    axes.grid(False)
    return figure
