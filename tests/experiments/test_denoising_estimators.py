"""The experiment on denoising estimators: its closed form, and a short run through the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pyro_boltzmann import cli
from pyro_boltzmann.energies.catalogue import GMM40
from pyro_boltzmann.experiments.denoising_estimators import ESTIMATORS, squared_variation


def test_squared_variation_is_that_of_many_points() -> None:
    target, x = GMM40(), torch.tensor([[3.0, -24.0], [15.0, 24.0]], dtype=torch.float64)
    y = x.unsqueeze(1) + 2.0 * torch.randn(2, 200_000, 2, dtype=torch.float64)
    weights = torch.exp(-target(y) + target.noised_energy(x, 4.0).unsqueeze(1))
    squares = (weights - 1.0).square()
    error = squares.std(1) / squares.shape[1] ** 0.5
    assert ((squares.mean(1) - squared_variation(x, 4.0)).abs() < 4.5 * error).all()


def test_a_short_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["reproduce", "denoising-estimators", "--seed", "0", "--minutes", "0.01", "--num-samples", "8"]
    assert cli.main([*arguments, "--out", str(tmp_path)]) in (0, None)
    report = json.loads((tmp_path / "report.json").read_text())
    assert len(report["models"]) == 10 * len(ESTIMATORS)
    head = report["models"]["0.03 K500 bootstrap"]
    assert abs(head["energy_bias"]["value"]) < 0.05 and head["score_error"]["value"] < 0.2
    assert (tmp_path / "denoising-estimators.md").exists() and (tmp_path / "errors.png").exists()
