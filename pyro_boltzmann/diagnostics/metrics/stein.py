"""Stein's identity as a check of energies and of reference data."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from pyro_boltzmann.diagnostics.weights import expectation, grouped_expectation, normalized_weights
from pyro_boltzmann.exceptions import ShapeError

__all__ = ["virial"]


def virial(
    x: ArrayLike,
    gradient: ArrayLike,
    log_weights: ArrayLike | None = None,
    *,
    particle_dim: int | None = None,
    groups: ArrayLike | None = None,
) -> tuple[float, float]:
    r"""Stein's identity :math:`E[(x - \bar x) \cdot \nabla u(x)] = \mathrm{dof}` and its standard error.

    The degrees of freedom are ``d``, or ``(num_particles - 1) * particle_dim`` about the centre of mass.
    A wrong energy or a biased reference shows at once. Not valid across jumps or hard walls of ``u``. Draws of zero
    weight take no part, whatever their gradient.

    :param x: ``(N, d)``, or positions of particles ``(N, num_particles, particle_dim)``.
    :param gradient: gradient of the energy, of the shape of ``x``.
    :param particle_dim: space dimension of particle configurations that are given as ``(N, d)``.
    :param groups: labels ``(N,)`` of draws that depend on each other
        (:func:`~pyro_boltzmann.diagnostics.weights.grouped_expectation`).
    :raises ShapeError: if the shapes differ, or ``particle_dim`` does not divide ``d``.

    >>> x = np.random.default_rng(0).normal(size=(1000, 3))
    >>> value, error = virial(x, x)
    >>> abs(value - 3) < 4.5 * error
    True
    """
    position, force = np.asarray(x, dtype=np.float64), np.asarray(gradient, dtype=np.float64)
    if position.shape != force.shape or position.ndim not in (2, 3):
        raise ShapeError(f"expected x and gradient of one shape (N, d), got {position.shape} and {force.shape}")
    size = position.shape[-1]
    if particle_dim is not None and (size % particle_dim or (position.ndim == 3 and size != particle_dim)):
        raise ShapeError(f"expected particles of {particle_dim} coordinates each, got x of shape {position.shape}")
    zeros = np.zeros(len(position)) if log_weights is None else np.asarray(log_weights, dtype=np.float64)
    used = normalized_weights(zeros) > 0
    if used.shape != (len(position),):
        raise ShapeError(f"expected one log weight for each of {len(position)} draws, got {used.shape}")
    position, force = position[used], force[used]
    if position.ndim == 3 or particle_dim is not None:
        particles = position.reshape(len(position), -1, particle_dim or size)
        position = particles - particles.mean(1, keepdims=True)
    values = (position.reshape(force.shape) * force).reshape(len(force), -1).sum(1)
    if groups is None:
        mean, error = expectation(zeros[used], values)
    else:
        mean, error = grouped_expectation(zeros[used], values, np.asarray(groups)[used])
    return float(mean), float(error)
