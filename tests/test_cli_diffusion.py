"""The diffusion sampler on the command line."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import pyro_boltzmann as pb
from pyro_boltzmann.cli import main
from pyro_boltzmann.diagnostics import from_netcdf, read_report
from pyro_boltzmann.experiments import architectures
from pyro_boltzmann.experiments.architectures import ARCHITECTURES
from pyro_boltzmann.experiments.wide_proposal import wide_proposal
from pyro_boltzmann.infer.tempering.problem import resolve_problem

ENERGIES = """
def wells(x):
    return x[..., 0] ** 4 - 6 * x[..., 0] ** 2 + 0.5 * x[..., 1] ** 2
wells.dim = 2
"""


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A sampler of a few steps, little trained, and no pictures."""
    real = ARCHITECTURES["diffusion"]
    small = dataclasses.replace(real, num_reverse_steps=12, num_steps=40, num_particles=64, num_draws=1000)
    monkeypatch.setitem(architectures.ARCHITECTURES, "diffusion", small)
    monkeypatch.setattr("pyro_boltzmann.experiments.sampling.write_plots", lambda *args, **kwargs: [])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [str(tmp_path), *sys.path])
    Path("diffusion_cli_energies.py").write_text(ENERGIES)


def sample(target: str, *options: str, out: str = "run") -> int:
    fixed = ["--num-samples", "1000", "--seed", "0", "--out", out, "--no-progress"]
    return main(["sample", target, *fixed, *(options or ("--sampler", "diffusion"))])


def test_report_has_bounds_on_both_sides_and_the_alias_is_no_other_sampler(capsys: Any) -> None:
    assert sample("gmm40", "--sampler", "bendem") == 0
    report = read_report("run/report.json")
    assert report["sampler"] == "diffusion"
    metrics = report["metrics"]
    assert {"log_z", "ess", "khat", "forward_ess"} <= set(metrics)
    # Whatever was learned: ELBO <= log Z = 0 <= EUBO, within 4.5 standard errors.
    assert metrics["elbo"]["value"] - 4.5 * metrics["elbo"]["std_error"] < 0
    assert metrics["eubo"]["value"] + 4.5 * metrics["eubo"]["std_error"] > 0
    # The gradients of the draws learned from, and those of sequential Monte Carlo, are counted.
    assert report["energy_evaluations"]["train"]["gradients"] > 1000
    # The same run by its other name is finished already.
    first = from_netcdf("run/samples.nc")
    assert sample("gmm40") == 0
    assert "continuing diffusion" in capsys.readouterr().err
    assert torch.equal(first.log_weights, from_netcdf("run/samples.nc").log_weights)


@pytest.mark.parametrize("text", ["eight_schools", "diffusion_cli_energies:wells"])
def test_programs_and_energies_of_ones_own(text: str) -> None:
    assert sample(text) == 0
    report = read_report("run/report.json")
    assert ("eubo" in report["metrics"]) == (text == "eight_schools")
    draws = from_netcdf("run/samples.nc")
    assert set(draws.samples) == ({"mu", "tau", "eta"} if text == "eight_schools" else {"x"})
    assert set(draws.info["training"]) == {"step", "loss"}


def test_a_time_limit_below_that_of_its_teacher_is_an_error(capsys: Any) -> None:
    assert sample("gmm40", "--sampler", "diffusion", "--minutes", "1e-6") == 2
    assert "Give fit more time" in capsys.readouterr().err


def test_a_time_limit_stops_it_and_more_time_continues_it(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # Its teacher has all the time it wants.
    monkeypatch.setattr(pb.TargetScoreMatching, "deadline", property(lambda _: None, lambda *_: None))
    assert sample("gmm40", "--sampler", "diffusion", "--minutes", "1e-6") == 0
    stopped = read_report("run/report.json")
    assert any("time limit after 1 updates" in reason for reason in stopped["reasons"])
    assert sample("gmm40", "--sampler", "diffusion", "--minutes", "5") == 0
    assert "continuing" in capsys.readouterr().err
    # One lesson of sequential Monte Carlo served both: only the field's own gradients come on top.
    spent = [run["energy_evaluations"]["train"] for run in (stopped, read_report("run/report.json"))]
    assert 0 < spent[1]["gradients"] - spent[0]["gradients"] <= 39 * 64


def test_tempering_starts_on_the_box_where_there_is_one() -> None:
    gmm40 = pb.catalogue["gmm40"]
    problem = resolve_problem(gmm40.model(), (), {}, None)
    torch.manual_seed(0)
    for target, scale in ((gmm40, 112 / 6), (None, 1.0)):
        draws = wide_proposal(problem, target).sample(20_000)
        # The variance of 40,000 squared normals, 4.5 standard errors.
        assert abs(float(draws.square().mean()) / scale**2 - 1) < 4.5 * (2 / 40_000) ** 0.5


def test_a_training_curve_without_an_elbo_is_its_loss() -> None:
    from pyro_boltzmann.experiments.run_plots import _training

    (axes,) = _training({"step": [10, 20, 30], "loss": [2.0, 1.5, 1.0]}, None).axes
    assert axes.get_ylabel() == "loss" and list(axes.lines[0].get_ydata()) == [2.0, 1.5, 1.0]
