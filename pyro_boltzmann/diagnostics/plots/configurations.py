"""A row of particle configurations."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from pyro_boltzmann.diagnostics.plots.style import INK, new_figure
from pyro_boltzmann.diagnostics.weights import FloatArray
from pyro_boltzmann.exceptions import ShapeError

__all__ = ["plot_configurations"]

NEIGHBOURS = 1.25
_PANEL = "#f3f6f8"


def plot_configurations(particles: FloatArray, title: str = "Configurations") -> Figure:
    """Configurations ``(n, num_particles, D)`` side by side, turned to their principal axes; in three dimensions darker
    and larger is nearer. Lines join pairs closer than 1.25 times the median distance to the nearest neighbour.

    :raises ShapeError: for another shape, or particles on a line.

    >>> plot_configurations(np.random.default_rng(0).normal(size=(3, 4, 2))).axes[0].get_aspect()
    1.0
    """
    particles = np.asarray(particles, dtype=np.float64)
    if particles.ndim != 3 or not len(particles) or particles.shape[1] < 2 or particles.shape[2] not in (2, 3):
        raise ShapeError(
            f"expected configurations of shape (n, num_particles, 2 or 3), got {particles.shape}; a target of "
            "particles makes them of its coordinates with to_particles"
        )
    turned = [_turned(x) for x in particles]
    figure, columns = new_figure(width=2.05 * len(turned), height=2.35, columns=len(turned))
    reach = 1.2 * max(float(np.abs(x[:, :2]).max()) for x in turned)
    close = NEIGHBOURS * float(np.median([_pairs(x).min(1) for x in turned]))
    for axes, x in zip(columns, turned, strict=True):
        _draw(axes, x, close, reach)
        axes.set_xlim(-reach, reach)
        axes.set_ylim(-reach, reach)
        axes.set_aspect("equal")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_facecolor(_PANEL)
        for spine in axes.spines.values():
            spine.set_visible(False)
    figure.suptitle(title, color=INK, fontsize=12, x=0.02, ha="left")
    return figure


def _turned(x: FloatArray) -> FloatArray:
    x = x - x.mean(0)
    return np.asarray(x @ np.linalg.svd(x, full_matrices=False)[2].T)


def _pairs(x: FloatArray) -> FloatArray:
    distances = np.linalg.norm(x[:, None] - x[None], axis=-1)
    np.fill_diagonal(distances, np.inf)
    return np.asarray(distances)


def _draw(axes: Any, x: FloatArray, close: float, reach: float) -> None:
    depth = x[:, 2] if x.shape[1] > 2 else np.zeros(len(x))
    near = 0.5 + 0.5 * depth / max(reach, 1e-12)
    for i, j in zip(*np.nonzero(np.triu(_pairs(x) < close)), strict=True):
        shade = 0.5 * (near[i] + near[j])
        axes.plot(*x[[i, j], :2].T, color=INK, linewidth=1.2, alpha=0.15 + 0.35 * shade, zorder=10 * shade)
    colours = colormaps["GnBu"](0.35 + 0.6 * np.clip(near, 0.0, 1.0))
    size = 260.0 * 4.0 / (4.0 + len(x) / 4.0)
    for k in np.argsort(depth):
        axes.scatter(
            *x[k, :2],
            s=size * (0.6 + 0.6 * near[k]),
            color=colours[k],
            edgecolors=INK,
            linewidths=0.7,
            zorder=10 * near[k],
        )
