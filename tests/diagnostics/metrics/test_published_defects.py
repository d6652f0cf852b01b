"""Mistakes found in published metric code, each as a test that such code would fail.

Those of histograms and of transport stand with them: dropped distances, grid ends for bin centres, densities for
probabilities, W1 called W2.
"""

import math

import numpy as np
import pytest

from pyro_boltzmann.diagnostics import energy_w2, forward_ess, kish_ess, psis


def test_energy_distance_has_its_root():
    """A transport library's one-dimensional routine returns the square: 0.09 for a shift by 0.3, and 100 for 10."""
    energies = np.random.default_rng(0).normal(size=500)
    for shift in (0.3, 10.0):
        assert energy_w2(energies, energies + shift) == pytest.approx(shift)


def test_energy_distance_is_in_units_of_the_energy():
    """Doubled energies double it; a square would grow fourfold."""
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=400), rng.normal(size=400)
    assert energy_w2(2 * a, 2 * b) == pytest.approx(2 * energy_w2(a, b))


def test_draws_of_high_energy_count():
    """Dropping them hides failures: one of N draws displaced by D costs at least D / sqrt(N), up to the rest."""
    energies = np.random.default_rng(2).normal(size=1000)
    broken = energies.copy()
    broken[7] += 1e4
    assert energy_w2(broken, energies) > 0.99e4 / math.sqrt(1000)


def test_effective_size_does_not_depend_on_the_normaliser():
    """A constant of 1e-4 added to likelihoods swamps them in more than a few dimensions: the size must not move."""
    log_weights = np.random.default_rng(3).normal(size=5000)
    for shift in (-2000.0, -50.0, 0.0, 2000.0):
        assert kish_ess(log_weights + shift) == pytest.approx(kish_ess(log_weights), rel=1e-9)
        assert forward_ess(log_weights + shift) == pytest.approx(forward_ess(log_weights), rel=1e-9)


def test_effective_size_is_not_the_mean_over_the_largest_weight():
    """Weights 1 and 3 in equal numbers: (sum w)^2 / (N sum w^2) = 4 / 5, while mean / max = 2 / 3."""
    assert kish_ess(np.log(np.tile([1.0, 3.0], 50))) == pytest.approx(0.8)


def test_tail_index_does_not_see_the_scale_of_the_weights():
    log_weights = np.random.default_rng(4).standard_t(4, size=5000)
    assert psis(log_weights + 300.0)[1] == pytest.approx(psis(log_weights)[1], abs=1e-6)
