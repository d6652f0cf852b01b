"""The distances of a sampling run: exact draws at their floors, reasons where there is nothing to compare."""

from __future__ import annotations

import math
import time

import torch
from torch import Tensor

import pyro_boltzmann as pb
from pyro_boltzmann.energies.catalogue import Target
from pyro_boltzmann.experiments.run_distances import distance_rows
from pyro_boltzmann.experiments.run_metrics import draw_exact, run_metrics
from pyro_boltzmann.transforms.mean_free import MeanFreeBasis


class HarmonicCluster(Target):
    """Particles in a harmonic well about their centre of mass: a standard normal law in Helmert coordinates."""

    def __init__(self, num_particles: int, spatial_dim: int) -> None:
        self.basis = MeanFreeBasis(num_particles, spatial_dim)
        super().__init__("harmonic", self.basis.dim, constants={"particles": num_particles})

    def __call__(self, x: Tensor) -> Tensor:
        return 0.5 * x.square().sum(-1)

    def _sample(self, num_samples: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
        return torch.randn(num_samples, self.dim, generator=generator, dtype=torch.float64, device=device)

    def to_particles(self, x: Tensor) -> Tensor:
        return self.basis.to_particles(x)


def reweighted(target: Target, number: int, width: float, seed: int = 1) -> tuple[pb.WeightedSamples, Tensor]:
    """Draws of a Gaussian of that width with exact weights for the standard normal law."""
    x = width * torch.randn(number, target.dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    log_weights = -0.5 * x.square().sum(-1) * (1 - width**-2)
    return pb.WeightedSamples(x, log_weights, energy=target(x)), x


def test_rows_of_exact_draws_lie_at_their_floors() -> None:
    target = pb.catalogue["double_well"]
    x = target.sample(20_000, generator=torch.Generator().manual_seed(1))
    ws = pb.WeightedSamples(x, torch.zeros(20_000, dtype=torch.float64), energy=target(x))
    exact = draw_exact(target, 20_000, 0)
    assert exact is not None
    start = time.process_time()
    rows = distance_rows(ws, x, exact.z, exact.energy, target)
    assert time.process_time() - start < 5
    assert list(rows) == ["e_w2", "x_w2", "ks_1", "ks_2"]
    for name, row in rows.items():
        assert row.value is not None and row.floor is not None
        # The relative spread of these floors is at most 0.4 (e_w2, x_w2) and 0.3 (ks).
        assert 0 < row.value < row.floor * (1 + 4.5 * 0.45), name
    assert rows["x_w2"].num_samples == 1000 and rows["e_w2"].num_samples == 10_000
    assert rows["ks_1"].floor is not None
    assert abs(rows["ks_1"].floor - 0.8687 * math.sqrt(1 / 20_000 + 1 / 110_000)) < 1e-6


def test_a_wrong_law_lies_above_its_floors() -> None:
    target = pb.catalogue["double_well"]
    x = target.sample(20_000, generator=torch.Generator().manual_seed(1))
    right = x[x[:, 0] > 0]
    ws = pb.WeightedSamples(right, torch.zeros(len(right), dtype=torch.float64), energy=target(right))
    exact = draw_exact(target, 20_000, 0)
    assert exact is not None
    rows = distance_rows(ws, right, exact.z, exact.energy, target)
    for name in ("e_w2", "x_w2", "ks_1"):
        assert rows[name].value > 3 * rows[name].floor, name  # type: ignore[operator]
    # The mass of the left well is all missing from the first distribution function.
    assert rows["ks_1"].value is not None and abs(rows["ks_1"].value - 0.155693) < 0.01


def test_too_few_effective_draws_give_a_reason_instead_of_a_number() -> None:
    target = pb.catalogue["double_well"]
    x = target.sample(800, generator=torch.Generator().manual_seed(1))
    exact = draw_exact(target, 800, 0)
    assert exact is not None
    ws = pb.WeightedSamples(x, torch.zeros(800, dtype=torch.float64), energy=target(x))
    row = distance_rows(ws, x, exact.z, exact.energy, target)["x_w2"]
    assert row.value is None and "effective" in str(row.reason)
    x = target.sample(1000, generator=torch.Generator().manual_seed(1))
    ws = pb.WeightedSamples(x, torch.zeros(1000, dtype=torch.float64), energy=target(x))
    row = distance_rows(ws, x, exact.z, exact.energy, target)["x_w2"]
    assert row.value is None and "exact samples" in str(row.reason)


def test_reweighted_particles_lie_at_their_floors_and_raw_ones_do_not() -> None:
    target = HarmonicCluster(3, 2)
    exact = draw_exact(target, 10_000, 0)
    assert exact is not None
    ws, x = reweighted(target, 10_000, 1.15)
    rows = distance_rows(ws, x, exact.z, exact.energy, target)
    raw = pb.WeightedSamples(x, torch.zeros(len(x), dtype=torch.float64), energy=target(x))
    raw_rows = distance_rows(raw, x, exact.z, exact.energy, target)
    # The relative spread of one distance, and the repeats of its floor.
    for name, spread, repeats in (("distance_tv", 0.07, 5), ("x_w2_aligned", 0.049, 3)):
        row, other = rows[name], raw_rows[name]
        slack = 4.5 * spread * math.sqrt(1 + 1 / repeats)
        assert row.value is not None and row.floor is not None and other.value is not None and other.floor is not None
        assert abs(row.value / row.floor - 1) < slack, name
        assert other.value / other.floor - 1 > slack, name
    assert rows["x_w2_aligned"].num_samples == 1000
    assert "ks_1" not in rows


def test_larger_systems_are_aligned_on_fewer_draws() -> None:
    target = HarmonicCluster(6, 3)
    exact = draw_exact(target, 1500, 0)
    assert exact is not None
    x = target.sample(1500, generator=torch.Generator().manual_seed(3))
    ws = pb.WeightedSamples(x, torch.zeros(1500, dtype=torch.float64), energy=target(x))
    row = distance_rows(ws, x, exact.z, exact.energy, target)["x_w2_aligned"]
    assert row.num_samples == 200 and row.value is not None and row.floor is not None
    # The relative spread of one such distance is 0.0082, over eight repeats.
    assert abs(row.value / row.floor - 1) < 4.5 * 0.0082 * math.sqrt(1 + 1 / 3)


def test_particles_without_a_reference_say_so() -> None:
    target = pb.catalogue["dw4"]
    x = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    rows = run_metrics(pb.WeightedSamples(x, torch.zeros(50), energy=target(x)), x, None, target=target)
    for name in ("distance_tv", "x_w2_aligned"):
        assert rows[name].value is None and "no exact samples" in str(rows[name].reason)
