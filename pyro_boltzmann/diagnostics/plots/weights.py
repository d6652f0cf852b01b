"""Pictures of the weights: their tail, and the effective sample size along a path."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from pyro_boltzmann.diagnostics.plots.style import RAW, WEIGHTED, new_figure, tidy, to_numpy
from pyro_boltzmann.diagnostics.weights import khat_limit, kish_ess, psis

__all__ = ["plot_log_weights", "plot_path_ess"]


def plot_log_weights(log_weights: Tensor, *, title: str = "Importance weights") -> Figure:
    """Log weights (relative to the mean weight) against rank, with the fitted Pareto tail; k-hat in the title.

    A tail that rises steeply towards rank 1 means that a few draws carry the estimate.
    """
    values = to_numpy(log_weights)
    smoothed, khat = psis(values)
    # Normalised weights times N: zero is then the weight of a perfect sampler, on any energy scale.
    raw = values - np.logaddexp.reduce(values) + np.log(values.size)
    order = np.argsort(-raw)
    finite = int(np.isfinite(raw).sum())
    ranks = np.arange(1, finite + 1)
    tail = max(1, int(min(0.2 * finite, 3.0 * np.sqrt(finite))))
    # Hundreds of thousands of points would only make a heavy picture.
    shown = np.unique(np.geomspace(1, finite, 1500).astype(int)) - 1
    figure, (axes,) = new_figure()
    axes.axhline(0.0, color="#9aa5ae", linewidth=1.0, linestyle=(0, (4, 3)), label="perfect sampler")
    axes.plot(ranks[shown], raw[order][shown], ".", color=WEIGHTED, markersize=5, alpha=0.8, label="log weights")
    if np.isfinite(khat):
        fitted = np.sort(smoothed[order][:tail])[::-1] + np.log(values.size)
        axes.plot(ranks[:tail], fitted, color=RAW, linewidth=2.2, label="fitted Pareto tail")
    axes.set_xscale("log")
    floor = float(np.quantile(raw[order][:finite], 0.01))
    span = max(float(raw.max()) - floor, 0.1)
    axes.set_ylim(floor - 0.08 * span, float(raw.max()) + 0.08 * span)
    number = f"{khat:.2f}" if np.isfinite(khat) else "n/a"
    verdict = f"k-hat {number} (limit {khat_limit(values.size):.2f}), ESS {kish_ess(values):.1%}, N = {values.size:,}"
    tidy(axes, title=f"{title}\n{verdict}", x="rank of the draw (largest weight first)", y=r"$\log\,(w_i\,/\,\bar{w})$")
    axes.title.set_fontsize(10.5)
    return figure


def plot_path_ess(
    ess: Sequence[float] | Tensor,
    labels: Sequence[str] | None = None,
    *,
    num_samples: int | None = None,
    title: str = "Effective sample size along the path",
) -> Figure:
    """ESS as a fraction of N after each block.

    :param ess: ``(T,)`` fractions.
    :param labels: names of the blocks.
    :param num_samples: N, stated in the title.
    """
    values = to_numpy(ess)
    figure, (axes,) = new_figure()
    steps = np.arange(1, len(values) + 1)
    axes.plot(steps, values, "-o", color=WEIGHTED, linewidth=2, markersize=5, clip_on=False, zorder=3)
    axes.fill_between(steps, 0.0, values, color=WEIGHTED, alpha=0.10, linewidth=0)
    axes.set_ylim(0.0, 1.03)
    if labels is not None:
        every = max(1, len(values) // 12)
        axes.set_xticks(steps[::every], list(labels)[::every], rotation=35, ha="right")
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    heading = title if num_samples is None else f"{title}, N = {num_samples:,}"
    tidy(axes, title=heading, x="" if labels is not None else "block", y="ESS / N")
    return figure
