"""Target score matching: the right minimum, the best mixture, exact resume."""

import math
import time

import pytest
import torch

import pyro_boltzmann as pb
from pyro_boltzmann.infer import TargetScoreMatching
from pyro_boltzmann.infer.objectives.target_score import MEMORY, NUM_BINS

SCALE = 0.7
LOG_Z = math.log(2 * math.pi * SCALE**2)


def gaussian(x):
    return 0.5 * (x / SCALE).square().sum(-1)


def gaussian_draws(n=4000, seed=0):
    return SCALE * torch.randn(n, 2, generator=torch.Generator().manual_seed(seed))


def wells(x):
    return (x[..., 0].square() - 2.0).square() + 0.5 * x[..., 1].square()


def test_on_a_gaussian_the_mixture_leaves_no_variance():
    """B - s = c^2 / (c^2 + h) (B - A) at every draw, so the share of a bin is a mean of these over the bin, and lies
    between those of its ends without any error; and the loss of the exact score is zero."""
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
    ends = (low + (high - low) * torch.arange(NUM_BINS + 1) / NUM_BINS).double().exp()
    least_most = (SCALE**2 / (SCALE**2 + ends)).unfold(0, 2, 1)
    assert (objective.shares < least_most[:, 0] + 1e-5).all() and (objective.shares > least_most[:, 1] - 1e-5).all()
    # What is left is the width of a bin; the noise of either target alone would leave a loss of order one.
    assert float(loss) < 1e-2


def test_the_mixture_is_right_whatever_the_score():
    """Cov(B - A, s) vanishes given x, so that a wrong score only costs noise: each share differs from that with the
    exact score, at the same draws, by sum w e / sum w |B - A|^2 with e = h (s - s').(B - A) of mean zero and w the
    running mean's weights, within 4.5 times sqrt(sum w^2 e^2) / sum w |B - A|^2."""
    model = pb.BoltzmannModel(gaussian, 2)
    shares, seen = [], []
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
            mixture, moments = objective._mixture, []

            def watched(bins, residual, difference, h, mixture=mixture, moments=moments):
                moments.append((bins, (residual * difference).sum(-1) * h[:, 0], difference.square().sum(-1) * h[:, 0]))
                return mixture(bins, residual, difference, h)

            objective._mixture = watched
            for _ in range(200):
                objective.differentiable_loss(model, guide)
        shares.append(objective.shares)
        seen.append(moments)
    square, total = torch.zeros(2, NUM_BINS, dtype=torch.float64)
    for age, ((bins, exact, norm), (_, found, _)) in enumerate(zip(*[each[::-1] for each in seen], strict=True)):
        square.index_add_(0, bins, (MEMORY**age * (found - exact).double()).square())
        total.index_add_(0, bins, MEMORY**age * norm.double())
    assert ((shares[0] - shares[1]).abs() < 4.5 * square.sqrt() / total).all()


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


def test_the_teacher_can_be_asked():
    model = pb.BoltzmannModel(gaussian, 2)
    guide = pb.AutoDiffusion(model, num_steps=5)
    objective = TargetScoreMatching(16, num_draws=1000)
    assert objective.teacher is None
    pb.fit(model, guide, objective=objective, num_steps=2, seed=0, progress=False)
    teacher = objective.teacher
    assert teacher.info["z"].equal(objective._draws[0])
    assert sum(teacher.info["smc"]["num_roots"]) >= 100
    assert abs(teacher.log_normalizer - LOG_Z) < 4.5 * teacher.log_normalizer_error
    pb.fit(
        model, guide, objective=TargetScoreMatching(16, data=gaussian_draws(500)), num_steps=1, seed=0, progress=False
    )
    objective.begin()
    assert objective.teacher is None


def test_few_roots_of_the_teacher_are_told_with_advice():
    """A proposal of a narrow box in the rim of a wide target, and hardly any moves."""
    model = pb.BoltzmannModel(lambda x: 0.5 * (x - 30.0).square().sum(-1), 2)
    guide = pb.AutoDiffusion(model, num_steps=5)
    objective = TargetScoreMatching(
        16, num_draws=2000, smc={"kernel": "rwm", "num_moves": 1, "max_moves": 1, "resampler": "multinomial"}
    )
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match=r"from only \d+ particles.*log Z is .*num_draws=.*num_moves.*wider proposal"):
        objective.differentiable_loss(model, guide)
    assert sum(objective.teacher.info["smc"]["num_roots"]) < 100


def test_the_time_of_the_teacher_counts(tmp_path):
    def slow(x):
        time.sleep(0.02)
        return gaussian(x - 40.0)

    model = pb.BoltzmannModel(slow, 2)
    guide = pb.AutoDiffusion(model, num_steps=5)
    objective = TargetScoreMatching(16, num_draws=100)
    start = time.perf_counter()
    with pytest.raises(pb.exceptions.OutOfTimeError, match=r"num_draws=100.*data=objective.teacher"):
        pb.fit(model, guide, objective=objective, num_steps=2, seed=0, progress=False, max_seconds=0.2)
    hurried = time.perf_counter() - start
    assert objective.deadline is None and len(objective.teacher) == 100
    # To the end of one temperature, and one more.
    whole = len(objective.teacher.info["smc"]["positions"])
    assert whole < 5 and hurried < 20.0
    result = pb.fit(model, guide, data=objective.teacher, objective="target_score", num_steps=1, progress=False)
    assert result.steps == 1


def test_the_teacher_draws_where_the_guide_lives(monkeypatch):
    model = pb.BoltzmannModel(gaussian, 2)
    guide = pb.AutoDiffusion(model, num_steps=5)
    seen = []

    def draws(*args, **settings):
        seen.append(torch.randn(1).device)
        raise InterruptedError

    monkeypatch.setattr("pyro_boltzmann.infer.tempering.smc", draws)
    # Tensors are made elsewhere unless the guide's device is asked for.
    with torch.device("meta"), pytest.raises(InterruptedError):
        TargetScoreMatching(16)._teach(model, guide, (), {})
    assert seen == [guide.base_loc.device]


def test_the_excess_of_the_loss_is_the_divergence_of_the_processes():
    """KL(exact process, learned process) = d/2 times the excess over the exact score's loss, for each unit of log h.

    The exact process is the noising of exact draws, along which the mean log weight is log Z + KL (EUBO). 500 steps
    leave a discretisation error of a few per cent."""
    model = pb.BoltzmannModel(gaussian, 2)
    frame = pb.Frame(torch.zeros(2), torch.full((2,), SCALE), SCALE)
    draws = gaussian_draws(20_000)
    losses, divergences = [], []
    for wrong in (0.0, 0.4):
        guide = pb.AutoDiffusion(model, num_steps=500, frame=frame)

        def exact(x, h, wrong=wrong):
            h = torch.as_tensor(h, dtype=x.dtype).unsqueeze(-1)
            score = -(1.0 + wrong) * x / (SCALE**2 + h)
            return score, (SCALE**2 / (SCALE**2 + h)).expand_as(x)

        guide.field.score_and_spread = exact
        guide.is_placed.fill_(True)
        objective = TargetScoreMatching(20_000, data=draws, trained_spread=False)
        torch.manual_seed(0)
        with torch.no_grad():
            losses.append(sum(float(objective.differentiable_loss(model, guide)) for _ in range(20)) / 20)
            divergences.append(float(guide.reverse_paths(draws[:2000]).log_weight.mean()) - LOG_Z)
    h = guide.variances
    expected = 0.5 * 2 * (losses[1] - losses[0]) * math.log(float(h[0] / h[-2]))
    assert abs(divergences[0]) < 1e-3
    assert divergences[1] == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize(
    "objective",
    [
        lambda: TargetScoreMatching(64, data=gaussian_draws(500)),
        lambda: pb.EnDEM(16, num_noise=8, num_refresh=50),
    ],
)
def test_moves_are_adapted_after_a_training_without_paths(objective, tmp_path):
    """To the acceptance that they aim at, from steps that fit the noise; the training is not touched."""

    def train(num_steps=3, adapt_rate=0.05, checkpoint=None):
        torch.manual_seed(0)
        model = pb.BoltzmannModel(gaussian, 2)
        guide = pb.AutoDiffusion(model, kind="energy", num_steps=4, num_segments=2, num_moves=1)
        settings = {"seed": 1, "progress": False, "num_particles": 128, "adapt_rate": adapt_rate}
        run = pb.fit(model, guide, objective=objective(), num_steps=num_steps, checkpoint=checkpoint, **settings)
        draws = pb.importance_sample(model, guide, num_samples=2000, seed=0)
        state, rates = guide.state_dict(), [b["acceptance"] for b in draws.info["blocks"] if b and b["acceptance"]]
        moves = {name for name in state if "step_size" in name}
        return state, moves, rates, run.evaluations.values

    state, moves, rates, spent = train()
    untouched, _, before, spent_before = train(adapt_rate=0.0)
    # 4.5 standard errors of 2000 tests that accept so often; before, the rate was another by as much at least.
    error = 4.5 * math.sqrt(0.651 * 0.349 / 2000)
    assert rates == pytest.approx([0.651], abs=error) and before != pytest.approx(rates, abs=2 * error)
    assert all(tensor.equal(untouched[name]) for name, tensor in state.items() if name not in moves)
    assert spent > spent_before
    train(2, checkpoint=tmp_path / "run.safetensors")
    resumed = train(3, checkpoint=tmp_path / "run.safetensors")[0]
    assert all(tensor.equal(resumed[name]) for name, tensor in state.items())
