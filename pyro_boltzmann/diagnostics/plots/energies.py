"""Histograms of energies and free-energy profiles, raw and reweighted."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from pyro_boltzmann.diagnostics.plots.style import RAW, WEIGHTED, new_figure, tidy, to_numpy
from pyro_boltzmann.diagnostics.profiles import ProfileBins
from pyro_boltzmann.diagnostics.weights import normalized_weights
from pyro_boltzmann.exceptions import ShapeError

__all__ = ["plot_energy_histogram", "plot_free_energy_profile"]

_EXACT = "#c3ccd4"


def plot_energy_histogram(
    energies: ArrayLike,
    log_weights: ArrayLike | None = None,
    exact: ArrayLike | None = None,
    *,
    num_bins: int = 60,
    exact_label: str = "exact",
    title: str = "Energies of the samples",
) -> Figure:
    """Histogram of the energies ``(N,)``, raw, reweighted (given ``log_weights``) and of ``exact`` draws (if given).

    The range is that of 99.8 % of all draws shown, but above at most twice that of the exact ones, lest a tail of raw
    draws leave one bar of them; the rest counts in the normalisation.
    """
    values = to_numpy(energies)
    finite = np.isfinite(values)
    if not finite.any():
        raise ShapeError(f"expected at least one finite energy, got {values.size} draws with none")
    reference = None if exact is None else to_numpy(exact)
    pooled = values[finite] if reference is None else np.concatenate([values[finite], reference])
    low, high = np.quantile(pooled, [0.0, 0.998])
    if reference is not None and np.ptp(reference) > 0.0:
        high = min(high, reference.max() + np.ptp(reference))
    edges = np.linspace(low, high if high > low else low + 1.0, num_bins + 1)
    width = edges[1] - edges[0]

    def density(sample: NDArray[np.float64], weights: NDArray[np.float64] | None) -> NDArray[np.float64]:
        mass = np.full(sample.size, 1.0 / sample.size) if weights is None else weights
        inside = np.isfinite(sample)
        return np.asarray(np.histogram(sample[inside], edges, weights=mass[inside])[0] / width)

    figure, (axes,) = new_figure()
    if reference is not None:
        axes.stairs(density(reference, None), edges, fill=True, color=_EXACT, label=exact_label)
    axes.stairs(density(values, None), edges, color=RAW, linewidth=2, label="raw")
    if log_weights is not None:
        axes.stairs(
            density(values, normalized_weights(log_weights)), edges, color=WEIGHTED, linewidth=2, label="reweighted"
        )
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(bottom=0.0)
    tidy(axes, title=title, x="energy (kT)", y="probability density (1/kT)")
    return figure


def plot_free_energy_profile(
    raw: ArrayLike,
    reweighted: ArrayLike | None = None,
    exact: ArrayLike | None = None,
    *,
    bins: ProfileBins | None = None,
    scored: ArrayLike | None = None,
    coordinate: str = "$x_1$",
    title: str = "Free-energy profile",
) -> Figure:
    """Profiles ``(B,)`` or repeats ``(R, B)`` on fixed bins, aligned over the scored bins, with bands of +-1 sd.

    Zero is the minimum of the exact profile (of the raw one, if no exact one is given); unscored bins are shaded, and
    bins that are empty in any repeat have no mark.

    :param scored: which bins are scored, ``(B,)``, if fewer than ``bins`` says.
    :raises ShapeError: if no scored bin is filled in every profile.
    """
    bins = bins or ProfileBins()
    figure, (axes,) = new_figure()
    lines = [("exact", exact, _EXACT), ("raw", raw, RAW), ("reweighted", reweighted, WEIGHTED)]
    given = {name: np.atleast_2d(to_numpy(profile)) for name, profile, _ in lines if profile is not None}
    # Bins that are empty in any profile take no part, or the profiles would be shifted against each other.
    chosen = bins.scored if scored is None else np.asarray(scored, dtype=bool)
    usable = np.logical_and.reduce([chosen, *(np.isfinite(repeats).all(0) for repeats in given.values())])
    if not usable.any():
        raise ShapeError("expected at least one scored bin that is filled in every profile, got none; use more draws")
    aligned = {name: repeats - repeats[:, usable].mean(1, keepdims=True) for name, repeats in given.items()}
    lowest = np.min(aligned["exact" if exact is not None else "raw"][:, usable])
    for name, _, colour in lines:
        if name not in aligned:
            continue
        profiles = np.where(np.isfinite(aligned[name]), aligned[name] - lowest, np.nan)
        mean = profiles.mean(0)
        style = {"linewidth": 5.0} if name == "exact" else {"linewidth": 1.8, "marker": "o", "markersize": 4}
        axes.plot(bins.centres, mean, color=colour, label=name, **style)
        if len(profiles) > 1:
            spread = profiles.std(0)
            axes.fill_between(bins.centres, mean - spread, mean + spread, color=colour, alpha=0.2, linewidth=0)
    for low, high, is_scored in zip(bins.edges[:-1], bins.edges[1:], chosen, strict=True):
        if not is_scored:
            axes.axvspan(low, high, color="#eef1f3", linewidth=0, zorder=0)
    axes.set_xlim(bins.low, bins.high)
    heights = np.concatenate([profiles[:, bins.scored].ravel() for profiles in aligned.values()]) - lowest
    top = float(np.max(heights[np.isfinite(heights)]))
    axes.set_ylim(-0.08 * top, 1.25 * top)
    tidy(axes, title=title, x=coordinate, y="free energy (kT)")
    return figure
