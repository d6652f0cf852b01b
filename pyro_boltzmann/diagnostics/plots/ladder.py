"""Pictures of a ladder of temperatures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pyro_boltzmann.diagnostics.plots.style import RAW, WEIGHTED, new_figure, tidy

__all__ = ["plot_ladder"]


def plot_ladder(
    positions: Sequence[float],
    acceptance: Sequence[float],
    *,
    rejections: Sequence[float] | None = None,
    resampled: Sequence[bool] | None = None,
    title: str = "Ladder of temperatures",
) -> Figure:
    r"""Where each temperature :math:`\lambda` stands, and what share of the moves there was accepted.

    :param positions: :math:`\lambda` of each rung but the reference, ``(K,)``.
    :param acceptance: of the moves, ``(K,)``.
    :param rejections: of swaps with the rung below, ``(K,)`` (parallel tempering).
    :param resampled: whether particles were resampled there, ``(K,)`` (sequential Monte Carlo).
    """
    figure, (left, right) = new_figure(width=9.6, columns=2)
    rungs = np.arange(1, len(positions) + 1)
    left.plot(rungs, positions, "-o", color=WEIGHTED, linewidth=1.8, markersize=4, clip_on=False)
    left.set_yscale("log")
    if resampled is not None and any(resampled):
        chosen = np.flatnonzero(np.asarray(resampled))
        left.plot(
            rungs[chosen], np.asarray(positions)[chosen], "o", color=RAW, markersize=6, clip_on=False, label="resampled"
        )
    tidy(left, title=title, x="rung", y=r"$\lambda$")
    right.plot(
        rungs, acceptance, "-o", color=WEIGHTED, linewidth=1.8, markersize=4, clip_on=False, label="moves accepted"
    )
    if rejections is not None:
        right.plot(
            rungs, rejections, "-s", color=RAW, linewidth=1.8, markersize=4, clip_on=False, label="swaps rejected"
        )
    right.set_ylim(0.0, 1.03)
    tidy(right, title="Moves" if rejections is None else "Moves and swaps", x="rung", y="share")
    for axes in (left, right):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure
