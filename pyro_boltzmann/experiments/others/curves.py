"""Cost against quality: a panel for each target, a line for each method, both axes logarithmic."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import LogLocator

from pyro_boltzmann.diagnostics.plots.style import INK, tidy
from pyro_boltzmann.experiments.others.methods import METHODS
from pyro_boltzmann.experiments.others.problem import bench_problem
from pyro_boltzmann.experiments.others.summary import Point

__all__ = ["plot_curves"]

# Okabe and Ito's palette: colour-blind readers can tell its colours apart; ours are drawn thicker.
LOOKS = {
    "pyro_nuts": ("#cc79a7", "v"),
    "numpyro_nuts": ("#999999", "^"),
    "blackjax_smc": ("#56b4e9", "s"),
    "dynesty": ("#000000", "D"),
    "normflows": ("#e0b000", "P"),
    "pb_smc": ("#0072b2", "o"),
    "pb_pt": ("#009e73", "X"),
    "pb_snf": ("#d55e00", "*"),
}
COLUMNS = 3


def plot_curves(points: Sequence[Point], x: str, y: str, *, x_label: str, y_label: str) -> Figure:
    """A grid of panels; hollow markers are points with an estimate far off (:meth:`Point.is_far`).

    :param x: the attribute of a point on the horizontal axis, and ``y`` the one on the vertical.
    """
    targets = list(dict.fromkeys(point.target for point in points))
    rows = max(1, -(-len(targets) // COLUMNS))
    layout = ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.06)
    figure = Figure(figsize=(10.5, 3.1 * rows + 0.7), layout=layout, facecolor="white")
    panels = figure.subplots(rows, COLUMNS, squeeze=False).flatten()
    for index, axes in enumerate(panels):
        if index >= len(targets):
            axes.set_visible(False)
            continue
        dim = bench_problem(targets[index]).dim
        for method, (color, marker) in LOOKS.items():
            line = _line(points, method, targets[index], x, y, dim)
            if not line:
                continue
            ours = METHODS[method].is_ours
            axes.plot(
                [a for a, _, _ in line], [b for _, b, _ in line], color=color, linewidth=2.2 if ours else 1.2, zorder=2
            )
            for is_far in (False, True):
                some = [(a, b) for a, b, far in line if far == is_far]
                axes.scatter(
                    [a for a, _ in some],
                    [b for _, b in some],
                    marker=marker,
                    s=70 if marker == "*" else 48 if marker in "PX" else 36,
                    facecolor="white" if is_far else color,
                    edgecolor=color,
                    linewidth=1.2,
                    zorder=3,
                )
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.xaxis.set_major_locator(LogLocator(numticks=6))
        axes.yaxis.set_major_locator(LogLocator(numticks=6))
        axes.minorticks_off()
        tidy(
            axes,
            title=f"{targets[index]} (d = {dim})",
            x=x_label if index >= len(targets) - COLUMNS else "",
            y=y_label if index % COLUMNS == 0 else "",
            legend=False,
        )
    shown = {point.method for point in points if getattr(point, y) is not None}
    for method, (color, marker) in LOOKS.items():
        if method in shown:
            panels[0].plot(
                [],
                [],
                color=color,
                marker=marker,
                markersize=9 if marker == "*" else 6,
                linewidth=2.2 if METHODS[method].is_ours else 1.2,
                label=METHODS[method].label,
            )
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=10, labelcolor=INK)
    return figure


def _line(
    points: Sequence[Point], method: str, target: str, x: str, y: str, dim: int
) -> list[tuple[float, float, bool]]:
    """``(x, y, is far)`` by size."""
    chosen = sorted((p for p in points if (p.method, p.target) == (method, target)), key=lambda p: p.size)
    values = [(getattr(p, x), getattr(p, y), p.is_far(dim)) for p in chosen]
    return [(a, b, far) for a, b, far in values if a and b]
