"""Target score matching: the right minimum, the best mixture, exact resume."""

import math

import pytest
import torch

import pyro_boltzmann as pb
from pyro_boltzmann.infer import TargetScoreMatching
from pyro_boltzmann.infer.objectives.target_score import NUM_BINS

SCALE = 0.7


def gaussian(x):
    return 0.5 * (x / SCALE).square().sum(-1)


def gaussian_draws(n=4000, seed=0):
    return SCALE * torch.randn(n, 2, generator=torch.Generator().manual_seed(seed))


def wells(x):
    return (x[..., 0].square() - 2.0).square() + 0.5 * x[..., 1].square()


def test_on_a_gaussian_the_mixture_leaves_no_variance():
    """a = c^2 / (c^2 + h) to the accuracy of its running mean, and the loss of the exact score is zero."""
    model = pb.BoltzmannModel(gaussian, 2)
    guide = pb.AutoDiffusion(model, num_steps=20)
    objective = TargetScoreMatching(4096, data=gaussian_draws(), trained_spread=False)
    torch.manual_seed(0)
    with torch.no_grad():
        objective.differentiable_loss(model, guide)
        guide.field.score_and_spread = lambda x, h: (-x / (SCALE**2 + h.unsqueeze(-1)), torch.ones_like(x))
        objective._moments = torch.zeros_like(objective._moments)
        for _ in range(200):
            loss = objective.differentiable_loss(model, guide)
    levels = guide.variances
    low, high = math.log(float(levels[-2])), math.log(float(levels[0]))
    h = (low + (high - low) * (torch.arange(NUM_BINS) + 0.5) / NUM_BINS).exp()
    torch.testing.assert_close(objective.shares, (SCALE**2 / (SCALE**2 + h)).double(), rtol=0, atol=0.03)
    # What is left is the width of a bin; the noise of either target alone would leave a loss of order one.
    assert float(loss) < 1e-2


def test_the_mixture_is_right_whatever_the_score():
    """Cov(B - A, s) vanishes given x, so that a wrong score only costs noise."""
    model = pb.BoltzmannModel(gaussian, 2)
    shares = []
    for wrong in (0.0, 2.0):
        guide = pb.AutoDiffusion(model, num_steps=20)
        objective = TargetScoreMatching(4096, data=gaussian_draws(100_000), trained_spread=False)
        torch.manual_seed(1)
        with torch.no_grad():
            objective.differentiable_loss(model, guide)
            guide.field.score_and_spread = lambda x, h, wrong=wrong: (
                -x / (SCALE**2 + h.unsqueeze(-1)) + wrong * (x / h.sqrt().unsqueeze(-1)).sin() / h.sqrt().unsqueeze(-1),
                torch.ones_like(x),
            )
            objective._moments = torch.zeros_like(objective._moments)
            for _ in range(200):
                objective.differentiable_loss(model, guide)
        shares.append(objective.shares)
    torch.testing.assert_close(shares[0], shares[1], rtol=0, atol=0.06)


def test_training_on_the_energy_alone_gives_the_right_z():
    """Two wells from the energy alone: log Z within 4.5 standard errors of quadrature, and good weights."""
    grid = torch.linspace(-6, 6, 20_001, dtype=torch.float64)
    truth = math.log(float(torch.trapezoid((-(grid.square() - 2).square()).exp(), grid))) + 0.5 * math.log(2 * math.pi)
    model = pb.BoltzmannModel(wells, 2)
    guide = pb.AutoDiffusion(model, num_steps=50)
    result = pb.fit(
        model,
        guide,
        objective=TargetScoreMatching(256, num_draws=2000),
        num_steps=250,
        learning_rate=3e-3,
        schedule="cosine",
        clip_norm=1.0,
        seed=0,
        progress=False,
    )
    assert result.evaluations.gradients > 0 and math.isnan(result.history["elbo"][-1])
    draws = pb.importance_sample(model, guide, num_samples=5000, seed=1)
    assert draws.reliable and draws.ess > 0.5
    assert abs(draws.log_normalizer - truth) < 4.5 * draws.log_normalizer_error


def test_named_and_with_data():
    model = pb.BoltzmannModel(gaussian, 2)
    guide = pb.AutoDiffusion(model, num_steps=5)
    fit = pb.fit(model, guide, objective="target_score", data=gaussian_draws(), num_steps=3, seed=0, progress=False)
    assert fit.steps == 3
    with pytest.raises(ValueError, match="weight_power"):
        pb.fit(
            model,
            guide,
            objective="target_score",
            data=pb.smc(gaussian, dim=2, num_samples=200, seed=0, progress=False),
            weight_power=0.5,
            num_steps=3,
        )


@pytest.mark.parametrize(("kind", "num_segments"), [("score", 1), ("energy", 1), ("energy", 2)])
def test_resumed_training_is_unbroken_training(tmp_path, kind, num_segments):
    def train(num_steps, checkpoint):
        torch.manual_seed(5)
        model = pb.BoltzmannModel(wells, 2)
        guide = pb.AutoDiffusion(model, num_steps=5, kind=kind, num_segments=num_segments)
        pb.fit(
            model,
            guide,
            objective=TargetScoreMatching(32, num_draws=200),
            num_steps=num_steps,
            seed=3,
            progress=False,
            checkpoint=checkpoint,
        )
        return guide.state_dict()

    whole = train(8, None)
    train(4, tmp_path / "run.safetensors")
    resumed = train(8, tmp_path / "run.safetensors")
    assert whole.keys() == resumed.keys()
    for name, tensor in whole.items():
        assert tensor.equal(resumed[name]), name


def test_what_is_refused():
    model = pb.BoltzmannModel(gaussian, 2)
    flow = pb.AutoStochasticFlow(model, lambda energy, dim: [])
    with pytest.raises(TypeError, match="AutoDiffusion"):
        TargetScoreMatching(8).differentiable_loss(model, flow)
    guide = pb.AutoDiffusion(model, num_steps=5)
    with pytest.raises(pb.exceptions.ShapeError, match=r"\(n, 2\)"):
        TargetScoreMatching(8, data=torch.zeros(10, 3)).differentiable_loss(model, guide)
    with pytest.raises(pb.exceptions.ShapeError, match="one number"):
        TargetScoreMatching(8, data=torch.zeros(10, 2), log_weights=torch.zeros(9))
    with pytest.raises(ValueError, match="num_draws"):
        TargetScoreMatching(8, num_draws=5)


def test_draws_without_a_finite_gradient_are_left_out():
    def half(x):
        return torch.where(x[..., 0] > 0, gaussian(x), torch.nan)

    model = pb.BoltzmannModel(half, 2)
    guide = pb.AutoDiffusion(model, num_steps=5)
    objective = TargetScoreMatching(64, data=gaussian_draws(500))
    torch.manual_seed(0)
    loss = objective.differentiable_loss(model, guide)
    assert loss.isfinite()
    kept = objective._rows.draw(1000).squeeze(-1).long()
    assert (objective._draws[0][kept][:, 0] > 0).all()
    with pytest.raises(pb.exceptions.EnergyError, match="none of the draws"):
        TargetScoreMatching(8, data=-gaussian_draws(50).abs()).differentiable_loss(model, guide)


def test_another_guide_gets_draws_of_its_own():
    objective = TargetScoreMatching(16, num_draws=200)
    for shift in (0.0, 50.0):
        model = pb.BoltzmannModel(lambda x, shift=shift: gaussian(x - shift), 2)
        guide = pb.AutoDiffusion(model, num_steps=5)
        torch.manual_seed(0)
        objective.smc = {"proposal": 30.0}
        objective.differentiable_loss(model, guide)
        assert guide.base_loc.mean().item() == pytest.approx(shift, abs=4.5 * SCALE / math.sqrt(400))


def test_training_on_does_not_move_the_frame():
    model = pb.BoltzmannModel(gaussian, 2)
    guide = pb.AutoDiffusion(model, num_steps=5)
    settings = {"num_steps": 2, "seed": 0, "progress": False}
    pb.fit(model, guide, objective=TargetScoreMatching(16, data=gaussian_draws(500)), **settings)
    before = guide.base_scale.clone()
    pb.fit(model, guide, objective=TargetScoreMatching(16, data=3.0 * gaussian_draws(500)), **settings)
    assert guide.base_scale.equal(before)


def test_other_data_are_another_run():
    one, other = (TargetScoreMatching(16, data=gaussian_draws(50, seed)).settings() for seed in (0, 1))
    assert one["data"] != other["data"]
