"""Weighted draws and all that can be said of them: weights, metrics with their floors, reports, ArviZ, plots.

This room knows nothing of samplers.
"""

from pyro_boltzmann.diagnostics.arviz_io import from_arviz, from_netcdf, to_arviz, to_netcdf
from pyro_boltzmann.diagnostics.bennett import bennett_log_normalizer
from pyro_boltzmann.diagnostics.metrics import (
    delta_f,
    energy_w2,
    mode_mass_tv,
    mode_masses,
    modes_found,
    sampling_floor,
    virial,
)
from pyro_boltzmann.diagnostics.profiles import (
    ProfileBins,
    ProfileError,
    PublishedProfileError,
    exact_profile,
    fillable_bins,
    free_energy_profile,
    profile_error,
    published_profile_error,
)
from pyro_boltzmann.diagnostics.report import Metric, Truth, build_report, check_bounds, read_report, write_report
from pyro_boltzmann.diagnostics.report_text import format_report, weight_metrics
from pyro_boltzmann.diagnostics.resampling import RESAMPLERS, multinomial, systematic
from pyro_boltzmann.diagnostics.weighted_samples import WeightedSamples
from pyro_boltzmann.diagnostics.weights import (
    elbo,
    eubo,
    expectation,
    forward_ess,
    khat_limit,
    kish_ess,
    log_mean_exp,
    log_normalizer,
    log_normalizer_error,
    psis,
)

__all__ = [
    "RESAMPLERS",
    "Metric",
    "ProfileBins",
    "ProfileError",
    "PublishedProfileError",
    "Truth",
    "WeightedSamples",
    "bennett_log_normalizer",
    "build_report",
    "check_bounds",
    "delta_f",
    "elbo",
    "energy_w2",
    "eubo",
    "exact_profile",
    "expectation",
    "fillable_bins",
    "format_report",
    "forward_ess",
    "free_energy_profile",
    "from_arviz",
    "from_netcdf",
    "khat_limit",
    "kish_ess",
    "log_mean_exp",
    "log_normalizer",
    "log_normalizer_error",
    "mode_mass_tv",
    "mode_masses",
    "modes_found",
    "multinomial",
    "profile_error",
    "psis",
    "published_profile_error",
    "read_report",
    "sampling_floor",
    "systematic",
    "to_arviz",
    "to_netcdf",
    "virial",
    "weight_metrics",
    "write_report",
]
