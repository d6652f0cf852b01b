"""What every metric asks of its input: one row a draw, and log weights that belong to the rows."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from pyro_boltzmann.diagnostics.weights import FloatArray, normalized_weights
from pyro_boltzmann.exceptions import ShapeError

__all__ = ["as_particles", "as_points", "kish_size", "points_and_weights", "weights_of"]


def weights_of(size: int, log_weights: ArrayLike | None) -> FloatArray:
    """Normalised weights ``(size,)``, uniform for ``None``.

    :raises ShapeError: if there is not one log weight for each draw, or no draw.
    """
    weights = np.full(size, 1.0 / max(size, 1)) if log_weights is None else normalized_weights(log_weights)
    if weights.shape != (size,) or size == 0:
        raise ShapeError(f"expected one log weight for each of {size} >= 1 draws, got {weights.shape}")
    return weights


def as_points(x: ArrayLike) -> FloatArray:
    """Float64 draws ``(N, d)``; ``(N,)`` becomes ``(N, 1)``."""
    array = np.asarray(x, dtype=np.float64)
    if array.ndim == 1:
        array = array[:, None]
    if array.ndim != 2 or array.size == 0:
        raise ShapeError(f"expected draws of shape (N, d) with N >= 1, got {array.shape}")
    return array


def as_particles(x: ArrayLike) -> FloatArray:
    """Float64 configurations ``(N, num_particles, D)`` with their centres of mass at the origin."""
    array = np.asarray(x, dtype=np.float64)
    if array.ndim != 3 or array.size == 0:
        raise ShapeError(
            f"expected configurations of shape (N, num_particles, space dimension) with N >= 1, got {array.shape}; "
            "reshape vectors, or use the to_particles of the target"
        )
    centred: FloatArray = array - array.mean(1, keepdims=True)
    return centred


def points_and_weights(x: FloatArray, log_weights: ArrayLike | None) -> tuple[FloatArray, FloatArray]:
    """Rows of positive weight, and their weights.

    :raises ShapeError: if any of these rows is not finite.
    """
    weights = weights_of(len(x), log_weights)
    used = weights > 0
    points, weights = (x, weights) if used.all() else (x[used], weights[used])
    bad = int(np.count_nonzero(~np.isfinite(points).reshape(len(points), -1).all(1)))
    if bad:
        raise ShapeError(
            f"expected finite draws, got {bad} of {len(points)} with NaN or infinity; give them zero weight"
        )
    return points, weights


def kish_size(weights: FloatArray) -> float:
    """Kish's effective number of draws of normalised weights."""
    return 1.0 / float(np.square(weights).sum())
