"""Sequential Monte Carlo: its identities, its errors, its records, and that it survives an interruption."""

import math

import pyro
import pyro.distributions as dist
import pyro.distributions.transforms as T
import pytest
import torch

import pyro_boltzmann as pb
from pyro_boltzmann.diagnostics import from_netcdf
from pyro_boltzmann.energies import NormalEnergy
from pyro_boltzmann.exceptions import CheckpointError, NonFiniteEnergyError, ShapeError
from pyro_boltzmann.infer.tempering.ensemble import evaluate
from pyro_boltzmann.infer.tempering.kernel import make_kernel
from pyro_boltzmann.infer.tempering.leapfrog import Leapfrog
from pyro_boltzmann.infer.tempering.move import move
from pyro_boltzmann.infer.tempering.preconditioner import Preconditioner
from pyro_boltzmann.infer.tempering.problem import resolve_problem
from pyro_boltzmann.infer.tempering.proposal import resolve_proposal
from pyro_boltzmann.infer.tempering.schedule import conditional_ess, next_position
from pyro_boltzmann.stochastic import LeapfrogTransform, MetropolisAdjusted
from pyro_boltzmann.transforms import ElementwiseAffine

LOG_Z = 2 * (0.5 * math.log(2 * math.pi) + math.log(0.5))
"""Of two independent Gaussians of standard deviation 0.5."""


def shifted(x):
    return 2.0 * (x - 2.0).square().sum(-1)


def run(energy=shifted, dim=2, **settings):
    return pb.smc(energy, dim=dim, progress=False, **{"seed": 1, "num_samples": 1000, **settings})


# The ladder ------------------------------------------------------------------------------------------------------


def test_conditional_ess_of_a_gaussian_shift():
    # From N(0, 1) to N(a, 1): the conditional ESS is exp(-a^2).
    x = torch.randn(1, 400_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for a in (0.2, 0.5):
        weights = a * x - 0.5 * a**2
        assert conditional_ess(torch.zeros_like(x), weights) == pytest.approx(math.exp(-(a**2)), abs=0.01)


def test_next_position_meets_its_threshold_and_ends_at_one():
    differences = torch.randn(3, 5000, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 20
    zeros = torch.zeros_like(differences)
    position = next_position(0.3, zeros, differences, 0.9)
    assert conditional_ess(zeros, -(position - 0.3) * differences) == pytest.approx(0.9, abs=1e-3)
    assert next_position(0.3, zeros, 1e-3 * differences, 0.9) == 1.0


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6, 1e170])
def test_the_next_position_is_the_root_of_a_search_by_halves(scale):
    # Heavy tails, several chains, unequal weights, and energies whose squares overflow.
    generator = torch.Generator().manual_seed(1)
    differences = scale * torch.randn(2, 1000, dtype=torch.float64, generator=generator).pow(5).abs()
    log_weights = torch.randn(2, 1000, dtype=torch.float64, generator=generator)
    low, high = math.log(1e-12), 0.0
    for _ in range(60):
        middle = 0.5 * (low + high)
        near = conditional_ess(log_weights, -math.exp(middle) * differences) >= 0.8
        low, high = (middle, high) if near else (low, middle)
    assert next_position(0.0, log_weights, differences, 0.8) == pytest.approx(math.exp(low), rel=3e-3)


def test_a_hard_wall_does_not_stop_the_ladder():
    differences = torch.full((1, 1000), torch.inf, dtype=torch.float64)
    differences[0, :10] = torch.linspace(0, 1, 10)
    assert next_position(0.0, torch.zeros_like(differences), differences, 0.9) > 0.1


def unit(dim):
    return Preconditioner(torch.ones(dim, dtype=torch.float64), False)


# The moves -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "num_steps"), [("hmc", 4), ("mala", 1), ("rwm", 1)])
@pytest.mark.parametrize("position", [0.3, 1.0])
def test_moves_leave_their_density_invariant(name, num_steps, position):
    # From exact draws of the tempered Gaussian, moments stay within 4.5 standard errors.
    generator = torch.Generator().manual_seed(3)
    precision = (1 - position) + 4.0 * position
    mean = position * 4.0 * 2.0 / precision
    x = mean + precision**-0.5 * torch.randn(100_000, 1, dtype=torch.float64, generator=generator)
    kernel, reference = make_kernel(name, num_steps), NormalEnergy()
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(4)
        ensemble = evaluate(reference, shifted, x, kernel.uses_gradients)
        for _ in range(3):
            ensemble, acceptance = move(ensemble, reference, shifted, position, kernel, 0.7, unit(1))
    assert 0.3 < acceptance.mean() < 0.999
    y = ensemble.x[:, 0]
    assert abs(y.mean() - mean) < 4.5 * (precision * 1e5) ** -0.5
    assert abs((y - mean).square().mean() * precision - 1) < 4.5 * (2 / 1e5) ** 0.5
    torch.testing.assert_close(ensemble.target, shifted(ensemble.x))
    if position < 1.0:  # at the end of the ladder the reference is not asked any more
        torch.testing.assert_close(ensemble.reference, reference(ensemble.x))


def test_a_move_accepts_as_the_metropolis_block_does():
    # The same momenta and thresholds through both: the block of the package and the move of the sampler.
    x = torch.randn(500, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    block = MetropolisAdjusted(LeapfrogTransform(shifted, 3, step_size=0.4, num_steps=3), shifted).double()
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(7)
        ensemble = evaluate(NormalEnergy(), shifted, x, True)
        kernel = make_kernel("hmc", 3)._replace(jitter=0.0)
        moved = move(ensemble, NormalEnergy(), shifted, 1.0, kernel, 0.4, unit(3))
        torch.manual_seed(7)
        torch.rand(500, dtype=torch.float64)
        momentum = torch.randn_like(x)
        threshold = -torch.rand(500, dtype=torch.float64).log()
        step = math.exp(float(block.proposal.log_step_size))
        result = block.run(x, torch.cat([momentum, threshold.unsqueeze(-1)], -1))
    assert step == pytest.approx(0.4)
    torch.testing.assert_close(moved.ensemble.x, result.x, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("position", [0.3, torch.tensor([0.3, 1.0], dtype=torch.float64)])
def test_a_trajectory_is_leapfrog_at_the_tempered_energy(dense, position):
    # Against the textbook's loop in the variables y of x = A y, for a Gaussian reference with a centre and scales of
    # its own and for one whose gradient has to be asked for.
    generator = torch.Generator().manual_seed(0)
    normal = NormalEnergy(torch.tensor([0.5, -1.0, 2.0]), torch.tensor([1.0, 2.0, 0.5]))
    factor = torch.tensor([[1.0, 0.0, 0.0], [0.4, 0.7, 0.0], [0.1, 0.2, 1.5]], dtype=torch.float64)
    scale = Preconditioner(factor if dense else factor.diagonal(), dense)
    x = torch.randn(50, 2, 3, dtype=torch.float64, generator=generator)
    noise = torch.randn(50, 2, 3, dtype=torch.float64, generator=generator)
    step = 0.1 + 0.1 * torch.rand(50, 2, 1, dtype=torch.float64, generator=generator)
    share = position.unsqueeze(-1) if isinstance(position, torch.Tensor) else position

    def force(at):
        return scale.inward((1 - share) * normal.gradient(at) + share * 4.0 * (at - 2.0))

    y, p = x, noise
    for _ in range(3):
        p = p - 0.5 * step * force(y)
        y = y + step * scale.outward(p)
        p = p - 0.5 * step * force(y)
    for reference in (normal, lambda at: normal(at)):
        start = evaluate(reference, shifted, x, True)
        end, momentum = Leapfrog(reference, shifted, position, step, scale, x).trajectory(start, noise, 3)
        torch.testing.assert_close(end.x, y)
        torch.testing.assert_close(momentum, p)
        torch.testing.assert_close(end.reference, normal(y))
        torch.testing.assert_close(end.target, shifted(y))


# Estimates -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"waste_free": True, "num_moves": 4}, {"resampler": "multinomial"}])
def test_frozen_runs_are_unbiased(settings):
    # 200 frozen runs side by side: chains do not interact, and share nothing but the pilot's ladder.
    draws = run(num_samples=200 * 50, num_chains=200, freeze=True, conditional_ess=0.7, **settings)
    ratio = (torch.tensor(draws.info["smc"]["log_z_by_chain"]) - LOG_Z).exp()
    assert draws.info["smc"]["label"] == "unbiased"
    assert any(draws.info["smc"]["resampled"])
    assert abs(ratio.mean() - 1) < 4.5 * ratio.std() / 200**0.5
    assert ratio.std() > 0.01


def test_chains_of_a_frozen_run_do_not_interact():
    draws = run(num_samples=200 * 50, num_chains=200, freeze=True)
    log_z = torch.tensor(draws.info["smc"]["log_z_by_chain"])
    # Neighbours would be correlated if resampling mixed them up: 4.5 standard errors of a correlation of 199 pairs.
    assert abs(torch.corrcoef(torch.stack([log_z[:-1], log_z[1:]]))[0, 1]) < 4.5 / 199**0.5


def test_the_genealogical_error_is_the_spread_of_replicates():
    errors, values = [], []
    for seed in range(60):
        draws = run(num_samples=400, seed=seed, conditional_ess=0.8)
        errors.append(draws.log_normalizer_error)
        values.append(draws.log_normalizer - LOG_Z)
    spread = torch.tensor(values).std().item()
    # The spread of 60 values is known to about 9 %; the estimate is conservative by construction.
    assert 1 - 4.5 * 0.09 < sum(errors) / 60 / spread < 2.0
    assert abs(sum(values) / 60) < 4.5 * spread / 60**0.5 + spread**2


def test_moments_and_errors_with_chains():
    draws = run(num_samples=8000, num_chains=8)
    mean, error = draws.expectation(lambda x: x)
    assert bool(((mean - 2.0).abs() < 6 * error).all())  # t with 7 degrees of freedom: 6 errors are one in 2000
    assert bool((error < 0.05).all())
    assert abs(draws.log_normalizer - LOG_Z) < 6 * draws.log_normalizer_error
    assert math.isnan(draws.khat)
    assert draws.reliable


def test_a_run_that_coalesced_is_not_reliable():
    # Six particles descend from six first draws at most.
    draws = run(lambda x: 5000.0 * (x - 3.0).square().sum(-1), num_samples=6)
    assert draws.num_independent < 8
    assert not draws.reliable
    assert "independent" in draws.summary()


def test_chains_that_all_collapsed_are_not_reliable():
    # Four chains, each of one family: their agreement is no evidence of what all of them lost.
    log_weights = torch.zeros(4, 50)
    collapsed = pb.WeightedSamples(torch.randn(4, 50, 2), log_weights, roots=torch.zeros(4, 50, dtype=torch.long))
    spread = pb.WeightedSamples(torch.randn(4, 50, 2), log_weights, roots=torch.arange(50).expand(4, 50))
    assert not collapsed.reliable
    assert spread.reliable


@pytest.mark.parametrize("kernel", ["mala", "rwm"])
def test_other_kernels(kernel):
    draws = run(num_samples=4000, kernel=kernel, num_moves=5)
    assert abs(draws.log_normalizer - LOG_Z) < 4.5 * draws.log_normalizer_error


def test_a_random_walk_asks_for_no_gradients():
    draws = run(lambda x: shifted(x.detach()), kernel="rwm")
    assert draws.evaluations["sample"]["gradients"] == 0


def test_every_energy_is_evaluated_once():
    calls = []

    def counted(x):
        calls.append(x.reshape(-1, 2).shape[0])
        return shifted(x)

    draws = run(counted, num_samples=500, max_moves=2)
    # One batch of the first draws, then one a leapfrog step of two moves; and one probe of the shape.
    steps = sum(draws.info["smc"]["num_steps"])
    assert sum(calls) == 2 + 500 * (1 + 2 * steps)
    assert draws.evaluations["sample"] == {"values": sum(calls) - 2, "gradients": sum(calls) - 2}


def test_a_hard_wall():
    def wall(x):
        return torch.where(x[..., 0] > 0, 0.5 * x.square().sum(-1), torch.inf)

    draws = run(wall, num_samples=4000)
    assert abs(draws.log_normalizer - math.log(math.pi)) < 4.5 * draws.log_normalizer_error
    assert bool((draws.samples["x"][draws.weights > 0, 0] > 0).all())


# Proposals and models --------------------------------------------------------------------------------------------


def test_any_pyro_program():
    def program(data):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(data)):
            pyro.sample("obs", dist.Normal(mean, 1.0), obs=data)

    data = torch.tensor([1.0, 2.0, 3.0])
    # The evidence of a Gaussian with a Gaussian prior.
    covariance = torch.eye(3) + torch.ones(3, 3)
    truth = dist.MultivariateNormal(torch.zeros(3), covariance).log_prob(data).item()
    draws = pb.smc(program, data, num_samples=4000, seed=0, progress=False)
    assert set(draws.samples) == {"mean"}
    assert abs(draws.log_normalizer - truth) < 4.5 * draws.log_normalizer_error
    mean, error = draws.expectation(lambda x: x)
    assert abs(mean - 1.5) < 4.5 * error


def test_a_trained_flow_as_proposal_needs_fewer_temperatures():
    model = pb.BoltzmannModel(shifted, 2)
    guide = pb.AutoStochasticFlow(model, lambda energy, dim: [T.AffineTransform(torch.full((2,), 2.0), 0.55)])
    corrected = pb.smc(model, num_samples=2000, proposal=guide, seed=0, progress=False)
    plain = pb.smc(model, num_samples=2000, seed=0, progress=False)
    assert len(corrected.info["smc"]["positions"]) < len(plain.info["smc"]["positions"])
    assert abs(corrected.log_normalizer - LOG_Z) < 4.5 * max(corrected.log_normalizer_error, 1e-3)


def test_distributions_and_autoguides_as_proposals():
    model = pb.BoltzmannModel(shifted, 2)
    normal = dist.Normal(torch.ones(2), 1.0).to_event(1)
    autoguide = pyro.infer.autoguide.AutoDiagonalNormal(model)
    autoguide()
    for proposal in (normal, autoguide, 3.0):
        draws = pb.smc(model, num_samples=2000, proposal=proposal, seed=0, progress=False)
        assert abs(draws.log_normalizer - LOG_Z) < 4.5 * draws.log_normalizer_error
        # The density of the proposal is what its draws have: E[exp(-u)/q] = Z needs no tempering to be tested.


def test_a_distribution_has_infinite_energy_where_a_trajectory_has_diverged():
    # torch's distributions raise at NaN where they check their arguments; a Metropolis test has to see it and reject.
    normal = dist.Normal(torch.ones(2), 1.0, validate_args=True).to_event(1)
    start = resolve_proposal(normal, resolve_problem(shifted, (), {}, 2), (), {})
    energy = start.energy(torch.tensor([[torch.nan, 0.0], [torch.inf, 0.0], [1.0, 1.0]]))
    assert energy[:2].isposinf().all() and energy[2].item() == pytest.approx(math.log(2 * math.pi))
    draws = run(energy=lambda x: 1e3 * x.pow(4).sum(-1), proposal=normal, step_size=1e6)
    assert draws.energy.isfinite().all() and draws.info["smc"]["acceptance"][0] < 1.0


def test_a_proposal_of_bounded_support():
    # Moves try points outside, where a distribution that checks its arguments raises, here and at zero.
    uniform = dist.Uniform(torch.full((2,), 0.5), torch.full((2,), 4.5), validate_args=True).to_event(1)
    for kernel in ("hmc", "rwm"):
        draws = run(proposal=uniform, num_samples=4000, kernel=kernel)
        # All but 0.3 % of the mass is inside.
        assert abs(draws.log_normalizer - LOG_Z) < 4.5 * draws.log_normalizer_error + 0.003


def test_the_default_proposal_of_a_target_is_its_box():
    target = pb.catalogue["gmm40"]
    draws = pb.smc(target, num_samples=2000, seed=0, progress=False)
    assert abs(draws.log_normalizer) < 4.5 * draws.log_normalizer_error


# Errors ----------------------------------------------------------------------------------------------------------


def test_bad_settings():
    for wrong, match in [
        ({"num_chains": 3}, "divide"),
        ({"kernel": "nuts"}, "hmc"),
        ({"conditional_ess": 1.0}, "conditional_ess"),
        ({"resampler": "none"}, "resampler"),
        ({"waste_free": True, "num_moves": 6}, "waste-free"),
        ({"num_moves": 0}, "num_moves"),
        ({"num_steps": 0}, "num_steps"),
        ({"step_size": 0.0}, "step_size"),
        ({"step_size": math.nan}, "step_size"),
    ]:
        with pytest.raises(ValueError, match=match):
            run(**wrong)
    with pytest.raises(ShapeError, match="event shape"):
        run(proposal=dist.Normal(0.0, 1.0))
    model = pb.BoltzmannModel(shifted, 2)
    stochastic = pb.AutoStochasticFlow(model, lambda energy, dim: [pb.stochastic.LangevinTransform(energy, dim, 0.1)])
    with pytest.raises(TypeError, match="stochastic blocks"):
        pb.smc(model, proposal=stochastic, progress=False)


def test_arguments_that_nobody_takes_are_named():
    model = pb.BoltzmannModel(shifted, 2)
    for energy, settings, match in [
        (model, {"num_particles": 10}, "num_particles"),
        (pb.catalogue["dw4"], {"num_particles": 10}, "num_particles"),
        (shifted, {"dim": 2, "num_particles": 10}, "num_particles"),
        (shifted, {}, "dim="),
    ]:
        with pytest.raises(TypeError, match=match):
            pb.smc(energy, progress=False, **settings)
    wide = pb.Proposal(NormalEnergy(), lambda n: torch.randn(n, 3))
    with pytest.raises(ShapeError, match="dimension 3"):
        run(proposal=wide)


def test_smoothing_needs_independent_weights():
    with pytest.raises(ValueError, match="systematic"):
        run().to_arviz(resample="psis")


def test_resampled_draws_teach_a_flow():
    model = pb.BoltzmannModel(shifted, 2)
    draws = pb.smc(model, num_samples=500, seed=0, progress=False)
    guide = pb.AutoStochasticFlow(
        model, lambda energy, dim: [T.AffineTransform(torch.full((2,), 2.0), 0.5), ElementwiseAffine(dim)]
    )
    result = pb.fit(model, guide, data=draws.resample(), objective="forward_kl", num_steps=5, progress=False)
    assert result.steps == 5


def test_undefined_energies_raise():
    with pytest.raises(NonFiniteEnergyError, match="NaN"):
        run(lambda x: torch.where(x[..., 0] > 0, torch.nan, 0.0) + x.sum(-1))
    with pytest.raises(NonFiniteEnergyError, match="infinite energy"):
        run(lambda x: x.sum(-1) + torch.inf)


# Reproducible, resumable -----------------------------------------------------------------------------------------


class Stop(Exception):
    pass


@pytest.mark.parametrize("freeze", [False, True])
@pytest.mark.parametrize("stop_after", [3, 40, 90])
def test_an_interrupted_run_ends_as_an_unbroken_one(tmp_path, freeze, stop_after):
    calls = []

    def fragile(x):
        calls.append(1)
        if len(calls) == stop_after:
            raise Stop
        return shifted(x)

    settings = {"num_samples": 200, "freeze": freeze, "checkpoint_every": 0.0}
    whole = run(**settings)
    state = torch.get_rng_state()
    with pytest.raises(Stop):
        run(fragile, checkpoint=tmp_path / "run", **settings)
    resumed = run(checkpoint=tmp_path / "run", **settings)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(whole.log_weights, resumed.log_weights)
    assert torch.equal(whole.samples["x"], resumed.samples["x"])
    assert whole.evaluations == resumed.evaluations
    assert whole.info["smc"] == resumed.info["smc"]


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    run(checkpoint=tmp_path / "run")
    with pytest.raises(CheckpointError, match="seed"):
        run(checkpoint=tmp_path / "run", seed=2)
    with pytest.raises(CheckpointError, match="num_moves"):
        run(checkpoint=tmp_path / "run", num_moves=3)


def test_a_checkpoint_of_another_energy_or_proposal_is_refused(tmp_path):
    run(checkpoint=tmp_path / "run")
    with pytest.raises(CheckpointError, match="another energy"):
        run(lambda x: shifted(x) + 1.0, checkpoint=tmp_path / "run")
    calls = []

    def fragile(x):
        calls.append(1)
        if len(calls) == 40:
            raise Stop
        return shifted(x)

    with pytest.raises(Stop):
        run(fragile, checkpoint=tmp_path / "half", checkpoint_every=0.0)
    with pytest.raises(CheckpointError, match="another proposal"):
        run(checkpoint=tmp_path / "half", proposal=2.0)


def test_a_random_energy_can_be_resumed(tmp_path):
    def noisy(x):
        return shifted(x) + torch.randn(x.shape[:-1])

    settings = {"num_samples": 200, "kernel": "rwm", "checkpoint": tmp_path / "run"}
    assert torch.equal(run(noisy, **settings).log_weights, run(noisy, **settings).log_weights)


def test_a_time_limit_goes_to_the_target_at_once_and_says_so():
    draws = run(lambda x: 50.0 * (x - 3).square().sum(-1), max_seconds=0.0)
    assert draws.info["smc"]["positions"] == [1.0]


def test_saved_draws_come_back(tmp_path):
    draws = run(num_chains=4, save_to=tmp_path / "draws.nc")
    again = from_netcdf(tmp_path / "draws.nc")
    assert again.log_normalizer_error == pytest.approx(draws.log_normalizer_error)
    assert again.num_independent == pytest.approx(draws.num_independent)
    assert again.info["smc"]["label"] == "consistent"


def test_moves_stop_where_they_lead_no_further():
    # One Gaussian: a trajectory of a quarter of a period forgets at once. A random walk of small steps does not.
    quick = run(num_samples=2000, mass="dense")
    slow = run(num_samples=2000, kernel="rwm", step_size=0.05)
    assert max(quick.info["smc"]["num_moves"]) <= 6
    assert max(slow.info["smc"]["num_moves"]) > 6


def test_trajectories_do_not_return_to_their_mirror_image():
    # At half a period particles only change places; moments of a frozen ensemble would never be refreshed.
    draws = run(lambda x: 0.5 * x.square().sum(-1), dim=20, num_samples=500, proposal=1.2, mass="dense")
    lengths = [n * h for n, h in zip(draws.info["smc"]["num_steps"], draws.info["smc"]["step_sizes"], strict=True)]
    assert max(lengths) < 0.6 * math.pi


@pytest.mark.parametrize("mass", ["dense", "diagonal", "identity"])
def test_masses(mass):
    factor = torch.tensor([[2.0, 0.0, 0.0], [1.9, 0.3, 0.0], [0.0, 0.5, 1.0]])
    inverse = torch.linalg.inv(factor)
    draws = run(lambda x: 0.5 * (x @ inverse.T).square().sum(-1), dim=3, num_samples=4000, mass=mass)
    truth = 1.5 * math.log(2 * math.pi) + math.log(0.6)
    assert abs(draws.log_normalizer - truth) < 4.5 * draws.log_normalizer_error
