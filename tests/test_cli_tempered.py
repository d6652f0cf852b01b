"""The reference samplers on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pyro_boltzmann.cli import main
from pyro_boltzmann.diagnostics import from_netcdf, read_report


def sample(out: Path, *arguments: str) -> int:
    return main(["sample", *arguments, "--seed", "0", "--out", str(out), "--no-progress"])


@pytest.mark.parametrize(("sampler", "more"), [("smc", []), ("smc", ["--freeze"]), ("pt", [])])
def test_a_run_its_report_and_its_continuation(
    tmp_path: Path, sampler: str, more: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["double_well", "--sampler", sampler, "--num-samples", "2000", *more]
    assert sample(tmp_path, *arguments) == 0
    report = read_report(tmp_path / "report.json")
    row = report["metrics"]["log_z"]
    # 8 or 16 chains: t with 7 degrees of freedom leaves 9 errors about one time in 2e4.
    assert abs(row["value"] - row["truth"]) < 9 * row["std_error"]
    assert report["verdict"] == "reliable"
    assert report["metrics"]["khat"]["value"] is None
    assert report["energy_evaluations"]["sample"]["gradients"] > 2000
    assert {"ladder.png", "samples.png", "samples.nc"} <= {path.name for path in tmp_path.iterdir()}
    draws = from_netcdf(tmp_path / "samples.nc")
    assert draws.roots is not None
    assert draws.info["run"]["sampler"] == sampler
    assert main(["report", str(tmp_path / "samples.nc")]) == 0
    before = (tmp_path / "samples.nc").stat().st_size
    assert sample(tmp_path, *arguments) == 0  # finished: read back, not repeated
    again = read_report(tmp_path / "report.json")
    assert again["metrics"]["log_z"] == row
    assert again["energy_evaluations"]["sample"] == report["energy_evaluations"]["sample"]
    assert abs((tmp_path / "samples.nc").stat().st_size - before) < 1000
    assert "continuing" in capsys.readouterr().err


def test_another_number_of_draws_does_not_continue_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sample(tmp_path, "double_well", "--sampler", "smc", "--num-samples", "500") == 0
    assert sample(tmp_path, "double_well", "--sampler", "smc", "--num-samples", "600") == 2
    assert "chain_length=" in capsys.readouterr().err


def test_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sample(tmp_path / "a", "double_well", "--sampler", "pt", "--num-samples", "1001") == 2
    assert "multiple of 4" in capsys.readouterr().err
    assert sample(tmp_path / "b", "double_well", "--sampler", "snf", "--num-samples", "10", "--freeze") == 2
    assert "only the sampler 'smc'" in capsys.readouterr().err
    assert sample(tmp_path / "c", "double_well", "--sampler", "nuts", "--num-samples", "10") == 2
    assert "snf, diffusion, smc, pt" in capsys.readouterr().err


def test_draws_too_few_to_tell_are_called_unreliable(tmp_path: Path) -> None:
    # Six particles descend from fewer than eight independent ones, however well they are weighted.
    assert sample(tmp_path, "double_well", "--sampler", "smc", "--num-samples", "6") == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["verdict"] == "unreliable"
    assert any(reason.startswith("roots:") for reason in report["reasons"])


def test_particles_are_compared_with_reference_samples(tmp_path: Path) -> None:
    assert sample(tmp_path, "dw4", "--sampler", "smc", "--num-samples", "4000") == 0
    report = read_report(tmp_path / "report.json")
    for name in ("e_w2", "distance_tv", "x_w2_aligned"):
        row = report["metrics"][name]
        # Draws of an honest sampler are as far from the reference as its own halves are, or a little further.
        assert 0 < row["value"] < 3 * row["floor"], name
    assert any("reference samples" in reason for reason in report["reasons"])
