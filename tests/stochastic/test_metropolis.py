"""Metropolis tests: reversibility, walls, infos, adaptation, and which gradient is right."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import pyro.distributions.transforms as T
import pytest
import torch
from torch import Tensor

import pyro_boltzmann as pb
from pyro_boltzmann import AnnealedEnergy, NormalEnergy, catalogue
from pyro_boltzmann.stochastic import (
    LangevinTransform,
    LeapfrogTransform,
    MetropolisAdjusted,
    RandomWalkTransform,
    UnderdampedLangevinTransform,
)
from pyro_boltzmann.stochastic.noise import log_uniform

double_well = catalogue["double_well"]


def infinite(x: Tensor) -> Tensor:
    return torch.full(x.shape[:-1], math.inf, dtype=x.dtype)


@pytest.mark.parametrize("grad", [False, True])
def test_it_leaves_its_density_invariant(grad: bool) -> None:
    """Moments of exact samples after 10 steps, within 4.5 standard errors; and something moved."""
    block = MetropolisAdjusted(LangevinTransform(double_well, 2, 0.1, num_steps=10), double_well).double()
    x = double_well.sample(20_000, generator=torch.Generator().manual_seed(0)).double()
    with torch.set_grad_enabled(grad):
        result = block.stream(x)
    y = result.x.detach()
    for f in (lambda s: s[:, 0], lambda s: s[:, 1].square(), lambda s: (s[:, 0] > 0).double(), double_well):
        before, after = f(x), f(y)
        # Independent exact samples would differ by sqrt(2) more than correlated ones: a conservative bound.
        assert abs(float((after - before).mean())) < 4.5 * float(before.std()) * math.sqrt(2 / 20_000)
    assert 0.3 < result.info.acceptance < 0.95


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_acceptance_probability_is_metropolis(dtype: torch.dtype) -> None:
    """From x = 0 to y = s xi on a slope u = x: the accepted share of uphill moves is E[exp(-dH)], in closed form."""
    block = MetropolisAdjusted(RandomWalkTransform(1, 1.0), lambda x: x[..., 0]).to(dtype)
    n = 100_001
    with torch.no_grad():
        result = block.stream(torch.zeros(n, 1, dtype=dtype))
    # P(accept) = 1/2 + int_0^inf phi(z) e^{-z} dz = 1/2 + e^{1/2} Phi(-1)
    truth = 0.5 + math.exp(0.5) * 0.5 * math.erfc(1 / math.sqrt(2))
    assert abs(result.info.acceptance - truth) < 4.5 * math.sqrt(truth * (1 - truth) / n)


@pytest.mark.parametrize("dim", [1, 2, 40])
@pytest.mark.parametrize("proposal", [RandomWalkTransform, UnderdampedLangevinTransform, LeapfrogTransform])
def test_memory_used_again_holds_no_surprise(dim: int, proposal: Any) -> None:
    """An energy that is a view of its argument, over many steps: the ratio telescopes, the start is left alone."""

    def energy(x: Tensor) -> Tensor:
        return x[..., 0]

    def walled(x: Tensor) -> Tensor:
        return torch.where(x[..., 0] > -1, x[..., 0], math.inf)

    if proposal is RandomWalkTransform:
        block = MetropolisAdjusted(proposal(dim, 0.5, num_steps=12), energy)
    else:  # one underdamped step: two parts of noise of one shape
        block = MetropolisAdjusted(proposal(energy, dim, 0.5, num_steps=1, num_trajectories=12), energy)
    walls = MetropolisAdjusted(RandomWalkTransform(dim, 0.5, num_steps=12), walled)
    for one in (block, walls):
        x = torch.rand(64, dim)
        copy = x.clone()
        with torch.no_grad():
            result = one.stream(x)
        assert torch.equal(x, copy) and not torch.equal(result.x, x)
        torch.testing.assert_close(result.log_ratio, energy(result.x) - energy(x), rtol=0, atol=1e-5)
        torch.testing.assert_close(result.memo.known_value(one.energy), energy(result.x), rtol=0, atol=0)


def test_states_are_new_objects_for_energies_that_cache() -> None:
    """Pyro's transforms recognise their last state by identity: memory used again must not look like that state."""
    flow = T.affine_autoregressive(2)
    density = dist.TransformedDistribution(dist.Normal(torch.zeros(2), 1.0).to_event(1), [flow])

    def energy(x: Tensor) -> Tensor:
        return -density.log_prob(x)

    model = pb.BoltzmannModel(energy, 2)
    halves = [lambda x: 0.5 * energy(x), lambda x: 0.25 * energy(x)]  # other energies than the target's: no memo
    guide = pb.AutoStochasticFlow(
        model, lambda _, dim: [MetropolisAdjusted(RandomWalkTransform(dim, 1.0, num_steps=4), half) for half in halves]
    )
    with torch.no_grad():
        paths = guide.sample_paths(500, generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(paths.energy, energy(paths.z.clone()), rtol=0, atol=1e-5)
        block = guide.path.blocks[0]
        state = torch.randn(500, 2)
        first = block.stream(state)
        second = guide.path.blocks[1].stream(first.x)
        for result, start, half in ((first, state, halves[0]), (second, first.x, halves[1])):
            expected = half(result.x.clone()) - half(start.clone())
            torch.testing.assert_close(result.log_ratio, expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_any_batch_and_any_stride() -> None:
    def energy(x: Tensor) -> Tensor:
        return 0.5 * x.square().sum(-1)

    for shape in ((2,), (1, 2), (3, 4, 2), (0, 2)):
        result = MetropolisAdjusted(RandomWalkTransform(2, 0.5, num_steps=4), energy).stream(torch.ones(shape))
        assert result.x.shape == shape
        torch.testing.assert_close(result.log_ratio, energy(result.x) - energy(torch.ones(shape)))

    class Together(RandomWalkTransform):
        """All particles jump to one place: a proposal whose states share memory (no valid one, but no crash)."""

        def stream_step(self, x: Any, noise: Any, memo: Any, index: int, *, inverse: bool = False) -> Any:
            y, *rest = super().stream_step(x, noise, memo, index, inverse=inverse)
            return y[:1].expand(y.shape), *rest

    result = MetropolisAdjusted(Together(2, 0.5, num_steps=4), energy).stream(torch.ones(5, 2))
    torch.testing.assert_close(result.log_ratio, energy(result.x) - energy(torch.ones(5, 2)))


@pytest.mark.parametrize("count", [1, 3, 100_000])
def test_uniform_logarithms(count: int) -> None:
    """-log U is Exp(1): mean, second moment and tail within 4.5 standard errors; from torch's generator."""
    draws = [log_uniform(torch.Size([count]), torch.empty(0), torch.Generator().manual_seed(7)) for _ in range(2)]
    assert draws[0].shape == (count,) and torch.equal(*draws)
    values = -draws[0].double()
    assert bool((values >= 0).all())
    if count > 1000:
        for f, mean, variance in (
            (values, 1.0, 1.0),
            (values.square(), 2.0, 20.0),
            ((values > 5).double(), math.exp(-5), math.exp(-5)),
        ):
            assert abs(float(f.mean()) - mean) < 4.5 * math.sqrt(variance / count)
        neighbours = (values[::2] - 1) * (values[1::2] - 1)  # the two halves of the same 64 bits
        assert abs(float(neighbours.mean())) < 4.5 / math.sqrt(count / 2)


@pytest.mark.parametrize("grad", [False, True])
def test_states_outside_the_support_stay_and_weigh_nothing(grad: bool) -> None:
    def wall(x: Tensor) -> Tensor:
        return torch.where(x[..., 0] > 0, x.square().sum(-1), math.inf)

    block = MetropolisAdjusted(RandomWalkTransform(2, 1.0, num_steps=20), wall).double()
    x = torch.tensor([[-1.0, 0.0], [0.01, 0.0]], dtype=torch.float64).repeat(50, 1)
    with torch.set_grad_enabled(grad):
        result = block.stream(x)
    outside = x[:, 0] < 0
    assert torch.equal(result.x[outside], x[outside])
    assert bool((result.log_ratio[outside] == 0).all())
    assert bool((result.x[~outside, 0] > 0).all())
    assert bool(result.log_ratio.isfinite().all())
    torch.testing.assert_close(result.log_ratio[~outside], wall(result.x)[~outside] - wall(x)[~outside])
    assert int(result.info.nonfinite) >= 50 * 20


def test_nan_proposals_are_rejected() -> None:
    def hole(x: Tensor) -> Tensor:
        return torch.where(x[..., 0].abs() < 1, x.square().sum(-1), math.nan)

    block = MetropolisAdjusted(RandomWalkTransform(1, 2.0, num_steps=10), hole)
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            result = block.stream(torch.zeros(100, 1))
        assert bool((result.x.abs() < 1).all()) and bool(result.log_ratio.isfinite().all())


@pytest.mark.parametrize("learnable", [False, True])
@pytest.mark.parametrize("grad", [False, True])
def test_an_annealed_energy_at_zero_never_sees_an_infinite_target(learnable: bool, grad: bool) -> None:
    """At lambda = 0 the block samples the reference alone: 0 * inf never appears, in values or in gradients."""
    reference = NormalEnergy()
    energy = AnnealedEnergy(reference, infinite, 0.5 if learnable else 0.0, learnable=learnable)
    if learnable:
        with torch.no_grad():
            energy.logit.fill_(-1000.0)  # sigmoid underflows to exactly zero
    blocks = [
        MetropolisAdjusted(RandomWalkTransform(2, 1.0, num_steps=3), energy),
        LangevinTransform(energy, 2, 0.1, num_steps=3),
        MetropolisAdjusted(LeapfrogTransform(energy, 2, 0.5, num_steps=3), energy),
    ]
    if learnable:
        blocks = blocks[:1]  # a force asks the infinite target for a gradient that it does not have
    x = torch.randn(500, 2, dtype=torch.float64)
    for block in blocks:
        with torch.set_grad_enabled(grad):
            result = block.double().stream(x)
        assert bool(result.x.isfinite().all()) and bool(result.log_ratio.isfinite().all())
        assert float((result.x - x).detach().abs().max()) > 0.1
        if isinstance(block, MetropolisAdjusted):
            torch.testing.assert_close(result.log_ratio, reference(result.x) - reference(x), rtol=0, atol=1e-12)


def test_info_counts() -> None:
    block = MetropolisAdjusted(RandomWalkTransform(2, 0.5, num_steps=7), double_well)
    x = double_well.sample(100).float()
    joint = torch.cat([x, block.sample_noise(torch.Size((100,)), x)], -1)
    with torch.no_grad():
        info = block.run(x, joint[:, 2:]).info
    assert info.total == 700 and info.accepted_by_step.shape == (7,)
    assert int(info.accepted_by_step.sum()) == int(info.accepted)
    assert info.acceptance == float(info.accepted) / 700
    assert block.stream(x).info.to_dict().keys() == {"acceptance", "divergences", "nonfinite", "moves"}
    assert LangevinTransform(double_well, 2).stream(x).info.acceptance is None


def test_divergences_are_counted() -> None:
    block = MetropolisAdjusted(LeapfrogTransform(double_well, 2, 0.7, num_steps=3), double_well)
    with torch.no_grad():
        assert int(block.stream(3 * torch.randn(100, 2)).info.divergences) > 10


@pytest.mark.parametrize("per_step", [False, True])
@pytest.mark.parametrize("start", [0.01, 5.0])
def test_adaptation_reaches_the_target_acceptance(per_step: bool, start: float) -> None:
    scale: Any = [start] * 3 if per_step else start
    block = MetropolisAdjusted(
        RandomWalkTransform(2, scale, num_steps=3), double_well, adapt=True, target_acceptance=0.5
    )
    x = double_well.sample(2000).float()
    with torch.no_grad():
        for _ in range(100):
            result = block.stream(x)
            block.adapt_scale(result.info, rate=0.3)
        final = block.stream(x).info
    assert abs(final.acceptance - 0.5) < 0.04
    if per_step:
        assert bool(((final.accepted_by_step / 2000 - 0.5).abs() < 0.06).all())


def test_a_proposal_without_a_scale_cannot_be_adapted() -> None:
    proposal = RandomWalkTransform(2)
    proposal.scale_name = "width"
    with pytest.raises(ValueError, match="adapt=True needs a proposal with a scale"):
        MetropolisAdjusted(proposal, double_well, adapt=True)


# Gradients ---------------------------------------------------------------------------------------------------------


def both_branches(step: Tensor, shift: Tensor, z: Tensor, xi: Tensor) -> Tensor:
    r"""E over accept and reject of -log_weight, without the constant: smooth in all parameters.

    Section 5 of methods/stochastic_normalizing_flows.md: one Metropolis step at lambda = 0.5 on the double well, from
    a standard normal base.
    """
    x = z + shift
    y = x + step * xi

    def u_half(v: Tensor) -> Tensor:
        return 0.5 * (0.5 * v.square().sum(-1)) + 0.5 * double_well(v)

    change = u_half(y) - u_half(x)
    accept = (-change.clamp_min(0.0)).exp()
    return accept * (double_well(y) - change) + (1 - accept) * double_well(x)


def truth(step: float, shift: float, n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Mean and standard error of d loss / d (log step, shift of the first coordinate)."""
    generator = torch.Generator().manual_seed(seed)
    z, xi = (torch.randn(n, 2, dtype=torch.float64, generator=generator) for _ in range(2))
    # One copy of the parameters a particle gives per-particle gradients in one backward pass.
    log_step = torch.full((n, 1), math.log(step), dtype=torch.float64, requires_grad=True)
    by = torch.full((n, 1), shift, dtype=torch.float64, requires_grad=True)
    loss = both_branches(log_step.exp(), torch.cat([by, torch.zeros_like(by)], -1), z, xi)
    gradients = torch.cat(torch.autograd.grad(loss.sum(), [log_step, by]), -1)
    return gradients.mean(0), gradients.std(0) / math.sqrt(n)


def estimated(kind: str, step: float, shift: float, repeats: int, n: int) -> tuple[Tensor, Tensor]:
    """The same from ``ReverseKL``: mean and standard error over independent batches."""
    import pyro.distributions.transforms as T
    from torch import nn

    class Shift(T.AffineTransform):
        pass

    by = nn.Parameter(torch.tensor([shift, 0.0], dtype=torch.float64))
    model = pb.BoltzmannModel(double_well, 2, dtype=torch.float64)
    guide = pb.AutoStochasticFlow(
        model,
        lambda energy, dim: [
            Shift(by, 1.0),
            MetropolisAdjusted(
                RandomWalkTransform(2, step, learnable=True),
                AnnealedEnergy(NormalEnergy(), energy, 0.5),
                gradient=kind,
            ),
        ],
        dtype=torch.float64,
    )
    log_step = guide.path.blocks[1].proposal.log_scale
    objective = pb.ReverseKL(num_particles=n)
    rows = []
    for _ in range(repeats):
        loss = objective.differentiable_loss(model, guide)
        d_step, d_shift = torch.autograd.grad(loss, [log_step, by])
        rows.append(torch.stack([d_step, d_shift[0]]))
    stacked = torch.stack(rows)
    return stacked.mean(0), stacked.std(0) / math.sqrt(repeats)


@pytest.mark.parametrize(("step", "shift"), [(0.25, 0.0), (1.0, 0.3)])
def test_the_score_form_is_unbiased_and_the_pathwise_form_is_not(step: float, shift: float) -> None:
    """Against the truth that averages both branches: score within 4.5 standard errors, pathwise far outside."""
    exact, exact_error = truth(step, shift, 400_000, 11)
    score, score_error = estimated("score", step, shift, 40, 5_000)
    pathwise, pathwise_error = estimated("pathwise", step, shift, 40, 5_000)
    error = (exact_error.square() + score_error.square()).sqrt()
    assert bool(((score - exact).abs() < 4.5 * error).all()), (score, exact, error)
    error = (exact_error.square() + pathwise_error.square()).sqrt()
    assert float(((pathwise - exact).abs() / error)[0]) > 10, (pathwise, exact, error)


def test_both_gradients_agree_where_the_block_energy_is_the_target() -> None:
    """There the weight is continuous across the boundary, and the block adds no gradient at all."""
    model = pb.BoltzmannModel(double_well, 2, dtype=torch.float64)
    for kind in ("score", "pathwise"):
        guide = pb.AutoStochasticFlow(
            model,
            lambda energy, dim, kind=kind: [
                MetropolisAdjusted(RandomWalkTransform(2, 0.5, learnable=True), energy, gradient=kind)
            ],
            dtype=torch.float64,
        )
        loss = pb.ReverseKL(num_particles=100).differentiable_loss(model, guide)
        (gradient,) = torch.autograd.grad(loss, [guide.path.blocks[0].proposal.log_scale])
        if kind == "pathwise":
            assert abs(float(gradient)) < 1e-12


@pytest.mark.parametrize("kind", ["score", "pathwise"])
def test_training_beside_a_wall_has_finite_gradients(kind: str) -> None:
    """Paths that start beyond the wall weigh nothing; they must not spoil the loss, the baseline or a gradient."""

    def wall(x: Tensor) -> Tensor:
        return torch.where(x[..., 0] > 0, x.square().sum(-1), math.inf)

    model = pb.BoltzmannModel(wall, 2)
    guide = pb.AutoStochasticFlow(
        model,
        lambda energy, dim: [
            LangevinTransform(energy, dim, 0.05, learnable=True),
            MetropolisAdjusted(
                RandomWalkTransform(dim, 0.5, num_steps=2, learnable=True),
                AnnealedEnergy(NormalEnergy(), energy, 0.5, learnable=True),
                gradient=kind,
            ),
        ],
    )
    loss = pb.ReverseKL(num_particles=200).differentiable_loss(model, guide)
    loss.backward()
    assert math.isfinite(float(loss.detach()))
    for name, p in guide.named_parameters():
        assert p.grad is not None and math.isfinite(float(p.grad)) and float(p.grad) != 0, name


@pytest.mark.parametrize("with_graph", [False, True])
def test_acceptance_by_step_keeps_the_order_of_steps_backwards(with_graph: bool) -> None:
    """A tiny first step is nearly always accepted, a huge second one hardly ever, whichever way the path runs."""
    torch.manual_seed(0)
    walk = RandomWalkTransform(2, scale=[1e-3, 50.0], num_steps=2)
    block = MetropolisAdjusted(walk, lambda x: 0.5 * x.square().sum(-1))
    for inverse in (False, True):
        with torch.set_grad_enabled(with_graph):
            info = block.stream(torch.randn(500, 2), inverse=inverse).info
        assert info.accepted_by_step is not None
        first, second = info.accepted_by_step.tolist()
        assert first > 450 and second < 50
