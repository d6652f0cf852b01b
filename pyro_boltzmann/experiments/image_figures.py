"""The pictures of the image experiment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray

from pyro_boltzmann.diagnostics.plots.style import EXACT, INK, RAW, WEIGHTED, new_figure, tidy
from pyro_boltzmann.experiments.image_chains import Curve

__all__ = ["gallery", "plot_kl_against_evaluations", "plot_kl_against_layers"]

OURS = "#c2452d"
CHAINS = "#8895a1"
STYLES: dict[str, dict[str, Any]] = {
    "rnvp": {"color": RAW, "linestyle": (0, (4, 2)), "marker": "o", "markerfacecolor": "white"},
    "rnvp_snf": {"color": RAW, "marker": "o"},
    "nsf": {"color": WEIGHTED, "linestyle": (0, (4, 2)), "marker": "s", "markerfacecolor": "white"},
    "nsf_snf": {"color": WEIGHTED, "marker": "s"},
    "ours": {"color": OURS, "marker": "*", "markersize": 13},
    "ours_energy": {"color": OURS, "marker": "P", "markersize": 9},
    "ours_flow": {"color": OURS, "marker": "*", "markersize": 13, "markerfacecolor": "white"},
    "chains": {"color": CHAINS, "marker": "^"},
    "tuned chains": {"color": CHAINS, "marker": "v", "linestyle": (0, (1, 1.5))},
}


def gallery(panels: Sequence[Sequence[tuple[str, NDArray[np.float64] | None]]], top: float) -> Figure:
    """Densities on the square, in rows, all with the same shades; ``None`` leaves a place empty.

    :param panels: rows of titles and grids, first index along x.
    :param top: the density that is darkest.
    """
    rows, columns = len(panels), max(len(row) for row in panels)
    layout = ConstrainedLayoutEngine(w_pad=0.03, h_pad=0.03)
    side = 2.6 if columns < 5 else 1.75
    figure = Figure(figsize=(side * columns, (side + 0.25) * rows), layout=layout, facecolor="white")
    grid = figure.subplots(rows, columns, squeeze=False)
    for row, places in enumerate(grid):
        for column, axes in enumerate(places):
            title, shades = panels[row][column] if column < len(panels[row]) else ("", None)
            if shades is None:
                axes.set_visible(False)
                continue
            axes.imshow(shades.T, origin="lower", cmap="magma_r", vmin=0.0, vmax=top, interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
            for spine in axes.spines.values():
                spine.set_visible(False)
            axes.set_title(title, color=INK, fontsize=10, loc="left", pad=4)
    return figure


def plot_kl_against_layers(
    curves: Mapping[str, Mapping[int, tuple[float, float]]],
    points: Mapping[str, tuple[int, float, float]],
    floor: float,
) -> Figure:
    """KL of raw (left) and of reweighted draws (right) against the number of layers.

    :param curves: for each family and number of layers the two values.
    :param points: for each single model its layers and the two values.
    """
    figure, panels = new_figure(9.6, 4.0, 2)
    for part, (axes, title) in enumerate(zip(panels, ("Draws as they are", "Reweighted draws"), strict=True)):
        for family, values in curves.items():
            layers = sorted(values)
            axes.plot(layers, [values[n][part] for n in layers], label=family, **_line(family))
        for name, (layers_of, *both) in points.items():
            axes.plot([layers_of], [both[part]], label=name, **{**_line(name), "linestyle": "none"})
        _floor(axes, floor)
        axes.set_yscale("log")
        _plain(axes.yaxis)
        tidy(axes, title=title, x="layers", y="KL (nats)" if part == 0 else "", legend=False)
        axes.set_xticks(sorted({n for values in curves.values() for n in values}))
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=9, labelcolor=INK)
    return figure


def plot_kl_against_evaluations(curves: Mapping[str, tuple[str, Curve]], floor: float) -> Figure:
    """KL against energy evaluations a draw, both on logarithmic axes.

    :param curves: labels, with the style of each (a key of :data:`STYLES`) and its points.
    """
    figure, (axes,) = new_figure(7.2, 4.4)
    for label, (style, curve) in curves.items():
        evaluations, values = zip(*curve, strict=True)
        axes.plot(evaluations, values, label=label, **_line(style))
    _floor(axes, floor)
    axes.set_xscale("log")
    axes.set_yscale("log")
    _plain(axes.xaxis)
    _plain(axes.yaxis)
    tidy(axes, title="What a draw costs", x="energy evaluations a draw", y="KL (nats)")
    return figure


def _line(name: str) -> dict[str, Any]:
    return {"linewidth": 2.0, "markersize": 6, "markeredgewidth": 1.5, **STYLES[name]}


def _plain(axis: Axis) -> None:
    """Plain numbers at 1, 2 and 5 of each decade."""
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _floor(axes: Axes, floor: float) -> None:
    axes.axhline(floor, color=EXACT, linewidth=1.2, linestyle=(0, (2, 2)), label="exact draws")
