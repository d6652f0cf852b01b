"""One path a datum: evidences in closed form, traces, gradients, mini-batches, plates, and what is refused."""

from __future__ import annotations

import copy
import math
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.distributions.transforms as T
import pytest
import torch
from pyro.infer import SVI, Predictive, RenyiELBO, Trace_ELBO
from pyro.infer.importance import vectorized_importance_weights
from pyro.optim import Adam
from torch import Tensor, nn

import pyro_boltzmann as pb
from pyro_boltzmann import AmortizedStochasticFlow, AnnealedEnergy, NormalEnergy
from pyro_boltzmann.exceptions import ModelError, ShapeError
from pyro_boltzmann.stochastic import (
    LangevinTransform,
    LeapfrogTransform,
    MetropolisAdjusted,
    RandomWalkTransform,
    UnderdampedLangevinTransform,
)
from pyro_boltzmann.transforms import ConditionalLayer, InverseTransform, PullbackEnergy

DIM, PIXELS, NOISE = 2, 4, 0.7
LATENT = "_AmortizedStochasticFlow_latent"


class Pca(nn.Module):
    """Probabilistic PCA: z ~ N(0, I), x ~ N(W z + b, s^2 I), so that x ~ N(b, W W' + s^2 I)."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.decoder = nn.Linear(DIM, PIXELS, dtype=torch.float64)
        with torch.no_grad():
            self.decoder.weight.copy_(torch.randn(PIXELS, DIM, generator=generator))
            self.decoder.bias.copy_(torch.randn(PIXELS, generator=generator))

    def forward(self, x: Tensor) -> None:
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(DIM), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), NOISE).to_event(1), obs=x)

    def log_evidence(self, x: Tensor) -> Tensor:
        w, b = self.decoder.weight, self.decoder.bias
        covariance = w @ w.T + NOISE**2 * torch.eye(PIXELS, dtype=x.dtype)
        return torch.distributions.MultivariateNormal(b, covariance).log_prob(x).detach()

    def energy(self, x: Tensor, z: Tensor) -> Tensor:
        """Independent of Pyro."""
        residual = (x - z @ self.decoder.weight.T - self.decoder.bias) / NOISE
        constant = 0.5 * (DIM + PIXELS) * math.log(2 * math.pi) + PIXELS * math.log(NOISE)
        return 0.5 * z.square().sum(-1) + 0.5 * residual.square().sum(-1) + constant


class Encoder(nn.Module):
    """A Gaussian that is not quite the posterior, and a context."""

    def __init__(self, subsample: bool = True) -> None:
        super().__init__()
        self.subsample = subsample
        self.net = nn.Linear(PIXELS, 2 * DIM + 3, dtype=torch.float64)
        with torch.no_grad():
            generator = torch.Generator().manual_seed(4)
            self.net.weight.copy_(0.1 * torch.randn(2 * DIM + 3, PIXELS, generator=generator))
            self.net.bias.zero_()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rows = pyro.subsample(x, event_dim=1) if self.subsample else x
        loc, raw, context = self.net(rows).split([DIM, DIM, 3], -1)
        return loc, 0.3 + nn.functional.softplus(raw), context


@pytest.fixture
def pca() -> Pca:
    torch.manual_seed(0)
    return Pca()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, PIXELS, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def annealed_pullback(energy: Any, dim: int) -> list[Any]:
    layer = ConditionalLayer(T.conditional_affine_autoregressive(dim, 3, hidden_dims=[8]))
    rungs = [AnnealedEnergy(NormalEnergy(), PullbackEnergy(energy, [layer]), rung / 3) for rung in (1, 2, 3)]
    return [*(LangevinTransform(rung, dim, 0.1, learnable=True) for rung in rungs), layer]


BLOCKS: dict[str, Any] = {
    "none": lambda energy, dim: [],
    "autoregressive": lambda energy, dim: [T.conditional_affine_autoregressive(dim, 3, hidden_dims=[8])],
    "coupling": lambda energy, dim: [T.conditional_affine_coupling(dim, 3, hidden_dims=[8])],
    "planar": lambda energy, dim: [T.conditional_planar(dim, 3, hidden_dims=[8])],
    "spline": lambda energy, dim: [T.conditional_spline(dim, 3, hidden_dims=[8], count_bins=4)],
    "inverse": lambda energy, dim: [
        InverseTransform(ConditionalLayer(T.conditional_affine_coupling(dim, 3, hidden_dims=[8])), width=dim)
    ],
    "metropolis": lambda energy, dim: [
        MetropolisAdjusted(RandomWalkTransform(dim, 0.5, num_steps=3), AnnealedEnergy(NormalEnergy(), energy, 0.5))
    ],
    "langevin": lambda energy, dim: [LangevinTransform(energy, dim, 0.05, num_steps=3)],
    "mala": lambda energy, dim: [
        MetropolisAdjusted(
            LangevinTransform(AnnealedEnergy(NormalEnergy(), energy, 0.5), dim, 0.3),
            AnnealedEnergy(NormalEnergy(), energy, 0.5),
        )
    ],
    "leapfrog": lambda energy, dim: [LeapfrogTransform(energy, dim, 0.2, num_steps=3)],
    "hmc": lambda energy, dim: [
        MetropolisAdjusted(
            LeapfrogTransform(AnnealedEnergy(NormalEnergy(), energy, 0.5), dim, 0.3, num_steps=3),
            AnnealedEnergy(NormalEnergy(), energy, 0.5),
        )
    ],
    "underdamped": lambda energy, dim: [UnderdampedLangevinTransform(energy, dim, 0.2, num_steps=3)],
    "annealed_pullback": annealed_pullback,
    "flow_then_steps": lambda energy, dim: [
        T.conditional_affine_autoregressive(dim, 3, hidden_dims=[8]),
        LangevinTransform(energy, dim, 0.05),
        T.conditional_planar(dim, 3, hidden_dims=[8]),
        MetropolisAdjusted(RandomWalkTransform(dim, 0.5), energy),
    ],
}


def make(model: Any, encoder: Any, blocks: Any) -> AmortizedStochasticFlow:
    return AmortizedStochasticFlow(model, encoder, blocks, latent_dim=DIM, dtype=torch.float64)


def check_evidence(log_weight: Tensor, log_evidence: Tensor) -> None:
    """E[w_i] = p(x_i) for every datum, within 4.5 standard errors."""
    ratio = (log_weight.detach() - log_evidence).exp()
    error = ratio.std(0) / math.sqrt(len(ratio))
    assert bool(((ratio.mean(0) - 1).abs() < 4.5 * error + 1e-12).all()), (ratio.mean(0), error)


def path_weight(pca: Pca, guide: Any, x: Tensor, encoded: tuple[Tensor, ...], joint: Tensor) -> Tensor:
    """log w of each datum from the joint vector of a trace, by the inverse path and closed-form energies."""
    path, (loc, scale) = guide.path, encoded[:2]
    start, ladj = path.inverse_and_ladj(joint)
    log_q = torch.distributions.Normal(loc, scale).log_prob(loc + scale * start[..., :DIM]).sum(-1)
    s = path.noise_log_prob(joint[..., DIM:]) - path.noise_log_prob(start[..., DIM:]) - ladj
    return -pca.energy(x, loc + scale * joint[..., :DIM]) + s - log_q


def trace_pair(model: Any, guide: Any, x: Tensor) -> tuple[Any, Any]:
    guide_trace = pyro.poutine.trace(guide).get_trace(x)
    return pyro.poutine.trace(pyro.poutine.replay(model, guide_trace)).get_trace(x), guide_trace


# Exactness -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BLOCKS)
def test_weights_have_the_evidence_of_each_datum_as_their_mean(name: str, pca: Pca, x: Tensor) -> None:
    """Streamed with and without a graph, and traced; the ELBO is below."""
    guide = make(pca, Encoder(), BLOCKS[name])
    truth = pca.log_evidence(x)
    with torch.no_grad():
        paths = guide.sample_paths(20_000, x)
    check_evidence(paths.log_weight, truth)
    elbo, error = paths.log_weight.mean(0), paths.log_weight.std(0) / math.sqrt(20_000)
    assert bool((elbo < truth + 4.5 * error).all()) and paths.z.shape == (20_000, 3, DIM)
    check_evidence(guide.sample_paths(4_000, x).log_weight, truth)
    weights, _, _ = vectorized_importance_weights(
        pca, guide, x, num_samples=20_000, max_plate_nesting=1, normalized=False
    )
    check_evidence(weights.unsqueeze(-1), truth.sum())


def test_importance_weighted_bounds_rise_to_the_evidence(pca: Pca, x: Tensor) -> None:
    """Independent draws for each K, so that the order is no tautology."""
    guide = make(pca, Encoder(), BLOCKS["flow_then_steps"])
    truth, means, errors = pca.log_evidence(x).sum(), [], []
    with torch.no_grad():
        for k in (1, 4, 16, 64):
            log_weight = guide.sample_paths(500 * k, x).log_weight.reshape(k, 500, 3)
            bound = (log_weight.logsumexp(0) - math.log(k)).sum(-1)
            means.append(bound.mean())
            errors.append(bound.std() / math.sqrt(500))
    for low, high, e0, e1 in zip(means, means[1:], errors, errors[1:], strict=False):
        assert high > low - 4.5 * math.hypot(e0, e1)
    assert means[-1] - means[0] > 4.5 * math.hypot(errors[0], errors[-1])
    assert means[-1] < truth + 4.5 * errors[-1] and truth - means[-1] < 0.1 * (truth - means[0])


@pytest.mark.parametrize("name", ["flow_then_steps", "annealed_pullback", "hmc"])
@pytest.mark.parametrize("nesting", [1, 2])
def test_trace_weights_are_path_weights(name: str, nesting: int, pca: Pca, x: Tensor) -> None:
    """Pyro's log p - log q of vectorised traces against energies and a path evaluated apart from both, to 1e-8."""
    encoder = Encoder()
    blocks = {**BLOCKS, "flow_then_steps": lambda energy, dim: BLOCKS["flow_then_steps"](energy, dim)[:2]}
    guide = make(pca, encoder, blocks[name])  # Pyro's planar layers have no inverse
    weight, _, guide_trace = vectorized_importance_weights(
        pca, guide, x, num_samples=20, max_plate_nesting=nesting, normalized=False
    )
    joint = guide_trace.nodes[LATENT]["value"].reshape(20, 3, -1).detach()
    expected = path_weight(pca, guide, x, encoder(x), joint).sum(-1)
    torch.testing.assert_close(weight, expected, rtol=0, atol=1e-8)


def test_without_blocks_it_is_the_gaussian_guide(pca: Pca, x: Tensor) -> None:
    encoder = Encoder()

    def plain(x: Tensor) -> None:
        loc, scale, _ = encoder(x)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))

    guide = make(pca, encoder, BLOCKS["none"])
    elbo = Trace_ELBO(num_particles=64, vectorize_particles=True, max_plate_nesting=1)
    losses = []
    for one in (plain, guide):
        torch.manual_seed(1)
        losses.append(elbo.loss(pca, one, x))
    assert losses[0] == pytest.approx(losses[1], abs=1e-9)


# Gradients -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["langevin", "annealed_pullback", "leapfrog", "flow_then_steps"])
def test_gradients_are_those_of_finite_differences(name: str, pca: Pca, x: Tensor) -> None:
    """Of the decoder (through the forces too), the encoder, the layers and the steps, in Pyro's own objective."""
    encoder = Encoder()
    blocks = {**BLOCKS, "flow_then_steps": lambda energy, dim: BLOCKS["flow_then_steps"](energy, dim)[:3]}
    guide = make(pca, encoder, blocks[name])
    elbo = Trace_ELBO(num_particles=4, vectorize_particles=True, max_plate_nesting=1)

    def loss() -> Tensor:
        torch.manual_seed(7)
        value: Tensor = elbo.differentiable_loss(pca, guide, x)
        return value

    parameters = [*pca.parameters(), *guide.parameters()]
    gradients = torch.autograd.grad(loss(), parameters, allow_unused=True)
    generator = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is None:  # the context's weights, where no layer has a context, are tested by their sum
                gradient = torch.zeros_like(parameter)
            direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            values = []
            for sign in (1.0, -1.0):
                parameter.add_(sign * 1e-5 * direction)
                values.append(float(loss()))
                parameter.sub_(sign * 1e-5 * direction)
            slope = (values[0] - values[1]) / 2e-5
            assert slope == pytest.approx(float((gradient * direction).sum()), rel=1e-5, abs=1e-6)


def test_the_force_carries_a_part_of_the_decoders_gradient(pca: Pca, x: Tensor) -> None:
    """Cutting the decoder out of the forces changes the gradient: leaving it in is no matter of taste."""
    guide = make(pca, Encoder(), BLOCKS["langevin"])
    gradients = []
    for cut in (False, True):
        generator = torch.Generator().manual_seed(9)
        if cut:
            frozen = copy.deepcopy(pca).requires_grad_(False).eval()
            other = make(frozen, guide.encoder, BLOCKS["langevin"])
            paths = other.sample_paths(16, x, generator=generator)
            loss = pca.energy(x, paths.z).sum()
        else:
            loss = -guide.sample_paths(16, x, generator=generator).log_weight.sum()
        (gradient,) = torch.autograd.grad(loss, pca.decoder.weight)
        gradients.append(gradient)
    assert not torch.allclose(gradients[0], gradients[1], rtol=1e-2)


def test_svi_trains_every_parameter_and_registers_the_decoder_once(pca: Pca, x: Tensor) -> None:
    pyro.clear_param_store()
    guide = make(pca, Encoder(), BLOCKS["annealed_pullback"])
    owned = {id(p) for p in guide.parameters()}
    assert not owned & {id(p) for p in pca.parameters()}
    before = {id(p): p.detach().clone() for p in (*guide.parameters(), *pca.parameters())}
    svi = SVI(pca, guide, Adam({"lr": 0.01}), Trace_ELBO(num_particles=4, vectorize_particles=True))
    for _ in range(3):
        svi.step(x)
    for parameter in (*guide.parameters(), *pca.parameters()):
        assert not torch.equal(parameter, before[id(parameter)])
    assert len(pyro.get_param_store()) == len(before)


def test_svi_comes_close_to_the_evidence(pca: Pca, x: Tensor) -> None:
    """The gap of a trained stochastic flow on a model whose posterior is Gaussian is small, and never negative."""
    pyro.clear_param_store()
    encoder = Encoder()
    guide = make(pca, encoder, BLOCKS["langevin"])
    pca.requires_grad_(False).eval()
    svi = SVI(pca, guide, Adam({"lr": 0.03}), Trace_ELBO(num_particles=8, vectorize_particles=True))
    truth = pca.log_evidence(x).sum()

    def gap() -> tuple[float, float]:
        with torch.no_grad():
            log_weight = guide.sample_paths(4_000, x).log_weight.sum(-1)
        return float(truth - log_weight.mean()), float(log_weight.std()) / math.sqrt(4_000)

    first, _ = gap()
    for _ in range(100):
        svi.step(x)
    last, error = gap()
    assert -4.5 * error < last < 0.2 * first


# Programs ------------------------------------------------------------------------------------------------------------


def test_mini_batches_drawn_by_the_plate(pca: Pca) -> None:
    """The model and the encoder see the same rows; the trace weight is N / B times the sum over them."""
    data = torch.randn(10, PIXELS, generator=torch.Generator().manual_seed(6), dtype=torch.float64)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), subsample_size=4) as rows:
            z = pyro.sample("z", dist.Normal(x.new_zeros(DIM), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(pca.decoder(z), NOISE).to_event(1), obs=x[rows])

    encoder = Encoder()
    guide = make(model, encoder, BLOCKS["langevin"])
    seen = set()
    for _ in range(5):
        model_trace, guide_trace = trace_pair(model, guide, data)
        rows = guide_trace.nodes["data"]["value"]
        assert torch.equal(model_trace.nodes["data"]["value"], rows)
        seen.add(tuple(rows.tolist()))
        log_w = path_weight(pca, guide, data[rows], encoder(data[rows]), guide_trace.nodes[LATENT]["value"])
        weight = model_trace.log_prob_sum() - guide_trace.log_prob_sum()
        torch.testing.assert_close(weight, 2.5 * log_w.sum(), rtol=0, atol=1e-8)
    assert len(seen) > 1


def test_mini_batches_handed_in_and_of_changing_size(pca: Pca, x: Tensor) -> None:
    """The plate only scales; the weights of a datum are those of its own evidence."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", 100, subsample_size=len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(DIM), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(pca.decoder(z), NOISE).to_event(1), obs=x)

    encoder = Encoder(subsample=False)

    guide = make(model, encoder, BLOCKS["langevin"])
    for data in (x, x[:2], x[1:2]):
        with torch.no_grad():
            check_evidence(guide.sample_paths(20_000, data).log_weight, pca.log_evidence(data))
        model_trace, guide_trace = trace_pair(model, guide, data)
        log_w = path_weight(pca, guide, data, encoder(data), guide_trace.nodes[LATENT]["value"])
        weight = model_trace.log_prob_sum() - guide_trace.log_prob_sum()
        torch.testing.assert_close(weight, 100 / len(data) * log_w.sum(), rtol=0, atol=1e-8)


def test_several_constrained_sites_and_plates_inside() -> None:
    """Per datum a Gamma-Poisson and a Beta-Bernoulli with pixels in a plate of their own, in both plate orders."""
    counts = torch.tensor([0.0, 3.0, 7.0], dtype=torch.float64)
    pixels = torch.tensor([[1.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0]], dtype=torch.float64)
    one = torch.ones((), dtype=torch.float64)

    def data_outside(counts: Tensor, pixels: Tensor) -> None:
        with pyro.plate("data", 3, dim=-2):
            rate = pyro.sample("rate", dist.Gamma(2 * one, one))
            chance = pyro.sample("chance", dist.Beta(2 * one, 2 * one))
            pyro.sample("counts", dist.Poisson(rate), obs=counts.unsqueeze(-1))
            with pyro.plate("pixels", 4, dim=-1):
                pyro.sample("pixels_", dist.Bernoulli(chance), obs=pixels)

    def data_inside(counts: Tensor, pixels: Tensor) -> None:
        with pyro.plate("data", 3, dim=-1):
            rate = pyro.sample("rate", dist.Gamma(2 * one, one))
            chance = pyro.sample("chance", dist.Beta(2 * one, 2 * one))
            pyro.sample("counts", dist.Poisson(rate), obs=counts)
            with pyro.plate("pixels", 4, dim=-2):
                pyro.sample("pixels_", dist.Bernoulli(chance), obs=pixels.T)

    hits = pixels.sum(-1)
    poisson = torch.lgamma(2 + counts) - torch.lgamma(counts + 1) - (2 + counts) * math.log(2.0)
    beta = torch.lgamma(2 + hits) + torch.lgamma(6 - hits) - torch.lgamma(8 * one) + torch.lgamma(4 * one)
    for model, shape in ((data_outside, (3, 1)), (data_inside, (3,))):
        guide = make(
            model,
            lambda counts, pixels, shape=shape: (torch.zeros(*shape, DIM, dtype=torch.float64), one),
            lambda energy, dim: [LangevinTransform(energy, dim, 0.05, max_force=10.0)],
        )
        with torch.no_grad():
            paths = guide.sample_paths(20_000, counts, pixels)
        check_evidence(paths.log_weight.reshape(20_000, 3), poisson + beta)
        sites = guide.constrain(paths.z)
        assert bool((sites["rate"] > 0).all()) and sites["chance"].shape == (20_000, *shape)
        weights, model_trace, _ = vectorized_importance_weights(
            model, guide, counts, pixels, num_samples=20_000, max_plate_nesting=2, normalized=False
        )
        check_evidence(weights.unsqueeze(-1), (poisson + beta).sum())
        assert model_trace.nodes["rate"]["value"].shape[-len(shape) :] == shape


def test_metropolis_rejects_the_right_data_at_a_wall() -> None:
    """Infinite energies with a graph: rows keep their data. Evidence P(z < wall_i), a wall for each datum."""
    wall = torch.tensor([0.0, 5.0, -0.5, 1.0], dtype=torch.float64)

    def model(wall: Tensor) -> None:
        with pyro.plate("data", 4):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
            pyro.factor("wall", torch.where(z < wall, 0.0, -math.inf))

    guide = AmortizedStochasticFlow(
        model,
        lambda wall: (wall.unsqueeze(-1) - 1.0, torch.tensor(1.0)),
        lambda energy, dim: [
            MetropolisAdjusted(RandomWalkTransform(dim, 1.0, num_steps=2), AnnealedEnergy(NormalEnergy(), energy, 0.5))
        ],
        dtype=torch.float64,
    )
    truth = torch.distributions.Normal(0.0, 1.0).cdf(wall).log()
    check_evidence(guide.sample_paths(8_000, wall).log_weight, truth)
    with torch.no_grad():
        check_evidence(guide.sample_paths(8_000, wall).log_weight, truth)


def test_consumers_of_guides(pca: Pca, x: Tensor) -> None:
    guide = make(pca, Encoder(), BLOCKS["langevin"])
    bound = -RenyiELBO(alpha=0, num_particles=50, vectorize_particles=True, max_plate_nesting=1).loss(pca, guide, x)
    assert math.isfinite(bound) and bound < float(pca.log_evidence(x).sum()) + 5.0
    draws = Predictive(pca, guide=guide, num_samples=6)(x)
    assert draws["x"].shape == (6, 3, PIXELS)
    weighted = pb.importance_sample(pca, guide, x, num_samples=5_000, seed=0)
    check_evidence(weighted.log_weights.unsqueeze(-1), pca.log_evidence(x).sum())


def test_copies_are_bound_apart(pca: Pca, x: Tensor) -> None:
    guide = make(pca, Encoder(), BLOCKS["annealed_pullback"])
    guide(x)
    other = copy.deepcopy(guide)
    other(x[:1])
    assert guide.energy(torch.zeros(3, DIM, dtype=torch.float64)).shape == (3,)
    assert not {id(p) for p in guide.parameters()} & {id(p) for p in other.parameters()}
    with torch.no_grad():
        before = guide.sample_paths(2, x, generator=torch.Generator().manual_seed(0)).log_weight
        for parameter in other.parameters():
            parameter.add_(1.0)
        after = guide.sample_paths(2, x, generator=torch.Generator().manual_seed(0)).log_weight
    assert torch.equal(before, after) and other.model is pca


def test_a_global_prior_belongs_to_no_datum(pca: Pca, x: Tensor) -> None:
    def model(x: Tensor) -> None:
        pyro.factor("weights", -pca.decoder.weight.square().sum())
        pca(x)

    energy = pb.LocalEnergy(model, x)
    z = torch.randn(5, 3, DIM, dtype=torch.float64)
    torch.testing.assert_close(energy(z), pca.energy(x, z))


# Refusals ------------------------------------------------------------------------------------------------------------


def test_programs_without_an_energy_for_each_datum_are_refused(x: Tensor) -> None:
    def shared(x: Tensor) -> None:
        pyro.sample("mu", dist.Normal(0.0, 1.0))

    def mixed(x: Tensor) -> None:
        with pyro.plate("data", 3):
            pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("other", 2):
            pyro.sample("y", dist.Normal(0.0, 1.0))

    def discrete(x: Tensor) -> None:
        with pyro.plate("data", 3):
            pyro.sample("k", dist.Bernoulli(0.5))

    def coupled(x: Tensor) -> None:
        with pyro.plate("data", 3):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z - z.mean(-1, keepdim=True), 1.0), obs=x[:, 0].float())

    def dropout(x: Tensor) -> None:
        with pyro.plate("data", 3):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(nn.functional.dropout(z), 1.0), obs=x[:, 0].float())

    for model, message in (
        (shared, "'mu' stands in no vectorised plate"),
        (mixed, "'y' stands in the plates"),
        (discrete, "'k' is discrete"),
        (coupled, "latents of another"),
        (dropout, "dropout"),
        (lambda x: None, "no latent site"),
    ):
        with pytest.raises(ModelError, match=message):
            pb.LocalEnergy(model, x)


def test_encoders_that_do_not_fit_are_refused(pca: Pca, x: Tensor) -> None:
    loc, one = torch.zeros(3, DIM, dtype=torch.float64), torch.ones((), dtype=torch.float64)
    for encoder, error, message in (
        (lambda x: loc, ShapeError, "must return"),
        (lambda x: (loc[:2], one), ShapeError, "one row a datum"),
        (lambda x: (loc, -one), ValueError, "not positive"),
        (lambda x: (loc, one), ShapeError, "without a context"),
    ):
        with pytest.raises(error, match=message):
            make(pca, encoder, BLOCKS["coupling"])(x)
    with pytest.raises(ShapeError, match="built for 3"):
        AmortizedStochasticFlow(pca, Encoder(), BLOCKS["none"], latent_dim=3)(x)
    with pytest.raises(ModelError, match="initialize"):
        make(pca, Encoder(), BLOCKS["none"]).constrain(loc)
    with pytest.raises(ShapeError, match="expected z of shape"):
        pb.LocalEnergy(pca, x)(loc[:2])
    with pytest.raises(TypeError, match="conditional transform"):
        ConditionalLayer(T.AffineTransform(0.0, 1.0))
    with pytest.raises(TypeError, match="wrap it in ConditionalLayer"):
        PullbackEnergy(lambda z: z.sum(-1), [T.conditional_planar(DIM, 3)])(loc)
