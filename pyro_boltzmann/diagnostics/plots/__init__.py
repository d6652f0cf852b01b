"""Pictures of weighted draws. Each function returns a Matplotlib ``Figure`` and touches no global state."""

from pyro_boltzmann.diagnostics.plots.configurations import plot_configurations
from pyro_boltzmann.diagnostics.plots.energies import plot_energy_histogram, plot_free_energy_profile
from pyro_boltzmann.diagnostics.plots.ladder import plot_ladder
from pyro_boltzmann.diagnostics.plots.samples import plot_samples_over_energy
from pyro_boltzmann.diagnostics.plots.style import save_figure
from pyro_boltzmann.diagnostics.plots.training import plot_training
from pyro_boltzmann.diagnostics.plots.weights import plot_log_weights, plot_path_ess

__all__ = [
    "plot_configurations",
    "plot_energy_histogram",
    "plot_free_energy_profile",
    "plot_ladder",
    "plot_log_weights",
    "plot_path_ess",
    "plot_samples_over_energy",
    "plot_training",
    "save_figure",
]
