"""One look for all pictures: a palette that colour-blind readers can tell apart, light grids, no frames."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from numpy.typing import NDArray

from pyro_boltzmann.diagnostics.atomic import write_atomically

__all__ = ["EXACT", "INK", "RAW", "WEIGHTED", "new_figure", "save_figure", "tidy", "to_numpy"]

INK = "#22313f"
EXACT = "#22313f"
RAW = "#e08e45"
WEIGHTED = "#1f6f8b"
_GRID = "#dfe4e8"


def new_figure(width: float = 5.6, height: float = 3.8, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure with ``columns`` axes side by side, each ``width / columns`` inches wide."""
    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08)
    figure = Figure(figsize=(width, height), layout=layout, facecolor="white")
    axes = figure.subplots(1, columns, squeeze=False)[0]
    return figure, list(axes)


def tidy(axes: Axes, *, title: str = "", x: str = "", y: str = "", legend: bool = True) -> None:
    """Label the axes and give them the common look; a legend is drawn when anything has a label."""
    axes.set_xlabel(x, color=INK, fontsize=11)
    axes.set_ylabel(y, color=INK, fontsize=11)
    axes.set_title(title, color=INK, fontsize=12, loc="left", pad=9)
    axes.grid(True, color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", colors=INK, labelsize=10, length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    if legend and axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=10, labelcolor=INK)


def save_figure(figure: Figure, path: str | os.PathLike[str], dpi: int = 150) -> Path:
    """Write the figure atomically, in the format that the suffix names.

    :raises OutputError: if it cannot be written.
    """
    return write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=dpi))


def to_numpy(values: Any) -> NDArray[np.float64]:
    """Numbers of any origin (tensors on any device included) as float64."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
    return np.asarray(values, dtype=np.float64)
