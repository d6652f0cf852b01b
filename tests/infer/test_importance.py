"""Weighted draws from stochastic flows and from any other guide."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pyro.distributions.transforms as T
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoGuideList, AutoMultivariateNormal, AutoNormal

import pyro_boltzmann as pb
from pyro_boltzmann.diagnostics import from_netcdf
from pyro_boltzmann.diagnostics.weights import kish_ess
from pyro_boltzmann.energies.evaluation import count_evaluations
from pyro_boltzmann.exceptions import ModelError, NonFiniteEnergyError, OutputError
from pyro_boltzmann.stochastic import (
    EulerMaruyamaTransform,
    LangevinTransform,
    LeapfrogTransform,
    MetropolisAdjusted,
    RandomWalkTransform,
)

SIGMAS = 4.5  # two-sided false-alarm rate 7e-6
DATA = torch.tensor([0.3, -1.1, 2.0])


def conjugate(data=DATA):
    """A normal mean with normal data, whose evidence and posterior are known."""
    mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
    with pyro.plate("data", len(data)):
        pyro.sample("obs", dist.Normal(mean, 1.0), obs=data)
    return mean


def evidence(data=DATA):
    covariance = torch.eye(len(data), dtype=torch.float64) + 4.0
    return float(dist.MultivariateNormal(torch.zeros_like(data).double(), covariance).log_prob(data.double()))


POSTERIOR = (float(DATA.sum() / (len(DATA) + 0.25)), (len(DATA) + 0.25) ** -0.5)


def conjugate_guide(data=DATA):
    """Hand-written, and wider than the posterior."""
    pyro.sample("mean", dist.Normal(POSTERIOR[0], 1.5 * POSTERIOR[1]))


def plated(data):
    """One latent a datum inside a plate, one positive latent outside."""
    scale = pyro.sample("scale", dist.LogNormal(0.0, 0.3))
    with pyro.plate("data", len(data)):
        local = pyro.sample("local", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("obs", dist.Normal(local.sum(-1), scale), obs=data)


def plated_guide(data):
    pyro.sample("scale", dist.LogNormal(0.0, 0.4))
    with pyro.plate("data", len(data)):
        pyro.sample("local", dist.Normal(0.2 * data.unsqueeze(-1), torch.ones(2)).to_event(1))


def double_well_flow(blocks=None):
    model = pb.BoltzmannModel(pb.catalogue["double_well"].energy, 2)

    def default(energy, dim):
        middle = pb.AnnealedEnergy(pb.NormalEnergy(0.0, 1.3), energy, 0.5)
        return [
            T.affine_autoregressive(dim, [8]),
            MetropolisAdjusted(RandomWalkTransform(dim, 0.5, num_steps=5), middle),
            LangevinTransform(energy, dim, 0.01, num_steps=3),
        ]

    torch.manual_seed(0)
    return model, pb.AutoStochasticFlow(model, blocks or default, base_scale=1.3)


def assert_log_z(draws, truth):
    assert draws.log_normalizer_error < 0.1
    assert abs(draws.log_normalizer - truth) < SIGMAS * draws.log_normalizer_error


def test_log_z_and_mean_of_the_double_well():
    """log Z and <u> by quadrature (4.5 s.e.)."""
    target = pb.catalogue["double_well"]
    model, guide = double_well_flow()
    draws = pb.importance_sample(model, guide, num_samples=100_000, seed=2)
    assert_log_z(draws, target.log_z)
    mean, error = draws.expectation(target.energy)
    assert abs(mean - target.mean_energy) < SIGMAS * error
    torch.testing.assert_close(draws.energy, target.energy(draws.samples["x"]))
    torch.testing.assert_close(draws.log_weights, -draws.energy.double() - draws.log_q)


def test_streamed_weights_have_the_law_of_trace_weights():
    """log weights of ``importance_sample`` and of the guide's traces: moments and quantiles agree (4.5 s.e. of
    each).
    """
    model, guide = double_well_flow()
    count = 20_000
    streamed = pb.importance_sample(model, guide, num_samples=count, seed=3).log_weights
    with torch.no_grad(), pyro.plate("particles", count):
        guide_trace = poutine.trace(guide).get_trace()
        model_trace = poutine.trace(poutine.replay(model, guide_trace)).get_trace()
    model_trace.compute_log_prob()
    guide_trace.compute_log_prob()

    def of(trace):
        return sum(s["log_prob"].double() for s in trace.nodes.values() if s["type"] == "sample")

    traced = of(model_trace) - of(guide_trace)
    for f in (lambda w: w, lambda w: (w - 9.0).square(), lambda w: (w > 10.0).double(), lambda w: (w < 5.0).double()):
        one, other = f(streamed), f(traced)
        assert abs(one.mean() - other.mean()) < SIGMAS * ((one.var() + other.var()) / count).sqrt()
    assert (streamed > 10.0).double().mean() > 0.05
    assert (streamed < 5.0).double().mean() > 0.01


@pytest.mark.parametrize("batch_size", [None, 300, 1, 1000, 5000])
def test_any_batch_size(batch_size):
    """Batches that do not divide N lose and repeat nothing."""
    size = 1000 if batch_size != 1 else 7
    model, guide = double_well_flow()
    for guide_, model_, args in ((guide, model, ()), (conjugate_guide, conjugate, (DATA,))):
        draws = pb.importance_sample(model_, guide_, *args, num_samples=size, batch_size=batch_size, seed=0)
        (values,) = draws.samples.values()
        assert len(draws) == len(values) == len(draws.energy) == len(draws.log_q) == size
        assert len(values.reshape(size, -1)[:, 0].unique()) == size
        if batch_size is not None and size > batch_size:
            alone = pb.importance_sample(model_, guide_, *args, num_samples=batch_size, batch_size=batch_size, seed=0)
            assert torch.equal(alone.log_weights, draws.log_weights[:batch_size])


def test_evaluations_are_counted_once_each():
    """N paths through 5 Metropolis steps and 3 Langevin steps: the energy of the start (annealed, so reference and
    target), of 5 proposals, and a force before and after the steps; the last force brings the energy of the weight with
    it."""
    calls = []

    def energy(x):
        calls.append(len(x))
        return pb.catalogue["double_well"].energy(x)

    model = pb.BoltzmannModel(energy, 2)

    def blocks(energy, dim):
        return [
            MetropolisAdjusted(RandomWalkTransform(dim, 0.5, num_steps=5), energy),
            LangevinTransform(energy, dim, 0.01, num_steps=3),
            MetropolisAdjusted(LeapfrogTransform(energy, dim, 0.1, num_steps=2), energy),
        ]

    guide = pb.AutoStochasticFlow(model, blocks)
    guide.initialize()
    calls.clear()
    with count_evaluations() as outer:
        draws = pb.importance_sample(model, guide, num_samples=70, batch_size=32, seed=0)
    # 1 + 5 values; 3 + 1 forces; 2 leapfrog forces whose first is known from Langevin
    assert draws.evaluations["sample"] == {"values": 70 * (6 + 4 + 2), "gradients": 70 * (4 + 2)}
    assert outer.to_dict() == draws.evaluations["sample"]
    assert sum(calls) == 70 * 12


def test_generic_guide_evaluates_once_a_draw_and_once_to_inspect():
    model = pb.BoltzmannModel(lambda x: 0.5 * x.square().sum(-1), 2)

    def guide():
        return pyro.sample("x", dist.Normal(torch.zeros(2), 1.2).to_event(1))

    draws = pb.importance_sample(model, guide, num_samples=70, batch_size=32, seed=0)
    assert draws.evaluations["sample"] == {"values": 71, "gradients": 0}
    assert_log_z(draws, math.log(2 * math.pi))


def test_euler_maruyama_lets_lost_paths_pass_and_refuses_scales_that_are_not_positive():
    """NaN from further up is one lost path; a scale of zero or below is a wrong kernel."""

    def kernels(scale):
        return lambda energy, dim: [EulerMaruyamaTransform(dim, lambda x: (x, scale(x)), lambda y: (y, 1.0))]

    model = pb.BoltzmannModel(lambda x: 0.5 * x.square().sum(-1), 1)
    guide = pb.AutoStochasticFlow(model, kernels(lambda x: torch.where(x > 2.0, torch.nan, 1.0)))
    draws = pb.importance_sample(model, guide, num_samples=1000, seed=0)
    assert 5 < draws.info["diverged"] == draws.num_nonfinite < 60  # 23 expected
    guide = pb.AutoStochasticFlow(model, kernels(lambda x: torch.where(x > 2.0, 0.0, 1.0)))
    with pytest.raises(ValueError, match="not positive"):
        pb.importance_sample(model, guide, num_samples=1000, seed=0)


def test_runs_of_a_plain_program_are_counted():
    """A Pyro program without an energy of ours costs one evaluation a draw, and one with its gradient a particle."""

    def program():
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        pyro.sample("obs", dist.Normal(mean, 1.0), obs=torch.tensor(0.3))

    guide = AutoNormal(program)
    draws = pb.importance_sample(program, guide, num_samples=70, batch_size=32, seed=0)
    assert draws.evaluations["sample"] == {"values": 70, "gradients": 0}
    for objective, particles in (("reverse_kl", 8), (Trace_ELBO(num_particles=3), 3)):
        result = pb.fit(program, guide, objective=objective, num_steps=5, num_particles=8, progress=False)
        assert result.evaluations.to_dict() == {"values": 5 * particles, "gradients": 5 * particles}


def test_nothing_keeps_a_graph():
    model, guide = double_well_flow()
    parameter = pyro.param("width", torch.tensor(1.0), constraint=dist.constraints.positive)

    def simple():
        return pyro.sample("x", dist.Normal(torch.zeros(2), pyro.param("width")).to_event(1))

    for guide_ in (guide, simple):
        with torch.enable_grad():
            draws = pb.importance_sample(model, guide_, num_samples=10)
        tensors = [*draws.samples.values(), draws.log_weights, draws.log_q, draws.energy]
        tensors += [value for value in draws.info.values() if isinstance(value, torch.Tensor)]
        assert not any(tensor.requires_grad for tensor in tensors)
    assert parameter.requires_grad


def test_seed_is_reproducible_and_leaves_the_global_generator_alone():
    for model, guide, args in ((*double_well_flow(), ()), (conjugate, conjugate_guide, (DATA,))):
        state = torch.get_rng_state()
        first, second, other = (pb.importance_sample(model, guide, *args, num_samples=50, seed=s) for s in (1, 1, 2))
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.equal(first.log_weights, second.log_weights)
        assert not torch.equal(first.log_weights, other.log_weights)
        torch.manual_seed(1)
        unseeded = pb.importance_sample(model, guide, *args, num_samples=50)
        assert torch.equal(unseeded.log_weights, first.log_weights)
        assert not torch.equal(torch.get_rng_state(), state)


def test_path_ess_is_the_ess_of_each_partial_path():
    """With Metropolis blocks of one energy, the partial weight is q0-importance sampling of that energy whatever the
    moves were; the last entry belongs to the whole path."""
    model, _ = double_well_flow()
    middle = pb.AnnealedEnergy(pb.NormalEnergy(0.0, 1.3), model.energy, 0.3)
    starts = []

    def blocks(energy, dim):
        def walk():
            return RandomWalkTransform(dim, 0.5, num_steps=3)

        return [
            MetropolisAdjusted(walk(), middle),
            RandomWalkTransform(dim, 0.0),
            MetropolisAdjusted(walk(), energy),
        ]

    model, guide = double_well_flow(blocks)
    path = guide.get_transform()
    original = path.stream
    path.stream = lambda x, *args, **kwargs: (starts.append(x), original(x, *args, **kwargs))[1]
    draws = pb.importance_sample(model, guide, num_samples=3000, batch_size=1000, seed=0)
    x0 = torch.cat(starts)
    log_q0 = dist.Normal(0.0, 1.3).log_prob(x0.double()).sum(-1)
    assert list(draws.info["path_ess"]) == [0, 2]
    expected = kish_ess(-middle(x0.double()) - log_q0)
    assert draws.info["path_ess"][0] == pytest.approx(expected, rel=1e-3)
    assert draws.info["path_ess"][2] == pytest.approx(draws.ess, rel=1e-9)
    assert draws.info["block_names"] == ["MetropolisAdjusted", "RandomWalkTransform", "MetropolisAdjusted"]
    assert draws.info["blocks"][0]["moves"] == draws.info["blocks"][2]["moves"] == 9000
    assert 0.2 < draws.info["blocks"][0]["acceptance"] < 1.0


def test_diverged_paths_are_counted_and_weigh_nothing():
    """A flow layer that overflows beyond |x| = 1.13, under an energy that is harmless there."""
    model = pb.BoltzmannModel(lambda x: (x / 3e38).square().sum(-1), 1)
    guide = pb.AutoStochasticFlow(model, lambda energy, dim: [T.AffineTransform(0.0, 3e38)])
    draws = pb.importance_sample(model, guide, num_samples=200, seed=0)
    lost = ~draws.info["z"].isfinite().all(-1)
    assert draws.info["diverged"] == int(lost.sum()) > 20
    assert draws.log_weights[lost].isneginf().all()
    assert draws.energy[lost].isposinf().all()
    assert draws.num_nonfinite == draws.info["diverged"]
    assert draws.energy[~lost].isfinite().all()


def test_density_that_overflows_weighs_nothing():
    """A state can be finite where the volume of the map is not."""

    class Singular(T.AffineTransform):
        def log_abs_det_jacobian(self, x, y):
            return torch.where(x > 1.0, torch.inf, super().log_abs_det_jacobian(x, y))

    model = pb.BoltzmannModel(lambda x: 0.5 * x.square().sum(-1), 1)
    guide = pb.AutoStochasticFlow(model, lambda energy, dim: [Singular(0.0, 1.0)])
    draws = pb.importance_sample(model, guide, num_samples=200, seed=0)
    lost = draws.samples["x"][:, 0] > 1.0
    assert draws.info["diverged"] == int(lost.sum()) > 10
    assert draws.log_weights[lost].isneginf().all()


@pytest.mark.parametrize("make_guide", [AutoNormal, AutoMultivariateNormal])
def test_automatic_guides(make_guide):
    """log evidence of a plated model with a constrained site, by the same model's hand-written guide and by quadrature
    of the conjugate one (4.5 s.e.)."""
    data = torch.tensor([0.5, -0.4])
    guide = make_guide(plated)
    guide(data)
    hand = pb.importance_sample(plated, plated_guide, data, num_samples=40_000, seed=1)
    auto = pb.importance_sample(plated, guide, data, num_samples=10, seed=1)
    shapes = {name: value.shape[1:] for name, value in hand.samples.items()}
    assert shapes == {"scale": (), "local": (2, 2)}
    assert {name: value.shape[1:] for name, value in auto.samples.items()} == shapes
    assert (auto.samples["scale"] > 0).all()
    # The scale integrates out numerically: obs ~ N(0, sqrt(2 + scale^2)) given it.
    grid = torch.linspace(-3, 3, 4001, dtype=torch.float64)
    scale = grid.exp()
    likelihood = dist.Normal(0.0, (2 + scale.square()).sqrt()).log_prob(data.double().unsqueeze(-1)).sum(0)
    truth = torch.logsumexp(dist.Normal(0.0, 0.3).log_prob(grid) + likelihood, 0) + math.log(6 / 4000)
    assert_log_z(hand, float(truth))
    pb.fit(plated, guide, data, num_steps=150, num_particles=16, learning_rate=0.05, progress=False, seed=0)
    fitted = pb.importance_sample(plated, guide, data, num_samples=20_000, seed=2)
    assert_log_z(fitted, float(truth))
    assert fitted.ess > 0.1


def test_hand_written_guide_of_a_conjugate_model():
    draws = pb.importance_sample(conjugate, conjugate_guide, DATA, num_samples=20_000, seed=0)
    assert_log_z(draws, evidence())
    mean, error = draws.expectation(lambda x: x)
    assert abs(mean - POSTERIOR[0]) < SIGMAS * error
    expected = dist.Normal(POSTERIOR[0], 1.5 * POSTERIOR[1]).log_prob(draws.samples["mean"]).double()
    torch.testing.assert_close(draws.log_q, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(draws.log_weights, -draws.energy - draws.log_q)


def test_exact_guide_has_equal_weights():
    def exact(data):
        return pyro.sample("mean", dist.Normal(*POSTERIOR))

    draws = pb.importance_sample(conjugate, exact, DATA, num_samples=500, seed=0)
    assert draws.ess == pytest.approx(1.0, abs=1e-9)
    assert draws.log_normalizer == pytest.approx(evidence(), abs=1e-5)


def test_guide_list_and_keyword_arguments():
    guide = AutoGuideList(plated)
    guide.append(AutoNormal(poutine.block(plated, expose=["scale"])))
    guide.append(AutoNormal(poutine.block(plated, expose=["local"])))
    data = torch.tensor([0.5, -0.4])
    guide(data=data)
    assert pb.importance_sample(plated, guide, data=data, num_samples=6, batch_size=4).samples["local"].shape == (
        6,
        2,
        2,
    )


def test_model_that_cannot_be_drawn_from():
    """An improper model is only ever replayed against the guide."""

    def model():
        x = pyro.sample("x", pb.Boltzmann(lambda x: 0.5 * x.square().sum(-1), 2))
        pyro.sample("obs", dist.Normal(x[..., 0], 1.0), obs=torch.tensor(0.0))

    def guide():
        return pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    draws = pb.importance_sample(model, guide, num_samples=20_000, seed=0)
    assert_log_z(draws, math.log(2 * math.pi) + float(dist.Normal(0.0, math.sqrt(2)).log_prob(torch.tensor(0.0))))


def test_one_draw():
    for model, guide, args in ((*double_well_flow(), ()), (conjugate, conjugate_guide, (DATA,))):
        draws = pb.importance_sample(model, guide, *args, num_samples=1, seed=0)
        assert len(draws) == 1
        assert draws.log_normalizer == pytest.approx(float(draws.log_weights))
        assert draws.log_normalizer_error == math.inf


def test_chains():
    draws = pb.importance_sample(conjugate, conjugate_guide, DATA, num_samples=40, num_chains=4, seed=0)
    assert draws.num_chains == 4
    assert dict(draws.to_arviz().posterior.sizes) == {"chain": 4, "draw": 10}
    with pytest.raises(ValueError, match="divide num_samples=40, got 3"):
        pb.importance_sample(conjugate, conjugate_guide, DATA, num_samples=40, num_chains=3)


def test_hard_wall_gives_weights_of_zero():
    """Half the mass of a Gaussian is behind a wall: log Z = log(pi) (4.5 s.e.), with a flow and with any guide."""

    def wall(x):
        return torch.where(x[..., 0] > 0, 0.5 * x.square().sum(-1), torch.inf)

    model = pb.BoltzmannModel(wall, 2)
    flow = pb.AutoStochasticFlow(model, lambda u, d: [MetropolisAdjusted(RandomWalkTransform(d, 0.5), u)])
    for guide in (flow, lambda: pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))):
        draws = pb.importance_sample(model, guide, num_samples=20_000, seed=0)
        assert_log_z(draws, math.log(math.pi))
        assert 8_000 < draws.num_nonfinite < 12_000


@pytest.mark.parametrize(("value", "worst"), [(torch.nan, "NaN"), (-torch.inf, "-inf")], ids=["NaN", "minus infinity"])
@pytest.mark.parametrize("kind", ["flow", "guide"])
def test_nonfinite_energies_are_refused_after_saving(value, worst, kind, tmp_path):
    file = tmp_path / "new" / "draws.nc"

    def energy(x):
        return torch.where(x[..., 0] > 1.0, value, 0.5 * x.square().sum(-1))

    model = pb.BoltzmannModel(energy, 2, name="site")
    flow = pb.AutoStochasticFlow(model, lambda u, d: [RandomWalkTransform(d, 0.5)])
    guide = flow if kind == "flow" else lambda: pyro.sample("site", dist.Normal(torch.zeros(2), 1.2).to_event(1))
    with pytest.raises(
        NonFiniteEnergyError, match=rf"is {worst} at \d+ of 400 end states .*'site'.*saved to .*draws.nc"
    ):
        pb.importance_sample(model, guide, num_samples=400, seed=0, save_to=file)
    with pytest.raises(NonFiniteEnergyError, match=r"are on this error's .samples.*finite or [+]inf") as caught:
        pb.importance_sample(model, guide, num_samples=400, seed=0)
    samples = caught.value.samples
    affected = samples.samples["site"][:, 0] > 1.0
    assert caught.value.count == int(affected.sum()) > 10
    reread = from_netcdf(file)
    assert torch.equal(reread.samples["site"], samples.samples["site"])
    torch.testing.assert_close(reread.log_weights, samples.log_weights, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(affected, reread.energy.isnan() if worst == "NaN" else reread.energy.isneginf())


def test_saved_draws_can_be_read_and_trained_on(tmp_path):
    """The file holds the sites once; their unconstrained latents are found again from them."""
    file = tmp_path / "draws.nc"
    model = pb.BoltzmannModel(lambda x: x.sum(-1), 2, support=dist.constraints.positive)
    guide = pb.AutoStochasticFlow(model, lambda u, d: [T.affine_autoregressive(d, [4])])
    draws = pb.importance_sample(model, guide, num_samples=300, seed=0, save_to=file)
    reread = from_netcdf(file)
    assert "z" in draws.info and "z" not in reread.info
    assert torch.equal(reread.log_weights, draws.log_weights)
    losses = [pb.fit(model, guide, objective="forward_kl", num_steps=1, data=d, seed=1, progress=False, log_every=1)
              for d in (draws, reread)]  # fmt: skip
    first, second = (pb.ForwardKL(z, draws.log_weights).data for z in (draws.info["z"], draws.samples["x"].log()))
    torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-5)
    assert all(math.isfinite(loss.history["loss"][0]) for loss in losses)


@pytest.mark.parametrize("number", [0, -1, 2.5, True, "many"])
def test_number_of_draws(number):
    with pytest.raises(ValueError, match="num_samples must be a positive integer, got"):
        pb.importance_sample(conjugate, conjugate_guide, DATA, num_samples=number)


def test_batch_size_must_be_positive():
    with pytest.raises(ValueError, match="batch_size must be positive, got 0"):
        pb.importance_sample(conjugate, conjugate_guide, DATA, batch_size=0)


def test_unwritable_place_is_known_before_drawing(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    calls = []
    model = pb.BoltzmannModel(lambda x: (calls.append(1), x.square().sum(-1))[1], 2)
    guide = pb.AutoStochasticFlow(model, lambda u, d: [])
    calls.clear()
    for place in (blocked / "draws.nc", tmp_path):
        with pytest.raises(OutputError, match=r"cannot write .*; choose a file"):
            pb.importance_sample(model, guide, save_to=place)
    assert not calls


def test_place_that_fails_later_loses_nothing(tmp_path, monkeypatch):
    def full(self, path):
        raise OutputError("cannot write: no space left on device")

    monkeypatch.setattr(pb.WeightedSamples, "save", full)
    with pytest.raises(OutputError, match="no space") as caught:
        pb.importance_sample(conjugate, conjugate_guide, DATA, num_samples=10, save_to=tmp_path / "draws.nc")
    assert len(caught.value.samples) == 10
    assert ".samples" in caught.value.__notes__[0]


def test_subsampled_plate_is_refused():
    def model(data):
        mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
        with pyro.plate("data", len(data), subsample_size=2) as index:
            pyro.sample("obs", dist.Normal(mean, 1.0), obs=data[index])

    with pytest.raises(ModelError, match=r"plate 'data' uses 2 of 3 data.*remove subsample_size"):
        pb.importance_sample(model, conjugate_guide, DATA, num_samples=10)
