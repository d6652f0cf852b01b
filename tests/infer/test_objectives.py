"""Objectives against closed forms, against Pyro's own, and against each other."""

from __future__ import annotations

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pyro.distributions.transforms as T
import pytest
import torch
from pyro.distributions.torch_transform import TransformModule
from pyro.infer import SVI, Trace_ELBO
from torch import nn

import pyro_boltzmann as pb
from pyro_boltzmann.diagnostics.weights import eubo
from pyro_boltzmann.exceptions import ShapeError
from pyro_boltzmann.guides import PathBase
from pyro_boltzmann.stochastic import LangevinTransform, MetropolisAdjusted, RandomWalkTransform
from pyro_boltzmann.stochastic import block as block_module

SIGMAS = 4.5  # two-sided false-alarm rate 7e-6


class Shift(TransformModule):
    """loc + exp(log_scale) x: a flow layer whose gradients are known by hand."""

    bijective = True
    domain = codomain = dist.constraints.real_vector

    def __init__(self, loc, log_scale):
        super().__init__()
        self.loc, self.log_scale = nn.Parameter(loc.clone()), nn.Parameter(log_scale.clone())

    def _call(self, x):
        return self.loc + self.log_scale.exp() * x

    def _inverse(self, y):
        return (y - self.loc) * (-self.log_scale).exp()

    def log_abs_det_jacobian(self, x, y):
        return self.log_scale.sum().expand(x.shape[:-1])


def gaussian_energy(mean, scale):
    """-log N(mean, diag scale^2), without its normaliser."""
    return lambda x: 0.5 * ((x - mean) / scale).square().sum(-1)


MEAN, SCALE = torch.tensor([0.5, -1.0], dtype=torch.float64), torch.tensor([2.0, 0.7], dtype=torch.float64)
LOC, LOG_SCALE = torch.tensor([0.2, 0.3], dtype=torch.float64), torch.tensor([0.1, -0.4], dtype=torch.float64)
LOG_Z = float(SCALE.log().sum()) + math.log(2 * math.pi)


def gaussian_flow(loc=LOC, log_scale=LOG_SCALE):
    model = pb.BoltzmannModel(gaussian_energy(MEAN, SCALE), 2, dtype=torch.float64)
    return model, pb.AutoStochasticFlow(model, lambda energy, dim: [Shift(loc, log_scale)], dtype=torch.float64)


def kl(mean_p, scale_p, mean_q, scale_q):
    """KL(p || q) of diagonal Gaussians."""
    terms = (scale_q / scale_p).log() + (scale_p.square() + (mean_p - mean_q).square()) / (2 * scale_q.square()) - 0.5
    return float(terms.sum())


def repeat(count, f):
    """Mean and standard error of ``count`` independent values of ``f``, each a vector."""
    values = torch.stack([torch.as_tensor(f(), dtype=torch.float64).flatten() for _ in range(count)])
    return values.mean(0), values.std(0) / math.sqrt(count)


def gradient(objective, model, guide):
    guide.zero_grad()
    objective.loss_and_grads(model, guide)
    return torch.cat([p.grad.flatten().double() for p in guide.parameters()])


def test_reverse_kl_of_a_gaussian_flow():
    r"""-E[log w] = KL(q || pi) - log Z, and its gradients in closed form (4.5 s.e.)."""
    model, guide = gaussian_flow()
    objective = pb.ReverseKL(200)
    scale = LOG_SCALE.exp()
    mean, error = repeat(200, lambda: objective.loss(model, guide))
    assert abs(mean - (kl(LOC, scale, MEAN, SCALE) - LOG_Z)) < SIGMAS * error
    truth = torch.cat([(LOC - MEAN) / SCALE.square(), scale.square() / SCALE.square() - 1])
    mean, error = repeat(200, lambda: gradient(objective, model, guide))
    assert ((mean - truth).abs() < SIGMAS * error).all()


def test_forward_kl_of_a_gaussian_flow():
    r"""-E_pi[log q] = KL(pi || q) + H(pi), and its gradients in closed form (4.5 s.e.)."""
    model, guide = gaussian_flow()
    data = MEAN + SCALE * torch.randn(100_000, 2, dtype=torch.float64)
    objective = pb.ForwardKL(data, num_particles=200)
    scale = LOG_SCALE.exp()
    entropy = float((SCALE.log() + 0.5 * math.log(2 * math.pi * math.e)).sum())
    mean, error = repeat(200, lambda: objective.loss(model, guide))
    # The data are a sample themselves: 200 x 200 draws with replacement from 100,000 widen the error by sqrt(1.4).
    assert abs(mean - (kl(MEAN, SCALE, LOC, scale) + entropy)) < SIGMAS * math.sqrt(1.4) * error
    standard = (MEAN - LOC) / scale
    truth = torch.cat([-standard / scale, 1 - (SCALE / scale).square() - standard.square()])
    mean, error = repeat(200, lambda: gradient(objective, model, guide))
    assert ((mean - truth).abs() < SIGMAS * math.sqrt(1.4) * error).all()


def test_exact_model_is_the_minimum_of_both():
    """At the exact flow each path has weight Z, so the reverse loss is -log Z without noise and its gradient is zero;
    the forward gradient is zero in expectation (4.5 s.e.), and on either side the losses are larger by the closed-form
    KL."""
    model, guide = gaussian_flow(MEAN, SCALE.log())
    reverse = pb.ReverseKL(500)
    assert abs(reverse.loss(model, guide) + LOG_Z) < 1e-10
    # The reparametrised gradient at the optimum is the score of the draws: zero in expectation.
    mean, error = repeat(100, lambda: gradient(reverse, model, guide))
    assert (mean.abs() < SIGMAS * error).all()
    data = MEAN + SCALE * torch.randn(100_000, 2, dtype=torch.float64)
    forward = pb.ForwardKL(data, num_particles=500)
    mean, error = repeat(100, lambda: gradient(forward, model, guide))
    assert (mean.abs() < SIGMAS * math.sqrt(1.5) * error).all()
    for step in (-0.3, 0.3):
        other, moved = gaussian_flow(MEAN + step, SCALE.log() + step)
        mean, error = repeat(50, lambda moved=moved, other=other: reverse.loss(other, moved))
        assert abs(mean - (kl(MEAN + step, (SCALE.log() + step).exp(), MEAN, SCALE) - LOG_Z)) < SIGMAS * error
        assert mean > -LOG_Z


def stochastic_flow(energy, gradient="pathwise", seed=5, moves="both"):
    torch.manual_seed(seed)
    model = pb.BoltzmannModel(energy, 2, dtype=torch.float64)

    def blocks(energy, dim):
        middle = pb.AnnealedEnergy(pb.NormalEnergy(), energy, 0.4, learnable=True)
        walk = RandomWalkTransform(dim, 0.6, num_steps=2, learnable=True)
        langevin = [LangevinTransform(middle, dim, 0.1, learnable=True)] if moves == "both" else []
        coupling = T.affine_coupling(dim, hidden_dims=[8])
        metropolis = [] if moves == "none" else [MetropolisAdjusted(walk, middle, gradient=gradient)]
        return [coupling, *langevin, *metropolis]

    return model, pb.AutoStochasticFlow(model, blocks, dtype=torch.float64)


def test_reverse_kl_equals_pyro_in_expectation():
    """Against ``Trace_ELBO(vectorize_particles=True)`` on the joint of state and noise: value and gradient (4.5
    s.e.).
    """
    model, guide = stochastic_flow(gaussian_energy(MEAN, SCALE))
    objectives = [pb.ReverseKL(500), Trace_ELBO(num_particles=500, vectorize_particles=True)]
    for evaluate in (lambda o: [o.loss(model, guide)], lambda o: gradient(o, model, guide)):
        (ours, our_error), (pyros, pyro_error) = (repeat(40, partial(evaluate, o)) for o in objectives)
        assert ((ours - pyros).abs() < SIGMAS * (our_error.square() + pyro_error.square()).sqrt() + 1e-12).all()


def test_reverse_kl_equals_pyro_on_the_same_noise(monkeypatch):
    """One path each, from the same numbers: loss and gradient agree to rounding, accept and reject alike."""
    model, guide = stochastic_flow(gaussian_energy(MEAN, SCALE))
    path = guide.get_transform()

    def both(objective, model, guide):
        guide.zero_grad()
        loss = objective.loss_and_grads(model, guide)
        return torch.cat(
            [torch.tensor([loss]).double(), *(p.grad.flatten() for p in guide.parameters() if p.grad.any())]
        )

    for number in range(10):
        torch.manual_seed(number)
        x0 = torch.randn(1, 2, dtype=torch.float64)
        noise = path.sample_noise((1,), x0)
        joint = torch.cat([x0, noise], -1)
        slots = [part for b in path.stochastic_blocks for _ in range(b.num_repeats) for part in b.step_noise]
        pieces = iter(noise.split([part.size for part in slots], -1))
        monkeypatch.setattr(torch, "randn", lambda *a, x0=x0, **k: x0)
        monkeypatch.setattr(block_module, "sample_part", lambda *a, pieces=pieces, **k: next(pieces))
        ours = both(pb.ReverseKL(1), model, guide)
        monkeypatch.undo()
        monkeypatch.setattr(PathBase, "rsample", lambda self, shape=(), joint=joint: joint.reshape(*shape, -1))
        pyros = both(Trace_ELBO(num_particles=1), model, guide)
        monkeypatch.undo()
        assert (pyros != 0).sum() > 8
        torch.testing.assert_close(ours, pyros, rtol=1e-9, atol=1e-9)


def test_score_gradient_is_that_of_the_expected_loss():
    """The gradient of the loss of one Metropolis step, with accept and reject averaged by their probabilities, which
    leaves a smooth function of the step size: the score-function gradient is the same, the pathwise one is not (4.5
    s.e.)."""
    target = pb.catalogue["double_well"].energy
    middle = pb.AnnealedEnergy(pb.NormalEnergy(), target, 0.5)
    log_scale = torch.tensor(0.5, dtype=torch.float64).log()
    model = pb.BoltzmannModel(target, 2, dtype=torch.float64)

    def averaged():
        log_step = log_scale.clone().requires_grad_()
        x = torch.randn(2**15, 2, dtype=torch.float64)
        y = x + log_step.exp() * torch.randn_like(x)
        uphill = middle(y) - middle(x)
        accept = (-uphill.clamp_min(0.0)).exp()
        loss = accept * (target(y) - uphill) + (1 - accept) * target(x)
        return torch.autograd.grad(loss.mean(), log_step)[0]

    def estimate(kind):
        walk = RandomWalkTransform(2, 0.5, learnable=True)

        def make(energy, dim):
            return [MetropolisAdjusted(walk, middle, gradient=kind)]

        guide = pb.AutoStochasticFlow(model, make, dtype=torch.float64)
        return repeat(25, lambda: gradient(pb.ReverseKL(2**15), model, guide))

    truth, error = repeat(50, averaged)
    score, spread = estimate("score")
    assert abs(score - truth) < SIGMAS * (error.square() + spread.square()).sqrt()
    assert spread < 0.1 * abs(truth)
    pathwise, spread = estimate("pathwise")
    assert abs(pathwise - truth) > SIGMAS * (error.square() + spread.square()).sqrt()


def test_elbo_log_z_eubo():
    """ELBO <= log Z <= EUBO on the double well with its exact sampler, E[w] = Z from both sides, and the forward loss
    is EUBO + E[u] (4.5 s.e.; log Z = 10.29348 by quadrature)."""
    target = pb.catalogue["double_well"]
    model = pb.BoltzmannModel(target.energy, 2)

    def blocks(energy, dim):
        middle = pb.AnnealedEnergy(pb.NormalEnergy(0.0, 1.3), energy, 0.5)
        return [
            MetropolisAdjusted(RandomWalkTransform(dim, 0.5, num_steps=4), middle),
            LangevinTransform(energy, dim, 0.01, num_steps=4),
        ]

    guide = pb.AutoStochasticFlow(model, blocks, base_scale=1.3)
    count = 100_000
    exact = target.sample(count, generator=torch.Generator().manual_seed(0)).float()
    with torch.no_grad():
        forward, backward = guide.sample_paths(count), guide.reverse_paths(exact)
    elbo, elbo_error = forward.log_weight.mean(), forward.log_weight.std() / math.sqrt(count)
    upper, upper_error = eubo(backward.log_weight)
    assert elbo + SIGMAS * elbo_error < target.log_z < upper - SIGMAS * upper_error
    weights = (forward.log_weight - target.log_z).exp()
    assert abs(weights.mean() - 1) < SIGMAS * weights.std() / math.sqrt(count)
    # The loss of all the data is the mean of -log q; E[u] over the same data makes it the EUBO, path by path.
    objective = pb.ForwardKL(exact, num_particles=20_000)
    mean, error = repeat(10, lambda: objective.loss(model, guide))
    expected = upper + float(target.energy(exact).double().mean())
    assert abs(mean - expected) < SIGMAS * math.sqrt(2) * (float(error) + upper_error)


@pytest.mark.parametrize("kind", ["reverse", "forward", "pyro"])
def test_pyro_svi_trains_through_the_objectives(kind):
    """The same parameters under the same names in the store, whichever objective: N(0, 1) learns N(2, 1)."""
    model = pb.BoltzmannModel(gaussian_energy(2.0, 1.0), 1)
    guide = pb.AutoStochasticFlow(model, lambda energy, dim: [Shift(torch.zeros(1), torch.zeros(1))])
    data = 2 + torch.randn(500, 1)
    objective = {
        "reverse": pb.infer.ReverseKL(64),
        "forward": pb.infer.ForwardKL(data, num_particles=64),
        "pyro": Trace_ELBO(num_particles=64, vectorize_particles=True),
    }[kind]
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), objective)
    for _ in range(60):
        svi.step()
    assert set(pyro.get_param_store().keys()) == {
        "AutoStochasticFlow.path$$$blocks.0.loc",
        "AutoStochasticFlow.path$$$blocks.0.log_scale",
    }
    assert abs(guide.path.blocks[0].loc.item() - 2) < 0.5


@pytest.mark.parametrize("kind", ["reverse", "pyro"])
def test_pyro_svi_trains_parameters_of_the_model(kind):
    """Maximum marginal likelihood: x ~ N(theta, 1), y = 3 with variance 1 pulls theta to 3."""

    def model():
        theta = pyro.param("theta", torch.tensor(0.0))
        x = pyro.sample("x", dist.Normal(theta, 1.0))
        pyro.sample("y", dist.Normal(x, 1.0), obs=torch.tensor(3.0))

    guide = pb.AutoStochasticFlow(model, lambda energy, dim: [Shift(torch.zeros(1), torch.zeros(1))]).initialize()
    objective = pb.ReverseKL(32) if kind == "reverse" else Trace_ELBO(num_particles=32, vectorize_particles=True)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), objective)
    for _ in range(150):
        svi.step()
    assert abs(pyro.param("theta").item() - 3) < 0.5
    assert not pyro.param("theta").unconstrained().grad.any()  # SVI zeroes what it trains


def test_weighted_data_are_resampled_data():
    """Minibatches of weighted data have the frequencies of the weights; a zero weight is never drawn (4.5 s.e.)."""
    data = torch.arange(5.0).unsqueeze(-1)
    weights = torch.tensor([0.0, 0.1, 0.0, 0.6, 0.3])
    objective = pb.ForwardKL(data, weights.log() + 700, num_particles=200_000)
    counts = objective._minibatch().flatten().long().bincount(minlength=5)
    assert counts[0] == counts[2] == 0
    frequency = counts / 200_000
    assert ((frequency - weights).abs() <= SIGMAS * (weights * (1 - weights) / 200_000).sqrt()).all()


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_softened_weights(power):
    """Minibatches have the frequencies of the weights to a power; zero stays zero, even to the power of zero (4.5
    s.e.)."""
    data = torch.arange(5.0).unsqueeze(-1)
    weights = torch.tensor([0.0, 0.1, 0.0, 0.6, 0.3])
    counts = pb.ForwardKL(data, weights.log() + 700, num_particles=200_000, weight_power=power)._minibatch()
    frequency = counts.flatten().long().bincount(minlength=5) / 200_000
    expected = torch.where(weights > 0, weights**power, 0.0)
    expected = expected / expected.sum()
    assert frequency[0] == frequency[2] == 0
    assert ((frequency - expected).abs() <= SIGMAS * (expected * (1 - expected) / 200_000).sqrt()).all()


def test_any_weighted_draws_teach():
    """Draws as resamplers leave them: copies of one ancestor, weights of zero with unusable rows, latents apart from
    the sites. Copies count as often as they are there: the loss is that of the distinct rows with added weights."""
    z = torch.tensor([[0.5, 1.0], [0.5, 1.0], [math.nan, 0.0], [2.0, -1.0]], dtype=torch.float64)
    log_weights = torch.tensor([0.2, 0.1, -math.inf, 0.7], dtype=torch.float64).where(~z.isnan().any(-1), -torch.inf)
    teacher = pb.WeightedSamples({"site": z[:, 0]}, log_weights, info={"z": z})
    model, guide = gaussian_flow()
    result = pb.fit(
        model, guide, objective="forward_kl", data=teacher, num_steps=1, num_particles=400_000, progress=False
    )
    model, guide = gaussian_flow()
    rows = z[[0, 3]]
    weights = torch.stack([log_weights[:2].exp().sum(), log_weights[3].exp()])
    with torch.no_grad():
        losses = -guide.reverse_paths(rows, with_energy=False).log_q
    share = weights / weights.sum()
    mean = (share * losses).sum()
    error = ((share * (losses - mean).square()).sum() / 400_000).sqrt()
    assert abs(result.history["loss"][0] - mean) < SIGMAS * error


def test_fit_softens_weights():
    """The same run, bit for bit, as with the square roots of the weights."""
    z = torch.randn(300, 2, dtype=torch.float64)
    log_weights = torch.randn(300, dtype=torch.float64)
    log_weights[:5] = -torch.inf
    runs = []
    for weights, power in ((log_weights, 0.5), (0.5 * log_weights, 1.0)):
        model, guide = gaussian_flow()
        data = pb.WeightedSamples(z, weights, info={"z": z})
        run = {"num_steps": 5, "num_particles": 50, "seed": 0, "progress": False}
        pb.fit(model, guide, objective="forward_kl", data=data, weight_power=power, **run)
        runs.append(torch.cat([p.detach() for p in guide.parameters()]))
    assert torch.equal(*runs)
    with pytest.raises(ValueError, match=r"weight_power=0.5 needs weighted draws: pass data= as WeightedSamples"):
        pb.fit(model, guide, objective="forward_kl", data=z, weight_power=0.5, **run)


def test_weighted_loss_equals_resampled_loss():
    model, guide = gaussian_flow()
    draws = torch.randn(50_000, 2, dtype=torch.float64) * 2
    ws = pb.WeightedSamples(draws, -gaussian_energy(MEAN, SCALE)(draws) + draws.square().sum(-1) / 8)
    resampled = ws.resample(method="systematic")["x"]
    losses = [pb.ForwardKL(draws, ws.log_weights, 500), pb.ForwardKL(resampled, num_particles=500)]
    (weighted, error), (plain, other) = (repeat(100, lambda o=o: o.loss(model, guide)) for o in losses)
    assert abs(weighted - plain) < SIGMAS * (error.square() + other.square()).sqrt()


def behind(x, value):
    return torch.where(x[..., 0] > 0, 0.5 * x.square().sum(-1), value)


@pytest.mark.parametrize(
    ("energy", "moves"),
    [
        (lambda x: behind(x, torch.inf), ["none", "one", "both"]),
        (lambda x: behind(x, torch.inf) - behind(x, 0.0) * x[..., 0].sqrt(), ["none", "one", "both"]),
        # Not through Langevin: the force behind this wall is finite, and moves the paths otherwise than none.
        (lambda x: behind(x, torch.inf) - x[..., 0].log(), ["none", "one"]),
        (lambda x: behind(x, torch.inf) - x[..., 0].clamp_min(0.0).log(), ["none", "one", "both"]),
    ],
    ids=["wall", "NaN derivative behind it", "NaN behind it", "infinite derivative behind it"],
)
@pytest.mark.parametrize("kind", ["pathwise", "score"])
def test_hard_wall_does_not_poison_gradients(energy, moves, kind):
    """Through a flow alone, a Metropolis block, a Langevin block: the gradient is finite, and that of the same paths
    under an energy that is never differentiated behind the wall."""

    def clean(x):
        is_outside = (x[..., 0] <= 0).unsqueeze(-1)
        return torch.where(x[..., 0] > 0, energy(x.masked_fill(is_outside, 1.0)), torch.inf)

    for which in moves:
        values = []
        for u in (energy, clean):
            objective = pb.ReverseKL(64)
            model, guide = stochastic_flow(u, kind, moves=which)
            torch.manual_seed(0)
            values.append(gradient(objective, model, guide))
            assert objective.left_out
            assert 0 < objective.last_paths.log_weight.isfinite().sum() < 64
        assert values[0].isfinite().all()
        assert values[0].abs().max() > 1e-3
        torch.testing.assert_close(*values, rtol=1e-6, atol=1e-8)


def test_mixture_of_phases_weighs_the_objectives():
    """The published recipe trains to the exact model, and 0.5 / 0.5 is the same loss as 2 / 2."""
    data = MEAN + SCALE * torch.randn(1000, 2, dtype=torch.float64)
    losses = []
    for weight, length in ((2.0, 20), (0.5, 20), (0.5, 300)):
        model, guide = gaussian_flow()
        phases = [pb.Phase(length, 0, 1), pb.Phase(length, weight, weight)]
        settings = {"num_particles": 64, "learning_rate": 5e-3, "seed": 1, "progress": False, "log_every": 1}
        result = pb.fit(model, guide, objective=phases, data=data, **settings)
        assert result.steps == 2 * length
        losses.append(torch.tensor(result.history["loss"]))
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-9, atol=1e-9)
    loc, log_scale = (p.detach() for p in guide.parameters())
    assert kl(loc, log_scale.exp(), MEAN, SCALE) < 0.02 < kl(LOC, LOG_SCALE.exp(), MEAN, SCALE)
    # The first phase itself asks for no energy: only the ELBO of each row does, a batch of values without gradients.
    assert result.history["evaluations"][299] == 300 * 64
    assert all(math.isfinite(elbo) for elbo in result.history["elbo"])


def test_paths_kept_for_statistics_hold_no_graph():
    model, guide = stochastic_flow(gaussian_energy(MEAN, SCALE), "score")
    objective = pb.ReverseKL(8)
    assert objective.differentiable_loss(model, guide).requires_grad
    paths = objective.last_paths
    tensors = [
        *paths[:4],
        *(field for info in paths.infos if info for field in info if isinstance(field, torch.Tensor)),
    ]
    assert not any(tensor.requires_grad for tensor in tensors)


@pytest.mark.parametrize(
    ("data", "weights", "error", "message"),
    [
        (torch.zeros(0, 2), None, ShapeError, r"\(n, latent_dim\) with n >= 1, got \(0, 2\)"),
        (torch.zeros(3), None, ShapeError, r"\(n, latent_dim\)"),
        (torch.zeros(3, 2), torch.zeros(2), ShapeError, r"log_weights must have shape \(3,\), got \(2,\)"),
        (torch.tensor([[0.0, math.nan], [1.0, 2.0]]), None, ValueError, "1 of 2 rows of data .* leave them out"),
        (torch.zeros(2, 2), torch.tensor([0.0, math.nan]), ValueError, "finite or zero"),
        (torch.zeros(2, 2), torch.tensor([-math.inf, -math.inf]), ValueError, "not all zero"),
    ],
)
def test_bad_data(data, weights, error, message):
    with pytest.raises(error, match=message):
        pb.ForwardKL(data, weights)


def test_zero_weight_may_belong_to_an_unusable_row():
    pb.ForwardKL(torch.tensor([[math.nan, 0.0], [1.0, 2.0]]), torch.tensor([-math.inf, 0.0]))


def test_forward_kl_needs_a_path():
    with pytest.raises(TypeError, match="needs an AutoStochasticFlow, got function"):
        pb.ForwardKL(torch.zeros(3, 2)).loss(lambda: None, lambda: None)


def test_data_of_wrong_width():
    model, guide = gaussian_flow()
    with pytest.raises(ShapeError, match=r"shape \(n, 2\), got \(256, 3\)"):
        pb.ForwardKL(torch.zeros(5, 3)).loss(model, guide)
