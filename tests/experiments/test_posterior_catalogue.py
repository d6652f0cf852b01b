"""Posteriors of the catalogue: the written-out schools, their calibration, references, and a run that resumes."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from pyro_boltzmann.diagnostics import Metric, build_report, rank_test
from pyro_boltzmann.energies import EvaluationCount, ModelEnergy
from pyro_boltzmann.energies.catalogue import catalogue
from pyro_boltzmann.exceptions import CheckpointError, ShapeError
from pyro_boltzmann.experiments import posterior_catalogue as experiment
from pyro_boltzmann.experiments.posterior_methods import Estimate, guide_estimate, smc_replicates, train
from pyro_boltzmann.experiments.posterior_reference import exact_reference, nuts_estimate, summarize_chains
from pyro_boltzmann.experiments.results_page import write_results_page
from pyro_boltzmann.experiments.schools_calibration import NUM_DRAWS, QUANTITIES, Calibration, calibrate
from pyro_boltzmann.experiments.schools_posterior import PRIOR_SCALE, SchoolsPosterior, draw_schools

SCHOOLS = catalogue["eight_schools"]


def test_schools_written_out_are_the_program_for_any_data() -> None:
    x = 2 * torch.randn(20, 10, dtype=torch.float64)
    assert torch.allclose(SchoolsPosterior()(x), SCHOOLS(x), rtol=0, atol=1e-6)
    y = 30 * torch.randn(8)
    program = ModelEnergy(SCHOOLS.model(y=y))
    assert torch.allclose(SchoolsPosterior(y)(x), program(x), rtol=1e-7, atol=1e-6)
    with pytest.raises(ShapeError, match="shape"):
        SchoolsPosterior(torch.zeros(7))


def test_schools_gradient_is_that_of_autograd() -> None:
    energy = SchoolsPosterior(30 * torch.randn(8).double())
    x = (2 * torch.randn(4, 5, 10, dtype=torch.float64)).requires_grad_()
    (expected,) = torch.autograd.grad(energy(x).sum(), x)
    u, gradient = energy.energy_and_gradient(x.detach())
    assert torch.allclose(u, energy(x)) and torch.allclose(gradient, expected)


def test_simulated_schools_follow_the_program() -> None:
    """Quartiles of the half-Cauchy scale, moments of the rest: within 4.5 standard errors."""
    n = 20_000
    z, y = draw_schools(n, torch.Generator().manual_seed(3))
    tau, sigma = z[:, 1].exp(), SchoolsPosterior()._on("sigma", z)
    for share in (0.25, 0.5, 0.75):
        quantile = PRIOR_SCALE * math.tan(0.5 * math.pi * share)
        assert abs(float((tau < quantile).double().mean()) - share) < 4.5 * math.sqrt(share * (1 - share) / n)
    noise = (y - z[:, :1] - tau.unsqueeze(-1) * z[:, 2:]) / sigma
    for normal in (z[:, 0] / PRIOR_SCALE, z[:, 2:].flatten(), noise.flatten()):
        assert abs(float(normal.mean())) < 4.5 / math.sqrt(len(normal))
        assert abs(float(normal.var()) - 1) < 4.5 * math.sqrt(2 / len(normal))


def test_calibration_finds_a_wrong_likelihood() -> None:
    """Four bins, so that 16 data sets suffice; the right sampler passes, standard errors four times too small fail."""
    smallest = []
    for scale in (1.0, 0.25):
        ranks = calibrate(16, 64, seed=0, error_scale=scale).ranks
        assert ranks.shape == (16, len(QUANTITIES))
        p_values = [rank_test(column.numpy(), NUM_DRAWS + 1, 4).p_value for column in ranks.T]
        smallest.append(len(QUANTITIES) * min(p_values))
    assert smallest[0] > 1e-5 > smallest[1]


def test_chains_are_summarized_as_independent_ones_are() -> None:
    chains = 1 + 2 * torch.randn(4, 2000, 3, generator=torch.Generator().manual_seed(0))
    summary = summarize_chains(chains)
    assert torch.allclose(summary.mean, chains.double().mean((0, 1)))
    assert torch.allclose(summary.error, torch.full((3,), 2 / math.sqrt(8000)).double(), rtol=0.2)
    assert summary.rhat < 1.01 and summary.ess > 4000
    stuck = chains + torch.tensor([0.0, 0.0, 0.0, 9.0]).reshape(4, 1, 1)
    assert summarize_chains(stuck).rhat > 1.5


def test_guide_is_between_its_bounds_and_its_price_is_counted() -> None:
    target = catalogue["logistic_regression"]
    trained = train("mvn", target, 0.3)
    one = guide_estimate(trained, target, 2000, seed=0)
    value = {name: metric.value or 0.0 for name, metric in one.metrics.items()}
    errors = {name: one.metrics[name].std_error or 0.0 for name in ("elbo", "eubo")}
    assert value["elbo"] < target.log_z + 4.5 * errors["elbo"] and value["eubo"] > target.log_z - 4.5 * errors["eubo"]
    assert value["gradients"] == 32 * trained.steps and value["values"] == 32 * trained.steps + 2000
    reference = exact_reference(target, 20_000)
    assert reference.mean.shape == one.mean.shape == (5,)


def test_nuts_counts_its_gradients() -> None:
    one = nuts_estimate(SCHOOLS, 5, 10, seed=0)
    assert one.mean.shape == (10,) and one.metrics["gradients"].value == one.metrics["values"].value > 30


def test_smc_replicates_bound_log_z() -> None:
    """Frozen chains are unbiased, so the mean of their log Z lies below the truth."""
    estimate, draws = smc_replicates(SchoolsPosterior(), 250, [0, 1, 2, 3, 4], SCHOOLS.log_z)
    elbo = estimate.metrics["elbo"]
    assert draws.info["smc"]["label"] == "unbiased" and elbo.value < SCHOOLS.log_z + 4.5 * elbo.std_error
    assert 0 < estimate.metrics["median_error"].value <= estimate.metrics["worst_error"].value < 1.0


def test_deviations_are_measured_by_both_errors() -> None:
    reference = experiment.Reference(torch.zeros(2).double(), torch.full((2,), 0.3).double(), torch.ones(2).double())
    one = Estimate({"log_z": Metric(1.0, 0.1)}, torch.tensor([0.0, 1.0]), torch.tensor([0.4, 0.4]))
    rows = experiment._completed(one, reference, experiment.Truth(0.75), is_reference=False)
    assert rows["worst_z"].value == pytest.approx(2.0) and rows["worst_shift"].value == pytest.approx(1.0)
    assert rows["log_z_error"] == Metric(0.25, 0.1)


@pytest.mark.parametrize(("roots", "error"), [(7.0, None), (9.0, 0.1)])
def test_too_few_ancestors_have_no_error(roots: float, error: float | None) -> None:
    reference = experiment.Reference(*torch.ones(3, 2).double())
    one = Estimate({"log_z": Metric(1.0, 0.1), "roots": Metric(roots)}, torch.ones(2), torch.ones(2))
    rows = experiment._completed(one, reference, experiment.Truth(0.75), is_reference=False)
    assert rows["log_z"].std_error == rows["log_z_error"].std_error == error


def test_page_leaves_out_columns_that_a_table_has_not(tmp_path: Path) -> None:
    models = {
        "smc": {"log_z": Metric(0.0, 0.1), "khat": Metric(None, reason="resampled"), "roots": Metric(9.0)},
        "nuts": {"rhat": Metric(1.0)},
        "guide": {"log_z": Metric(0.0, 0.1), "khat": Metric(0.9)},
    }
    report = build_report(
        experiment="e", target="t", sampler="smc", seed=0, num_samples=100, metrics=models["smc"], models=models
    )
    page = write_results_page(
        tmp_path / "page.md",
        report,
        title="T",
        introduction="",
        columns=["log_z", "khat", "roots", "rhat"],
        tables={"one": ["smc", "guide"], "two": ["nuts"]},
    ).read_text()
    assert "| model | `log_z` | `khat` | `roots` | verdict |" in page and "| model | `rhat` |\n" in page
    assert "| **smc** | 0.0000 +- 0.1000 | n/a | 9 | by replicates |" in page
    assert "| guide | 0 +- n/a (k-hat) | 0.9 | n/a | unreliable |" in page


def _uniform_ranks(num_sets: int) -> Calibration:
    return Calibration(torch.randint(NUM_DRAWS + 1, (num_sets, len(QUANTITIES))), EvaluationCount(), 0.1)


def test_a_run_and_its_continuation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is finished is not done again: the second run has the same figures; another seed is refused."""
    monkeypatch.setattr(experiment, "PROGRAMS", ("seeds",))
    monkeypatch.setattr(experiment, "GUIDES", ("mvn",))
    monkeypatch.setattr(experiment, "NO_NUTS", ("seeds",))
    monkeypatch.setattr(experiment, "calibrate", lambda n, *_, **__: _uniform_ranks(n))
    reports = [
        experiment.run(seed=0, out=tmp_path, minutes=0.02, num_samples=500, progress=index > 0) for index in range(2)
    ]
    assert reports[0]["models"] == reports[1]["models"] and reports[0]["sampler"] == experiment.HEADLINE
    assert set(reports[0]["models"]) == {
        *("seeds_mvn", "seeds_smc", "seeds_smc_mvn", "seeds_pt"),
        *("calibration_smc", "calibration_wrong"),
    }
    assert json.loads((tmp_path / "report.json").read_text())["metrics"]["log_z"]["truth"] == pytest.approx(-73.406179)
    page = (tmp_path / "posterior-catalogue.md").read_text()
    assert "a shortened run" in page and "## Simulation-based calibration: p-values" in page
    for name in ("log_z.png", "ranks.png", "samples.nc"):
        assert (tmp_path / name).stat().st_size
    with pytest.raises(CheckpointError, match="another run"):
        experiment.run(seed=1, out=tmp_path, minutes=0.02, num_samples=500)
