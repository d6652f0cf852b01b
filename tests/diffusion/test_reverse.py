"""The reverse process: exact weights for any model of the noised target."""

import copy
import math

import pytest
import torch
from torch import nn

import pyro_boltzmann as pb
from pyro_boltzmann.diffusion import GeometricSchedule, ReverseDiffusion, reverse_diffusion
from pyro_boltzmann.testing import check_block

MEANS = torch.tensor([-2.0, 1.5], dtype=torch.float64)
SHARES = torch.tensor([0.3, 0.7], dtype=torch.float64)
WIDTH = 0.5


def two_wells(x):
    """Energy of Z = 3 times a mixture of two normal laws on the line."""
    logs = -0.5 * ((x - MEANS.to(x)) / WIDTH).square() + SHARES.to(x).log()
    return -logs.logsumexp(-1) + 0.5 * math.log(2 * math.pi * WIDTH**2) - math.log(3.0)


class Exact:
    """The exact score and spread of the noised mixture."""

    def score_and_spread(self, x, variance):
        total = WIDTH**2 + torch.as_tensor(variance).to(x)
        logs = -0.5 * (x - MEANS.to(x)).square() / total + SHARES.to(x).log()
        w = logs.softmax(-1)
        each = MEANS.to(x) + WIDTH**2 / total * (x - MEANS.to(x))
        mean = (w * each).sum(-1, keepdim=True)
        inside = WIDTH**2 * variance / total
        spread = (w * each.square()).sum(-1, keepdim=True) - mean.square() + inside
        return (mean - x) / variance, spread / variance


class Gaussian:
    def __init__(self, scale):
        self.scale = scale

    def score_and_spread(self, x, variance):
        total = self.scale**2 + variance
        return -x / total, torch.full_like(x[..., :1], self.scale**2 / total)


class Wrong:
    def score_and_spread(self, x, variance):
        return -0.7 * x.tanh() / (1 + variance), 1.2 + 0.2 * x.sin()


class Widened(Exact):
    """Too wide a step bounds the weights; the exact variance of few and long steps gives them heavy tails."""

    def score_and_spread(self, x, variance):
        score, spread = super().score_and_spread(x, variance)
        return score, spread.clamp_min(1.0)


def log_weights(block, energy, num, prior_variance, seed=0, center=0.0):
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(num, block.dim, generator=generator, dtype=torch.float64)
    x = center + noise * prior_variance**0.5
    log_base = -0.5 * noise.square().sum(-1) - 0.5 * block.dim * math.log(2 * math.pi * prior_variance)
    result = block.double().stream(x, generator=generator)
    return -energy(result.x) + result.log_ratio - log_base


def ess(log_w):
    w = log_w.softmax(0)
    return float(1 / (w.square().sum() * len(w)))


@pytest.mark.parametrize("field", [Exact(), Wrong(), Gaussian(0.6)])
def test_it_is_a_bijection_with_its_log_determinant(field):
    check_block(ReverseDiffusion(field, 1, [4.0, 1.0, 0.1, 0.0]).double())


def test_both_directions_of_a_stream_have_the_same_ratio():
    block = ReverseDiffusion(Wrong(), 2, [4.0, 1.0, 0.0]).double()
    x = torch.randn(50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    noise = block.sample_noise(torch.Size([50]), x, torch.Generator().manual_seed(1))
    there = block.run(x, noise)
    back = block.run(there.x, there.noise, inverse=True)
    torch.testing.assert_close(back.x, x)
    torch.testing.assert_close(back.ladj, -there.ladj)
    flat = block.noise_log_prob(there.noise) - block.noise_log_prob(noise) + there.ladj

    parts = iter(noise.split(2, -1))
    block.sample_step_noise = lambda *_: (next(parts),)
    torch.testing.assert_close(block.stream(x).log_ratio, flat)


def test_an_exact_gaussian_has_equal_weights_with_any_number_of_steps():
    """The variance of the step is that of the exact posterior, the last one, to h = 0, included."""
    scale = 0.6
    for num_steps in (1, 3, 20):
        levels = GeometricSchedule(0.1, 5.0).variances(num_steps)
        block = ReverseDiffusion(Gaussian(scale), 3, levels)
        log_w = log_weights(block, lambda x: 0.5 * (x / scale).square().sum(-1), 100, float(levels[0]) + scale**2)
        truth = 1.5 * math.log(2 * math.pi * scale**2)
        torch.testing.assert_close(log_w, torch.full_like(log_w, truth), rtol=0, atol=1e-6)


def test_the_step_is_the_stated_local_formula():
    c, h, h_next = 0.8, 2.0, 0.5
    block = ReverseDiffusion(Gaussian(c), 2, [h, h_next]).double()
    _, scale, step = block._forward_kernel(torch.zeros(1, 2, dtype=torch.float64), 0)
    assert step == h - h_next
    assert float(scale[0, 0]) ** 2 == pytest.approx((h - h_next) * (h_next + c**2) / (h + c**2), rel=1e-12)


def test_matched_variances_lose_what_the_posterior_variance_keeps():
    """In six dimensions, with the exact score and 200 steps."""

    class Matched(Gaussian):
        def score_and_spread(self, x, variance):
            score, _ = super().score_and_spread(x, variance)
            return score, self.spread.expand_as(x)

    levels = GeometricSchedule(0.05, 10.0).variances(200).tolist()
    field = Matched(1.0)
    block = ReverseDiffusion(field, 6, levels)
    original = ReverseDiffusion._forward_kernel

    def matched(self, x, index):
        mean, _, step = original(self, x, index)
        return mean, torch.full_like(x, math.sqrt(step)), step

    field.spread = torch.ones(1, dtype=torch.float64)
    energy = lambda x: 0.5 * x.square().sum(-1)  # noqa: E731
    block._forward_kernel = matched.__get__(block)
    lost = ess(log_weights(block, energy, 4000, 101.0))
    kept = ess(log_weights(ReverseDiffusion(Gaussian(1.0), 6, levels), energy, 4000, 101.0))
    assert kept > 0.9999 and lost < 0.7


@pytest.mark.parametrize(("field", "num_steps"), [(Widened(), 5), (Wrong(), 4), (Gaussian(1.5), 5)])
def test_the_mean_weight_is_z_whatever_the_field(field, num_steps):
    """An exact, a wrong and a unimodal field; 4.5 standard errors where the weights have a variance."""
    levels = [16.0, 5.0, 1.5, 0.5, 0.15, 0.0][-num_steps - 1 :]
    prior = levels[0] + 4.0
    log_w = log_weights(ReverseDiffusion(field, 1, levels), two_wells, 60_000, prior)
    khat = float(pb.WeightedSamples({"x": torch.zeros(len(log_w))}, log_w).khat)
    assert khat < 0.5
    w = log_w.exp()
    assert abs(float(w.mean()) - 3.0) < 4.5 * float(w.std()) / math.sqrt(len(w))


def test_with_the_exact_score_the_elbo_rises_to_log_z_with_the_steps():
    shortfalls = []
    for num_steps in (8, 32, 128):
        levels = GeometricSchedule(0.1, 30.0).variances(num_steps)
        center = float((SHARES * MEANS).sum())
        variance = float((SHARES * MEANS.square()).sum()) - center**2 + WIDTH**2
        block = ReverseDiffusion(Exact(), 1, levels)
        log_w = log_weights(block, two_wells, 40_000, float(levels[0]) + variance, center=center)
        error = float(log_w.std()) / math.sqrt(len(log_w))
        assert float(log_w.mean()) < math.log(3.0) + 4.5 * error
        shortfalls.append(math.log(3.0) - float(log_w.mean()))
    assert shortfalls[0] > 2 * shortfalls[1] > 4 * shortfalls[2]
    assert shortfalls[2] < 0.01


def test_fields_that_break_down_cost_weight_not_exactness():
    class Broken:
        def score_and_spread(self, x, variance):
            score = torch.where(x > 0, torch.inf, torch.nan)
            return score, torch.where(x > 0, -1.0, torch.nan)

    block = ReverseDiffusion(Broken(), 1, [1.0, 0.3, 0.0]).double()
    x = torch.randn(100, 1, dtype=torch.float64)
    noise = block.sample_noise(torch.Size([100]), x)
    there = block.run(x, noise)
    back = block.run(there.x, there.noise, inverse=True)
    torch.testing.assert_close((back.x, back.noise, back.ladj), (x, noise, -there.ladj), rtol=1e-6, atol=1e-6)
    assert there.ladj.isfinite().all()


def test_the_bound_on_the_score_is_in_units_of_the_noise():
    class Steep:
        def score_and_spread(self, x, variance):
            return -1e6 * x, torch.ones_like(x)

    block = ReverseDiffusion(Steep(), 4, [4.0, 1.0], max_score=2.0).double()
    x = torch.randn(10, 4, dtype=torch.float64)
    mean, _, step = block._forward_kernel(x, 0)
    torch.testing.assert_close((mean - x).norm(dim=-1), torch.full((10,), step * 2.0, dtype=torch.float64))


def test_bounded_scores_have_gradients_at_zero_and_far_out():
    """Zero, within, beyond, and so far beyond that squares overflow: the same direction, a finite gradient."""

    class Linear:
        def __init__(self):
            self.k = torch.ones((), requires_grad=True)

        def score_and_spread(self, x, variance):
            return -self.k * x, torch.ones_like(x)

    field = Linear()
    block = ReverseDiffusion(field, 2, [4.0, 1.0], max_score=2.0)
    x = torch.tensor([[0.0, 0.0], [0.1, -0.2], [30.0, -40.0], [3e30, -4e30]])
    mean, _, step = block._forward_kernel(x, 0)
    bound = 2.0 * (2 / 4.0) ** 0.5
    expected = torch.tensor([[0.0, 0.0], [-0.1, 0.2], [-0.6 * bound, 0.8 * bound], [-0.6 * bound, 0.8 * bound]])
    torch.testing.assert_close((mean - x)[:3] / step, expected[:3], rtol=1e-5, atol=1e-5)
    (mean - x)[:3].sum().backward(retain_graph=True)
    torch.testing.assert_close(field.k.grad, torch.tensor(step * 0.1))  # of the row within the bound alone
    field.k.grad = None
    mean[3].sum().backward()
    assert field.k.grad.isfinite()


@pytest.mark.parametrize("levels", [[1.0], [1.0, 1.0], [1.0, 2.0], [1.0, -0.1], [math.inf, 0.0], [[1.0, 0.0]]])
def test_levels_that_do_not_fall_are_refused(levels):
    with pytest.raises(ValueError, match="varian"):
        ReverseDiffusion(Exact(), 1, levels)


def test_levels_travel_with_the_state_and_fields_with_the_tree():
    class Trained(nn.Module):
        def __init__(self):
            super().__init__()
            self.k = nn.Parameter(torch.ones(()))

        def score_and_spread(self, x, variance):
            return -self.k * x / (1 + variance), torch.ones_like(x) / (1 + variance)

    first = ReverseDiffusion(Trained(), 2, [9.0, 1.0, 0.0])
    assert [name for name, _ in first.named_parameters()] == ["field.k"]
    second = reverse_diffusion(Trained(), 2, GeometricSchedule(0.1, 2.0), num_steps=2)
    second.stream(torch.zeros(3, 2))
    second.load_state_dict(first.state_dict())
    assert second._levels_of(0) == (9.0, 1.0)
    third = copy.deepcopy(first)
    third.set_variances(torch.tensor([4.0, 1.0, 0.5]))
    assert first._levels_of(0) == (9.0, 1.0) and third._levels_of(1) == (1.0, 0.5)
    with pytest.raises(ValueError, match="expected 3 variances"):
        third.set_variances(torch.tensor([4.0, 1.0]))
