"""The benchmark against other libraries: adapters on a closed form, energies in JAX, arithmetic, resume."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pyro_boltzmann.exceptions import PyroBoltzmannError
from pyro_boltzmann.experiments import bench_others
from pyro_boltzmann.experiments.others import METHODS, Record, bench_problem, measure
from pyro_boltzmann.experiments.others.extra import need
from pyro_boltzmann.experiments.others.page import refused_methods, write_page
from pyro_boltzmann.experiments.others.problem import TARGETS, gaussian_problem
from pyro_boltzmann.experiments.others.record import Outcome, read_records
from pyro_boltzmann.experiments.others.summary import largest, points_of, ranked

# Other libraries warn as they please.
others = pytest.mark.filterwarnings("ignore")
MEAN, SPREAD = np.array([2.0, -1.0]), 0.5


def run(name: str, size: int) -> Outcome:
    if METHODS[name].missing is not None:
        pytest.skip(f"{METHODS[name].missing} is not installed")
    return METHODS[name].run(gaussian_problem(), size, 0)


@others
@pytest.mark.parametrize("name", TARGETS)
def test_jax_energies_and_forces_are_those_of_the_catalogue(name: str) -> None:
    jax = pytest.importorskip("jax")
    need("jax")
    problem = bench_problem(name)
    random = np.random.default_rng(0)
    x = problem.loc + problem.scale * random.standard_normal((20, problem.dim))
    z = torch.from_numpy(x).requires_grad_()
    truth = problem.energy(z)
    (slope,) = torch.autograd.grad(truth.sum(), z)
    double = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64
    with double(True):
        value, gradient = jax.jit(jax.vmap(jax.value_and_grad(problem.jax_energy())))(x)
    np.testing.assert_allclose(np.asarray(value), truth.detach().numpy(), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(np.asarray(gradient), slope.numpy(), rtol=1e-5, atol=1e-5)


@others
@pytest.mark.parametrize(
    ("name", "size"), [pytest.param("blackjax_smc", 594, marks=pytest.mark.slow), ("normflows", 10), ("pb_smc", 594)]
)
def test_log_z_of_a_gaussian_by_weights(name: str, size: int) -> None:
    outcome = run(name, size)
    assert outcome.log_z is not None
    assert 1 < outcome.ess <= len(outcome.x)
    error = math.sqrt(1 / outcome.ess)
    assert abs(outcome.log_z - gaussian_problem().log_z) < 4.5 * error
    assert outcome.log_weights is not None
    weights = np.exp(outcome.log_weights - outcome.log_weights.max())
    mean = weights @ outcome.x / weights.sum()
    assert np.abs(mean - MEAN).max() < 4.5 * SPREAD * error
    assert outcome.values > outcome.gradients > 0


@others
def test_log_z_of_a_gaussian_by_nested_sampling() -> None:
    outcome = run("dynesty", 93)
    problem = gaussian_problem()
    assert outcome.log_z is not None
    # Information of the posterior relative to the Cauchy prior, whose square root over the live points is the error.
    x = MEAN + SPREAD * np.random.default_rng(0).standard_normal((10_000, 2))
    log_prior = -np.log(math.pi * (1 + x**2)).sum(1)
    information = float(np.mean(-1.0 - problem.log_z - log_prior))
    assert abs(outcome.log_z - problem.log_z) < 4.5 * math.sqrt(information / 93)
    assert outcome.gradients == 0


@others
@pytest.mark.parametrize(("name", "size"), [("numpyro_nuts", 232), ("pyro_nuts", 46)])
def test_nuts_has_the_mean_of_a_gaussian(name: str, size: int) -> None:
    outcome = run(name, size)
    assert outcome.log_z is None
    assert outcome.x.shape == (4, size, 2)
    assert np.abs(outcome.x.mean((0, 1)) - MEAN).max() < 4.5 * SPREAD / math.sqrt(outcome.ess)
    assert outcome.values >= outcome.gradients >= 2 * 4 * size  # a leapfrog step at least, in each draw and warm-up


@others
def test_a_flow_is_charged_for_its_training() -> None:
    outcome = run("normflows", 3)
    assert (outcome.values, outcome.gradients) == (3 * 512 + 300, 3 * 512)


def test_a_library_that_is_missing_is_named_with_its_extra() -> None:
    with pytest.raises(PyroBoltzmannError, match=r"no_such_library is not installed; pip install .*\[bench\]"):
        need("no_such_library.module")


def test_what_exact_draws_measure_is_no_error() -> None:
    for name in ("double_well", "gmm40", "many_well32"):
        problem = bench_problem(name)
        assert problem.target is not None
        x = problem.target.sample(20_000, generator=torch.Generator().manual_seed(0)).numpy()
        record = measure(Record("exact", name, 0, 0), problem, Outcome(x, None, 20_000, problem.log_z, 1, 2, 0.1))
        assert record.log_z_error == 0.0
        assert record.modes_found == problem.num_modes
        assert record.mode_error is not None and record.mean_energy_error is not None
        # E TV <= sqrt(K / N) / 2; the energy's spread is that of d / 2 squares, and of the mixture.
        assert record.mode_error < math.sqrt(40 / 20_000)
        assert abs(record.mean_energy_error) < 4.5 * math.sqrt(problem.dim) / math.sqrt(20_000)
        assert record.evaluations == 3


def test_points_are_medians_of_costs_and_root_mean_squares_of_errors() -> None:
    values = [(100, 1.0, 10.0, 0.3), (200, 4.0, 20.0, -0.4), (900, 2.0, 50.0, 0.0)]
    runs = [
        Record("pb_smc", "gmm40", 128, seed, values=n, cpu_seconds=t, ess=ess, log_z_error=e, compile_seconds=seed)
        for seed, (n, t, ess, e) in enumerate(values)
    ]
    failed = Record("pb_smc", "gmm40", 128, 3, error="no", values=10**9)
    (point,) = points_of([*runs, failed])
    assert (point.num_seeds, point.evaluations, point.cpu_seconds, point.ess) == (3, 200, 2.0, 20.0)
    assert point.log_z_error == pytest.approx(math.sqrt(0.25 / 3))
    assert (point.evaluations_per_ess, point.seconds_per_ess, point.seconds_per_ess_compiled) == (10.0, 0.1, 0.2)
    assert not point.is_far(2)
    assert dataclasses.replace(point, log_z_error=0.51).is_far(2)
    assert dataclasses.replace(point, mode_error=0.26).is_far(2)
    energy = dataclasses.replace(point, mean_energy_error=0.51)
    assert energy.is_far(2) and not energy.is_far(8)
    other = dataclasses.replace(point, method="dynesty", evaluations=100)
    assert ranked([point, other, dataclasses.replace(point, ess=40.0)], "evaluations_per_ess") == [
        ("pb_smc", 5.0),
        ("dynesty", 5.0),
    ]
    assert largest([dataclasses.replace(point, size=594), point, other]) == [
        dataclasses.replace(point, size=594),
        other,
    ]


def test_the_page_has_the_numbers_and_refuses_a_wrong_log_z(tmp_path: Path) -> None:
    def line(method: str, size: int, **values: Any) -> Record:
        return Record(method, "eight_schools", size, 0, **values)

    records = [
        Record("dynesty", "gaussian", 93, 0, log_z_error=0.01),
        Record("blackjax_smc", "gaussian", 594, 0, log_z_error=1.5),
        line("dynesty", 20, values=1000, cpu_seconds=2.0, ess=50.0, log_z_error=0.125, mean_energy_error=0.1),
        line("blackjax_smc", 128, values=300, gradients=300, cpu_seconds=1.0, ess=60.0, log_z_error=0.875),
        line("pyro_nuts", 10, cpu_seconds=3.0, error="TooLongError: stopped"),
    ]
    assert set(refused_methods(records)) == {"blackjax_smc", "normflows"}
    text = write_page(tmp_path, records).read_text(encoding="utf-8")
    assert "| dynesty | 20 live points | 1 | 1,000 | 2 |  | 50 | 20 | 40 | 40 | 0.125 | 0.100 |  |" in text
    assert "| BlackJAX SMC | 128 particles | 1 | 600 | 1 |  | 60 | 10 | 16.7 | 16.7 | n/a |" in text
    assert "0.875" not in text
    assert "no log Z is reported, because its log Z of a Gaussian is off by +1.50" in text
    assert "Pyro NUTS on eight_schools, 10 draws a chain: 1 failed (TooLongError: stopped)" in text
    assert "BlackJAX SMC 10; dynesty 20" in text
    assert len(list(tmp_path.glob("*.png"))) == 4


def test_a_second_call_runs_only_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(METHODS, "dynesty", dataclasses.replace(METHODS["dynesty"], modules=("no_such_library",)))
    monkeypatch.setattr(bench_others, "write_page", lambda folder, records: folder)  # pictures take seconds
    command = ["--out", str(tmp_path), "--target", "double_well", "--method", "pb_smc", "dynesty", "--limit", "1e-9"]
    bench_others.main([*command, "--seeds", "1"])
    first = read_records(tmp_path / "records.jsonl")
    assert [record.key for record in first] == [("pb_smc", "double_well", 128, 0)]
    printed = capsys.readouterr().out
    assert "dynesty: skipped, no_such_library not installed" in printed
    assert "left out, about" in printed
    bench_others.main([*command, "--seeds", "2"])
    both = read_records(tmp_path / "records.jsonl")
    assert both[0] == first[0]
    assert [record.seed for record in both] == [0, 1]


def test_a_series_whose_smaller_budget_failed_ends() -> None:
    failed = Record("a", "t", 10, 0, error="TooLongError: stopped", cpu_seconds=30.0)
    assert bench_others.predicted_seconds([failed], "a", "t", 100) is None
    assert bench_others.predicted_seconds([failed], "a", "t", 10) == 0.0


def test_a_broken_file_of_records_is_refused(tmp_path: Path) -> None:
    (tmp_path / "records.jsonl").write_text("{}\n", encoding="utf-8")
    with pytest.raises(PyroBoltzmannError, match=r"no file of benchmark records .* choose another --out"):
        bench_others.main(["--out", str(tmp_path), "--page-only"])
