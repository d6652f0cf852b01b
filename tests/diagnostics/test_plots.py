"""Plots draw what they were given (checked on the drawn data), need no display and leave no global state."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from pyro_boltzmann.diagnostics import ProfileBins, exact_profile, psis
from pyro_boltzmann.diagnostics.plots import (
    plot_configurations,
    plot_energy_histogram,
    plot_free_energy_profile,
    plot_log_weights,
    plot_path_ess,
    plot_samples_over_energy,
    plot_training,
    save_figure,
)
from pyro_boltzmann.exceptions import OutputError, ShapeError

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(500, 2, generator=GENERATOR)
LOG_WEIGHTS = 0.3 * X[:, 0].double()


def harmonic(x):
    return 0.5 * x.square().sum(-1)


def lines(figure, label, axes=0):
    return next(line for line in figure.axes[axes].get_lines() if line.get_label() == label)


@pytest.mark.parametrize("log_weights", [None, LOG_WEIGHTS])
def test_samples_over_energy(log_weights, tmp_path):
    figure = plot_samples_over_energy(X, lambda x: torch.where(x[:, 0] > -1, harmonic(x), math.inf), log_weights)
    dots = figure.axes[0].collections[-1].get_offsets()
    np.testing.assert_allclose(dots, X.numpy(), atol=1e-6)
    assert "kT" in figure.axes[1].get_ylabel()
    assert save_figure(figure, tmp_path / "a.png").stat().st_size > 5000
    with pytest.raises(ShapeError):
        plot_samples_over_energy(X[:, :1], harmonic)


def test_log_weights_show_the_fitted_tail(tmp_path):
    log_weights = -0.5 * torch.rand(4000, generator=GENERATOR, dtype=torch.float64).log()
    figure = plot_log_weights(log_weights)
    smoothed, khat = psis(log_weights)
    assert f"k-hat {khat:.2f}" in figure.axes[0].get_title(loc="left")
    tail = lines(figure, "fitted Pareto tail").get_ydata()
    np.testing.assert_allclose(tail, np.sort(smoothed)[::-1][: len(tail)] + math.log(4000))
    drawn = lines(figure, "log weights").get_ydata()
    assert drawn[0] == pytest.approx(float(log_weights.max() - log_weights.logsumexp(0)) + math.log(4000))
    save_figure(figure, tmp_path / "b.png")


@pytest.mark.parametrize("log_weights", [torch.zeros(50), torch.tensor([0.0, -math.inf, 1.0]), torch.zeros(1)])
def test_degenerate_weights_can_be_drawn(log_weights, tmp_path):
    save_figure(plot_log_weights(log_weights), tmp_path / "b.png")


def test_energy_histogram_integrates_to_one():
    figure = plot_energy_histogram(harmonic(X), LOG_WEIGHTS, harmonic(X))
    for patch in figure.axes[0].patches:
        data = patch.get_data()
        assert float((data.values * np.diff(data.edges)).sum()) == pytest.approx(1.0, abs=0.01)
    assert {patch.get_label() for patch in figure.axes[0].patches} == {"exact", "raw", "reweighted"}
    energies = torch.cat([harmonic(X), torch.tensor([math.inf])])
    plot_energy_histogram(energies)
    with pytest.raises(ShapeError):
        plot_energy_histogram(torch.full((3,), math.inf))


def test_a_tail_of_raw_energies_leaves_room_for_the_exact_ones():
    energies, exact = torch.cat([harmonic(X), torch.logspace(3, 20, 50)]), harmonic(X)
    figure = plot_energy_histogram(energies, None, exact)
    low, high = figure.axes[0].get_xlim()
    assert low <= float(exact.min()) and float(exact.max()) < high <= 2.001 * float(exact.max())
    shown = {patch.get_label(): patch.get_data() for patch in figure.axes[0].patches}
    mass = {label: float((data.values * np.diff(data.edges)).sum()) for label, data in shown.items()}
    assert mass == pytest.approx({"exact": 1.0, "raw": 500 / 550}, abs=1e-6)


def test_path_ess(tmp_path):
    figure = plot_path_ess([0.1, 0.5, 0.9], ["a", "b", "c"], num_samples=1000)
    np.testing.assert_array_equal(figure.axes[0].get_lines()[0].get_ydata(), [0.1, 0.5, 0.9])
    assert "1,000" in figure.axes[0].get_title(loc="left")
    save_figure(plot_path_ess(torch.rand(40)), tmp_path / "d.png")


def test_training(tmp_path):
    steps = np.arange(200)
    figure = plot_training(steps, 1 - np.exp(-steps / 30), np.where(steps % 10, math.nan, 0.5), log_z=1.0)
    assert lines(figure, "exact log Z").get_ydata()[0] == 1.0
    assert len(figure.axes[1].get_lines()[0].get_xdata()) == 20
    save_figure(figure, tmp_path / "e.png")
    save_figure(plot_training([1], [2.0]), tmp_path / "f.png")


def test_free_energy_profiles_are_aligned_with_each_other():
    exact = exact_profile(lambda x: x**2)
    other = exact + 7.0
    other[12] = math.inf  # an empty bin must not shift one profile against another
    figure = plot_free_energy_profile(other, np.stack([exact, exact + 1.0]), exact)
    drawn = {name: lines(figure, name).get_ydata() for name in ("exact", "raw", "reweighted")}
    scored = ProfileBins().scored & np.isfinite(other)
    for values in drawn.values():
        np.testing.assert_allclose(values[scored], drawn["exact"][scored], atol=1e-9)
    with pytest.raises(ShapeError):
        plot_free_energy_profile(np.full(30, math.inf))


def test_unwritable_figure(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        save_figure(plot_path_ess([0.5, 1.0]), tmp_path / "file" / "a.png")


def test_no_pyplot_is_imported():
    """pyplot keeps figures alive and may look for a display."""
    code = (
        "import sys; from pyro_boltzmann.diagnostics.plots import plot_path_ess, save_figure;"
        "plot_path_ess([0.5, 1.0]); assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_configurations_are_turned_and_neighbours_are_joined():
    """A unit square far from the origin: four dots about zero, its four sides and no diagonal."""
    square = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]) + 7.0
    figure = plot_configurations(np.stack([square, 0.5 + square]))
    assert len(figure.axes) == 2
    axes = figure.axes[0]
    dots = np.concatenate([dot.get_offsets() for dot in axes.collections])
    np.testing.assert_allclose(dots.mean(0), 0.0, atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(dots, axis=1), math.sqrt(0.5))
    sides = [np.hypot(*np.diff(line.get_xydata(), axis=0)[0]) for line in axes.get_lines()]
    np.testing.assert_allclose(sides, 1.0)
    assert len(sides) == 4
    for wrong in (np.zeros((3, 4)), np.zeros((2, 4, 1))):
        with pytest.raises(ShapeError, match="num_particles"):
            plot_configurations(wrong)
