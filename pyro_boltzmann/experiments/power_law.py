"""How fast an error falls: the slope of a log-log plot, with its standard error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from scipy import stats

from pyro_boltzmann.diagnostics.plots.style import INK, RAW, WEIGHTED, new_figure, tidy

__all__ = ["PowerLaw", "fit_power_law", "plot_power_laws"]

Points = Mapping[int, Sequence[float]]
"""By the size, the error of each seed."""

COLOURS = (WEIGHTED, RAW)


class PowerLaw(NamedTuple):
    """:math:`e = c\\, n^s` with the slope s and its standard error."""

    slope: float
    std_error: float
    intercept: float

    def __call__(self, size: float) -> float:
        return float(np.exp(self.intercept + self.slope * np.log(size)))


def fit_power_law(points: Points) -> PowerLaw:
    r"""Least squares of :math:`\log e` on :math:`\log n`, over all sizes and seeds; the standard error is that of
    independent residuals of one size.

    :raises ValueError: for fewer than three points, or errors that are not positive.

    >>> law = fit_power_law({10: [1.0], 100: [0.1], 1000: [0.01]})
    >>> round(law.slope, 6), round(law(10_000), 6)
    (-1.0, 0.001)
    """
    pairs = [(size, error) for size, errors in points.items() for error in errors]
    if len(pairs) < 3 or not all(error > 0.0 for _, error in pairs):
        raise ValueError(f"a slope with its error needs three or more positive errors, got {dict(points)}")
    sizes, errors = np.log(np.asarray(pairs, dtype=np.float64)).T
    fit = stats.linregress(sizes, errors)
    return PowerLaw(float(fit.slope), float(fit.stderr), float(fit.intercept))


def plot_power_laws(panels: Mapping[str, Mapping[str, Points]], y: str) -> Figure:
    """Each panel's curves: seeds as small dots, geometric means, and the fitted slope in the legend.

    :param panels: by the label of the x-axis, points by the name of the curve.
    """
    figure, every = new_figure(5.0 * len(panels), 4.0, len(panels))
    for axes, (x, curves) in zip(every, panels.items(), strict=True):
        for colour, (name, points) in zip(COLOURS, curves.items(), strict=False):
            law, sizes = fit_power_law(points), sorted(points)
            for size in sizes:
                axes.plot([size] * len(points[size]), points[size], ".", color=colour, markersize=4, alpha=0.6)
            means = [float(np.exp(np.mean(np.log(points[size])))) for size in sizes]
            label = f"{name}: slope {law.slope:.2f} +- {law.std_error:.2f}"
            axes.plot(sizes, means, "o", color=colour, markersize=6, label=label)
            axes.plot(sizes, [law(size) for size in sizes], "-", color=colour, linewidth=1.4)
        axes.set_xscale("log")
        axes.set_yscale("log")
        ticks = sorted({size for points in curves.values() for size in points})
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axes.xaxis.set_minor_formatter(NullFormatter())
        tidy(axes, x=x, y=y, legend=False)
        axes.legend(frameon=False, fontsize=9, labelcolor=INK, loc="lower left", bbox_to_anchor=(0.0, 1.0))
    return figure
