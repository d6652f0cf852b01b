"""The guide as an object: programs with data, eager construction, copies, precision, and what it does not own."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.distributions.transforms as T
import pytest
import torch
from pyro.infer import SVI, JitTrace_ELBO, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.infer.importance import vectorized_importance_weights
from torch import Tensor, nn

import pyro_boltzmann as pb
from pyro_boltzmann import AnnealedEnergy, NormalEnergy
from pyro_boltzmann.exceptions import ModelError, ShapeError
from pyro_boltzmann.stochastic import LangevinTransform, MetropolisAdjusted, RandomWalkTransform

DATA = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
SIGMA = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def eight_schools(data: Tensor, sigma: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(torch.zeros((), dtype=data.dtype), 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(torch.full((), 5.0, dtype=data.dtype)))
    with pyro.plate("schools", len(data)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("obs", dist.Normal(theta, sigma), obs=data)


def counts(data: Tensor) -> None:
    """Gamma-Poisson: one positive latent, and an evidence in closed form."""
    rate = pyro.sample("rate", dist.Gamma(torch.tensor(2.0, dtype=torch.float64), 1.0))
    with pyro.plate("data", len(data)):
        pyro.sample("obs", dist.Poisson(rate), obs=data)


def log_evidence(data: Tensor) -> float:
    a, total, n = 2.0, float(data.sum()), len(data)
    factorials = float(torch.lgamma(data + 1).sum())
    return math.lgamma(a + total) - math.lgamma(a) - (a + total) * math.log(1 + n) - factorials


def blocks(energy: Any, dim: int) -> list[Any]:
    return [
        T.spline(dim, count_bins=4),
        LangevinTransform(AnnealedEnergy(NormalEnergy(), energy, 0.3, learnable=True), dim, 0.01, learnable=True),
        MetropolisAdjusted(RandomWalkTransform(dim, 0.2, num_steps=2), energy),
    ]


def double(guide_of: Any, *args: Any, **kwargs: Any) -> pb.AutoStochasticFlow:
    return pb.AutoStochasticFlow(guide_of, *args, dtype=torch.float64, **kwargs)


def double_well_guide(**kwargs: Any) -> pb.AutoStochasticFlow:
    model = pb.BoltzmannModel(pb.catalogue["double_well"], 2, dtype=torch.float64)
    return double(model, blocks, **kwargs)


# Programs with plates, constraints and data ------------------------------------------------------------------------


@pytest.mark.parametrize("vectorized", [False, True])
def test_trace_weights_of_a_program_are_those_of_its_energy(vectorized: bool) -> None:
    """Plates, a constrained site and data: log p - log q of Pyro's traces against energy and path, to 1e-8."""
    args = (DATA.double(), SIGMA.double())
    guide = double(eight_schools, blocks).initialize(*args)
    energy = pb.ModelEnergy(eight_schools, *args)
    rows = []
    if vectorized:
        weights, _, guide_trace = vectorized_importance_weights(
            eight_schools, guide, *args, num_samples=50, max_plate_nesting=1, normalized=False
        )
        rows.append((weights, guide_trace.nodes["_AutoStochasticFlow_latent"]["value"].reshape(50, -1)))
    else:
        for _ in range(10):
            guide_trace = pyro.poutine.trace(guide).get_trace(*args)
            model_trace = pyro.poutine.trace(pyro.poutine.replay(eight_schools, guide_trace)).get_trace(*args)
            weight = model_trace.log_prob_sum() - guide_trace.log_prob_sum()
            rows.append((weight.unsqueeze(0), guide_trace.nodes["_AutoStochasticFlow_latent"]["value"].unsqueeze(0)))
    for weight, joint in rows:
        path = guide.path
        start, ladj = path.inverse_and_ladj(joint.detach())
        z, back = joint[:, : path.dim], joint[:, path.dim :]
        log_q = dist.Normal(torch.zeros(10, dtype=torch.float64), 1.0).log_prob(start[:, :10]).sum(-1)
        s = path.noise_log_prob(back) - path.noise_log_prob(start[:, 10:]) - ladj
        torch.testing.assert_close(weight, -energy(z) + s - log_q, rtol=0, atol=1e-8)


def test_arguments_may_change_from_call_to_call() -> None:
    """Evidence of two data sets through one guide, each within 4.5 standard errors of its closed form."""
    guide = double(counts, blocks)
    for data in (torch.tensor([1.0, 3.0, 2.0]), torch.tensor([0.0, 1.0]), torch.tensor([2.0, 1.0, 4.0, 2.0])):
        data = data.double()
        draws = pb.importance_sample(counts, guide, data, num_samples=20_000, seed=1)
        ratio = (draws.log_weights - log_evidence(data)).exp()
        assert abs(float(ratio.mean()) - 1) < 4.5 * float(ratio.std()) / math.sqrt(20_000)
        weights, model_trace, _ = vectorized_importance_weights(
            counts, guide, data, num_samples=20_000, max_plate_nesting=1, normalized=False
        )
        ratio = (weights.detach() - log_evidence(data)).exp()
        assert abs(float(ratio.mean()) - 1) < 4.5 * float(ratio.std()) / math.sqrt(20_000)
        assert bool((model_trace.nodes["rate"]["value"] > 0).all())


def test_keyword_arguments_are_bound_too() -> None:
    guide = double(counts, blocks)
    data = torch.tensor([1.0, 3.0], dtype=torch.float64)
    guide(data=data)
    z = torch.zeros(1, 1, dtype=torch.float64)
    torch.testing.assert_close(guide.energy(z), pb.ModelEnergy(counts, data)(z))
    guide(data=data + 1)
    torch.testing.assert_close(guide.energy(z), pb.ModelEnergy(counts, data + 1)(z))
    assert guide.constrain(z)["rate"].shape == (1,) and float(guide.constrain(z)["rate"]) == pytest.approx(1.0)


def test_a_density_asked_for_after_the_arguments_changed_is_the_new_one() -> None:
    """The same joint vector, held by the caller, under other data."""
    guide = double(counts, blocks)
    first, second = torch.tensor([1.0, 3.0], dtype=torch.float64), torch.tensor([9.0, 8.0], dtype=torch.float64)
    guide(first)
    joint = guide.get_posterior().sample((5,))
    old = guide.get_posterior().log_prob(joint)
    guide(second)
    new = guide.get_posterior().log_prob(joint)
    fresh = copy.deepcopy(guide)
    torch.testing.assert_close(new, fresh.get_posterior().log_prob(joint.clone()), rtol=0, atol=1e-12)
    assert float((new - old).detach().abs().max()) > 0.1


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("kind", [Trace_ELBO, JitTrace_ELBO])
def test_training_on_eight_schools(kind: Any) -> None:
    """The loss falls, and stays above -log Z by quadrature."""
    pyro.set_rng_seed(2)
    args = (DATA, SIGMA)
    options: dict[str, Any] = {"num_particles": 16, "vectorize_particles": True, "max_plate_nesting": 1}
    if kind is JitTrace_ELBO:
        options["ignore_jit_warnings"] = True
    with_force = kind is Trace_ELBO  # torch.jit cannot trace the force of an energy with exp in it
    guide = pb.AutoStochasticFlow(
        eight_schools,
        lambda energy, dim: [
            T.affine_autoregressive(dim, hidden_dims=[22]),
            *(blocks(energy, dim) if with_force else blocks(energy, dim)[::2]),
        ],
    )
    elbo = kind(**options)
    svi = SVI(eight_schools, guide, pyro.optim.ClippedAdam({"lr": 0.02, "clip_norm": 10.0}), elbo)
    start = svi.evaluate_loss(*args)
    for _ in range(60):
        svi.step(*args)
    with torch.no_grad():
        end = -float(guide.sample_paths(2000, *args).log_weight.mean())
    error = 4.5 * 3.0 / math.sqrt(2000)  # log weights spread over about 3
    assert -log_z_of_eight_schools() - error < end < 38.5 < start


def log_z_of_eight_schools() -> float:
    """With the eight effects integrated out, y_j ~ N(mu, sigma_j^2 + tau^2): a sum over mu and log tau remains."""
    mu = torch.linspace(-40, 45, 341, dtype=torch.float64)
    log_tau = torch.linspace(-14, 9, 461, dtype=torch.float64)
    spread = (SIGMA.double().square() + log_tau.exp().square().unsqueeze(-1)).sqrt()
    log_joint = dist.Normal(mu[:, None, None], spread).log_prob(DATA.double()).sum(-1)
    log_joint += dist.Normal(torch.zeros(1, dtype=torch.float64), 5.0).log_prob(mu).unsqueeze(-1)
    log_joint += dist.HalfCauchy(torch.tensor(5.0, dtype=torch.float64)).log_prob(log_tau.exp()) + log_tau
    return float(log_joint.logsumexp((0, 1)) + ((mu[1] - mu[0]) * (log_tau[1] - log_tau[0])).log())


def test_minibatch_arguments_of_other_sizes() -> None:
    guide = double(counts, blocks)
    for n in (3, 1, 5):
        assert guide(torch.ones(n, dtype=torch.float64))["rate"].shape == ()


def test_a_program_that_changes_its_latents_is_refused() -> None:
    def growing(n: int) -> None:
        with pyro.plate("units", n):
            pyro.sample("x", dist.Normal(0.0, 1.0))

    guide = pb.AutoStochasticFlow(growing, lambda energy, dim: [LangevinTransform(energy, dim, 0.1)])
    guide(2)
    with pytest.raises(ModelError, match="build a new"):
        guide(3)


def test_a_program_that_is_no_energy_is_refused_by_name() -> None:
    def discrete() -> None:
        pyro.sample("kind", dist.Bernoulli(0.5))

    with pytest.raises(ModelError, match="kind"):
        pb.AutoStochasticFlow(discrete, lambda energy, dim: [])()


# Construction --------------------------------------------------------------------------------------------------------


def test_eager_construction() -> None:
    """A known dimension gives parameters, a state_dict and an optimiser before the first call, and draws nothing."""
    state = torch.get_rng_state()
    guide = pb.AutoStochasticFlow(
        eight_schools, lambda energy, dim: [LangevinTransform(energy, dim, 0.1, learnable=True)], latent_dim=10
    )
    assert torch.equal(state, torch.get_rng_state())
    parameters = list(guide.parameters())
    assert len(parameters) == 1 and "path.blocks.0.log_step_size" in guide.state_dict()
    optimiser = torch.optim.Adam(parameters, lr=0.05)
    before = float(parameters[0].detach())
    for _ in range(2):
        loss = Trace_ELBO().differentiable_loss(eight_schools, guide, DATA, SIGMA)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert next(iter(guide.parameters())) is parameters[0] and float(parameters[0].detach()) != before
    assert [id(p) for p in double_well_guide().parameters()]


def test_a_wrong_dimension_is_named() -> None:
    guide = pb.AutoStochasticFlow(eight_schools, lambda energy, dim: [], latent_dim=9)
    with pytest.raises(ShapeError, match="10 unconstrained latents, the guide was built for 9"):
        guide(DATA, SIGMA)
    with pytest.raises(ShapeError, match=r"expected unconstrained latents of shape \(n, 2\), got \(4, 3\)"):
        double_well_guide().reverse_paths(torch.zeros(4, 3))
    with pytest.raises(ShapeError, match=r"the base needs a number or shape \(2,\), got \(3,\)"):
        double_well_guide(base_loc=torch.zeros(3))
    with pytest.raises(ValueError, match="base_scale must be positive"):
        double_well_guide(base_scale=0.0)


def test_an_energy_without_arguments_asks_for_them() -> None:
    guide = pb.AutoStochasticFlow(
        eight_schools, lambda energy, dim: [LangevinTransform(energy, dim, 0.1)], latent_dim=10
    )
    with pytest.raises(ModelError, match=r"call guide\(\*args\) once"):
        guide.energy(torch.zeros(10))


@pytest.mark.parametrize("eager", [False, True])
def test_a_state_dict_moves_to_a_fresh_guide(eager: bool) -> None:
    args = (DATA.double(), SIGMA.double())
    torch.manual_seed(1)
    guide = double(eight_schools, blocks)
    guide(*args)
    torch.manual_seed(2)
    fresh = double(eight_schools, blocks, latent_dim=10) if eager else double(eight_schools, blocks).initialize(*args)
    fresh.load_state_dict(guide.state_dict())
    torch.manual_seed(3)
    ours = guide.sample_paths(20, *args)
    torch.manual_seed(3)
    theirs = fresh.sample_paths(20, *args)
    assert torch.equal(ours.log_weight, theirs.log_weight) and torch.equal(ours.z, theirs.z)


def test_a_state_dict_loaded_in_place_is_used_at_once() -> None:
    guide, other = double_well_guide(), double_well_guide()
    joint = torch.randn(5, guide.path.width, dtype=torch.float64).abs()
    guide.path(joint)
    guide.load_state_dict(other.state_dict())
    assert torch.equal(guide.path(joint), other.path(joint))


# Copies --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_copies_after_use_and_in_the_middle_of_training(how: str) -> None:
    """With live graphs in caches and prototype: the copy gives the same paths and then goes its own way."""
    args = (DATA.double(), SIGMA.double())
    guide = double(eight_schools, blocks)
    options = {"num_particles": 4, "vectorize_particles": True, "max_plate_nesting": 1}
    loss = Trace_ELBO(**options).differentiable_loss(eight_schools, guide, *args)
    (loss + pb.ReverseKL(4).differentiable_loss(eight_schools, guide, *args)).backward(retain_graph=True)
    clone = copy.deepcopy(guide) if how == "deepcopy" else pickle.loads(pickle.dumps(guide))
    weights = []
    for one in (guide, clone):
        torch.manual_seed(0)
        weights.append(one.sample_paths(20, *args).log_weight)
    assert torch.equal(*weights)
    with torch.no_grad():
        for p in clone.parameters():
            p.add_(0.05)
    torch.manual_seed(0)
    assert torch.equal(guide.sample_paths(20, *args).log_weight, weights[0])
    torch.manual_seed(0)
    assert not torch.equal(clone.sample_paths(20, *args).log_weight, weights[0])
    loss.backward()  # the old graph is intact
    Trace_ELBO(**options).loss_and_grads(eight_schools, clone, *args)
    assert all(p.grad is not None for p in clone.parameters())


def test_a_deepcopy_has_arguments_of_its_own() -> None:
    """Calling the copy with other data must not change the energy that the original stands for."""
    guide = double(counts, blocks)
    first, second = torch.tensor([1.0, 3.0], dtype=torch.float64), torch.tensor([9.0, 8.0], dtype=torch.float64)
    guide(first)
    clone = copy.deepcopy(guide)
    clone(second)
    z = torch.zeros(1, 1, dtype=torch.float64)
    torch.testing.assert_close(guide.energy(z), pb.ModelEnergy(counts, first)(z))
    torch.testing.assert_close(clone.energy(z), pb.ModelEnergy(counts, second)(z))
    for one, data in ((guide, first), (clone, second)):
        langevin = one.path.blocks[1]
        truth = AnnealedEnergy(NormalEnergy(), pb.ModelEnergy(counts, data), 0.3)
        torch.testing.assert_close(langevin.energy(z), truth(z), rtol=1e-6, atol=1e-6)


def test_a_pickle_of_a_boltzmann_guide_keeps_one_energy() -> None:
    """Blocks and weight must go on sharing the energy object, or every final state would be evaluated twice."""
    for clone in (copy.deepcopy(double_well_guide()), pickle.loads(pickle.dumps(double_well_guide()))):
        clone.initialize()
        with torch.no_grad(), pb.count_evaluations() as count:
            clone.sample_paths(10)
        # Langevin: 2 forces; Metropolis: 2 more values; the weight: none. The reference does not count.
        assert (count.values, count.gradients) == (40, 20)


# Precision, devices, staleness, ownership ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype(dtype: torch.dtype) -> None:
    model = pb.BoltzmannModel(pb.catalogue["double_well"], 2, dtype=dtype)
    guide = pb.AutoStochasticFlow(model, blocks, dtype=dtype)
    assert {p.dtype for p in guide.parameters()} == {dtype} and guide.base_scale.dtype == dtype
    assert guide()["x"].dtype == dtype
    with torch.no_grad():
        forward = guide.sample_paths(20)
        backward = guide.reverse_paths(torch.randn(20, 2, dtype=dtype))
    for paths in (forward, backward):
        assert paths.z.dtype == dtype and paths.log_weight.dtype == paths.log_q.dtype == torch.float64
    assert torch.get_default_dtype() == torch.float32
    # A guide built without a dtype follows the default; .to() moves it as a whole.
    moved = pb.AutoStochasticFlow(model, blocks).to(dtype)
    assert moved.sample_paths(3).z.dtype == dtype


def test_float32_weights_agree_with_float64() -> None:
    guide = double_well_guide()
    single = copy.deepcopy(guide).float()
    z = pb.catalogue["double_well"].sample(200)
    results = [
        one.reverse_paths(z.to(dtype), generator=torch.Generator().manual_seed(0)).log_weight.detach()
        for one, dtype in ((guide, torch.float64), (single, torch.float32))
    ]
    # Different generators of noise by precision: compare laws, not draws.
    error = math.sqrt(float(results[0].var() + results[1].var()) / 200)
    assert abs(float(results[0].mean() - results[1].mean())) < 4.5 * error


@pytest.mark.cuda
def test_cuda(cuda: torch.device) -> None:
    model = pb.BoltzmannModel(pb.catalogue["double_well"], 2, dtype=torch.float64, device=cuda)
    guide = double(model, blocks).to(cuda)
    assert guide()["x"].device.type == "cuda"
    with torch.no_grad():
        ratio = (guide.sample_paths(50_000).log_weight - pb.catalogue["double_well"].log_z).exp()
    assert ratio.is_cuda and abs(float(ratio.mean()) - 1) < 4.5 * float(ratio.std()) / math.sqrt(50_000)
    loss = Trace_ELBO(num_particles=10, vectorize_particles=True, max_plate_nesting=0).loss_and_grads(model, guide)
    assert math.isfinite(loss) and all(p.grad is not None and p.grad.is_cuda for p in guide.parameters())
    clone = pickle.loads(pickle.dumps(guide)).cpu()
    assert clone.sample_paths(5).z.device.type == "cpu"


@pytest.mark.parametrize("optimiser", [torch.optim.Adam, pyro.optim.clipped_adam.ClippedAdam])
def test_the_density_of_the_same_data_follows_the_optimiser(optimiser: Any) -> None:
    guide = double_well_guide()
    guide()
    joint = guide.get_posterior().sample((6,))
    posterior = guide.get_posterior()
    step = optimiser(guide.parameters(), lr=0.05)
    for _ in range(2):
        loss = -posterior.log_prob(joint).mean()
        step.zero_grad()
        loss.backward()
        step.step()
    after = posterior.log_prob(joint)
    truth = copy.deepcopy(guide).get_posterior().log_prob(joint.clone())
    torch.testing.assert_close(after, truth, rtol=0, atol=1e-12)
    assert float((-loss - after.mean()).detach().abs()) > 1e-3


def test_grad_mode_of_the_moment_is_respected() -> None:
    guide = double_well_guide()
    posterior = guide.get_posterior()
    with torch.no_grad():
        joint = posterior.rsample((4,))
        assert not posterior.log_prob(joint).requires_grad
    assert posterior.log_prob(joint).requires_grad
    joint = posterior.rsample((4,))
    assert posterior.log_prob(joint).requires_grad
    with torch.no_grad():
        assert not posterior.log_prob(joint).requires_grad


def test_an_energy_that_is_a_module_stays_outside_the_guide() -> None:
    """SVI must not train the target."""

    class Target(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.precision = nn.Parameter(torch.tensor(2.0))

        def forward(self, x: Tensor) -> Tensor:
            return 0.5 * self.precision * x.square().sum(-1)

    target = Target()
    model = pb.BoltzmannModel(target, 2)
    guide = pb.AutoStochasticFlow(
        model,
        lambda energy, dim: [
            LangevinTransform(target, dim, 0.1, learnable=True),
            LangevinTransform(AnnealedEnergy(NormalEnergy(), target, 0.5, learnable=True), dim, 0.1),
            MetropolisAdjusted(LangevinTransform(target, dim, 0.1), target),
        ],
    )
    names = {name for name, _ in guide.named_parameters()}
    assert names == {"path.blocks.0.log_step_size", "path.blocks.1.energy.logit"}
    assert not any("precision" in key for key in guide.state_dict())
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    for _ in range(3):
        svi.step()
    assert float(target.precision.detach()) == 2.0
    assert not any("precision" in name for name in pyro.get_param_store())
    clone = copy.deepcopy(guide)
    assert clone.path.blocks[0].energy.energy is target


def test_a_program_that_is_a_module_keeps_its_own_parameters() -> None:
    """A learned model under the guide: its parameters are the model's, and gradients reach them through the ELBO."""

    class Program(pyro.nn.PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.loc = nn.Parameter(torch.tensor(1.0))

        def forward(self, data: Tensor) -> None:
            z = pyro.sample("z", dist.Normal(self.loc, 1.0))
            with pyro.plate("data", len(data)):
                pyro.sample("obs", dist.Normal(z, 1.0), obs=data)

    program, data = Program(), torch.tensor([4.0, 5.0, 6.0])
    guide = pb.AutoStochasticFlow(program, lambda energy, dim: [T.spline(dim), LangevinTransform(energy, dim, 0.1)])
    guide(data)
    assert not any(p is program.loc for p in guide.parameters())
    svi = SVI(program, guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO(num_particles=8, vectorize_particles=True))
    for _ in range(60):
        svi.step(data)
    assert float(program.loc.detach()) > 2.5  # towards the evidence's maximum at the mean of the data


def test_weights_agree_with_those_of_another_guide_on_the_same_program() -> None:
    """Evidence by this guide and by Pyro's AutoNormal, within 4.5 standard errors of both."""
    data = torch.tensor([1.0, 3.0, 2.0], dtype=torch.float64)
    ours = pb.importance_sample(counts, double(counts, blocks), data, num_samples=20_000, seed=1)
    theirs = pb.importance_sample(counts, AutoNormal(counts, init_scale=0.5), data, num_samples=20_000, seed=2)
    ratios = [(d.log_weights - log_evidence(data)).exp() for d in (ours, theirs)]
    for ratio in ratios:
        assert abs(float(ratio.mean()) - 1) < 4.5 * float(ratio.std()) / math.sqrt(20_000)


def test_predictive_without_the_data_draws_from_the_trained_posterior() -> None:
    """Replicated data come from the posterior guide, although the call leaves the observations out.

    The base sits at the posterior of a normal mean with known variance, so that the predictive mean is known; the bound
    is 4.5 standard errors of 400 draws of variance 1.5 (false alarm 1e-5).
    """

    def model(count: int, y: torch.Tensor | None = None) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", count):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    y = torch.tensor([3.0])
    torch.manual_seed(0)
    guide = pb.AutoStochasticFlow(
        model,
        lambda energy, dim: [pb.stochastic.LangevinTransform(energy, dim, 0.05, num_steps=3)],
        base_loc=1.5,
        base_scale=0.5**0.5,
    )
    guide(1, y)
    replicated = Predictive(model, guide=guide, num_samples=400)(1)["y"]
    assert abs(float(replicated.mean()) - 1.5) < 4.5 * (1.5 / 400) ** 0.5


def test_a_boltzmann_site_without_a_sampler_needs_only_a_place_to_start() -> None:
    """The evidence of a unit normal tilted by one observation is N(y; 0, 2), within 4.5 standard errors."""

    def measured(y: torch.Tensor) -> None:
        x = pyro.sample("x", pb.Boltzmann(NormalEnergy(), 1))
        pyro.sample("y", dist.Normal(x[..., 0], 1.0), obs=y)

    y = torch.tensor(0.7)
    guide = pb.AutoStochasticFlow(measured, lambda energy, dim: [])
    draws = pb.importance_sample(measured, guide, y, num_samples=20_000, seed=0)
    exact = float(dist.Normal(0.0, 2.0**0.5).log_prob(y))
    assert abs(draws.log_normalizer - exact) < 4.5 * draws.log_normalizer_error


@pytest.mark.parametrize("blocks", [None, T.AffineTransform(0.0, 1.0)])
def test_blocks_must_come_in_a_list(blocks):
    model = pb.BoltzmannModel(lambda x: 0.5 * x.square().sum(-1), 2)
    with pytest.raises(TypeError, match="must return a list of blocks, got"):
        pb.AutoStochasticFlow(model, lambda energy, dim: blocks)


def test_an_energy_must_be_callable():
    with pytest.raises(TypeError, match="an energy must be callable"):
        pb.BoltzmannModel(3, 2)
