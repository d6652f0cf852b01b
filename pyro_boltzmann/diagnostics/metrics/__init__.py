"""Distances between samples, mode masses and identities, each with the error or the floor that belongs beside it.

NumPy and SciPy alone; exact transport of weighted sets and the classifier test need the extra ``eval``.
"""

from pyro_boltzmann.diagnostics.metrics.aligned import aligned_squared_distances, aligned_w2
from pyro_boltzmann.diagnostics.metrics.classifier import c2st
from pyro_boltzmann.diagnostics.metrics.discrepancy import DiscrepancyTest, median_bandwidth, mmd_squared, mmd_test
from pyro_boltzmann.diagnostics.metrics.distances import DistanceBins, distance_tv, pair_distances
from pyro_boltzmann.diagnostics.metrics.energies import energy_w2, mean_energy_difference
from pyro_boltzmann.diagnostics.metrics.floors import sampling_floor
from pyro_boltzmann.diagnostics.metrics.histograms import (
    PlaneBins,
    histogram_tv,
    image_kl,
    image_kl_floor,
    plug_in_kl_floor,
    torsion_kl,
)
from pyro_boltzmann.diagnostics.metrics.kolmogorov import KolmogorovSmirnov, ks_distance, ks_floor, ks_test
from pyro_boltzmann.diagnostics.metrics.modes import (
    assignment_entropy,
    delta_f,
    mode_mass_tv,
    mode_masses,
    mode_weight_error,
    modes_found,
)
from pyro_boltzmann.diagnostics.metrics.stein import virial
from pyro_boltzmann.diagnostics.metrics.transport import sample_w2, sinkhorn_divergence, sliced_w2

__all__ = [
    "DiscrepancyTest",
    "DistanceBins",
    "KolmogorovSmirnov",
    "PlaneBins",
    "aligned_squared_distances",
    "aligned_w2",
    "assignment_entropy",
    "c2st",
    "delta_f",
    "distance_tv",
    "energy_w2",
    "histogram_tv",
    "image_kl",
    "image_kl_floor",
    "ks_distance",
    "ks_floor",
    "ks_test",
    "mean_energy_difference",
    "median_bandwidth",
    "mmd_squared",
    "mmd_test",
    "mode_mass_tv",
    "mode_masses",
    "mode_weight_error",
    "modes_found",
    "pair_distances",
    "plug_in_kl_floor",
    "sample_w2",
    "sampling_floor",
    "sinkhorn_divergence",
    "sliced_w2",
    "torsion_kl",
    "virial",
]
