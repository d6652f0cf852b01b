"""Pictures of the experiments on flow maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from pyro_boltzmann.diagnostics.plots.style import EXACT, INK, RAW, WEIGHTED, new_figure, tidy, to_numpy

__all__ = ["plot_curves", "plot_grids", "plot_marginals", "plot_penalties"]

_STYLES = (
    {"color": EXACT, "linewidth": 1.2},
    {"color": WEIGHTED, "linewidth": 2.4, "linestyle": (0, (5, 3))},
    {"color": RAW, "linewidth": 2.0, "linestyle": (0, (1, 2))},
)


def plot_curves(panels: Mapping[str, tuple[Sequence[float], Mapping[str, Sequence[float]]]], x: str, y: str) -> Figure:
    """Densities: for each panel its abscissae and its curves by name."""
    figure, every = new_figure(3.4 * len(panels), 3.2, len(panels))
    for number, (axes, (title, (where, curves))) in enumerate(zip(every, panels.items(), strict=True)):
        for style, (name, values) in zip(_STYLES, curves.items(), strict=False):
            axes.plot(where, values, label=name, **style)  # type: ignore[arg-type]
        tidy(axes, title=title, x=x, y="" if number else y, legend=False)
    _legend_outside(figure, every[0])
    return figure


def plot_penalties(penalties: Sequence[float], curves: Mapping[str, Sequence[float]]) -> Figure:
    """What a pseudo-reversible flow shows, against the weight of its penalty; both axes logarithmic."""
    figure, (axes,) = new_figure(6.4, 4.0)
    for colour, marker, (name, values) in zip(
        (WEIGHTED, RAW, INK, "#cc79a7"), ("o", "s", "^", "v"), curves.items(), strict=False
    ):
        axes.plot(penalties, values, marker=marker, color=colour, label=name, linewidth=1.6)
    axes.set_xscale("log")
    axes.set_yscale("log")
    tidy(axes, title="The price of reversibility", x="penalty $\\lambda$", y="")
    return figure


def plot_marginals(panels: Mapping[str, Mapping[str, ArrayLike]], bins: int = 80) -> Figure:
    """Histograms of each coordinate: the first sample as an area, the others as lines.

    :param panels: by title, samples ``(n, d)`` by name.
    """
    dim = to_numpy(next(iter(next(iter(panels.values())).values()))).shape[1]
    figure, every = new_figure(3.2 * dim, 3.0 * len(panels), 1)
    every[0].remove()
    grid = figure.subplots(len(panels), dim, squeeze=False)
    for row, (title, samples) in zip(grid, panels.items(), strict=True):
        for index, axes in enumerate(row):
            columns = {name: to_numpy(sample)[:, index] for name, sample in samples.items()}
            everything = np.concatenate(list(columns.values()))
            low, high = np.quantile(everything, [0.0005, 0.9995])
            edges = np.linspace(low, high, bins + 1)
            for number, (name, column) in enumerate(columns.items()):
                kind = "stepfilled" if number == 0 else "step"
                colour = "#c9d3da" if number == 0 else (WEIGHTED, RAW)[(number - 1) % 2]
                axes.hist(column, edges, density=True, histtype=kind, color=colour, label=name, linewidth=1.6)
            tidy(axes, title=title if index == 0 else "", x=f"$x_{index + 1}$", legend=False)
    _legend_outside(figure, grid[0, 0])
    return figure


def _legend_outside(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=len(labels),
        frameon=False,
        fontsize=10,
        labelcolor=INK,
    )


def plot_grids(simulated: ArrayLike, learned: ArrayLike, scores: ArrayLike, x: str, y: str) -> Figure:
    """Probabilities of both kinds and the z-scores of their differences, over centres ``(rows of y, columns of x)`` in
    units of :math:`2\\pi`."""
    figure, panels = new_figure(13.0, 4.0, 3)
    extent = (0.0, 1.0, 0.0, 1.0)
    highest = max(float(np.max(to_numpy(simulated))), float(np.max(to_numpy(learned))))
    shown = (
        ("Monte Carlo", simulated, 0.0, highest, "viridis"),
        ("flow map", learned, 0.0, highest, "viridis"),
        ("z-scores", scores, -4.0, 4.0, "RdBu_r"),
    )
    for axes, (title, values, low, high, colours) in zip(panels, shown, strict=True):
        image = axes.imshow(
            to_numpy(values), origin="lower", extent=extent, vmin=low, vmax=high, cmap=colours, aspect="equal"
        )
        figure.colorbar(image, ax=axes, shrink=0.85)
        tidy(axes, title=title, x=x, y=y, legend=False)
        axes.grid(False)
    return figure
