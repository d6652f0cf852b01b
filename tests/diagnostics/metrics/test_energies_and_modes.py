"""Energies, modes and the virial: weights, errors and closed forms."""

import math

import numpy as np
import pytest

from pyro_boltzmann.diagnostics import (
    assignment_entropy,
    energy_w2,
    mean_energy_difference,
    mode_mass_tv,
    mode_weight_error,
    virial,
)
from pyro_boltzmann.exceptions import ShapeError


def test_mean_energy_difference_and_its_error():
    """A shift by 3 of one of two normal samples, and a weighted sample with weights that undo its own shift."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=4000) + 3.0, 2.0 * rng.normal(size=1000)
    value, error = mean_energy_difference(a, b)
    assert value == pytest.approx(a.mean() - b.mean())
    assert error == pytest.approx(math.sqrt(1 / 4000 + 4 / 1000), rel=0.1)
    assert abs(value - 3.0) < 4.5 * error
    shifted = rng.normal(size=20_000) + 0.5
    value, error = mean_energy_difference(shifted, b, 0.125 - 0.5 * shifted)
    assert abs(value) < 4.5 * error
    assert mean_energy_difference(b, shifted, None, 0.125 - 0.5 * shifted) == pytest.approx((-value, error))


def test_entropy_of_the_assignment():
    labels = np.repeat([0, 1, 2], [50, 25, 25])
    assert assignment_entropy(labels, 5) == pytest.approx(1.5 * math.log(2))
    assert assignment_entropy(np.zeros(9, int), 4) == 0.0
    # Weights 1/2, 1/4, 1/4 on one draw each.
    assert assignment_entropy([0, 1, 2], 3, np.log([2.0, 1.0, 1.0])) == pytest.approx(1.5 * math.log(2))


def test_entropy_bias_of_exact_draws():
    """Miller and Madow: log K - (K - 1) / (2 N)."""
    rng = np.random.default_rng(0)
    values = [assignment_entropy(rng.integers(0, 40, 2000), 40) for _ in range(60)]
    expected = math.log(40) - 39 / 4000
    # The next order, K^2 / (12 N^2), is 3e-5.
    assert abs(np.mean(values) - expected) < 4.5 * np.std(values, ddof=1) / math.sqrt(60) + 4e-5


def test_mode_weight_error_by_hand_and_weighted():
    x = np.array([[1.0, -1.0], [1.0, 1.0], [-1.0, 1.0], [1.0, 1.0]])
    assert mode_weight_error(x, [0.5, 1.0]) == pytest.approx(0.25)
    assert mode_weight_error(x, 0.75) == pytest.approx(0.0)
    assert mode_weight_error(x, 0.5, [0.0, -math.inf, 0.0, -math.inf]) == pytest.approx(0.0)


def test_missing_modes_cannot_hide():
    """One of two modes of the same mass is gone: the distance of the masses is 1/2, whatever the weights are."""
    assert mode_mass_tv(np.zeros(1000, int), [0.5, 0.5], np.random.default_rng(0).normal(size=1000)) == 0.5


def test_virial_ignores_draws_of_zero_weight_whatever_their_gradient():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(2000, 3))
    gradient = x.copy()
    log_weights = np.zeros(2000)
    gradient[:5], log_weights[:5] = np.nan, -np.inf
    x[3] = 0.0
    gradient[3] = np.inf
    assert virial(x, gradient, log_weights) == pytest.approx(virial(x[5:], gradient[5:]))


def test_virial_of_particles_in_every_layout():
    """Five free particles in space have 12 degrees of freedom about the centre of mass."""
    rng = np.random.default_rng(2)
    x = rng.normal(size=(4000, 5, 3))
    x -= x.mean(1, keepdims=True)
    moved = x + 7.0
    log_weights = 0.1 * rng.normal(size=4000)
    found = virial(moved, x, log_weights)
    assert abs(found[0] - 12) < 4.5 * found[1] < 0.5
    assert found == pytest.approx(virial(moved.reshape(4000, 15), x.reshape(4000, 15), log_weights, particle_dim=3))
    # Weighted: a Gaussian of width 1.2 reweighted to width 1.
    wide = 1.2 * rng.normal(size=(40_000, 4, 2))
    wide -= wide.mean(1, keepdims=True)
    value, error = virial(wide, wide, -0.5 * np.square(wide).sum((1, 2)) * (1 - 1 / 1.44))
    assert abs(value - 6) < 4.5 * error < 0.3


def test_virial_refuses_other_shapes():
    with pytest.raises(ShapeError, match="2 coordinates"):
        virial(np.zeros((3, 5)), np.zeros((3, 5)), particle_dim=2)
    with pytest.raises(ShapeError, match="log weight"):
        virial(np.zeros((3, 5)), np.zeros((3, 5)), np.zeros(2))


def test_mean_energies_need_one_number_a_draw():
    with pytest.raises(ShapeError, match="energies"):
        mean_energy_difference(np.zeros((3, 2)), np.zeros(3))
    with pytest.raises(ShapeError):
        energy_w2([], [1.0])
