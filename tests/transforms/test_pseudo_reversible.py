"""Pseudo-reversible flows: exact pairs, folds and gaps with closed forms, polishing, Pyro, and a short training."""

from __future__ import annotations

import copy
import io
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_boltzmann.exceptions import OutsideDomainWarning, ShapeError, SolverError
from pyro_boltzmann.transforms import ConditionalMap, PseudoReversibleFlow, Standardisation, polish


class Elementwise(ConditionalMap):
    """A function of one number and its derivative, as a map that needs no context."""

    def __init__(self, function, derivative):
        super().__init__()
        self.function, self.derivative = function, derivative

    def forward(self, context, y):
        return self.function(y)

    def value_and_jacobian(self, context, y):
        return self.function(y), torch.diag_embed(self.derivative(y))


def elementwise_flow(h, g=None):
    flow = PseudoReversibleFlow(1, hidden_dims=(4,)).double()
    flow.h = Elementwise(*h)
    flow.g = Elementwise(*(g or (lambda z: z, torch.ones_like)))
    return flow


def ask_anywhere(flow):
    """As if the training data had filled all of space."""
    flow.context_units.low.fill_(-math.inf)
    flow.context_units.high.fill_(math.inf)


FOLD = 0.5
cubic = (lambda y: FOLD * (y**3 - 3 * y), lambda y: FOLD * (3 * y**2 - 3))


@pytest.fixture
def linear():
    """An affine h with its exact inverse g, in units that are not those of the data."""
    flow = PseudoReversibleFlow(2, 3, hidden_dims=()).double()
    flow.standardise(torch.randn(50, 3).double() * 2 + 1, torch.randn(50, 2).double() * 3 - 4)
    ask_anywhere(flow)
    h, g = flow.h.layers[0], flow.g.layers[0]
    with torch.no_grad():
        inverse = torch.linalg.inv(h.weight[:, 3:])
        g.weight.copy_(torch.cat([-inverse @ h.weight[:, :3], inverse], 1))
        g.bias.copy_(-inverse @ h.bias)
    return flow


def as_gaussian(flow, x0):
    """The law of y at x0 as Pyro writes it."""
    h = flow.h.layers[0]
    inverse = torch.linalg.inv(h.weight[:, 3:]).detach()
    shift = (flow.context_units.standard(x0) @ h.weight[:, :3].mT + h.bias).detach()
    scale = flow.units.scale[:, None] * inverse
    return dist.MultivariateNormal(flow.units.original(-shift @ inverse.mT), scale @ scale.mT)


def test_an_affine_pair_is_exact(linear):
    x0 = torch.randn(5, 3).double()
    y = linear.sample(x0, sample_shape=(7,))
    assert y.shape == (7, 5, 2)
    torch.testing.assert_close(linear.log_prob(y, x0), as_gaussian(linear, x0).log_prob(y), rtol=1e-10, atol=1e-10)
    assert linear.round_trip(y, x0).shape == (7, 5)
    assert float(linear.round_trip(y, x0).max()) < 1e-12
    gap = linear.density_gap(x0, 20)
    assert gap.values.shape == (20, 5) and float(gap.values.abs().max()) < 1e-10
    torch.testing.assert_close(gap.ess, torch.ones(5).double())
    assert linear.folds(y, x0).minority == 0


def test_the_mass_of_an_affine_pair_is_one(linear):
    mass = linear.mass(torch.randn(2, 2, 3).double(), num_samples=4000)
    assert mass.value.shape == mass.std_error.shape == (2, 2)
    assert float(mass.std_error.max()) < 0.03
    assert bool(((mass.value - 1).abs() < 4.5 * mass.std_error).all())


def test_samples_of_g_have_the_moments_of_the_law(linear):
    x0 = torch.randn(3).double()
    y, law = linear.sample(x0, sample_shape=(20_000,)), as_gaussian(linear, x0)
    error = law.variance.sqrt() / math.sqrt(len(y))
    assert bool(((y.mean(0) - law.mean).abs() < 4.5 * error).all())


def test_the_mass_of_a_folding_map_exceeds_one():
    """Defect 3. Three roots where |z| < 2 FOLD: mass = 1 + 2 P(|z| < 1)."""
    flow = elementwise_flow(cubic)
    mass = flow.mass(torch.zeros(1).double(), num_samples=6000)
    exact = 1 + 2 * math.erf(2 * FOLD / math.sqrt(2))
    assert abs(float(mass.value) - exact) < 4.5 * float(mass.std_error)
    assert float(mass.value) - 1 > 4.5 * float(mass.std_error)
    grid = torch.linspace(-5, 5, 100_001).double()[:, None]
    integral = torch.trapezoid(flow.log_prob(grid, torch.zeros(1).double()).exp(), grid[:, 0])
    torch.testing.assert_close(float(integral), exact, rtol=1e-6, atol=0)


def test_the_mass_of_a_map_that_does_not_reach_every_latent_is_below_one():
    flow = elementwise_flow((torch.tanh, lambda y: 1 - y.tanh() ** 2))
    mass = flow.mass(torch.zeros(1).double(), num_samples=6000)
    assert abs(float(mass.value) - math.erf(1 / math.sqrt(2))) < 4.5 * float(mass.std_error)
    assert 1 - float(mass.value) > 4.5 * float(mass.std_error)


def test_folds_are_counted_and_polishing_does_not_hide_them():
    flow = elementwise_flow(cubic)
    y = torch.tensor([-2.0, -1.5, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0]).double()[:, None]
    assert flow.folds(y, torch.zeros(1).double()) == (4, 3, 1)
    assert flow.folds(y, torch.zeros(1).double()).minority == 4
    # g = z starts Newton's method inside the fold where |z| is small, and outside where it is large.
    z = torch.tensor([0.1, -0.2, 0.3, 3.0, -3.0, 2.5, 4.0, -4.0]).double()[:, None]
    result = flow.polish(z, torch.zeros(1).double())
    assert bool(result.converged.all())
    assert result.is_fold.tolist() == (result.y[:, 0].abs() < 1).tolist()
    assert result.num_folds == 3 and result.num_failed == 0 and int(result.accepted.sum()) == 5
    with pytest.raises(SolverError, match="lie in a fold"):
        flow.sample(torch.zeros(200, 1).double(), polished=True)


def test_the_orientation_that_training_met_tells_what_a_fold_is():
    """Most of these solutions lie in the fold; a majority among themselves would accept them."""
    flow = elementwise_flow(cubic)
    outside = 2 + torch.rand(20, 1).double()
    flow.loss(torch.zeros(20, 1).double(), outside)
    assert int(flow.orientation) == 1
    result = flow.polish(torch.tensor([[0.1], [-0.2], [0.3], [3.0]]).double(), torch.zeros(1).double())
    assert result.is_fold.tolist() == [True, True, True, False]
    flow.eval()
    flow.loss(torch.zeros(20, 1).double(), 0.1 * outside)
    assert int(flow.orientation) == 1


def test_rows_without_a_solution_are_counted_not_returned():
    flow = elementwise_flow((torch.tanh, lambda y: 1 - y.tanh() ** 2))
    result = flow.polish(torch.tensor([[0.5], [1.5]]).double(), torch.zeros(1).double())
    assert result.converged.tolist() == [True, False] and result.num_failed == 1
    assert float(result.residual[1]) >= 0.5
    with pytest.raises(SolverError, match="could not be inverted for"):
        flow.sample(torch.zeros(50, 1).double(), polished=True)


def near_pair(dtype=torch.float64):
    """An invertible tanh map h, and a g that is not its inverse."""
    torch.manual_seed(1)
    flow = PseudoReversibleFlow(3, 2, hidden_dims=(32, 32), skip=True, polished=True)
    flow.standardise(torch.randn(50, 2), 2 * torch.randn(50, 3) + 1)
    ask_anywhere(flow)
    return flow.to(dtype)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-6)])
def test_polished_samples_follow_h(dtype, tolerance):
    flow = near_pair(dtype)
    x0, z = torch.randn(400, 2, dtype=dtype), torch.randn(400, 3, dtype=dtype)
    result = flow.polish(z, x0)
    assert bool(result.accepted.all()) and result.evaluations <= 20
    assert result.y.dtype == result.residual.dtype == dtype and float(result.residual.max()) <= tolerance
    with torch.no_grad():
        # In double precision also for a flow of single precision: its own h has rounding errors of this size.
        exact = copy.deepcopy(flow).double().condition(x0.double())
        assert float((exact.inv(result.y.double()) - z).abs().max()) <= tolerance
        flow.polished = False
        rough = flow.condition(x0)
        assert float((rough.inv(rough(z)) - z).abs().max()) > 1e-2


def test_damping_solves_where_full_steps_diverge():
    """Newton's method for arctan diverges from |y| > 1.39; steps that do not help are halved."""
    h = Elementwise(torch.atan, lambda y: 1 / (1 + y**2))
    context, start = torch.zeros(3, 0).double(), torch.tensor([[3.0], [-20.0], [0.5]]).double()
    result = polish(h, context, torch.zeros(3, 1).double(), start, orientation=1)
    assert bool(result.accepted.all()) and float(result.y.abs().max()) < 1e-8


def test_the_gradient_of_a_polished_sample_is_that_of_the_implicit_function():
    flow = near_pair()
    x0, z = torch.randn(4, 2).double(), torch.randn(4, 3).double().requires_grad_()
    parameter = flow.h.layers[1].weight

    def total():
        return flow.condition(x0)(z).square().sum()

    of_z, of_weight = torch.autograd.grad(total(), [z, parameter])
    step = 1e-5
    with torch.no_grad():
        for tensor, gradient in ((z, of_z), (parameter, of_weight)):
            tensor[1, 2] += step
            above = total()
            tensor[1, 2] -= 2 * step
            below = total()
            tensor[1, 2] += step
            torch.testing.assert_close(gradient[1, 2], (above - below) / (2 * step), rtol=1e-5, atol=1e-7)


def published_loss(flow, x0, y, penalty):
    """The published loss, with the Jacobian by reverse passes."""
    c, t = (x0 - x0.mean(0)) / x0.std(0), ((y - y.mean(0)) / y.std(0)).requires_grad_()
    z = flow.h(c, t)
    rows = [torch.autograd.grad(z[:, i].sum(), t, create_graph=True)[0] for i in range(z.shape[1])]
    log_det = torch.stack(rows, 1).det().abs().log()
    negative = 0.5 * z.square().sum(1) + 0.5 * z.shape[1] * math.log(2 * math.pi) - log_det
    return (negative + penalty * (flow.g(c, z) - t).square().sum(1)).mean()


def test_the_loss_is_the_published_one_and_evaluates_h_once():
    flow = PseudoReversibleFlow(3, hidden_dims=(16, 12), penalty=7.0).double()
    x0, y = torch.randn(40, 3).double() * 3, torch.randn(40, 3).double() - 2
    flow.standardise(x0, y)
    calls = []
    values = flow.h.value_and_log_det
    flow.h.value_and_log_det = lambda *a: calls.append(1) or values(*a)
    loss = flow.loss(x0, y)
    assert calls == [1]
    loss.backward()
    ours = [p.grad.clone() for p in flow.parameters()]
    flow.zero_grad()
    expected = published_loss(flow, x0, y, 7.0)
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-11, atol=0)
    for mine, parameter in zip(ours, flow.parameters(), strict=True):
        torch.testing.assert_close(mine, parameter.grad, rtol=1e-8, atol=1e-9)


def test_log_prob_is_of_the_data_and_not_of_the_units():
    flow = PseudoReversibleFlow(2, hidden_dims=(8,)).double()
    x0, y = torch.randn(30, 2).double(), torch.randn(30, 2).double()
    flow.standardise(x0, y)
    plain = flow.log_prob(y, x0)
    flow.standardise(x0, 10 * y + 3)
    torch.testing.assert_close(flow.log_prob(10 * y + 3, x0), plain - 2 * math.log(10))


@pytest.mark.parametrize("way", ["state_dict", "pickle", "deepcopy"])
def test_units_and_orientation_travel_with_the_flow(way):
    """Defect 8."""
    flow = near_pair(torch.float32)
    x0, y = torch.randn(9, 2), torch.randn(9, 3)
    flow.loss(x0, y)
    expected = flow.log_prob(y, x0)
    if way == "state_dict":
        other = PseudoReversibleFlow(3, 2, hidden_dims=(32, 32), skip=True)
        other.load_state_dict(flow.state_dict())
    elif way == "pickle":
        file = io.BytesIO()
        torch.save(flow, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    else:
        other = copy.deepcopy(flow)
    assert torch.equal(other.log_prob(y, x0), expected)
    assert int(other.orientation) == int(flow.orientation) == 1
    with torch.no_grad():
        next(other.parameters()).add_(1.0)
    assert torch.equal(flow.log_prob(y, x0), expected)


@pytest.mark.parametrize("polished", [False, True])
@pytest.mark.parametrize("conditional", [False, True])
def test_it_is_a_conditional_transform_of_pyro(polished, conditional):
    flow = near_pair()
    flow.polished = polished
    x0 = torch.randn(5, 2).double()
    base = dist.Normal(torch.zeros(5, 3).double(), 1.0).to_event(1)
    if conditional:
        law = dist.ConditionalTransformedDistribution(base, [flow]).condition(x0)
    else:
        law = dist.TransformedDistribution(base, [flow.condition(x0)])

    def model():
        return pyro.sample("y", law)

    trace = pyro.poutine.trace(model).get_trace()
    y = trace.nodes["y"]["value"]
    density = flow.log_prob(y, x0)
    torch.testing.assert_close(trace.log_prob_sum(), density.sum(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(law.log_prob(y.clone()), density, rtol=1e-9, atol=1e-9)
    trace.log_prob_sum().backward()
    assert all(p.grad is not None and bool((p.grad != 0).any()) for p in flow.h.parameters() if p.dim() > 1)


def test_the_log_determinant_is_hs_at_y():
    flow = near_pair()
    flow.polished = False
    x0, z = torch.randn(6, 2).double(), torch.randn(6, 3).double()
    transform = flow.condition(x0)
    y = transform(z)
    back = transform.inv(y)
    assert float((back - z).detach().abs().max()) > 1e-3  # the inverse is h, not a memory of z
    normal = dist.Normal(torch.zeros(3).double(), 1.0).to_event(1)
    expected = normal.log_prob(back) - flow.log_prob(y, x0)
    for ladj in (
        transform.log_abs_det_jacobian(back, y),
        -transform.inverse_and_ladj(y)[1],
        transform.call_and_ladj(z)[1],
    ):
        torch.testing.assert_close(ladj, expected)


def test_one_context_serves_a_batch_and_the_other_way_round():
    flow = near_pair()
    x0, y = torch.randn(4, 2).double(), torch.randn(6, 4, 3).double()
    whole = flow.log_prob(y, x0)
    assert whole.shape == (6, 4)
    torch.testing.assert_close(whole[2, 1], flow.log_prob(y[2, 1], x0[1]))
    torch.testing.assert_close(flow.log_prob(y[0, 0], x0)[0], whole[0, 0])
    assert flow.log_prob(y[0, 0], x0).shape == (4,)


def test_time_as_an_input_and_as_a_promise():
    flow = PseudoReversibleFlow(1, hidden_dims=(8,), takes_time=True).double()
    x0, y, time = torch.randn(20, 1).double(), torch.randn(20, 1).double(), torch.rand(20).double()
    flow.standardise(x0, y, time)
    assert len(flow.context_units.mean) == 2
    rows = flow.log_prob(y, x0, time)
    torch.testing.assert_close(rows[3], flow.log_prob(y[3], x0[3], float(time[3])))
    assert flow.sample(x0, 0.5).shape == (20, 1) and flow.mass(x0[:2], 0.5, 10).value.shape == (2,)
    assert flow.density_gap(x0[:2], 5, time=0.5).values.shape == (5, 2)
    with pytest.raises(ValueError, match="takes the time as an input"):
        flow.log_prob(y, x0)
    fixed = PseudoReversibleFlow(1, hidden_dims=(8,), time=2.0).double()
    assert torch.equal(fixed.log_prob(y, x0, 2.0), fixed.log_prob(y, x0))
    with pytest.raises(ValueError, match=r"for the time 2.0 alone, got time=1.0"):
        fixed.log_prob(y, x0, 1.0)
    with pytest.raises(ValueError, match="built without a time"):
        PseudoReversibleFlow(1, hidden_dims=(8,)).log_prob(y.float(), x0.float(), 1.0)


def test_bad_arguments_are_refused():
    flow = near_pair()
    x0, y = torch.randn(4, 2).double(), torch.randn(4, 3).double()
    with pytest.raises(ShapeError, match=r"states of shape \(\*batch, 3\)"):
        flow.log_prob(y[:, :2], x0)
    with pytest.raises(ShapeError, match=r"initial states of shape \(\*batch, 2\)"):
        flow.log_prob(y, y)
    with pytest.raises(ShapeError, match="do not broadcast"):
        flow.log_prob(y, x0[:3])
    with pytest.raises(ValueError, match="penalty"):
        PseudoReversibleFlow(1, penalty=-1.0)
    with pytest.raises(ValueError, match="not both"):
        PseudoReversibleFlow(1, time=1.0, takes_time=True)
    with pytest.raises(ValueError, match="outside must be"):
        PseudoReversibleFlow(1, outside="silent")
    with pytest.raises(ValueError, match="two samples"):
        flow.mass(x0, num_samples=1)


def test_initial_states_outside_of_the_training_data_are_told():
    """Defect 6: a map learned on one cell of a periodic drift says nothing of the next."""
    flow = PseudoReversibleFlow(2, hidden_dims=(4,))
    x0 = 2 * math.pi * torch.rand(500, 2)
    assert not bool(flow.extrapolates(x0).any())
    flow.standardise(x0, x0)
    assert not bool(flow.extrapolates(x0).any())
    assert bool(flow.extrapolates(x0 + 2 * math.pi).all())
    other = PseudoReversibleFlow(2, hidden_dims=(4,))
    other.load_state_dict(flow.state_dict())
    assert other.extrapolates(torch.tensor([[3.0, 3.0], [3.0, 7.0], [3.0, math.nan]])).tolist() == [False, True, True]


def questions(flow, x0, **time):
    """All that a flow is asked after training."""
    y = torch.zeros_like(x0)
    return {
        "log_prob": lambda: flow.log_prob(y, x0, **time),
        "sample": lambda: flow.sample(x0, **time),
        "polish": lambda: flow.polish(y, x0, **time).y,
        "polished": lambda: flow.sample(x0, polished=True, **time),
        "round_trip": lambda: flow.round_trip(y, x0, **time),
        "mass": lambda: flow.mass(x0, num_samples=10, **time).value,
        "folds": lambda: flow.folds(y, x0, **time),
        "density_gap": lambda: flow.density_gap(x0, 2, **time).values,
        "transform": lambda: flow.condition(x0, **time)(y),
        "inverse": lambda: flow.condition(x0, **time).inv(y),
    }


def test_questions_outside_of_the_training_data_are_refused_or_flagged():
    """Defect 6, for whatever can be asked; the data themselves and the loss are not in question."""
    flow = PseudoReversibleFlow(2, hidden_dims=(4,), skip=True)
    flow.standardise(torch.rand(500, 2), torch.randn(500, 2))
    inside, outside = torch.tensor([[0.5, 0.5], [0.01, 1.005]]), torch.tensor([[0.5, 0.5], [0.5, 1.2]])
    for ask in questions(flow, inside).values():
        ask()
    for name, ask in questions(flow, outside).items():
        with pytest.raises(ValueError, match=r"1 of \d+ rows|2 of \d+ rows"):
            print(name, ask())
    flow.loss(outside, torch.zeros(2, 2)).backward()
    flow.outside = "warn"
    for name, ask in questions(flow, outside).items():
        with pytest.warns(OutsideDomainWarning, match=r"x0\[1\] in \[0"):
            print(name, ask())


def test_times_outside_of_the_training_data_are_refused():
    flow = PseudoReversibleFlow(1, hidden_dims=(4,), skip=True, takes_time=True)
    x0 = torch.rand(500, 1)
    flow.standardise(x0, x0, 1.0 + torch.rand(500))
    for ask in questions(flow, x0[:3], time=1.5).values():
        ask()
    for name, ask in questions(flow, x0[:3], time=3.0).items():
        with pytest.raises(ValueError, match=r"time in \[1"):
            print(name, ask())


def test_units_of_constant_and_bad_columns():
    units = Standardisation(2).double()
    units.fit(torch.tensor([[0.1, 1.0]] * 3 + [[0.1, 2.0]]).double())
    assert float(units.scale[0]) == 1.0
    with pytest.raises(ValueError, match="1 of 2 rows are not finite"):
        units.fit(torch.tensor([[0.0, 1.0], [math.nan, 1.0]]))
    with pytest.raises(ShapeError, match="n >= 2"):
        units.fit(torch.zeros(1, 2))


def test_networks_are_plain_modules_of_any_device_and_nothing_global(cuda):
    """Defect 7."""
    flow = near_pair(torch.float32).to(cuda)
    x0, y = torch.randn(8, 2, device=cuda), torch.randn(8, 3, device=cuda)
    flow.loss(x0, y).backward()
    assert flow.log_prob(y, x0).is_cuda and flow.sample(x0).is_cuda and bool(flow.polish(y, x0).converged.all())
    assert isinstance(flow, nn.Module)
