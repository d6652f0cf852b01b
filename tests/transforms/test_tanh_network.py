"""The log-determinant of a tanh network and its gradient, against autograd's own."""

from __future__ import annotations

import pytest
import torch

from pyro_boltzmann.exceptions import ShapeError
from pyro_boltzmann.transforms import TanhNetwork, tanh_log_det

DEPTHS = ((), (7,), (7, 6), (5, 6, 7))


def network(hidden, *, context_dim=2, dim=3, **settings):
    torch.manual_seed(0)
    net = TanhNetwork(context_dim, dim, hidden, **settings).double()
    return net, torch.randn(6, context_dim, dtype=torch.float64), torch.randn(6, dim, dtype=torch.float64)


def autograd_jacobian(net, context, y):
    def one(c, point):
        return torch.autograd.functional.jacobian(lambda v: net(c[None], v[None])[0], point)

    return torch.stack([one(c, point) for c, point in zip(context, y, strict=True)])


@pytest.mark.parametrize("hidden", DEPTHS)
@pytest.mark.parametrize("skip", [False, True])
def test_values_jacobians_and_log_determinants(hidden, skip):
    net, context, y = network(hidden, skip=skip)
    exact = autograd_jacobian(net, context, y)
    values, jacobian = net.value_and_jacobian(context, y)
    torch.testing.assert_close(jacobian, exact, rtol=1e-12, atol=1e-14)
    again, log_abs_det, sign = net.value_and_log_det(context, y)
    expected_sign, expected = torch.linalg.slogdet(exact)
    torch.testing.assert_close(log_abs_det, expected, rtol=1e-11, atol=1e-12)
    assert torch.equal(sign, expected_sign)
    for value in (values, again):
        torch.testing.assert_close(value, net(context, y), rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("hidden", DEPTHS)
@pytest.mark.parametrize("skip", [False, True])
def test_gradients_by_hand_are_those_of_finite_differences(hidden, skip):
    net, context, y = network(hidden, skip=skip)
    names = [f"net.{name}" for name, _ in net.named_parameters()]

    def outputs(context, y, *parameters):
        call = dict(zip(names, parameters, strict=True))
        z, log_abs_det, _ = torch.func.functional_call(_Both(net), call, (context, y))
        return z, log_abs_det

    arguments = [t.detach().clone().requires_grad_() for t in (context, y, *net.parameters())]
    assert torch.autograd.gradcheck(outputs, arguments)


class _Both(torch.nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, context, y):
        return self.net.value_and_log_det(context, y)


def test_gradients_by_hand_are_autograds_and_reach_every_parameter():
    net, context, y = network((9, 8))
    weights = torch.randn(6, dtype=torch.float64)

    def gradients(log_abs_det, z):
        net.zero_grad()
        ((weights * log_abs_det).sum() + z.pow(3).sum()).backward()
        return [p.grad.clone() for p in net.parameters()]

    z, log_abs_det, _ = net.value_and_log_det(context, y)
    ours = gradients(log_abs_det, z)
    z, jacobian = net.value_and_jacobian(context, y)
    for mine, theirs in zip(ours, gradients(torch.linalg.slogdet(jacobian)[1], z), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)
        assert bool((mine != 0).any())


def test_chunks_change_nothing(monkeypatch):
    net, context, y = network((9, 8))

    def everything():
        net.zero_grad()
        z, log_abs_det, sign = net.value_and_log_det(context, y)
        (log_abs_det.sum() + z.sum()).backward()
        return [z.detach(), log_abs_det.detach(), sign, *(p.grad.clone() for p in net.parameters())]

    whole = everything()
    with torch.no_grad():
        plain = net.value_and_log_det(context, y)
    monkeypatch.setattr(tanh_log_det, "CHUNK", 6)  # two rows at a time
    for a, b in zip(whole, everything(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)
    monkeypatch.setattr("pyro_boltzmann.transforms.tanh_network.CHUNK", 1)
    with torch.no_grad():
        for a, b in zip(plain, net.value_and_log_det(context, y), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


def test_a_graph_can_be_used_twice():
    net, context, y = network((9, 8))
    _, log_abs_det, _ = net.value_and_log_det(context, y)
    first = torch.autograd.grad(log_abs_det.sum(), list(net.parameters())[:-1], retain_graph=True)
    second = torch.autograd.grad(log_abs_det.sum(), list(net.parameters())[:-1])
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_probes_keep_the_value_and_estimate_the_gradient_without_bias():
    """Rows repeated 4000 times: each entry of the mean gradient within 4.5 standard errors of the exact one."""
    net, context, y = network((5, 4), skip=True)
    estimated, _, _ = network((5, 4), skip=True, probes=2)
    c, point = context[:1], y[:1]
    _, exact_value, _ = net.value_and_log_det(c, point)
    exact_value.sum().backward()
    draws = []
    for _ in range(400):
        estimated.zero_grad()
        _, value, _ = estimated.value_and_log_det(c.expand(10, -1), point.expand(10, -1))
        assert torch.equal(value.detach(), exact_value.detach().expand(10))
        value.mean().backward()
        draws.append(torch.cat([p.grad.flatten() for p in estimated.parameters()]))
    stacked = torch.stack(draws)
    exact = torch.cat([p.grad.flatten() for p in net.parameters()])
    error = stacked.std(0) / 20.0
    assert bool(((stacked.mean(0) - exact).abs() <= 4.5 * error + 1e-12).all())
    assert float(error.max()) < 0.1 * float(exact.abs().max())


def test_a_determinant_beyond_the_range_of_floats_has_a_finite_logarithm():
    """Defect 4: det, then log of its absolute value, is log 0 in 60 dimensions."""
    net = TanhNetwork(0, 60, ())
    with torch.no_grad():
        net.layers[0].weight.copy_(-0.01 * torch.eye(60))
        _, log_abs_det, sign = net.value_and_log_det(torch.zeros(2, 0), torch.randn(2, 60))
        assert torch.det(-0.01 * torch.eye(60)).abs().log().isinf()
    torch.testing.assert_close(log_abs_det, torch.full((2,), 60 * torch.tensor(0.01).log().item()))
    assert sign.tolist() == [1.0, 1.0]


def test_bad_arguments_are_refused():
    for settings, message in (
        ({"context_dim": -1, "dim": 2}, "context_dim >= 0"),
        ({"context_dim": 1, "dim": 0}, "dim >= 1"),
        ({"context_dim": 1, "dim": 2, "hidden_dims": (0,)}, "positive widths"),
        ({"context_dim": 1, "dim": 2, "probes": 0}, "probes must be positive"),
    ):
        with pytest.raises(ValueError, match=message):
            TanhNetwork(**settings)
    with pytest.raises(ShapeError, match=r"contexts \(rows, 1\)"):
        TanhNetwork(1, 2, (4,))(torch.zeros(3, 2), torch.zeros(3, 2))
