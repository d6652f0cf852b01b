"""The experiments on reference samplers, taught flows and certified truths, in small."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pyro_boltzmann.exceptions import CheckpointError
from pyro_boltzmann.experiments import certify, double_well_seeds, smc_catalogue, teacher_student
from pyro_boltzmann.experiments.finished_parts import FinishedParts


def test_finished_parts_are_kept_and_guarded(tmp_path: Path) -> None:
    calls: list[int] = []

    def make() -> dict[str, float]:
        calls.append(1)
        return {"value": math.pi}

    first = FinishedParts(tmp_path / "parts.json", {"seed": 0}).get("a", make)
    again = FinishedParts(tmp_path / "parts.json", {"seed": 0}).get("a", make)
    assert first == again == {"value": math.pi}
    assert len(calls) == 1
    with pytest.raises(CheckpointError, match="another run"):
        FinishedParts(tmp_path / "parts.json", {"seed": 1})
    (tmp_path / "parts.json").write_text("{")
    with pytest.raises(CheckpointError, match="delete it"):
        FinishedParts(tmp_path / "parts.json", {"seed": 0})


def test_smc_catalogue_in_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plans = {"gmm40": replace(smc_catalogue.PLANS["gmm40"], particles=2000), "dw2": smc_catalogue.PLANS["dw2"]}
    monkeypatch.setattr(smc_catalogue, "PLANS", plans)
    report = smc_catalogue.run(seed=0, out=tmp_path, minutes=0.5, num_samples=400, progress=False)
    assert set(report["models"]) == {"gmm40", "gmm40_pt", "dw2", "dw2_pt"}
    row = report["models"]["dw2"]["log_z"]
    assert abs(row["value"] - row["truth"]) < 4.5 * row["std_error"]
    assert "frozen runs" in " ".join(report["reasons"])
    text = (tmp_path / "smc-catalogue.md").read_text()
    assert "## Parallel tempering" in text
    before = json.loads((tmp_path / "parts.json").read_text())
    assert smc_catalogue.run(seed=0, out=tmp_path, minutes=0.5, num_samples=400, progress=False)["models"]
    assert json.loads((tmp_path / "parts.json").read_text()) == before


def estimate(log_z: float, error: float, energy: float = -40.0) -> dict[str, float]:
    return {"log_z": log_z, "std_error": error, "mean_energy": energy, "mean_energy_error": 0.1}


def test_two_estimators_certify_only_what_they_agree_on() -> None:
    agree = {f"{name}_{sampler}": estimate(10.0, 0.01) for name in certify.PLANS for sampler in ("smc", "pt")}
    assert certify._disagreements(agree) == []
    assert len(certify._disagreements({**agree, "lj13_pt": estimate(10.1, 0.01)})) == 1
    assert len(certify._disagreements({**agree, "lj13_pt": estimate(10.0, 0.01, -41.0)})) == 1
    # An error that could not be taken certifies nothing.
    assert len(certify._disagreements({**agree, "dw4_smc": estimate(10.0, math.nan)})) == 1


def test_teacher_and_student_in_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lesson = teacher_student.LESSONS["gmm40"]
    small = replace(
        lesson, teacher={"num_samples": 300}, steps=20, rounds=1, round_steps=20, own_draws=500, num_rungs=2
    )
    monkeypatch.setattr(teacher_student, "LESSONS", {"gmm40": small})
    monkeypatch.setattr(teacher_student, "SEEDS", 1)
    report = teacher_student.run(seed=0, out=tmp_path, num_samples=500, progress=False)
    rows: dict[str, Any] = report["models"]["gmm40_path"]
    assert rows["elbo"]["value"] < 0.0 < rows["eubo"]["value"]
    assert rows["gap"]["value"] == pytest.approx(rows["eubo"]["value"] - rows["elbo"]["value"])
    assert rows["evaluations"]["value"] > 10_000
    assert (tmp_path / "teacher-student.md").exists()


def test_medians_and_worst_over_seeds(tmp_path: Path) -> None:
    values = {0: {"ess": 0.9, "log_z_off": 0.1}, 1: {"ess": 0.5, "log_z_off": 0.3}, 2: {"ess": 0.8, "log_z_off": 0.2}}
    rows = double_well_seeds.over_seeds(tmp_path, 0, 3, 1.0, 100, values.__getitem__)
    assert {name: row.value for name, row in rows["snf_median"].items()} == {"ess": 0.8, "log_z_off": 0.2}
    assert {name: row.value for name, row in rows["snf_worst"].items()} == {"ess": 0.5, "log_z_off": 0.3}
