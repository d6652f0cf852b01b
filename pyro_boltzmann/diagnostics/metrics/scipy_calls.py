"""The few routines of SciPy that the metrics need, imported on first use: they would add half to the import time."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from pyro_boltzmann.diagnostics.weights import FloatArray

__all__ = ["best_matching", "squared_distances"]


def best_matching(gain: FloatArray) -> NDArray[Any]:
    """For each row of ``(n, n)`` the column of the assignment with the largest total gain, ``(n,)``."""
    from scipy.optimize import linear_sum_assignment

    columns: NDArray[Any] = linear_sum_assignment(gain, maximize=True)[1]
    return columns


def squared_distances(x: FloatArray, y: FloatArray) -> FloatArray:
    """``(n, d), (m, d) -> (n, m)``."""
    from scipy.spatial.distance import cdist

    distances: FloatArray = cdist(x, y, "sqeuclidean")
    return distances
