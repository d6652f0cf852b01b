"""Pictures of the posterior experiment: errors of log Z, and rank histograms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from pyro_boltzmann.diagnostics import Metric
from pyro_boltzmann.diagnostics.plots.style import EXACT, RAW, WEIGHTED, new_figure, tidy
from pyro_boltzmann.experiments.schools_calibration import NUM_BINS, Calibration

__all__ = ["METHODS", "log_z_figure", "rank_figure"]

METHODS = ("diagonal", "mvn", "iaf", "snf", "smc", "smc_mvn", "nuts", "pt")
"""All methods, in the order of tables and pictures."""
SHOWN = METHODS[:6]


def log_z_figure(models: Mapping[str, Mapping[str, Metric]], programs: Sequence[str]) -> Figure:
    """One panel a program: estimate minus truth, on an axis that is linear up to 0.1."""
    shown = [name for name in programs if any(f"{name}_{method}" in models for method in SHOWN)]
    figure, axes = new_figure(2.3 * len(shown) + 0.6, 3.4, columns=len(shown))
    for index, (panel, name) in enumerate(zip(axes, shown, strict=True)):
        for place, method in enumerate(reversed(SHOWN)):
            row = models.get(f"{name}_{method}", {}).get("log_z_error")
            if row is None or row.value is None:
                continue
            color = WEIGHTED if method.startswith("smc") else RAW
            panel.errorbar(row.value, place, xerr=2 * (row.std_error or 0.0), fmt="o", color=color, capsize=2)
        panel.axvline(0.0, color=EXACT, linewidth=1)
        panel.set_xscale("symlog", linthresh=0.1)
        panel.set_ylim(-0.5, len(SHOWN) - 0.5)
        panel.set_yticks(range(len(SHOWN)), list(reversed(SHOWN)) if index == 0 else [""] * len(SHOWN))
        tidy(panel, title=name.replace("eight_schools", "schools").replace("_regression", ""), x="error of log Z")
        panel.tick_params(axis="x", labelsize=8)
    return figure


def rank_figure(calibrations: Mapping[str, Calibration]) -> Figure:
    """Histograms for mu, log tau and the log likelihood, and the last again with the wrong likelihood."""
    from scipy import stats

    right, wrong = calibrations["calibration_smc"], calibrations["calibration_wrong"]
    panels = [(right, "mu"), (right, "log_tau"), (right, "log_likelihood"), (wrong, "log_likelihood")]
    figure, axes = new_figure(12.0, 3.0, columns=len(panels))
    for panel, (one, name) in zip(axes, panels, strict=True):
        counts = one.tests[name].counts
        low, high = stats.binom.interval(0.99, sum(counts), 1 / NUM_BINS)
        panel.axhspan(low, high, color=EXACT, alpha=0.12, linewidth=0)
        panel.bar(range(NUM_BINS), counts, color=RAW if one is wrong else WEIGHTED, width=0.85)
        title = name.replace("_", " ") + (", wrong errors" if one is wrong else "")
        tidy(panel, title=title, x="rank, in 16 bins", y="data sets")
    return figure
