"""Parallel tempering: exact laws, ladders, round trips, records."""

import math

import numpy as np
import pytest
import torch

import pyro_boltzmann as pb
from pyro_boltzmann.diagnostics import from_netcdf
from pyro_boltzmann.energies import NormalEnergy
from pyro_boltzmann.exceptions import CheckpointError
from pyro_boltzmann.infer.tempering.ensemble import evaluate
from pyro_boltzmann.infer.tempering.kernel import make_kernel
from pyro_boltzmann.infer.tempering.ladder import equalise, ladder_log_z, thermodynamic_integral
from pyro_boltzmann.infer.tempering.preconditioner import Preconditioner
from pyro_boltzmann.infer.tempering.proposal import Proposal
from pyro_boltzmann.infer.tempering.pt_run import PTRun


def run(energy, **settings):
    defaults = {"seed": 1, "num_samples": 3200, "num_warmup": 64, "progress": False}
    return pb.parallel_tempering(energy, **(defaults | settings))


def gaussian_ladder(size, seed=0):
    """Samples of u - u_0 along N(0, 1) -> exp(-2 (x - 1)^2), whose tempered densities are Gaussian."""
    positions = np.array([0.0, 0.1, 0.3, 0.6, 1.0])
    rng = np.random.default_rng(seed)
    differences = []
    for position in positions:
        precision = 1 + 3 * position
        x = 4 * position / precision + precision**-0.5 * rng.standard_normal(size)
        differences.append(2 * (x - 1) ** 2 - 0.5 * x**2 - 0.5 * math.log(2 * math.pi))
    return positions, np.array(differences), 0.5 * math.log(math.pi / 2)


def test_both_estimates_of_log_z_on_exact_draws():
    values = []
    for seed in range(30):
        positions, differences, truth = gaussian_ladder(2000, seed)
        values.append((ladder_log_z(positions, differences), thermodynamic_integral(positions, differences)))
    bridge, integral = np.array(values).T - truth
    assert abs(bridge.mean()) < 4.5 * bridge.std(ddof=1) / 30**0.5
    assert bridge.std() < 0.02
    # The rule of integration has an error of its own, of fourth order in the spacing.
    assert abs(integral.mean()) < 4.5 * integral.std(ddof=1) / 30**0.5 + 0.01


def test_equalise_makes_a_linear_ladder_of_a_distorted_one():
    # Where rejection is proportional to the distance in sqrt(lambda), equal rejection means equal steps of it.
    roots = np.array([0.0, 0.1, 0.4, 0.5, 0.9, 1.0])
    new = equalise(roots**2, np.diff(roots), 11)
    np.testing.assert_allclose(np.sqrt(new), np.linspace(0, 1, 11), atol=0.03)
    assert (np.diff(new) > 0).all()


def test_swaps_leave_the_joint_law_invariant():
    # Two Gaussians swapped, nothing moved: each temperature keeps its own law, within 4.5 standard errors.
    def energy(x):
        return 2.0 * (x - 1.0).square().sum(-1)

    chains, positions = 50_000, torch.tensor([0.0, 0.4, 1.0], dtype=torch.float64)
    precision = 1 + 3 * positions
    mean = 4 * positions / precision
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        x = (mean + precision**-0.5 * torch.randn(chains, 3, dtype=torch.float64)).unsqueeze(-1)
        proposal = Proposal(NormalEnergy(), lambda n: torch.randn(n, 1, dtype=torch.float64))
        ensemble = evaluate(proposal.energy, energy, x, True)
        sizes = torch.ones(2, dtype=torch.float64)
        scale = Preconditioner(sizes.unsqueeze(-1), False)
        tempering = PTRun.start(proposal, energy, make_kernel("hmc", 1), 1, "dense", positions, ensemble, sizes, scale)
        for turn in range(4):
            tempering.rounds = turn
            tempering._swap(3)
    assert tempering.rejection_rates.min() > 0.05
    y = tempering.ensemble.x[..., 0]
    assert bool(((y.mean(0) - mean).abs() < 4.5 * (precision * chains) ** -0.5).all())
    assert bool(((y - mean).square().mean(0) * precision - 1).abs().max() < 4.5 * (2 / chains) ** 0.5)
    torch.testing.assert_close(tempering.ensemble.target, energy(tempering.ensemble.x))
    # Every replica is somewhere, once.
    assert torch.equal(tempering.replicas.sort(1).values, torch.arange(3).expand(chains, 3))


def test_double_well_modes_and_log_z():
    target = pb.catalogue["double_well"]
    draws = run(target, num_chains=32, num_samples=32 * 300, proposal=1.5)
    record = draws.info["parallel_tempering"]
    # t with 31 degrees of freedom: 5.2 errors are one false alarm in 1e5.
    assert abs(draws.log_normalizer - target.log_z) < 5.2 * draws.log_normalizer_error < 0.3
    right, error = draws.expectation(lambda x: (x[:, 0] > 0).double())
    assert abs(right - 0.8443071) < 5.2 * error < 0.2
    assert record["round_trips"] > 100
    assert record["round_trip_rate"] == pytest.approx(record["round_trips"] / 32 / 300)
    assert max(record["rejections"]) - min(record["rejections"]) < 0.2
    assert abs(record["thermodynamic_integration"][0] - target.log_z) < 0.3
    assert draws.num_independent == pytest.approx(32)


def test_round_trips_are_counted_by_hand():
    def flat(x):
        return NormalEnergy()(x)

    # Equal densities: every swap is accepted, and a replica travels up and down without turning back.
    x = torch.zeros(1, 4, 1)
    proposal = Proposal(NormalEnergy(), lambda n: torch.randn(n, 1))
    ensemble = evaluate(proposal.energy, flat, x, False)
    kernel = make_kernel("rwm", 1)
    positions, scale = torch.linspace(0, 1, 4, dtype=torch.float64), Preconditioner(torch.ones(3, 1), False)
    tempering = PTRun.start(proposal, flat, kernel, 1, "dense", positions, ensemble, torch.ones(3), scale)
    place, last, trips = {i: i for i in range(4)}, {i: 0 for i in range(4)}, 0
    for turn in range(40):
        tempering.rounds = turn
        tempering._swap(4)
        level_of = {level: replica for replica, level in place.items()}
        for low in range(turn % 2, 3, 2):
            place[level_of[low]], place[level_of[low + 1]] = low + 1, low
        for replica, level in place.items():
            if level == 0:
                trips += last[replica] == 2
                last[replica] = 1
            if level == 3 and last[replica] == 1:
                last[replica] = 2
    assert tempering.trips.tolist() == [trips]
    assert trips > 5


def test_a_run_is_reproducible_resumable_and_can_be_lengthened(tmp_path):
    def energy(x):
        return 2.0 * (x - 2).square().sum(-1)

    settings = {"dim": 2, "num_chains": 4, "num_temperatures": 4, "checkpoint_every": 0.0}
    whole = run(energy, num_samples=400, **settings)
    run(energy, num_samples=40, checkpoint=tmp_path / "run", **settings)
    calls = []

    def fragile(x):
        calls.append(1)
        if len(calls) == 200:
            raise RuntimeError("stop")
        return energy(x)

    with pytest.raises(RuntimeError, match="stop"):
        run(fragile, num_samples=400, checkpoint=tmp_path / "run", **settings)
    resumed = run(energy, num_samples=400, checkpoint=tmp_path / "run", **settings)
    assert torch.equal(whole.samples["x"], resumed.samples["x"])
    assert whole.info["parallel_tempering"] == resumed.info["parallel_tempering"]
    with pytest.raises(CheckpointError, match="thin"):
        run(energy, num_samples=400, checkpoint=tmp_path / "run", thin=2, **settings)


def test_an_interrupted_warm_up_resumes(tmp_path):
    calls = []

    def energy(x):
        calls.append(1)
        if len(calls) == 400:
            raise RuntimeError("stop")
        return 2.0 * (x - 2).square().sum(-1)

    settings = {"dim": 2, "num_chains": 4, "num_samples": 40, "num_temperatures": 3, "checkpoint_every": 0.0}
    with pytest.raises(RuntimeError, match="stop"):
        run(energy, checkpoint=tmp_path / "run", **settings)
    resumed = run(energy, checkpoint=tmp_path / "run", **settings)
    assert torch.equal(run(energy, **settings).samples["x"], resumed.samples["x"])


def test_many_moves_between_swaps():
    draws = run(lambda x: x.square().sum(-1), dim=2, num_samples=40, num_chains=4, num_warmup=8, num_moves=25)
    assert len(draws) == 40


def test_a_checkpoint_of_another_energy_is_refused(tmp_path):
    settings = {"dim": 2, "num_samples": 40, "num_chains": 4, "num_warmup": 8, "checkpoint": tmp_path / "run"}
    run(lambda x: x.square().sum(-1), **settings)
    with pytest.raises(CheckpointError, match="another energy"):
        run(lambda x: x.square().sum(-1) + 1.0, **settings)
    with pytest.raises(CheckpointError, match="another proposal"):
        run(lambda x: x.square().sum(-1), proposal=2.0, **settings)


def test_saved_draws_come_back(tmp_path):
    draws = run(lambda x: x.square().sum(-1), dim=2, save_to=tmp_path / "draws.nc")
    again = from_netcdf(tmp_path / "draws.nc")
    assert again.log_normalizer_error == pytest.approx(draws.log_normalizer_error)
    assert again.log_normalizer == pytest.approx(draws.log_normalizer)


def test_bad_settings():
    for wrong, match in [
        ({"num_chains": 3}, "at least 4"),
        ({"num_chains": 7}, "divide"),
        ({"thin": 0}, "thin"),
        ({"num_temperatures": 1}, "two temperatures"),
    ]:
        with pytest.raises(ValueError, match=match):
            run(lambda x: x.square().sum(-1), dim=2, **wrong)
