"""The printed floors of the targets, recomputed with the library's own metrics at N = 1000.

Means of ours and of the printed ones (taken as 20 repeats for E-W2 and 5 for the costlier X-W2) agree within 4.5
standard errors: a false alarm of about 1e-5.
"""

import math

import numpy as np
import pytest
import torch

import pyro_boltzmann as pb
from pyro_boltzmann.diagnostics import (
    energy_w2,
    equal_weight_draws,
    mode_mass_tv,
    mode_masses,
    mode_weight_error,
    sample_w2,
    sampling_floor,
)
from pyro_boltzmann.exceptions import ShapeError

N = 1000


def draws(name, seed=0):
    generator, target = torch.Generator().manual_seed(seed), pb.catalogue[name]
    return lambda: target.sample(N, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(
    ("name", "floor", "spread"),
    [("double_well", 0.126, 0.038), ("gmm40", 0.109, 0.030), ("many_well32", 0.40, 0.11), ("funnel10", 1.04, 0.26)],
)
def test_energy_floors(name, floor, spread):
    sample, energy = draws(name), pb.catalogue[name].energy
    found, ours = sampling_floor(energy_w2, lambda: energy(sample()), 60)
    assert abs(found - floor) < 4.5 * math.sqrt(ours**2 / 60 + spread**2 / 20)


@pytest.mark.parametrize(
    ("name", "low", "high", "spread"),
    [
        ("double_well", 0.27, 0.27, 0.11),
        ("gmm40", 4.2, 4.8, 0.7),
        ("many_well32", 5.69, 5.69, 0.01),
        ("funnel10", 25.9, 25.9, 5.4),
    ],
)
def test_transport_floors(name, low, high, spread):
    found, ours = sampling_floor(sample_w2, draws(name), 10)
    slack = 4.5 * math.sqrt(ours**2 / 10 + spread**2 / 5)
    assert low - slack < found < high + slack


def test_mode_mass_floor_of_gmm40():
    """The printed 0.077(9) is against the exact masses; two samples differ by root two more."""
    sample, target = draws("gmm40"), pb.catalogue["gmm40"]
    exact = target.mode_probabilities
    values = [mode_mass_tv(target.mode_assignment(sample()).numpy(), exact.numpy()) for _ in range(30)]
    assert abs(np.mean(values) - 0.077) < 4.5 * 0.009 * math.sqrt(1 / 30 + 1 / 20)
    found, spread = sampling_floor(
        lambda a, b: mode_mass_tv(target.mode_assignment(a), mode_masses(target.mode_assignment(b), 40)), sample, 30
    )
    assert abs(found - 0.077 * math.sqrt(2)) < 4.5 * math.sqrt(spread**2 / 30 + 2 * 0.009**2 / 20)


def test_mode_weight_floor_of_many_well():
    """0.0096(16), which is sqrt(2 P (1 - P) / (pi N)) = 0.00915 within its error."""
    sample = draws("many_well32")
    p = 0.844307096211
    values = [mode_weight_error(sample()[:, ::2], p) for _ in range(30)]
    error = np.std(values, ddof=1) / math.sqrt(30)
    assert abs(np.mean(values) - 0.0096) < 4.5 * math.hypot(error, 0.0016 / math.sqrt(20))
    assert abs(np.mean(values) - math.sqrt(2 * p * (1 - p) / (math.pi * N))) < 4.5 * error


def test_reweighted_draws_stand_beside_the_same_floor():
    """Equally weighted draws resampled from many come to the floor of as many exact ones; copies would lie above it."""
    rng = np.random.default_rng(0)
    found, floors = [], []
    for seed in range(8):
        x = 1.4 * rng.normal(size=(20_000, 2))
        log_weights = torch.from_numpy(-0.5 * np.square(x).sum(1) * (1 - 1 / 1.96))
        chosen = equal_weight_draws(log_weights, 300, torch.Generator().manual_seed(seed))
        found.append(sample_w2(x[chosen], rng.normal(size=(300, 2))))
        floors.append(sample_w2(rng.normal(size=(300, 2)), rng.normal(size=(300, 2))))
    error = math.sqrt((np.var(floors, ddof=1) + np.var(found, ddof=1)) / 8)
    assert abs(np.mean(found) - np.mean(floors)) < 4.5 * error


def test_too_few_effective_draws_are_refused():
    log_weights = torch.zeros(5000, dtype=torch.float64)
    log_weights[:10] = 8.0
    with pytest.raises(ShapeError, match="draw more"):
        equal_weight_draws(log_weights, 1000)
    assert equal_weight_draws(torch.zeros(5000), 1000).unique().numel() == 1000


def test_a_floor_needs_a_repeat():
    with pytest.raises(ShapeError, match="num_repeats"):
        sampling_floor(energy_w2, lambda: [0.0], 0)
    assert sampling_floor(energy_w2, lambda: [0.0], 1) == (0.0, math.inf)
