"""How training went."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from pyro_boltzmann.diagnostics.plots.style import EXACT, RAW, WEIGHTED, new_figure, tidy, to_numpy

__all__ = ["plot_training"]


def plot_training(
    steps: ArrayLike,
    elbo: ArrayLike,
    ess: ArrayLike | None = None,
    *,
    log_z: float | None = None,
    ylabel: str = "ELBO",
    unit: str = "kT",
    title: str = "Training",
) -> Figure:
    """ELBO (or any loss, named by ``ylabel``) and ESS against the training step.

    :param elbo: ``(T,)``; drawn faintly, with a running median on top.
    :param ess: ``(T,)`` fractions; NaN where it was not measured.
    :param unit: of the ELBO or loss, for its axis; empty for none.
    :param log_z: the exact value, which the ELBO approaches from below.
    """
    x, y = to_numpy(steps), to_numpy(elbo)
    figure, axes = new_figure(8.4 if ess is not None else 5.6, 3.6, 1 if ess is None else 2)
    axes[0].plot(x, y, color=WEIGHTED, linewidth=0.8, alpha=0.3)
    axes[0].plot(x, _running_median(y), color=WEIGHTED, linewidth=2.2, label=ylabel)
    finite = y[np.isfinite(y)]
    low, high = (np.quantile(finite[len(finite) // 20 :], [0.02, 1.0])) if finite.size else (0.0, 1.0)
    if log_z is not None:
        axes[0].axhline(log_z, color=EXACT, linewidth=1.3, linestyle=(0, (4, 3)), label="exact log Z")
        high = max(high, log_z)
    margin = 0.08 * max(high - low, 1e-3)
    axes[0].set_ylim(low - margin, high + margin)
    tidy(axes[0], title=title, x="step", y=f"{ylabel} ({unit})" if unit else ylabel)
    if ess is not None:
        values = to_numpy(ess)
        measured = np.isfinite(values)
        axes[1].plot(x[measured], values[measured], color=RAW, linewidth=0.8, alpha=0.35)
        axes[1].plot(x[measured], _running_median(values[measured]), color=RAW, linewidth=2.2)
        axes[1].set_ylim(0.0, 1.03)
        tidy(axes[1], title="Effective sample size", x="step", y="ESS / N")
    return figure


def _running_median(
    values: np.ndarray[tuple[int, ...], np.dtype[np.float64]],
) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    half = max(1, len(values) // 50)
    return np.asarray([np.median(values[max(0, i - half) : i + half + 1]) for i in range(len(values))])
