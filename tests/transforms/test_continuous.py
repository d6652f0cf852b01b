"""Continuous flows against closed forms: solvers, divergences, gradients, errors, and what goes wrong loudly."""

from __future__ import annotations

import copy
import math
import pickle
import warnings
import weakref

import pytest
import torch
from torch import Tensor, nn

from pyro_boltzmann.exceptions import ShapeError, SolverError
from pyro_boltzmann.testing import check_equivariance, check_gradients, check_invariance, check_ladj, check_shapes
from pyro_boltzmann.transforms import (
    ContinuousTransform,
    Hutchinson,
    KernelFlow,
    MLPField,
    NetworkField,
    ParticleSymmetry,
    VelocityField,
    exact_divergence,
    hutchinson_divergence,
)
from pyro_boltzmann.transforms.continuous import solvers
from tests.diffusion.networks_at_random import at_random

SIGMAS = 4.5  # two-sided false-alarm rate 7e-6
MATRIX = torch.tensor([[-0.5, 0.8, 0.1], [-0.3, 0.4, 0.9], [0.2, -0.7, 0.6]], dtype=torch.float64)


class Linear(VelocityField):
    """v = A x, whose flow is the matrix exponential."""

    def __init__(self, matrix: Tensor = MATRIX) -> None:
        super().__init__()
        self.matrix = nn.Parameter(matrix.clone())

    def forward(self, t, x):
        return x @ self.matrix.mT

    def velocity_and_divergence(self, t, x):
        return self(t, x), self.matrix.trace().expand(x.shape[:-1])


class Swirl(NetworkField):
    """A smooth field of position and time, far from linear."""

    def __init__(self) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(1.3, dtype=torch.float64))

    def forward(self, t, x):
        radius = 1.0 + x.square().sum(-1, keepdim=True)
        turned = torch.stack([-x[..., 1], x[..., 0]], -1)
        return self.rate * (turned * (1.0 + t) / radius + torch.sin(2.0 * x) * math.cos(2.0 * float(t)))


class Steep(NetworkField):
    """v = -k x far out: a contraction, but explicit steps longer than 2.8 / k explode."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, t, x):
        return torch.where(x.norm(dim=-1, keepdim=True) > 1.0, -self.rate, -1.0) * x


def points(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# Closed forms --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("solver", "divergence"),
    [("dto", "exact"), ("dto", "autograd"), ("dto", "jacobian"), ("otd", "exact"), ("otd", "autograd")],
)
def test_linear_field_is_the_matrix_exponential(solver, divergence):
    transform = ContinuousTransform(Linear(), 3, 40, solver=solver, divergence=divergence, rtol=1e-9, atol=1e-9)
    x = points(2, 5, 3)
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            y, ladj = transform.call_and_ladj(x)
            torch.testing.assert_close(y.detach(), x @ torch.matrix_exp(MATRIX).mT, rtol=1e-7, atol=1e-7)
            torch.testing.assert_close(ladj.detach(), MATRIX.trace().expand(2, 5), rtol=1e-7, atol=1e-7)
            back, ladj_back = transform.inverse_and_ladj(y)
            torch.testing.assert_close(back.detach(), x, rtol=1e-7, atol=1e-7)
            torch.testing.assert_close(ladj_back.detach(), -MATRIX.trace().expand(2, 5), rtol=1e-7, atol=1e-7)


def test_field_without_closed_form_has_the_trace_of_its_jacobian():
    field, x = Swirl(), points(7, 2)
    velocity, divergence = field.velocity_and_divergence(0.3, x)
    torch.testing.assert_close(velocity, field(0.3, x))
    truth = [torch.autograd.functional.jacobian(lambda x: field(0.3, x), row).trace() for row in x]
    torch.testing.assert_close(divergence, torch.stack(truth), rtol=1e-12, atol=1e-12)


def test_field_that_does_not_depend_on_the_point_has_no_divergence():
    bias = torch.ones(2, dtype=torch.float64, requires_grad=True)
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            x = points(4, 2)
            assert exact_divergence(torch.ones_like, x)[1].equal(torch.zeros(4, dtype=torch.float64))
            assert exact_divergence(lambda x: bias.expand(x.shape), x)[1].count_nonzero() == 0
            noise = torch.ones(1, 4, 2, dtype=torch.float64)
            assert hutchinson_divergence(torch.ones_like, x, noise)[1].count_nonzero() == 0


@pytest.mark.parametrize("method", ["euler", "midpoint", "rk4"])
def test_jacobian_is_exact_for_any_number_of_steps(method):
    """Each direction's log-determinant against autograd's, for steps so coarse that the divergence's is far off."""
    transform = ContinuousTransform(Swirl(), 2, 4, method=method, divergence="jacobian")
    check_ladj(transform, points(4, 2), tolerance=1e-12)
    x = points(4, 2)
    torch.testing.assert_close(transform.call_and_ladj(x)[1], transform.discrete_log_det(x), rtol=1e-12, atol=1e-12)
    approximate = ContinuousTransform(Swirl(), 2, 4, method=method).call_and_ladj(x)[1]
    assert (approximate - transform.discrete_log_det(x)).abs().max() > 1e-4


@pytest.mark.parametrize(("method", "order", "coarse"), [("euler", 1, 64), ("midpoint", 2, 32), ("rk4", 4, 16)])
def test_errors_fall_with_the_order_of_the_method(method, order, coarse):
    """State, log-determinant, and the distance of the latter to the log-determinant of the discrete map."""
    x = points(20, 2)
    with torch.no_grad():
        truth = ContinuousTransform(Swirl(), 2, 400).call_and_ladj(x)
    errors = []
    for num_steps in (coarse, 2 * coarse):
        transform = ContinuousTransform(Swirl(), 2, num_steps, method=method)
        with torch.no_grad():
            y, ladj = transform.call_and_ladj(x)
            gap = ladj - transform.discrete_log_det(x)
        errors.append([float(e.square().mean().sqrt()) for e in (y - truth[0], ladj - truth[1], gap)])
    rates = [math.log2(first / second) for first, second in zip(*errors, strict=True)]
    assert all(abs(rate - order) < 0.35 for rate in rates), rates


def test_density_integrates_to_one():
    field = at_random(MLPField(2, width=16, depth=1), seed=4).double()
    transform = ContinuousTransform(field, 2, 10)
    x = 2.5 * points(4000, 2)
    with torch.no_grad():
        z, ladj = transform.inverse_and_ladj(x)
        log_q = -0.5 * z.square().sum(-1) - math.log(2 * math.pi) + ladj
        log_p = -0.5 * (x / 2.5).square().sum(-1) - math.log(2 * math.pi * 2.5**2)
        assert ladj.std() > 0.1  # the flow does something
    weights = (log_q - log_p).exp()
    assert abs(weights.mean() - 1) < SIGMAS * weights.std() / math.sqrt(len(weights))


# Gradients -----------------------------------------------------------------------------------------------------------


def gradients(transform: ContinuousTransform, x: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    y, ladj = transform.call_and_ladj(x)
    loss = (y.square().sum(-1) - ladj).sum()
    return list(torch.autograd.grad(loss, [x, *transform.field.parameters()]))


@pytest.mark.parametrize("divergence", ["exact", "jacobian", Hutchinson(seed=3)])
def test_checkpointed_gradients_are_the_same(divergence):
    settings = {"num_steps": 4, "divergence": divergence}
    field = at_random(MLPField(2, width=8, depth=1)).double()
    plain = gradients(ContinuousTransform(field, 2, **settings), points(6, 2))
    again = gradients(ContinuousTransform(field, 2, checkpointed=True, **settings), points(6, 2))
    for first, second in zip(plain, again, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-12, atol=1e-12)


def test_checkpoints_keep_little():
    """One state a step, where a graph keeps hundreds of numbers for each of its own."""
    field, x, num_steps = MLPField(2, width=64).double(), points(50, 2), 4
    own = {parameter.data_ptr() for parameter in field.parameters()}

    class Kept:
        def __init__(self, tensor: Tensor) -> None:
            self.tensor = tensor

    def kept(**settings) -> int:
        alive: weakref.WeakSet[Kept] = weakref.WeakSet()

        def pack(tensor: Tensor) -> Kept:
            alive.add(one := Kept(tensor))
            return one

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda one: one.tensor):
            result = ContinuousTransform(field, 2, num_steps, **settings).call_and_ladj(x)
        assert result[1].requires_grad
        return sum(one.tensor.numel() for one in alive if one.tensor.data_ptr() not in own)

    assert kept(checkpointed=True) == num_steps * 50 * (2 + 1)
    assert kept() > 100 * num_steps * 50 * (2 + 1)


def test_gradient_is_that_of_the_steps_written_out():
    field, x, n = Swirl(), points(5, 2).requires_grad_(), 3
    y, total = x, torch.zeros(5, dtype=torch.float64)
    for k in range(n):
        h, t = 1 / n, k / n
        v1, d1 = field.velocity_and_divergence(t, y)
        v2, d2 = field.velocity_and_divergence(t + h / 2, y + h / 2 * v1)
        v3, d3 = field.velocity_and_divergence(t + h / 2, y + h / 2 * v2)
        v4, d4 = field.velocity_and_divergence(t + h, y + h * v3)
        y, total = y + h / 6 * (v1 + 2 * v2 + 2 * v3 + v4), total + h / 6 * (d1 + 2 * d2 + 2 * d3 + d4)
    truth = torch.autograd.grad((y.square().sum(-1) - total).sum(), [x, field.rate])
    for got, expected in zip(gradients(ContinuousTransform(field, 2, n), x.detach()), truth, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_adjoint_gradient_is_the_limit_of_the_discrete_one():
    x = points(5, 2)
    fine = gradients(ContinuousTransform(Swirl(), 2, 100), x)
    adjoint = gradients(ContinuousTransform(Swirl(), 2, solver="otd", rtol=1e-8, atol=1e-8), x)
    for got, expected in zip(adjoint, fine, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_every_parameter_receives_a_gradient():
    assert check_gradients(ContinuousTransform(at_random(MLPField(2, width=8)), 2, 3)) > 0
    assert check_gradients(ContinuousTransform(Swirl(), 2, 3)) > 0


def test_no_graph_is_left_without_gradients():
    with torch.no_grad():
        for divergence in ("exact", "autograd", "jacobian"):
            y, ladj = ContinuousTransform(Swirl(), 2, 2, divergence=divergence).call_and_ladj(points(3, 2))
            assert not y.requires_grad and not ladj.requires_grad


# Hutchinson ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", ["rademacher", "normal"])
def test_estimated_log_determinant_is_unbiased(noise):
    """Of a field with a closed form, at 4000 equal rows with noise of their own."""
    transform = ContinuousTransform(Linear(), 3, 4, divergence=Hutchinson(noise))
    torch.manual_seed(1)
    estimates = transform.call_and_ladj(points(1, 3).expand(4000, 3))[1].detach()
    assert estimates.std() > 0.3
    assert abs(estimates.mean() - MATRIX.trace()) < SIGMAS * estimates.std() / math.sqrt(4000)


def test_noise_stays_the_same_along_a_trajectory():
    """So a linear field's estimate is the quadratic form of that noise."""
    law = Hutchinson(num_probes=2, seed=5)
    x = points(6, 3)
    noise = law.draw(x)
    estimate = ContinuousTransform(Linear(), 3, 4, divergence=law).call_and_ladj(x)[1]
    truth = torch.einsum("pni,ij,pnj->n", noise, MATRIX, noise) / 2
    torch.testing.assert_close(estimate.detach(), truth)


def test_noise_is_fresh_for_each_solve_and_fits_any_batch():
    """The published code kept one vector until it was reset by hand: every evaluation reused it, and another batch size
    failed."""
    transform = ContinuousTransform(Linear(), 3, 2, divergence="hutchinson")
    first, second = (transform.call_and_ladj(points(50, 3))[1] for _ in range(2))
    assert not torch.equal(first, second)
    assert transform.call_and_ladj(points(7, 3))[1].shape == (7,)
    assert transform.call_and_ladj(points(2, 7, 3))[1].shape == (2, 7)


def test_weights_are_never_made_of_noise():
    transform = ContinuousTransform(Linear(), 3, 20, divergence="hutchinson")
    with torch.no_grad():
        ladj = transform.call_and_ladj(points(50, 3))[1]
        back = transform.inverse_and_ladj(points(50, 3))[1]
    torch.testing.assert_close(ladj, MATRIX.trace().expand(50))
    torch.testing.assert_close(back, -MATRIX.trace().expand(50))


# Errors --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inverse", [False, True])
def test_error_estimate_is_the_error(inverse):
    x = points(30, 2)
    transform = ContinuousTransform(Swirl(), 2, 16)
    fine = ContinuousTransform(Swirl(), 2, 400)
    with torch.no_grad():
        (y, ladj), (y_true, ladj_true) = (
            (t.inverse_and_ladj if inverse else t.call_and_ladj)(x) for t in (transform, fine)
        )
    estimate = transform.error_estimate(x, inverse=inverse)
    for got, truth in ((estimate.log_det, ladj - ladj_true), (estimate.state, (y - y_true).norm(dim=-1))):
        assert (got - truth).norm() < 0.25 * truth.norm()
    assert estimate.rms_log_det == pytest.approx(float((ladj - ladj_true).square().mean().sqrt()), rel=0.25)
    assert 1 - 1e-3 < estimate.ess_factor < 1


def test_error_estimate_of_the_adaptive_solver():
    x = points(30, 2)
    transform = ContinuousTransform(Swirl(), 2, solver="otd", rtol=1e-3, atol=1e-3)
    with torch.no_grad():
        truth = transform.call_and_ladj(x)[1] - ContinuousTransform(Swirl(), 2, 400).call_and_ladj(x)[1]
    assert (transform.error_estimate(x).log_det - truth).norm() < 0.25 * truth.norm()


def test_large_batches_with_wrong_log_densities_warn_once():
    transform = ContinuousTransform(Swirl(), 2, 2)
    x = points(1500, 2)
    assert transform.error_estimate(x).rms_log_det > 0.015
    with torch.no_grad():
        with pytest.warns(UserWarning, match=r"off by about 0\.\d+ with 2 rk4 steps.*num_steps=4"):
            transform.call_and_ladj(x)
        transform.call_and_ladj(x)  # said already
        with pytest.warns(UserWarning, match="off by about"):
            transform.inverse_and_ladj(x)
        transform.call_and_ladj(x)
        transform.configure(divergence="jacobian").call_and_ladj(x)  # exact for the discrete map
        transform.configure(divergence="exact", num_steps=20).call_and_ladj(x)
        quiet = ContinuousTransform(Swirl(), 2, 2, checked=False)
        quiet.call_and_ladj(x)
    transform.configure(num_steps=2).call_and_ladj(x)  # training looks at no check


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_steps": 1}, r"off by about \S+ with 1 rk4 steps.*num_steps=2"),
        ({"solver": "otd", "rtol": 0.5, "atol": 0.5}, r"off by about \S+ with adaptive steps of rtol=0\.5.*rtol=0\.05"),
    ],
    ids=["one-step", "adaptive"],
)
def test_what_has_no_half_is_checked_by_a_finer_solution(settings, message):
    transform, x = ContinuousTransform(Swirl(), 2, **settings), points(1500, 2)
    assert transform.error_estimate(x).rms_log_det > 0.02
    with torch.no_grad():
        with pytest.warns(UserWarning, match=message):
            transform.call_and_ladj(x)
        transform.configure(num_steps=20, rtol=1e-5, atol=1e-6).call_and_ladj(x)


def test_a_check_that_cannot_go_on_warns_and_leaves_the_answer(monkeypatch):
    transform, x = ContinuousTransform(Swirl(), 2, solver="otd", rtol=0.5, atol=0.5), points(1500, 2)
    with torch.no_grad():
        truth = ContinuousTransform(Swirl(), 2, solver="otd", rtol=0.5, atol=0.5, checked=False).call_and_ladj(x)
        monkeypatch.setattr(solvers, "MAX_ADAPTIVE_STEPS", 3)
        with pytest.warns(UserWarning, match="off by about inf"):
            found = transform.call_and_ladj(x)
    assert all(torch.equal(*both) for both in zip(found, truth, strict=True))


def test_rows_that_only_the_coarse_check_loses_are_not_overlooked():
    """Steps of 1/20 are stable at a rate of 50, steps of 1/10 grow by 13.7 each, and overflow where it is squared."""

    class Cubic(NetworkField):
        def forward(self, t, x):
            return -50.0 * x * (1.0 + 1e-3 * x.square())

    transform, x = ContinuousTransform(Cubic(), 1, 20), torch.linspace(1.0, 2.0, 1200).unsqueeze(-1)
    coarse = ContinuousTransform(Cubic(), 1, 10)
    with pytest.warns(UserWarning, match="1200 of 1200 trajectories left"):
        coarse.call_and_ladj(x)
    with torch.no_grad(), pytest.warns(UserWarning, match="off by about inf"):
        assert bool(transform.call_and_ladj(x)[1].isfinite().all())


def test_blocks_of_rows_are_one_batch():
    transform = ContinuousTransform(Swirl(), 2, 3, checked=False)
    x = points(3, 3000, 2)
    y, ladj = transform.call_and_ladj(x)
    with torch.no_grad():
        y_blocks, ladj_blocks = transform.call_and_ladj(x)
        empty = transform.call_and_ladj(x[:, :0])
    torch.testing.assert_close(y_blocks, y.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ladj_blocks, ladj.detach(), rtol=1e-12, atol=1e-12)
    assert empty[0].shape == (3, 0, 2) and empty[1].shape == (3, 0)


def test_steep_field_is_flagged_row_by_row():
    """Rows that overflow are NaN and told of; the others are right."""
    transform = ContinuousTransform(Steep(1e4), 2)
    x = torch.tensor([[3.0, 1.0], [-0.5, 0.5]])
    for grad in (False, True):
        transform._has_warned = False
        with torch.set_grad_enabled(grad), pytest.warns(UserWarning, match=r"1 of 2 trajectories.*more steps"):
            y, ladj = transform.call_and_ladj(x)
        assert bool(y[0].isnan().all()) and bool(ladj[0].isnan())
        torch.testing.assert_close(y[1].detach(), torch.tensor([-0.5, 0.5]) * math.exp(-1), rtol=1e-5, atol=1e-5)
        assert float(ladj[1].detach()) == pytest.approx(-2, abs=1e-5)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("error")
        assert bool(transform.call_and_ladj(x)[0][0].isnan().all())  # still flagged, told once


def test_adaptive_solver_that_cannot_go_on_says_so(monkeypatch):
    monkeypatch.setattr(solvers, "MAX_ADAPTIVE_STEPS", 20)
    transform = ContinuousTransform(Steep(1e5), 2, solver="otd")
    for grad in (False, True):
        with torch.set_grad_enabled(grad), pytest.raises(SolverError, match=r"gave up.*solver='dto'"):
            transform.call_and_ladj(torch.ones(3, 2))


def test_adaptive_solver_names_rows_that_are_not_finite_and_takes_empty_batches():
    transform = ContinuousTransform(Linear(), 3, solver="otd")
    x = points(4, 3)
    x[1, 0] = torch.nan
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            with pytest.raises(SolverError, match=r"1 of 4 rows are NaN or infinite"):
                transform.call_and_ladj(x)
            y, ladj = transform.call_and_ladj(x[:0])
            assert y.shape == (0, 3) and ladj.shape == (0,)


# Contract ------------------------------------------------------------------------------------------------------------


def test_shapes_copies_and_caches():
    check_shapes(ContinuousTransform(MLPField(2, width=8, depth=0), 2, 2), dim=2)
    transform = ContinuousTransform(Swirl(), 2, 5)
    x = points(4, 2)
    y = transform(x)
    assert transform.inv(y) is x
    assert not transform.with_cache(0).inv(y).equal(x)
    assert transform.with_cache(0).field is transform.field
    for clone in (copy.deepcopy(transform), pickle.loads(pickle.dumps(transform))):
        assert clone(x).equal(y) and clone.field is not transform.field
    other = ContinuousTransform(Swirl(), 2, 5)
    with torch.no_grad():
        transform.field.rate.fill_(0.4)
    assert not transform(x).equal(y)
    other.load_state_dict(transform.state_dict())
    assert other(x).equal(transform(x))


def test_settings_change_later():
    transform = ContinuousTransform(Swirl(), 2, 2)
    x = points(4, 2)
    coarse = transform(x)
    assert transform.configure(num_steps=50) is transform
    assert transform.num_steps == 50
    assert not transform(x).equal(coarse)
    adaptive = transform.configure(solver="otd", rtol=1e-7, atol=1e-7)(x)
    torch.testing.assert_close(adaptive, ContinuousTransform(Swirl(), 2, 50)(x), rtol=1e-5, atol=1e-5)


def test_unknown_arguments_reach_no_solver():
    """The published code passed them all on: a temperature ended in dopri5."""
    with pytest.raises(TypeError, match="temperature"):
        ContinuousTransform(Linear(), 3, temperature=2.0)
    with pytest.raises(TypeError, match="temperature"):
        ContinuousTransform(Linear(), 3).configure(temperature=2.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_steps": 0}, "num_steps must be a positive integer, got 0"),
        ({"num_steps": 2.5}, "num_steps must be"),
        ({"method": "dopri5"}, "method must be one of euler, midpoint, rk4"),
        ({"solver": "adjoint"}, 'solver must be "dto"'),
        ({"divergence": "trace"}, 'divergence must be "exact"'),
        ({"divergence": "jacobian", "solver": "otd"}, 'take solver="dto"'),
        ({"rtol": 0.0}, "rtol and atol must be positive"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        ContinuousTransform(Linear(), 3, **settings)


def test_bad_fields_and_shapes():
    with pytest.raises(TypeError, match="field must be a module"):
        ContinuousTransform(lambda t, x: x, 3)
    with pytest.raises(ShapeError, match="works in dimension 2, the transform in 3"):
        ContinuousTransform(MLPField(2), 3)
    with pytest.raises(ShapeError, match="returned velocities of shape"):
        transform = ContinuousTransform(Linear(MATRIX[:2]), 3, divergence="autograd")
        transform.call_and_ladj(points(4, 3))
    with pytest.raises(ShapeError, match=r"computes in torch.float32, but points are torch.float64"):
        ContinuousTransform(MLPField(3), 3)(torch.zeros(4, 3, dtype=torch.float64))
    with pytest.raises(ShapeError, match=r"expects a tensor of shape \(\*batch, 3\)"):
        ContinuousTransform(Linear(), 3)(points(4, 2))
    with pytest.raises(ShapeError, match="does not broadcast"):
        MLPField(2)(torch.zeros(3), torch.zeros(4, 2))
    with pytest.raises(ValueError, match=r'configure\(solver="dto"\)'):
        ContinuousTransform(Linear(), 3, solver="otd").discrete_log_det(points(4, 3))
    with pytest.raises(ValueError, match="noise must be"):
        Hutchinson("uniform")
    with pytest.raises(ValueError, match="num_probes"):
        Hutchinson(num_probes=0)


def test_kernel_flow_is_symmetric_and_knows_its_particles():
    """Equivariant, its log-determinant invariant, to 1e-5 in float32; the inverse to the solver's accuracy."""
    torch.manual_seed(0)
    flow, symmetry, z = KernelFlow(4, 2, num_steps=10), ParticleSymmetry(4, 2), torch.randn(50, 6)
    with torch.no_grad():
        check_equivariance(lambda x: flow.call_and_ladj(x)[0], symmetry, z, tolerance=1e-5)
        check_invariance(lambda x: flow.call_and_ladj(x)[1], symmetry, z, tolerance=1e-5)
        back, ladj = flow.inverse_and_ladj(flow.call_and_ladj(z)[0])
    torch.testing.assert_close(back, z, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ladj, -flow.call_and_ladj(z)[1].detach(), rtol=1e-4, atol=1e-3)
    with pytest.raises(ShapeError, match="6"):
        flow.call_and_ladj(torch.randn(5, 8))
